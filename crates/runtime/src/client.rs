//! The daemon's side: starting keepers, finding them again, talking to them.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::{Mode, OFlags};
use tokio::io::AsyncReadExt as _;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::cgroup::CgroupError;
use crate::descriptors;
use crate::program;
use crate::protocol::{
    Answer, Call, Event, FrameTooLong, Message, Refusal, Request, frame, take_frame,
};
use crate::record::{
    ContainerRecord, RecordError, SandboxRecord, VERSION, boot, read_sandbox, write_sandbox,
};
use crate::spec::{ContainerSpec, ContainerState, ExecSpec, SandboxSpec};

/// How long a keeper may take to make its namespaces.
const TIMEOUT_START: Duration = Duration::from_secs(30);

/// How long a keeper may take to answer a connection: it never waits for anything but the disk.
const TIMEOUT_CONNECT: Duration = Duration::from_secs(3);

/// How long a keeper may take to answer when it need not wait for anything but the disk either. One that
/// takes longer hangs, or its disk does, and everybody who waits for it with it.
const TIMEOUT_ANSWER: Duration = Duration::from_secs(10);

/// How long a keeper may take to start something: it gives up after two minutes itself.
const TIMEOUT_WORK: Duration = Duration::from_secs(130);

/// How long a keeper that is killed may take to be gone.
const TIMEOUT_KILL: Duration = Duration::from_secs(10);

/// Requests on their way to one keeper at once.
const REQUESTS_MAX: usize = 64;

/// Events that a listener may leave unread, per keeper.
const EVENTS_MAX: usize = 4096;

