//! policy: what may be disturbed.

pub(crate) mod eviction;
