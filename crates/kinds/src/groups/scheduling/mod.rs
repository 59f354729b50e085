//! scheduling.k8s.io: which pods go first.

pub(crate) mod priority_class;