/// Why a keeper could not be started, reached, or would not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Reading or writing the sandbox's files.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Removing what a dead keeper left.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// There is one already.
    #[error("{0} holds a sandbox already")]
    Exists(PathBuf),
    /// Executing the program again.
    #[error("start a keeper with {program}: {source}")]
    Spawn {
        /// Which program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The keeper ended before it was ready, with these words.
    #[error("the keeper of {directory} did not start: {message}")]
    Start {
        /// Whose.
        directory: PathBuf,
        /// Its own words.
        message: String,
    },
    /// Connecting to its socket.
    #[error("connect to the keeper of {directory}: {source}")]
    Connect {
        /// Whose.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection ended, most likely because the keeper did.
    #[error("the keeper of {0} is gone")]
    Gone(PathBuf),
    /// It has not answered for so long that nobody waits any more. Its containers may run on.
    #[error("the keeper of {directory} has not answered for {waited:?}")]
    Silent {
        /// Whose.
        directory: PathBuf,
        /// How long.
        waited: Duration,
    },
    /// It was killed and is still there.
    #[error("the keeper of {directory}, process {pid}, does not end although it was killed")]
    Stuck {
        /// Whose.
        directory: PathBuf,
        /// Its process.
        pid: i32,
    },
    /// It answered something else than was asked.
    #[error("the keeper of {directory} speaks another protocol: {message}")]
    Protocol {
        /// Whose.
        directory: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// It refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl KeeperError {
    /// Whether this says that there is no keeper: nobody listens at its socket, or there is none.
    /// Everything else may happen to a keeper that lives and whose containers run: it is stopped, waits
    /// for a disk, is asked by too many, or speaks the language of a newer program.
    pub fn means_dead(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, KeeperError::Connect { source, .. }
            if matches!(source.kind(), NotFound | ConnectionRefused))
    }
}

/// The ends of a process's streams that are the daemon's. They are blocking descriptors of pipes
/// or of a terminal.
#[derive(Debug)]
pub struct StreamEnds {
    /// To standard input. With a terminal it is the terminal, which also takes a window size.
    pub stdin: Option<OwnedFd>,
    /// From standard output, or from the terminal.
    pub stdout: OwnedFd,
    /// From standard error; absent with a terminal.
    pub stderr: Option<OwnedFd>,
    /// Whether there is a terminal.
    pub tty: bool,
    /// Of an attach: says, when the outputs have ended, whether all that there was went through
    /// them. One byte comes before its end if so, and none if the keeper had to give up.
    pub verdict: Option<OwnedFd>,
}

/// A command that runs in a container.
#[derive(Debug)]
pub struct Exec {
    /// Names it to the keeper.
    pub number: u64,
    /// Its streams.
    pub streams: StreamEnds,
    /// Its exit status; 128 + signal if it was killed. Closed without one if the keeper went away.
    pub exit: oneshot::Receiver<i32>,
}

/// A connection to a living keeper. Clones share it; it is closed when the last one is dropped.
#[derive(Clone, Debug)]
pub struct Keeper {
    /// The keeper's process: `/proc/PID/ns/net` is the sandbox's network.
    pid: i32,
    next: Arc<AtomicU64>,
    shared: Arc<Shared>,
    /// Whole frames: a caller that is dropped midway must not leave half of one behind.
    requests: mpsc::Sender<Vec<u8>>,
}

#[derive(Debug)]
struct Shared {
    directory: PathBuf,
    socket: AsyncFd<OwnedFd>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    replies: BTreeMap<u64, oneshot::Sender<Reply>>,
    exits: BTreeMap<u64, oneshot::Sender<i32>>,
    closed: bool,
    /// It was closed by us, as there was no answer for so long.
    silent: Option<Duration>,
}

#[derive(Debug)]
struct Reply {
    result: Result<Answer, Refusal>,
    descriptors: Vec<OwnedFd>,
    /// Of a command that was executed.
    exit: Option<oneshot::Receiver<i32>>,
}

/// A keeper as it was found: the connection, its sandbox, its containers, and what happens next.
pub type Found = (
    Keeper,
    SandboxRecord,
    Vec<ContainerRecord>,
    mpsc::Receiver<Event>,
);

impl Keeper {
    /// Starts a keeper for a new sandbox in `directory`, which is made; `program` is this executable.
    /// On failure nothing is left but the directory.
    pub async fn start(
        program: &Path,
        directory: &Path,
        spec: SandboxSpec,
    ) -> Result<(Keeper, mpsc::Receiver<Event>), KeeperError> {
        if read_sandbox(directory)?.is_some() {
            return Err(KeeperError::Exists(directory.to_owned()));
        }
        let write_failed = |source| {
            KeeperError::Record(RecordError::Write {
                path: directory.to_owned(),
                source,
            })
        };
        std::fs::create_dir_all(directory).map_err(write_failed)?;
        let record = SandboxRecord {
            version: VERSION,
            spec,
            created_at: Timestamp::now(),
            boot: boot(),
        };
        write_sandbox(directory, &record)?;
        Keeper::spawn(program, directory).await?;
        let (keeper, _, _, events) = Keeper::connect(directory).await?;
        Ok((keeper, events))
    }

    async fn spawn(program: &Path, directory: &Path) -> Result<(), KeeperError> {
        let spawn_failed = |source| KeeperError::Spawn {
            program: program.to_owned(),
            source,
        };
        let file = program::open_read_only(program).map_err(spawn_failed)?;
        // The descriptor is closed by the exec, after the name has been looked up.
        let mut child = tokio::process::Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .arg0(program)
            .arg(crate::KEEPER_ARGUMENT)
            .arg(directory)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(spawn_failed)?;
        let mut said = Vec::new();
        let output = child.stdout.take();
        let listening = async {
            if let Some(output) = output {
                output.take(64 << 10).read_to_end(&mut said).await?;
            }
            // The process that was started ends at once; the keeper is its child.
            child.wait().await
        };
        let result = tokio::time::timeout(TIMEOUT_START, listening).await;
        let message = match result {
            Ok(Ok(_)) if said == b"ok" => return Ok(()),
            Ok(Ok(status)) if said.is_empty() => format!("it ended with {status}"),
            Ok(Ok(_)) => String::from_utf8_lossy(&said).into_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it was not ready after {TIMEOUT_START:?}"),
        };
        Err(KeeperError::Start {
            directory: directory.to_owned(),
            message,
        })
    }

    /// Finds the keeper of the sandbox in `directory`. Events begin with the connection: what
    /// happened before is in the records, what happens after comes from the receiver, which ends
    /// when the keeper does.
    pub async fn connect(directory: &Path) -> Result<Found, KeeperError> {
        let found = Keeper::connect_patiently(directory);
        tokio::time::timeout(TIMEOUT_CONNECT, found)
            .await
            .unwrap_or_else(|_| {
                Err(KeeperError::Connect {
                    directory: directory.to_owned(),
                    source: io::ErrorKind::TimedOut.into(),
                })
            })
    }

    /// The same for a keeper that does not answer now: resolves when it does, or when it is gone.
    pub async fn connect_patiently(directory: &Path) -> Result<Found, KeeperError> {
        let failed = |source: io::Error| KeeperError::Connect {
            directory: directory.to_owned(),
            source,
        };
        let socket = connect_socket(directory).map_err(failed)?;
        #[expect(
            unsafe_code,
            reason = "registering a descriptor by trait has no safe form"
        )]
        // SAFETY: an OwnedFd gives the same open descriptor as long as it lives.
        let socket = unsafe { AsyncFd::register(socket) };
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            socket: socket.map_err(|error| failed(error.into()))?,
            waiting: Mutex::default(),
        });
        let (tell, events) = mpsc::channel(EVENTS_MAX);
        let (requests, frames) = mpsc::channel(REQUESTS_MAX);
        tokio::spawn(read_messages(Arc::clone(&shared), tell));
        tokio::spawn(write_requests(Arc::clone(&shared), frames));
        let mut keeper = Keeper {
            pid: 0,
            next: Arc::default(),
            shared,
            requests,
        };
        let reply = keeper.ask_patiently(Call::List).await?;
        let (pid, sandbox, containers) = keeper.seen(reply)?;
        keeper.pid = pid;
        Ok((keeper, sandbox, containers, events))
    }

    /// Kills a keeper that does not answer, and returns when it is gone; fine if there is none. What it
    /// held is to be put in order by [`Dead::bury`].
    pub async fn kill(directory: &Path) -> Result<(), KeeperError> {
        let failed = |source: io::Error| KeeperError::Connect {
            directory: directory.to_owned(),
            source,
        };
        let first = connect_socket(directory).map_err(failed);
        let pid = match &first {
            Ok(socket) => peer(socket).map_err(failed)?,
            Err(error) if error.means_dead() => return Ok(()),
            Err(_) => return first.map(drop),
        };
        let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::NONBLOCK)
            .map_err(|error| failed(error.into()))?;
        // It still listens, so this was its number and not that of somebody who came after it.
        match connect_socket(directory).and_then(|socket| peer(&socket)) {
            Ok(again) if again == pid => {}
            _ => return Err(KeeperError::Gone(directory.to_owned())),
        }
        rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL)
            .map_err(|error| failed(error.into()))?;
        #[expect(
            unsafe_code,
            reason = "registering a descriptor by trait has no safe form"
        )]
        // SAFETY: an OwnedFd gives the same open descriptor as long as it lives.
        let process = unsafe { AsyncFd::register(process) };
        let process = process.map_err(|error| failed(error.into()))?;
        match tokio::time::timeout(TIMEOUT_KILL, process.readable()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(KeeperError::Stuck {
                directory: directory.to_owned(),
                pid: pid.as_raw_nonzero().get(),
            }),
        }
    }

    /// The keeper's process id; its `/proc/PID/ns` are the sandbox's namespaces.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The sandbox and all of its containers, as they are now.
    pub async fn list(&self) -> Result<(SandboxRecord, Vec<ContainerRecord>), KeeperError> {
        let (_, sandbox, containers) = self.seen(self.ask(Call::List).await?)?;
        Ok((sandbox, containers))
    }

    fn seen(&self, list: Reply) -> Result<(i32, SandboxRecord, Vec<ContainerRecord>), KeeperError> {
        match list.result? {
            Answer::Sandbox {
                sandbox,
                pid,
                containers,
            } => Ok((pid, *sandbox, containers)),
            answer => Err(self.shared.unexpected(&answer)),
        }
    }

    /// Makes a container: checks and remembers its spec.
    pub async fn create(&self, spec: ContainerSpec) -> Result<(), KeeperError> {
        let spec = Box::new(spec);
        self.done(Call::Create { spec }).await
    }

    /// Starts a container. Returns when its command has been executed; its state may already be
    /// [`ContainerState::Exited`] then.
    pub async fn start_container(&self, container: &str) -> Result<ContainerState, KeeperError> {
        let container = container.to_owned();
        match self.call(Call::Start { container }).await? {
            (Answer::Container { state }, _) => Ok(state),
            (answer, _) => Err(self.shared.unexpected(&answer)),
        }
    }

    /// Sends a signal to a container's first process.
    pub async fn signal(&self, container: &str, signal: i32) -> Result<(), KeeperError> {
        let container = container.to_owned();
        self.done(Call::Signal { container, signal }).await
    }

    /// Forgets a container that does not run.
    pub async fn remove(&self, container: &str) -> Result<(), KeeperError> {
        let container = container.to_owned();
        self.done(Call::Remove { container }).await
    }

    /// Runs a command in a running container. Returns when it has been executed.
    pub async fn exec(&self, container: &str, spec: ExecSpec) -> Result<Exec, KeeperError> {
        let container = container.to_owned();
        let reply = self.ask(Call::Exec { container, spec }).await?;
        let Answer::Exec { exec, stdin, tty } = reply.result? else {
            return Err(self.shared.confused("it did not execute"));
        };
        let Some(exit) = reply.exit else {
            return Err(self.shared.gone());
        };
        let streams = if tty {
            self.shared.terminal_ends(reply.descriptors)?
        } else {
            self.shared.stream_ends(reply.descriptors, stdin, false)?
        };
        Ok(Exec {
            number: exec,
            streams,
            exit,
        })
    }

    /// Sends a signal to a command that was run by [`Keeper::exec`].
    pub async fn signal_exec(&self, exec: u64, signal: i32) -> Result<(), KeeperError> {
        self.done(Call::SignalExec { exec, signal }).await
    }

    /// Connects to a running container's own streams, from now on.
    pub async fn attach(&self, container: &str) -> Result<StreamEnds, KeeperError> {
        let container = container.to_owned();
        match self.call(Call::Attach { container }).await? {
            (
                Answer::Attach {
                    stdin,
                    tty,
                    verdict,
                },
                mut descriptors,
            ) => {
                let verdict = if verdict { descriptors.pop() } else { None };
                let ends = self.shared.stream_ends(descriptors, stdin, tty)?;
                Ok(StreamEnds { verdict, ..ends })
            }
            (answer, _) => Err(self.shared.unexpected(&answer)),
        }
    }

    /// Connects to a port on the sandbox's loopback. The socket is non-blocking.
    pub async fn dial(&self, port: u16) -> Result<std::net::TcpStream, KeeperError> {
        match self.call(Call::Dial { port }).await? {
            (Answer::Done, descriptors) => match descriptors.into_iter().next() {
                Some(socket) => Ok(socket.into()),
                None => Err(self.shared.confused("no socket came along")),
            },
            (answer, _) => Err(self.shared.unexpected(&answer)),
        }
    }

    /// Lets a container's log go on in the file that is now at its path.
    pub async fn reopen_log(&self, container: &str) -> Result<(), KeeperError> {
        let container = container.to_owned();
        self.done(Call::ReopenLog { container }).await
    }

    /// Kills every container and ends the keeper; resolves when that has happened.
    ///
    /// # Errors
    /// [`KeeperError::Silent`] if it has not happened soon: [`Keeper::kill`] is left.
    pub async fn end(&self) -> Result<(), KeeperError> {
        match self.done(Call::End).await {
            // It may be gone before its last words are read.
            Err(KeeperError::Gone(_)) => Ok(()),
            result => result,
        }
    }

    async fn done(&self, call: Call) -> Result<(), KeeperError> {
        match self.call(call).await? {
            (Answer::Done, _) => Ok(()),
            (answer, _) => Err(self.shared.unexpected(&answer)),
        }
    }

    async fn call(&self, call: Call) -> Result<(Answer, Vec<OwnedFd>), KeeperError> {
        let reply = self.ask(call).await?;
        Ok((reply.result?, reply.descriptors))
    }

    async fn ask(&self, call: Call) -> Result<Reply, KeeperError> {
        let (patience, is_work) = match &call {
            Call::Start { .. } | Call::Exec { .. } | Call::Dial { .. } => (TIMEOUT_WORK, true),
            _ => (TIMEOUT_ANSWER, false),
        };
        match tokio::time::timeout(patience, self.ask_patiently(call)).await {
            Ok(reply) => reply,
            // It may be at work on it, and well.
            Err(_) if is_work => Err(self.shared.silent(patience)),
            Err(_) => {
                self.shared.give_up(patience);
                Err(self.shared.silent(patience))
            }
        }
    }

    async fn ask_patiently(&self, call: Call) -> Result<Reply, KeeperError> {
        let gone = || self.shared.gone();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let request = frame(&Request { id, call })
            .map_err(|error| self.shared.confused(error.to_string()))?;
        let room = self.requests.reserve().await.map_err(|_| gone())?;
        let (tell, reply) = oneshot::channel();
        let is_closed = {
            let mut waiting = self.shared.waiting();
            if !waiting.closed {
                waiting.replies.insert(id, tell);
            }
            waiting.closed
        };
        if is_closed {
            return Err(gone());
        }
        room.send(request);
        reply.await.map_err(|_| gone())
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // The maps are consistent after every statement that holds the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection: nobody else need wait as long for what does not come.
    fn give_up(&self, waited: Duration) {
        self.waiting().silent = Some(waited);
        // The reader hears of it and tidies up.
        let _ = rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Both);
    }

    fn silent(&self, waited: Duration) -> KeeperError {
        KeeperError::Silent {
            directory: self.directory.clone(),
            waited,
        }
    }

    /// Why there will be no answer through this connection.
    fn gone(&self) -> KeeperError {
        let silent = self.waiting().silent;
        match silent {
            Some(waited) => self.silent(waited),
            None => KeeperError::Gone(self.directory.clone()),
        }
    }

    /// False when a listener for events is so far behind that waiting for it would hold up replies.
    fn hand_out(
        &self,
        message: Message,
        descriptors: Vec<OwnedFd>,
        tell: &mpsc::Sender<Event>,
    ) -> bool {
        match message {
            Message::Reply { id, result, .. } => {
                let mut waiting = self.waiting();
                let exit = match &result {
                    Ok(Answer::Exec { exec, .. }) => {
                        let (tell, exit) = oneshot::channel();
                        waiting.exits.insert(*exec, tell);
                        Some(exit)
                    }
                    _ => None,
                };
                let reply = Reply {
                    result,
                    descriptors,
                    exit,
                };
                if let Some(caller) = waiting.replies.remove(&id) {
                    // A caller that has gone away wants nothing; descriptors close.
                    let _ = caller.send(reply);
                }
                true
            }
            Message::Event(Event::ExecExited { exec, code }) => {
                if let Some(exit) = self.waiting().exits.remove(&exec) {
                    let _ = exit.send(code);
                }
                true
            }
            Message::Event(event) => !matches!(
                tell.try_send(event),
                Err(mpsc::error::TrySendError::Full(_))
            ),
        }
    }

    fn confused(&self, message: impl Into<String>) -> KeeperError {
        KeeperError::Protocol {
            directory: self.directory.clone(),
            message: message.into(),
        }
    }

    fn unexpected(&self, answer: &Answer) -> KeeperError {
        self.confused(format!("unexpected answer {answer:?}"))
    }

    fn stream_ends(
        &self,
        descriptors: Vec<OwnedFd>,
        stdin: bool,
        tty: bool,
    ) -> Result<StreamEnds, KeeperError> {
        let mut ends = descriptors.into_iter();
        let stdin = if stdin { ends.next() } else { None };
        match (ends.next(), ends.next()) {
            (Some(stdout), stderr) if stderr.is_some() != tty => Ok(StreamEnds {
                stdin,
                stdout,
                stderr,
                tty,
                verdict: None,
            }),
            _ => Err(self.confused("streams are missing")),
        }
    }

    fn terminal_ends(&self, descriptors: Vec<OwnedFd>) -> Result<StreamEnds, KeeperError> {
        let Some(stdout) = descriptors.into_iter().next() else {
            return Err(self.confused("the terminal is missing"));
        };
        // Also without standard input: the window's size goes there.
        let copy = stdout
            .try_clone()
            .map_err(|error| self.confused(format!("copy the terminal: {error}")))?;
        Ok(StreamEnds {
            stdin: Some(copy),
            stdout,
            stderr: None,
            tty: true,
            verdict: None,
        })
    }
}

