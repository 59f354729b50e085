//! The keeper process: one thread, one loop, no runtime.
//!
//! ```text
//!          start-up                       loop (poll)                          end
//! read sandbox.json            daemon's requests ► create, start, exec …   asked to, or its
//! leave the daemon's session   children's reports ► replies                 directory is gone
//! join the keepers' cgroup     SIGCHLD ► exit states, events                and nothing runs:
//! make namespaces              containers' output ► log, clients           cgroups removed,
//! bind keeper.sock, say "ok"   connecting sockets ► replies                 socket unlinked
//! ```
//!
//! It never waits for anything outside of poll, except for the disk.

mod bundle;
mod calls;
mod causes;
mod clients;
mod connection;
mod container;
mod dial;
mod exec;
mod executions;
mod exits;
mod hierarchies;
mod launch;
mod leftovers;
mod lives;
mod log;
mod memory;
mod namespaces;
mod process;
mod processes;
mod sources;
mod targets;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::io::Errno;

use self::connection::Connection;
use self::container::Container;
use self::dial::{Dial, Progress};
use self::executions::Execution;
use self::exits::UnknownExits;
use self::leftovers::Leftovers;
use self::memory::SharedMemory;
use self::process::{Side, fork};
use self::processes::Processes;
use crate::cgroup::{CgroupError, Cgroups};
use crate::protocol::{Answer, Refusal, RefusalKind};
use crate::record::{RecordError, SandboxRecord, boot, read_sandbox};

/// Peers at once. One daemon is usual; a second one may look on.
const CONNECTIONS_MAX: usize = 16;

/// How long containers may take to end when the machine goes down, as under Docker.
const GRACE: Duration = Duration::from_secs(10);

/// Until a connection is accepted that could not be, for want of descriptors or memory.
const PAUSE_ACCEPT: Duration = Duration::from_millis(250);

/// Bytes read at once from anything.
const BUFFER: usize = 32 << 10;

