//! rbac.authorization.k8s.io: who may do what.

pub(crate) mod binding;
pub(crate) mod role;