/// Collects frames and the descriptors that came with them.
#[derive(Default)]
struct Reader {
    input: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Reader {
    async fn next(&mut self, shared: &Shared) -> Result<(Message, Vec<OwnedFd>), KeeperError> {
        loop {
            if let Some(message) = self.take(shared)? {
                return Ok(message);
            }
            let mut ready = shared
                .socket
                .readable()
                .await
                .map_err(|_| KeeperError::Gone(shared.directory.clone()))?;
            self.fill(&mut ready, shared)?;
        }
    }

    fn take(&mut self, shared: &Shared) -> Result<Option<(Message, Vec<OwnedFd>)>, KeeperError> {
        let text = take_frame(&mut self.input)
            .map_err(|error: FrameTooLong| shared.confused(error.to_string()))?;
        let Some(text) = text else { return Ok(None) };
        let message: Message =
            serde_json::from_slice(&text).map_err(|error| shared.confused(error.to_string()))?;
        let count = match &message {
            Message::Reply { descriptors, .. } => (*descriptors).min(self.descriptors.len()),
            Message::Event(_) => 0,
        };
        let descriptors = self.descriptors.drain(..count).collect();
        Ok(Some((message, descriptors)))
    }

    fn fill(
        &mut self,
        ready: &mut tokio::io::unix::AsyncFdReadyGuard<'_, OwnedFd>,
        shared: &Shared,
    ) -> Result<(), KeeperError> {
        let mut buffer = [0; 8 << 10];
        let received =
            ready.try_io(|socket| descriptors::receive(socket, &mut buffer, &mut self.descriptors));
        match received {
            Err(_would_block) => Ok(()),
            Ok(Ok(0) | Err(_)) => Err(KeeperError::Gone(shared.directory.clone())),
            Ok(Ok(length)) => {
                self.input.extend_from_slice(&buffer[..length]);
                Ok(())
            }
        }
    }
}

/// Sends requests until nobody can make any more; then the connection is over.
async fn write_requests(shared: Arc<Shared>, mut requests: mpsc::Receiver<Vec<u8>>) {
    'connection: while let Some(request) = requests.recv().await {
        let mut rest = &request[..];
        while !rest.is_empty() {
            let Ok(mut ready) = shared.socket.writable().await else {
                break 'connection;
            };
            match ready.try_io(|socket| descriptors::send(socket, rest, &[])) {
                Ok(Ok(sent)) => rest = &rest[sent..],
                Ok(Err(_)) => break 'connection,
                Err(_would_block) => {}
            }
        }
    }
    // The reader hears of it and tidies up.
    let _ = rustix::net::shutdown(shared.socket.get_ref(), rustix::net::Shutdown::Both);
}

