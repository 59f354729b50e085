//! The [`Engine`] trait and the plain types that it speaks in.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
/// What the runtime is asked and says in the same words.
pub use runtime::{ContainerState, Mount, Propagation, Resources, Seccomp, Security};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

/// Names a sandbox: chosen by the caller, `[a-z0-9-]{1,64}`; for a pod, its uid.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SandboxId(pub String);

/// Names a container: 64 hexadecimal digits, made by the engine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerId(pub String);

/// What the caller wants to find again after a restart; the engine does not look inside.
pub type Labels = BTreeMap<String, String>;

/// Where a sandbox's network comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkMode {
    /// A network namespace of its own with an address on the instance's network.
    #[default]
    Own,
    /// The machine's.
    Host,
    /// A namespace with nothing but loopback.
    None,
}

/// A port of the machine that leads to a port of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Port on the machine.
    pub host_port: u16,
    /// Address on the machine; unspecified for all.
    pub host_address: Option<IpAddr>,
    /// Port in the sandbox.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// A sandbox to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Hostname inside.
    pub hostname: String,
    /// Network.
    pub network: NetworkMode,
    /// Ports of the machine that lead here.
    pub ports: Vec<PortMapping>,
    /// Content of `/etc/resolv.conf`, whole; absent: the machine's.
    pub resolv_conf: Option<String>,
    /// Lines of `/etc/hosts` after the built-in ones: address and names.
    pub hosts: Vec<(IpAddr, Vec<String>)>,
    /// Names by which `/etc/hosts` maps the sandbox's own address, first is canonical.
    pub own_names: Vec<String>,
    /// Namespaced sysctls.
    pub sysctls: BTreeMap<String, String>,
    /// Cgroup below the instance's own, e.g. `pods/burstable/pod<uid>`.
    pub cgroup: String,
    /// Limits on the sandbox as a whole.
    pub resources: Resources,
    /// One process namespace for all containers.
    pub share_processes: bool,
    /// The machine's process namespace.
    pub host_processes: bool,
    /// The machine's IPC namespace.
    pub host_ipc: bool,
    /// Kept and returned.
    pub labels: Labels,
}

/// A sandbox as it is.
#[derive(Clone, Debug)]
pub struct SandboxStatus {
    /// Its name.
    pub id: SandboxId,
    /// False when its keeper is gone: its containers are, too.
    pub alive: bool,
    /// Its address, for [`NetworkMode::Own`].
    pub address: Option<Ipv4Addr>,
    /// When it was made.
    pub created_at: Timestamp,
    /// From the spec.
    pub labels: Labels,
    /// All containers that have not been removed.
    pub containers: Vec<ContainerStatus>,
}

/// A container to be made. The image's config fills what is absent (OCI image spec, conversion).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Name inside its sandbox, for paths and messages.
    pub name: String,
    /// Image reference or id that [`Engine::image`] resolves.
    pub image: String,
    /// Replaces the image's entrypoint (and drops its cmd).
    pub command: Option<Vec<String>>,
    /// Replaces the image's cmd.
    pub args: Option<Vec<String>>,
    /// Added to and overriding the image's.
    pub env: Vec<(String, String)>,
    /// Replaces the image's.
    pub working_dir: Option<String>,
    /// `user`, `uid`, `uid:gid`, `user:group`; replaces the image's.
    pub user: Option<String>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Mounts, in order.
    pub mounts: Vec<Mount>,
    /// Limits.
    pub resources: Resources,
    /// What it may do.
    pub security: Security,
    /// A terminal instead of three pipes.
    pub tty: bool,
    /// Keep standard input open for attach; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Close standard input after the first attach ends.
    pub stdin_once: bool,
    /// Written by the keeper in the CRI format: `<RFC3339Nano> stdout|stderr F|P <line>`.
    pub log_path: PathBuf,
    /// -1000…1000; clamped to what the machine allows.
    pub oom_score_adj: Option<i32>,
    /// Replaces the image's; a name or number.
    pub stop_signal: Option<String>,
    /// Kept and returned.
    pub labels: Labels,
}

