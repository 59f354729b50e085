//! events.k8s.io: the newer form of events.

pub(crate) mod event;
