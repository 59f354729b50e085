//! authentication.k8s.io: who is calling.

pub(crate) mod token_request;
