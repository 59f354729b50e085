//! discovery.k8s.io: where services lead.

pub(crate) mod endpoint_slice;