/// Hands out what the keeper says, until the connection ends.
async fn read_messages(shared: Arc<Shared>, tell: mpsc::Sender<Event>) {
    let mut reader = Reader::default();
    loop {
        match reader.next(&shared).await {
            Ok((message, descriptors)) => {
                if !shared.hand_out(message, descriptors, &tell) {
                    tracing::warn!(
                        directory = %shared.directory.display(),
                        "events of a keeper were not taken; its connection is given up"
                    );
                    break;
                }
            }
            Err(KeeperError::Gone(_)) => break,
            Err(error) => {
                tracing::warn!(%error, "the connection to a keeper is given up");
                break;
            }
        }
    }
    let mut waiting = shared.waiting();
    waiting.closed = true;
    // Dropping the senders tells the callers.
    waiting.replies.clear();
    waiting.exits.clear();
}

/// Connects through the directory's descriptor: the whole path may be longer than an address.
fn connect_socket(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/keeper.sock", directory.as_raw_fd());
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK,
        None,
    )?;
    // Never waits: a keeper that leaves too many unheard says so by EAGAIN.
    rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(path.as_str())?)?;
    let own = rustix::process::geteuid();
    let peer = rustix::net::sockopt::socket_peercred(&socket)?;
    if peer.uid != own {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("its socket belongs to user {}", peer.uid.as_raw()),
        ));
    }
    Ok(socket)
}

/// The process that listens there.
fn peer(socket: &OwnedFd) -> io::Result<rustix::process::Pid> {
    Ok(rustix::net::sockopt::socket_peercred(socket)?.pid)
}