/// Why a keeper cannot begin.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("usage: keeper DIRECTORY")]
    Usage,
    #[error("{0} has no sandbox.json")]
    NoSandbox(PathBuf),
    #[error("{path} was made before the machine was started")]
    OtherBoot { path: PathBuf },
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Namespace(#[from] namespaces::NamespaceError),
    #[error(transparent)]
    Processes(#[from] processes::ProcessesError),
    #[error("{step}: {source}")]
    Machine {
        step: &'static str,
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> StartError {
    move |error| StartError::Machine {
        step,
        source: error.into(),
    }
}

/// Runs a keeper: what the executable does when its first argument is
/// [`KEEPER_ARGUMENT`](crate::KEEPER_ARGUMENT). `arguments` are those after it: the sandbox's directory.
///
/// To be called before anything else in `main`: no thread may have been started. The calling process
/// ends at once; the keeper is its child, in a session of its own, and says `ok` on standard output
/// when it can be connected to, or else why not.
pub fn keeper_main(arguments: impl IntoIterator<Item = OsString>) -> ! {
    close_inherited();
    let mut arguments = arguments.into_iter();
    let result = match (arguments.next(), arguments.next()) {
        (Some(directory), None) => begin(Path::new(&directory)),
        _ => Err(StartError::Usage),
    };
    match result {
        Ok(Some(mut keeper)) => {
            keeper.run();
            process::leave(0)
        }
        Ok(None) => process::leave(0),
        Err(error) => {
            // Whoever started this keeper reads standard output to its end.
            let _ = rustix::io::write(rustix::stdio::stdout(), error.to_string().as_bytes());
            process::leave(1)
        }
    }
}

/// Closes what somebody left open who started a program that started the daemon: locks and pipes of
/// theirs, which would be held for as long as a container runs.
fn close_inherited() {
    #[expect(unsafe_code, reason = "close_range(2) has no safe wrapper")]
    // SAFETY: nothing has been opened by this program yet but the three standard streams.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
    }
}

/// Everything up to the loop; `None` in the process that was started.
fn begin(directory: &Path) -> Result<Option<Keeper>, StartError> {
    let directory = fs::canonicalize(directory).map_err(failed("find the sandbox's directory"))?;
    let sandbox =
        read_sandbox(&directory)?.ok_or_else(|| StartError::NoSandbox(directory.clone()))?;
    if sandbox.boot != boot() {
        return Err(StartError::OtherBoot { path: directory });
    }
    if let Side::Parent(_) = fork().map_err(failed("fork"))? {
        return Ok(None);
    }
    rustix::process::setsid().map_err(failed("make a session"))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(failed("become the reaper"))?;
    let _ = rustix::thread::set_name(c"keeper");
    std::env::set_current_dir(&directory).map_err(failed("enter the sandbox's directory"))?;
    rustix::process::umask(rustix::fs::Mode::from(0o022));
    // Not without CAP_SYS_RESOURCE; the kernel then judges a keeper by its small size.
    let _ = fs::write("/proc/self/oom_score_adj", "-998");

    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGHUP);
    signals.thread_block().map_err(failed("block signals"))?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(failed("listen to signals"))?;

    let cgroups = Cgroups::detect()?;
    cgroups.join(&sandbox.spec.keeper_cgroup)?;
    namespaces::make(&sandbox.spec)?;

    let memory = match sandbox.spec.own_ipc {
        true => Some(
            SharedMemory::new(sandbox.spec.shm_size).map_err(failed("make the shared memory"))?,
        ),
        false => None,
    };
    // Late, as it outlives a keeper that fails before its loop.
    cgroups.create(&sandbox.spec.cgroup, &sandbox.spec.resources)?;
    let processes = match sandbox.spec.share_processes && !sandbox.spec.host_processes {
        true => Some(processes::hold(&cgroups, &sandbox.spec.cgroup)?),
        false => None,
    };
    let listener = listen()?;
    let watch = watch_directory().map_err(failed("watch the sandbox's directory"))?;
    fs::create_dir_all("containers").map_err(failed("make the containers' directory"))?;
    let keeper = Keeper {
        directory,
        sandbox,
        cgroups,
        processes,
        memory,
        listener,
        deaf: None,
        accept_fails: false,
        signals,
        watch,
        connections: BTreeMap::new(),
        containers: BTreeMap::new(),
        executions: BTreeMap::new(),
        dials: Vec::new(),
        unknown_exits: UnknownExits::default(),
        leftovers: Leftovers::default(),
        ending: None,
        patience: None,
        abandoned: false,
        number: 0,
        buffer: vec![0; BUFFER],
    };
    become_silent().map_err(failed("close the standard streams"))?;
    Ok(Some(keeper))
}

/// Binds by a short name in the working directory: the whole path may be longer than an address.
fn listen() -> Result<OwnedFd, StartError> {
    let _ = fs::remove_file("keeper.sock");
    let listener = UnixListener::bind("keeper.sock").map_err(failed("bind keeper.sock"))?;
    fs::set_permissions("keeper.sock", fs::Permissions::from_mode(0o600))
        .map_err(failed("restrict keeper.sock"))?;
    listener
        .set_nonblocking(true)
        .map_err(failed("listen on keeper.sock"))?;
    Ok(listener.into())
}

/// Tells when the directory is removed: its record is. (A directory's own removal is not told of
/// while it is somebody's working directory.)
fn watch_directory() -> rustix::io::Result<OwnedFd> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, "sandbox.json", inotify::WatchFlags::DELETE_SELF)?;
    Ok(watch)
}

/// Says that all is well, and lets go of the daemon's descriptors. Complaints go to `keeper.log`.
fn become_silent() -> io::Result<()> {
    let null = container::null()?;
    let complaints: OwnedFd = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open("keeper.log")?
        .into();
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stderr(&complaints)?;
    rustix::io::write(rustix::stdio::stdout(), b"ok")?;
    Ok(rustix::stdio::dup2_stdout(&null)?)
}

struct Keeper {
    /// Absolute; also the working directory.
    directory: PathBuf,
    sandbox: SandboxRecord,
    cgroups: Cgroups,
    processes: Option<Processes>,
    memory: Option<SharedMemory>,
    listener: OwnedFd,
    /// It could not be listened to, for want of descriptors or memory, and is left alone until then.
    deaf: Option<Instant>,
    /// A connection could not be accepted; said once until one can be again.
    accept_fails: bool,
    signals: SignalFd,
    watch: OwnedFd,
    connections: BTreeMap<u64, Connection>,
    containers: BTreeMap<u64, Container>,
    executions: BTreeMap<u64, Execution>,
    dials: Vec<Dial>,
    /// Children that ended before their number was reported, while something is being started.
    unknown_exits: UnknownExits,
    leftovers: Leftovers,
    /// Asked to end, by these requests of these connections.
    ending: Option<Vec<(u64, u64)>>,
    /// Containers have been asked to end, and are killed then.
    patience: Option<Instant>,
    /// The directory is gone.
    abandoned: bool,
    /// The last number given to a connection, container or execution.
    number: u64,
    buffer: Vec<u8>,
}

