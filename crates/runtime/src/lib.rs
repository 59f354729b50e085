//! Containers under keepers: processes, namespaces, cgroups and logs of one machine.
//!
//! The decision in here: **containers do not belong to the daemon.** Every sandbox has a keeper, the
//! same executable executed again as a tiny single-threaded process. It holds the sandbox's
//! namespaces, makes its containers, reaps them, writes their logs and remembers how they ended; the
//! daemon talks to it over a unix socket and may be killed, upgraded and restarted meanwhile.
//! libcontainer, which forks and changes its caller, runs only in short-lived children of a keeper.
//!
//! ```text
//! daemon ── Keeper::start ──► fork+exec "keeper DIR" ──► unshare, bind DIR/keeper.sock
//!    │                                                        │ fork per start
//!    └── Keeper (async client) ◄── frames, fds ──► event loop ─┤── launcher ─ libcontainer ─► init
//!                                                     │        └── exec child ─ setns ─► command
//!                                                     └─► DIR/containers/ID.json, log files
//! ```
//!
//! Images and root file systems, addresses, and what a sandbox is for are left to the caller: a
//! keeper is given plain paths, numbers and strings.

pub mod cgroup;
mod client;
mod dead;
mod descriptors;
mod keeper;
mod program;
mod protocol;
mod record;
mod seccomp;
mod spec;

pub use client::{Exec, Found, Keeper, KeeperError, StreamEnds};
pub use dead::Dead;
pub use keeper::keeper_main;
pub use protocol::{Event, Refusal, RefusalKind};
pub use record::{
    ContainerRecord, RecordError, SandboxRecord, read_container_records, read_sandbox,
};
pub use spec::{
    ContainerSpec, ContainerState, ExecSpec, Mount, Propagation, Resources, Root, SandboxSpec,
    Seccomp, Security, User,
};

/// The first argument by which the executable knows that it is to be a keeper.
pub const KEEPER_ARGUMENT: &str = "keeper";