/// A container as it is.
#[derive(Clone, Debug)]
pub struct ContainerStatus {
    /// Its name for the engine.
    pub id: ContainerId,
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// From the spec.
    pub name: String,
    /// From the spec.
    pub image: String,
    /// The resolved image (`sha256:…`).
    pub image_id: String,
    /// Where in its life it is.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Where its log is.
    pub log_path: PathBuf,
    /// From the spec.
    pub labels: Labels,
}

/// Something that happened without being asked for, or as the effect of a call.
#[derive(Clone, Debug)]
pub enum Event {
    /// A container changed its state.
    Container {
        /// Its sandbox.
        sandbox: SandboxId,
        /// Which one.
        container: ContainerId,
        /// Its new state.
        state: ContainerState,
    },
    /// A keeper ended; what it held is gone.
    SandboxGone(SandboxId),
    /// Events were lost: list again.
    Missed,
}

/// What is known of an image on this machine.
#[derive(Clone, Debug)]
pub struct ImageInfo {
    /// `sha256:…` of its config.
    pub id: String,
    /// All names, in full form.
    pub references: Vec<String>,
    /// Unpacked size in bytes.
    pub size: u64,
    /// The image's user, as written in its config (may be empty).
    pub user: String,
    /// Whether it names an entrypoint or cmd.
    pub has_command: bool,
}

/// A command to run in a running container.
#[derive(Clone, Debug, Default)]
pub struct ExecSpec {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// A terminal.
    pub tty: bool,
    /// Whether standard input is connected.
    pub stdin: bool,
    /// Added to the container's.
    pub env: Vec<(String, String)>,
    /// Instead of the container's.
    pub working_dir: Option<String>,
    /// Instead of the container's.
    pub user: Option<String>,
}

/// A readable end.
pub type Reader = Pin<Box<dyn AsyncRead + Send>>;
/// A writable end; shutting it down is end-of-file for the process.
pub type Writer = Pin<Box<dyn AsyncWrite + Send>>;

/// The ends of a process's standard streams, and its terminal.
pub struct Streams {
    /// To its standard input, if asked for.
    pub stdin: Option<Writer>,
    /// From its standard output (and error, with a terminal).
    pub stdout: Reader,
    /// From its standard error; absent with a terminal.
    pub stderr: Option<Reader>,
    /// Present with a terminal: (columns, rows).
    pub resize: Option<Arc<dyn Fn(u16, u16) + Send + Sync>>,
}

/// A command that runs in a container.
pub struct Exec {
    /// Its streams.
    pub streams: Streams,
    /// Its exit status (128 + signal if killed). Dropping it does not end the command.
    pub exit: Pin<Box<dyn Future<Output = Result<i32, Error>> + Send>>,
    /// Ends the command.
    pub kill: Arc<dyn Fn() + Send + Sync>,
}

