//! Local containers: image + runtime + network + volume behind one interface.
//!
//! The interface is the [`Engine`] trait, readable in one sitting: what the node agent, the Docker
//! API and the builder can ask of this machine. It speaks of sandboxes (namespaces with an address,
//! held by a keeper process) and containers inside them; no Kubernetes words. Everything an engine
//! knows survives the daemon: after a restart [`Engine::sandboxes`] lists what went on without it.
//!
//! [`LocalEngine`] is the one that makes real containers. It keeps nothing of its own that could be
//! lost: a sandbox is its directory, written by its keeper, and a line or two of notes.
//!
//! ```text
//! DATA/run/sandboxes/ID/     a sandbox (runtime: sandbox.json, keeper.sock, containers/)
//!   engine.json              its address; written last: without it the sandbox is half-made
//!   etc/{hosts,hostname,resolv.conf}
//! DATA/images/roots/CONTAINER   what a container wrote (image)
//! ```
//!
//! Probes, restart policies, and what a pod is, are left to the callers.

mod api;
mod convert;
mod error;
mod etc;
mod events;
mod execute;
mod local;
mod sandbox;
mod streams;
mod user;

pub use api::*;
pub use local::{CloseError, Config, LocalEngine, OpenError};
