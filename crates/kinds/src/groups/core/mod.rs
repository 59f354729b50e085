//! The core group.

mod container;
mod env;
mod pod_defaults;
mod pod_spec;
mod pod_table;
mod pod_warnings;
mod probe;
mod resources;
mod scheduling;
mod security;
mod volume;

pub(crate) mod config_map;
pub(crate) mod endpoints;
pub(crate) mod event;
pub(crate) mod namespace;
pub(crate) mod node;
pub(crate) mod pod;
pub(crate) mod secret;
pub(crate) mod service;
pub(crate) mod service_account;

pub(crate) use pod_defaults::pod_spec as default_pod_spec;
pub(crate) use pod_spec::validate_workload;
pub(crate) use pod_warnings::workload as workload_warnings;
