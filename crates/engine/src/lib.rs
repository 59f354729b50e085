//! Local containers: image + runtime + network + volume behind one interface.
//!
//! The interface is the [`Engine`] trait, readable in one sitting: what the node agent, the Docker
//! API and the builder can ask of this machine. It speaks of sandboxes (namespaces with an address,
//! held by a keeper process) and containers inside them; no Kubernetes words. Everything an engine
//! knows survives the daemon: after a restart [`Engine::sandboxes`] lists what went on without it.
//!
//! Probes, restart policies, and what a pod is, are left to the callers.

mod api;

pub use api::*;
