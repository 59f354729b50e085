//! What is special about each kind, by API group.

pub(crate) mod apps;
pub(crate) mod authentication;
pub(crate) mod coordination;
pub(crate) mod core;
pub(crate) mod discovery;
pub(crate) mod events;
pub(crate) mod rbac;
pub(crate) mod scheduling;
