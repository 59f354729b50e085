//! Shared caches of the cluster's objects, and what goes with them: change feeds, work queues, events.
//!
//! The decision: **one list and watch per kind per process**, whoever asks. A controller, the
//! scheduler, the gateway and the node agent of one program all read the same [`Informer`] of a kind;
//! its objects are typed, immutable and shared behind [`Arc`](std::sync::Arc), without the managed
//! fields that nobody here reads. What differs between two readers is only where each stands in the
//! feed of changes, and that costs memory by changed object, not by change: a reader that falls
//! behind skips states between, never the last one. Nothing is polled and nothing is replayed on a
//! timer; a watch that breaks resumes where it stood, and only when the server no longer has that
//! place is the list taken again, and then only real differences are told.
//!
//! ```text
//!   server ──list, watch──► Cache ──► get · list · list_in · index      (state, at any time)
//!                             └─────► Changes ──► Queue ──► reconcile   (what to look at again)
//! ```
//!
//! What to do about a change is left to the worker that hears it. Writes go past the cache straight
//! to the server by [`kube::Client`]; [`Informer::until`] lets a writer wait until its own write has
//! come back, so that its next look is never older than its last deed.

mod cache;
mod changes;
mod decode;
mod difference;
mod fields;
mod informers;
mod queue;
mod record;
mod reflect;
mod trim;

pub use cache::{Index, Key};
pub use changes::{Change, Changes};
pub use difference::merge_difference;
pub use informers::{Informer, Informers, Metadata, Object};
pub use queue::{Action, Queue};
pub use record::{EventType, Recorder, reference_to};