/// Use of resources by one container, since its start.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// CPU time.
    pub cpu: Duration,
    /// Bytes, with cache.
    pub memory: u64,
    /// Bytes, without reclaimable cache.
    pub memory_working_set: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// Why the engine could not.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such image here.
    #[error("image {0} is not on this machine")]
    ImageNotFound(String),
    /// No such sandbox.
    #[error("no such sandbox: {}", .0.0)]
    SandboxNotFound(SandboxId),
    /// No such container.
    #[error("no such container: {}", .0.0)]
    ContainerNotFound(ContainerId),
    /// The container is in the wrong part of its life for this call.
    #[error("container {} is not running", .0.0)]
    NotRunning(ContainerId),
    /// The sandbox has this already.
    #[error("{0} exists already")]
    Exists(String),
    /// The image or the spec asks for what cannot be: a user that does not exist, a bad signal name.
    #[error("{0}")]
    Invalid(String),
    /// The command could not be started in the container; the text is for the user
    /// (`exec: "foo": executable file not found in $PATH`).
    #[error("{0}")]
    Command(String),
    /// A step failed on this machine.
    #[error("{step} {subject}: {source}")]
    Machine {
        /// What was being done.
        step: &'static str,
        /// To what.
        subject: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Everything that can be asked of the containers of one machine.
///
/// Calls are safe to repeat: stopping what is stopped and removing what is gone succeed.
/// Dropping a call's future does not leave a half-made thing behind.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Whether those who keep the containers answer; resolves within a few seconds. Fine where there
    /// is nobody to be asked, or one alone does not answer.
    async fn health(&self) -> Result<(), Error> {
        Ok(())
    }

    /// All sandboxes with their containers, also those that an earlier daemon made.
    async fn sandboxes(&self) -> Vec<SandboxStatus>;

    /// One of them.
    async fn sandbox(&self, id: &SandboxId) -> Result<SandboxStatus, Error>;

    /// Makes the namespaces, the address and the keeper.
    async fn run_sandbox(&self, id: &SandboxId, spec: SandboxSpec) -> Result<SandboxStatus, Error>;

    /// Kills every container that still runs, and gives up the namespaces and the address.
    /// Logs, exit states and roots stay until [`Engine::remove_sandbox`].
    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), Error>;

    /// Stops it if needed; takes away everything of it on this machine but the log files.
    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), Error>;

    /// Prepares a container: root file system, cgroup, process waiting to be started.
    async fn create_container(
        &self,
        sandbox: &SandboxId,
        spec: ContainerSpec,
    ) -> Result<ContainerId, Error>;

    /// Starts its process. A command that cannot be executed is an [`Error::Command`] and leaves it exited with 128.
    async fn start_container(&self, id: &ContainerId) -> Result<(), Error>;

    /// Sends the stop signal, and SIGKILL after `grace`; resolves when it has exited. If nobody can say
    /// then that it has, as its keeper is silent, its whole sandbox is ended by force.
    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), Error>;

    /// Sends a signal.
    async fn signal_container(&self, id: &ContainerId, signal: i32) -> Result<(), Error>;

    /// Removes an exited (or never started) container; the log file stays.
    async fn remove_container(&self, id: &ContainerId) -> Result<(), Error>;

    /// One container.
    async fn container(&self, id: &ContainerId) -> Result<ContainerStatus, Error>;

    /// Runs a command in a running container.
    async fn exec(&self, id: &ContainerId, spec: ExecSpec) -> Result<Exec, Error>;

    /// Connects to a running container's own streams, from now on. One who does not take its output
    /// holds the container back, for some minutes; if something is lost then, or because everything is
    /// removed, reading ends with an error.
    async fn attach(&self, id: &ContainerId) -> Result<Streams, Error>;

    /// Connects to `localhost:port` as a process in the sandbox would.
    async fn dial(&self, sandbox: &SandboxId, port: u16) -> Result<tokio::net::TcpStream, Error>;

    /// Use of resources.
    async fn stats(&self, id: &ContainerId) -> Result<Stats, Error>;

    /// Bytes on the disk that the container has written to its root file system, running or not; what
    /// it wrote to its mounts is not counted. Counting ends beyond `most`.
    async fn written(&self, id: &ContainerId, most: u64) -> Result<u64, Error>;

    /// Tells the keeper to go on with a new, empty log file, after the caller moved the old one away.
    async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error>;

    /// What happens from now on. Bounded; [`Event::Missed`] when the reader was too slow.
    fn events(&self) -> tokio::sync::mpsc::Receiver<Event>;

    /// Looks an image up by reference, short or full, or by id.
    async fn image(&self, reference: &str) -> Option<ImageInfo>;

    /// All images.
    async fn images(&self) -> Vec<ImageInfo>;

    /// Mounts the files of an image on `target`, a directory of the machine; nothing can be written
    /// there. `name` is the sandbox's own for it, `[a-z0-9-]{1,63}`. The caller unmounts it; the
    /// image's layers stay until [`Engine::remove_sandbox`], which needs no sandbox to be there.
    async fn mount_image(
        &self,
        sandbox: &SandboxId,
        name: &str,
        image: &str,
        target: &Path,
    ) -> Result<(), Error>;
}
