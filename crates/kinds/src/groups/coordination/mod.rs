//! coordination.k8s.io: who holds what.

pub(crate) mod lease;
