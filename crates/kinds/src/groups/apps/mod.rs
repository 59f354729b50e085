//! apps: workloads that run for long.

pub(crate) mod deployment;
pub(crate) mod replica_set;