/// What poll can tell of.
#[derive(Clone, Copy, Debug)]
enum Source {
    Listener,
    Signals,
    Watch,
    Connection(u64),
    Launch(u64),
    Output(u64, usize),
    Clients(u64),
    Execution(u64),
    Dial(usize),
}

impl Keeper {
    fn run(&mut self) {
        while !self.is_done() {
            let ready = self.wait();
            // Outputs and dials are removed while being handled: the highest index first.
            for (source, flags) in ready.into_iter().rev() {
                self.handle(source, flags);
            }
            self.expire();
            self.connections
                .retain(|_, connection| !connection.is_broken());
        }
        self.finish();
    }

    fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// Sleeps until something happens.
    fn wait(&self) -> Vec<(Source, PollFlags)> {
        let mut sources = Vec::new();
        let mut asked = Vec::new();
        let mut ask = |source, descriptor, flags| {
            sources.push(source);
            asked.push(PollFd::from_borrowed_fd(descriptor, flags));
        };
        if self.deaf.is_none() {
            ask(Source::Listener, self.listener.as_fd(), PollFlags::IN);
        }
        if !self.abandoned {
            // It has said all it can say, and would say it again and again.
            ask(Source::Watch, self.watch.as_fd(), PollFlags::IN);
        }
        for (&number, connection) in &self.connections {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, connection.is_waiting());
            ask(Source::Connection(number), connection.socket.as_fd(), flags);
        }
        for (index, dial) in self.dials.iter().enumerate() {
            ask(Source::Dial(index), dial.socket.as_fd(), PollFlags::OUT);
        }
        // Handled from the last to the first: outputs before exits, exits before reports, so that a
        // log is whole when the exit is told, and a report is never older than an exit.
        for (&number, container) in &self.containers {
            if let Some(launch) = &container.launch {
                ask(
                    Source::Launch(number),
                    launch.reports.0.as_fd(),
                    PollFlags::IN,
                );
            }
        }
        for (&number, execution) in &self.executions {
            if let Some(reports) = execution.reports() {
                ask(Source::Execution(number), reports.0.as_fd(), PollFlags::IN);
            }
        }
        ask(Source::Signals, self.signals.as_fd(), PollFlags::IN);
        for (&number, container) in &self.containers {
            for (index, output) in container.outputs.iter().enumerate() {
                if !container.is_held_back(output) {
                    ask(
                        Source::Output(number, index),
                        output.source.as_fd(),
                        PollFlags::IN,
                    );
                }
            }
            for pipe in container.clients.full() {
                ask(Source::Clients(number), pipe, PollFlags::OUT);
            }
        }
        let timeout = self.deadline().map(|deadline| {
            let left =
                deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            rustix::event::Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        // Interrupted or out of memory: look again.
        let _ = poll(&mut asked, timeout.as_ref());
        sources
            .into_iter()
            .zip(&asked)
            .filter(|(_, asked)| !asked.revents().is_empty())
            .map(|(source, asked)| (source, asked.revents()))
            .collect()
    }

    fn handle(&mut self, source: Source, flags: PollFlags) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.hear_signals(),
            Source::Watch => self.abandoned = true,
            Source::Connection(number) => self.serve(number, flags),
            Source::Launch(number) => self.hear_launch(number),
            Source::Output(number, index) => self.pump(number, index),
            Source::Clients(number) => {
                if let Some(container) = self.containers.get_mut(&number) {
                    container.clients.flush();
                }
            }
            Source::Execution(number) => self.hear_execution(number),
            Source::Dial(index) => {
                let dial = self.dials.swap_remove(index);
                let (connection, request) = (dial.connection, dial.request);
                let progress = dial.check();
                self.settle_dial(connection, request, progress);
            }
        }
    }

    fn accept(&mut self) {
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(&self.listener, flags) {
            Ok(socket) => socket,
            // Whoever was there has gone.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            Err(error) => {
                if !std::mem::replace(&mut self.accept_fails, true) {
                    complain(&format!("accept a connection: {error}"));
                }
                // It is still there, and poll would tell of it again and again.
                self.deaf = Some(Instant::now() + PAUSE_ACCEPT);
                return;
            }
        };
        self.accept_fails = false;
        let own = rustix::process::geteuid();
        let trusted = rustix::net::sockopt::socket_peercred(&socket)
            .is_ok_and(|peer| peer.uid == own || peer.uid.is_root());
        if trusted && self.connections.len() < CONNECTIONS_MAX {
            let number = self.next_number();
            self.connections.insert(number, Connection::new(socket));
        }
    }

    fn serve(&mut self, number: u64, flags: PollFlags) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if flags.contains(PollFlags::OUT) {
            connection.flush();
        }
        if !flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            return;
        }
        for request in connection.read(&mut self.buffer) {
            self.call(number, request);
        }
    }

    fn reply(
        &mut self,
        connection: u64,
        request: u64,
        result: Result<Answer, Refusal>,
        attached: Vec<OwnedFd>,
    ) {
        // One that has gone does not want to know.
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.reply(request, result, attached);
        }
    }

    fn settle_dial(&mut self, connection: u64, request: u64, progress: Progress) {
        match progress {
            Progress::Waiting(dial) => self.dials.push(dial),
            Progress::Connected(socket) => {
                self.reply(connection, request, Ok(Answer::Done), vec![socket]);
            }
            Progress::Failed(error) => {
                let refusal = Refusal::new(RefusalKind::Machine, process::reason(&error));
                self.reply(connection, request, Err(refusal), Vec::new());
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let launches = self
            .containers
            .values()
            .filter_map(|container| container.launch.as_ref().map(|launch| launch.deadline));
        let dials = self.dials.iter().map(|dial| dial.deadline);
        let clients = self
            .containers
            .values()
            .filter_map(|container| container.clients.deadline());
        launches
            .chain(dials)
            .chain(clients)
            .chain(self.leftovers.deadline())
            .chain(self.deaf)
            .chain(self.patience)
            .min()
    }

    /// Gives up what takes too long.
    fn expire(&mut self) {
        let now = Instant::now();
        let mut index = 0;
        while index < self.dials.len() {
            if self.dials[index].deadline > now {
                index += 1;
                continue;
            }
            let dial = self.dials.swap_remove(index);
            let progress = Progress::Failed(io::ErrorKind::TimedOut.into());
            self.settle_dial(dial.connection, dial.request, progress);
        }
        self.expire_launches(now);
        self.leftovers.expire(&self.cgroups, now);
        self.deaf = self.deaf.filter(|end| *end > now);
        for container in self.containers.values_mut() {
            let count = container.clients.expire(now);
            if count > 0 {
                let id = &container.record.spec.id;
                complain(&format!(
                    "{count} of those attached to {id} took nothing for minutes"
                ));
            }
        }
        if self.patience.is_some_and(|end| end <= now) {
            self.patience = None;
            self.kill_all();
        }
    }

    fn is_done(&self) -> bool {
        let busy = |container: &Container| {
            container.launch.is_some() || container.record.state.pid().is_some()
        };
        (self.ending.is_some() || self.abandoned) && !self.containers.values().any(busy)
    }

    /// The last things: nothing of the sandbox is left but records and logs.
    fn finish(&mut self) {
        self.processes = None;
        self.cgroups.kill(&self.sandbox.spec.cgroup);
        if let Err(error) = self.cgroups.remove(&self.sandbox.spec.cgroup) {
            complain(&error);
        }
        let _ = fs::remove_file("keeper.sock");
        for (connection, request) in self.ending.take().unwrap_or_default() {
            self.reply(connection, request, Ok(Answer::Done), Vec::new());
        }
    }
}

/// In a forked child: whoever talks to the keeper must notice its end, even if the child is stuck.
fn forget_peers(connections: &mut BTreeMap<u64, Connection>, listener: &mut OwnedFd) {
    connections.clear();
    if let Ok(null) = container::null() {
        *listener = null;
    }
}

/// Leaves a line in `keeper.log`.
fn complain(message: &dyn std::fmt::Display) {
    let line = format!("{} {message}\n", jiff::Timestamp::now());
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}
