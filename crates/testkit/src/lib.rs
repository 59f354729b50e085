//! A whole cluster in one test: store, API server, controllers, scheduler and node agents, in memory.
//!
//! The decision: **everything is the real thing but the disk, the network and the containers.** The
//! store writes into a [`Ledger`] instead of a file, workers reach the server by function calls, and
//! each node's agent runs its pods on a [`FakeEngine`] that does what a [`Script`] says. There are no
//! sockets and no files but the agents' directories in temporary places. A test says what it wants as
//! a person would, in YAML, lets the cluster [settle](Cluster::settle), and looks at what has become
//! of it, or at every step on the way there ([`Cluster::history`]).
//!
//! Time is tokio's, and meant to be paused (`#[tokio::test(start_paused = true)]`): the clocks of the
//! server, the controllers and the agents are made from it, so ten minutes pass as soon as nobody has
//! anything to do for ten minutes. Three things stand outside of tokio and must not be overtaken by
//! that jump: the store's writer thread (a write keeps the runtime awake until it is answered), work
//! on blocking threads (tokio does not jump while there is some), and the times that are written by
//! the wall's clock into Events and the scheduler's conditions, on which nothing depends. With a
//! clock that is not paused, and on several threads, all works the same, only slower.
//!
//! The same test can be run with [`Weather`]: requests of the workers are delayed, refused or
//! answered into the void, watches break and stutter. The seed decides when; the order of tasks and
//! the workers' own jitter are not seeded, so a seed gives the same weather, not the same run.
//!
//! What a container's processes do is left to the tests of `runtime`, packets to those of `network`
//! and `gateway`.

mod client;
mod clock;
mod cluster;
mod engine;
mod history;
mod ledger;
mod node;
mod script;
mod weather;
mod yaml;

pub use client::{Route, clients};
pub use clock::Clock;
pub use cluster::{Cluster, Options};
pub use engine::{Counts, FakeEngine};
pub use history::{History, Moment};
pub use ledger::{Ledger, Record};
pub use script::{Behaviour, Script};
pub use weather::{Weather, WeatherLayer};
