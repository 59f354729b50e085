//! What is asked of a keeper, in plain types.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A sandbox to be held by a keeper.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxSpec {
    /// Its name, for messages.
    pub id: String,
    /// Hostname in a UTS namespace of its own; absent: the machine's.
    pub hostname: Option<String>,
    /// A network namespace of its own, with loopback up; otherwise the machine's.
    pub own_network: bool,
    /// An IPC namespace of its own; otherwise the machine's.
    pub own_ipc: bool,
    /// One process namespace for all containers, whose first process is the keeper's helper.
    pub share_processes: bool,
    /// The machine's process namespace.
    pub host_processes: bool,
    /// Sysctls written in the sandbox's namespaces, by dotted name.
    pub sysctls: BTreeMap<String, String>,
    /// Absolute cgroup path of the sandbox (`/wharf/pods/…`), the same in every hierarchy.
    pub cgroup: String,
    /// Absolute cgroup path where keepers live, outside of any sandbox's limits: a keeper must not
    /// be killed, throttled or charged for log pages because its containers reached their limit.
    pub keeper_cgroup: String,
    /// Limits on the sandbox as a whole.
    pub resources: Resources,
    /// Bytes of the `/dev/shm` that its containers share, with an IPC namespace of its own.
    pub shm_size: u64,
    /// Kept and returned, not looked at.
    pub note: serde_json::Value,
}

/// Limits and shares. Absent means unlimited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Relative CPU weight, v1 scale (2…262144).
    pub cpu_shares: Option<u64>,
    /// CPU time in microseconds per period.
    pub cpu_quota: Option<i64>,
    /// Period in microseconds (default 100,000).
    pub cpu_period: Option<u64>,
    /// Bytes.
    pub memory_limit: Option<i64>,
    /// Number of processes and threads.
    pub pids_limit: Option<i64>,
}

/// Where a container's root file system comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Root {
    /// An overlay, mounted in the container's own mount namespace only: it is gone with the
    /// container, whatever happens to keeper and daemon.
    Overlay {
        /// Read-only layers, uppermost first.
        lower: Vec<PathBuf>,
        /// Where writes go.
        upper: PathBuf,
        /// overlayfs's own directory, on the same file system as `upper`.
        work: PathBuf,
    },
    /// A directory as it is.
    Directory(PathBuf),
}

/// As whom a process runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

/// How mounts made on one side show on the other (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// `rprivate`.
    #[default]
    Private,
    /// `rslave`.
    HostToContainer,
    /// `rshared`.
    Bidirectional,
}

/// A file or directory of the machine that appears inside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// Path on the machine; it exists.
    pub source: PathBuf,
    /// Absolute path in the container; made if absent.
    pub target: PathBuf,
    /// Writes fail with EROFS.
    pub read_only: bool,
    /// Mount propagation.
    pub propagation: Propagation,
}

/// Which system calls are allowed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Seccomp {
    /// The built-in default profile.
    #[default]
    Default,
    /// All.
    Unconfined,
    /// A profile file in the OCI or Docker JSON form.
    Profile(PathBuf),
}

/// What a container may do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// All capabilities, all devices, no masked paths, no system call filter.
    pub privileged: bool,
    /// Root file system read-only.
    pub read_only_root: bool,
    /// Added to the default set; `ALL` for all. With or without `CAP_`.
    pub capabilities_add: Vec<String>,
    /// Dropped from the default set; `ALL` for all.
    pub capabilities_drop: Vec<String>,
    /// Sets `no_new_privs`.
    pub no_new_privileges: bool,
    /// System call filter.
    pub seccomp: Seccomp,
    /// `/proc` and `/sys/firmware` unmasked: refused, as it is safe in a user namespace only.
    pub unmasked_proc: bool,
}

/// A container to be made. Everything is resolved: no image, no names to look up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Its name: unique in the sandbox, fit for a file name.
    pub id: String,
    /// Root file system.
    pub root: Root,
    /// Program and arguments; not empty.
    pub argv: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Absolute; made if absent.
    pub working_dir: String,
    /// As whom.
    pub user: User,
    /// Mounts, in order, after the standard ones.
    pub mounts: Vec<Mount>,
    /// Absolute cgroup path.
    pub cgroup: String,
    /// Limits.
    pub resources: Resources,
    /// What it may do.
    pub security: Security,
    /// A terminal instead of three pipes.
    pub tty: bool,
    /// Standard input is open for attach; otherwise `/dev/null`.
    pub stdin: bool,
    /// Standard input ends when the first attach ends.
    pub stdin_once: bool,
    /// Where its output goes in the CRI log format; absent: nowhere.
    pub log_path: Option<PathBuf>,
    /// -1000…1000, clamped to what the machine allows.
    pub oom_score_adj: Option<i32>,
    /// Kept and returned, not looked at.
    pub note: serde_json::Value,
}

/// A command to run in a running container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecSpec {
    /// Program and arguments; not empty.
    pub argv: Vec<String>,
    /// `NAME=value`, over the container's.
    pub env: Vec<String>,
    /// Instead of the container's; must exist.
    pub working_dir: Option<String>,
    /// Instead of the container's.
    pub user: Option<User>,
    /// A terminal.
    pub tty: bool,
    /// Whether standard input is connected; otherwise `/dev/null`.
    pub stdin: bool,
}

/// The life of a container.
///
/// ```text
/// create ─► Created ─start─► Running ─► Exited ─remove─► gone
///              └────────── start fails ────┘ (code 128, message)
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Its process runs.
    Running {
        /// Process id on the machine.
        pid: i32,
        /// When it started.
        started_at: Timestamp,
    },
    /// Its process ended, or could not be started.
    Exited {
        /// Exit status; 128 + signal for one that was killed.
        code: i32,
        /// The signal that killed it.
        signal: Option<i32>,
        /// The kernel killed one of its processes for want of memory.
        oom_killed: bool,
        /// When it started, if it did.
        started_at: Option<Timestamp>,
        /// When it ended.
        finished_at: Timestamp,
        /// Why it could not be started.
        message: Option<String>,
    },
}

impl ContainerState {
    /// The process id while it runs.
    pub fn pid(&self) -> Option<i32> {
        match self {
            ContainerState::Running { pid, .. } => Some(*pid),
            _ => None,
        }
    }

    /// Whether it has ended.
    pub fn is_exited(&self) -> bool {
        matches!(self, ContainerState::Exited { .. })
    }
}
