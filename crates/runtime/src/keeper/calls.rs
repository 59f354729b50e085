//! What a daemon can ask of a keeper.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::container::{Container, machine};
use super::dial::Dial;
use super::{Keeper, bundle, process};
use crate::protocol::{Answer, Call, Refusal, RefusalKind, Request};
use crate::record::{ContainerRecord, write_container};
use crate::spec::{ContainerSpec, ContainerState};

/// Containers of one sandbox, exited ones included.
const CONTAINERS_MAX: usize = 1024;

/// Connections being made at once.
const DIALS_MAX: usize = 256;

const TIMEOUT_DIAL: Duration = Duration::from_secs(10);

impl Keeper {
    pub(super) fn call(&mut self, connection: u64, request: Request) {
        let Request { id, call } = request;
        let result = match call {
            Call::List => Ok(self.list()),
            Call::Create { spec } => self.create(*spec),
            Call::Signal { container, signal } => self.signal(&container, signal),
            Call::Remove { container } => self.remove(&container),
            Call::ReopenLog { container } => self.reopen_log(&container),
            Call::SignalExec { exec, signal } => self.signal_execution(exec, signal),
            Call::Attach { container } => return self.attach(connection, id, &container),
            Call::Dial { port } => return self.dial(connection, id, port),
            Call::End => return self.end(connection, id),
            // These reply later.
            Call::Start { container } => match self.start(connection, id, &container) {
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            },
            Call::Exec { container, spec } => match self.exec(connection, id, &container, spec) {
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            },
        };
        self.reply(connection, id, result, Vec::new());
    }

    /// The number of a container, by its name.
    pub(super) fn find(&self, container: &str) -> Result<u64, Refusal> {
        self.containers
            .iter()
            .find(|(_, one)| one.record.spec.id == container)
            .map(|(&number, _)| number)
            .ok_or_else(|| Refusal::new(RefusalKind::NotFound, format!("no container {container}")))
    }

    fn list(&self) -> Answer {
        Answer::Sandbox {
            sandbox: Box::new(self.sandbox.clone()),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            containers: self
                .containers
                .values()
                .map(|container| container.record.clone())
                .collect(),
        }
    }

    fn create(&mut self, spec: ContainerSpec) -> Result<Answer, Refusal> {
        let id = spec.id.clone();
        check(&spec)?;
        if self.ending.is_some() {
            return Err(Refusal::new(
                RefusalKind::WrongState,
                "the sandbox is ending",
            ));
        }
        if self.find(&id).is_ok() {
            let message = format!("container {id} exists already");
            return Err(Refusal::new(RefusalKind::Exists, message));
        }
        if self.containers.len() >= CONTAINERS_MAX {
            let message = format!("the sandbox has {CONTAINERS_MAX} containers; remove some first");
            return Err(Refusal::new(RefusalKind::Invalid, message));
        }
        fs::create_dir_all(self.directory.join("containers").join(&id))
            .map_err(|error| machine(&format!("make the directory of {id}"), &error))?;
        let record = ContainerRecord {
            spec,
            created_at: Timestamp::now(),
            state: ContainerState::Created,
        };
        write_container(&self.directory, &record)
            .map_err(|error| Refusal::new(RefusalKind::Machine, error.to_string()))?;
        let container = Container::new(record)
            .map_err(|error| machine(&format!("make container {id}"), &error))?;
        let number = self.next_number();
        self.containers.insert(number, container);
        Ok(Answer::Done)
    }

    fn signal(&mut self, container: &str, signal: i32) -> Result<Answer, Refusal> {
        let record = &self.containers[&self.find(container)?].record;
        let pid = record.state.pid().ok_or_else(|| not_running(container))?;
        // Not reaped yet, so nobody else can have this number.
        kill(pid, signal)?;
        if signal == libc::SIGKILL {
            self.cgroups.thaw(&record.spec.cgroup);
        }
        Ok(Answer::Done)
    }

    fn remove(&mut self, container: &str) -> Result<Answer, Refusal> {
        let number = self.find(container)?;
        let one = &self.containers[&number];
        if one.launch.is_some() || one.record.state.pid().is_some() {
            let message = format!("container {container} is running; stop it first");
            return Err(Refusal::new(RefusalKind::WrongState, message));
        }
        let cgroup = one.record.spec.cgroup.clone();
        self.leftovers.remove(&self.cgroups, cgroup);
        let directory = self.directory.join("containers");
        match fs::remove_dir_all(directory.join(container)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let step = format!("remove the directory of {container}");
                return Err(machine(&step, &error));
            }
            _ => {}
        }
        // The record goes last: until then the removal can be asked for again.
        match fs::remove_file(directory.join(format!("{container}.json"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let step = format!("remove the record of {container}");
                return Err(machine(&step, &error));
            }
            _ => {}
        }
        self.containers.remove(&number);
        Ok(Answer::Done)
    }

    fn reopen_log(&mut self, container: &str) -> Result<Answer, Refusal> {
        let number = self.find(container)?;
        if let Some(one) = self.containers.get_mut(&number) {
            one.reopen_log()
                .map_err(|error| machine(&format!("reopen the log of {container}"), &error))?;
        }
        Ok(Answer::Done)
    }

    fn attach(&mut self, connection: u64, request: u64, container: &str) {
        let number = self.find(container);
        let result = number.and_then(|number| match self.containers.get_mut(&number) {
            Some(one) if one.record.state.pid().is_some() => {
                let ends = one.attach()?;
                Ok((ends, one.record.spec.tty))
            }
            _ => Err(not_running(container)),
        });
        match result {
            Ok((ends, tty)) => {
                let answer = Answer::Attach {
                    stdin: ends.stdin.is_some(),
                    tty,
                    verdict: true,
                };
                let attached = ends.stdin.into_iter().chain(ends.outputs).collect();
                self.reply(connection, request, Ok(answer), attached);
            }
            Err(refusal) => self.reply(connection, request, Err(refusal), Vec::new()),
        }
    }

    fn dial(&mut self, connection: u64, request: u64, port: u16) {
        if self.dials.len() >= DIALS_MAX {
            let message = format!("{DIALS_MAX} connections are being made already");
            let refusal = Refusal::new(RefusalKind::Machine, message);
            return self.reply(connection, request, Err(refusal), Vec::new());
        }
        let deadline = Instant::now() + TIMEOUT_DIAL;
        let progress = Dial::begin(connection, request, port, deadline);
        self.settle_dial(connection, request, progress);
    }

    /// Kills everything; the reply comes when all of it has ended.
    pub(super) fn end(&mut self, connection: u64, request: u64) {
        self.ending
            .get_or_insert_default()
            .push((connection, request));
        self.kill_all();
    }

    pub(super) fn kill_all(&self) {
        for &number in self.containers.keys() {
            self.kill(number);
        }
    }

    pub(super) fn kill(&self, number: u64) {
        let Some(container) = self.containers.get(&number) else {
            return;
        };
        let process = container.record.state.pid();
        let launcher = container.launch.as_ref().map(|launch| launch.launcher);
        for pid in process.into_iter().chain(launcher) {
            // It may have ended already.
            let _ = kill(pid, libc::SIGKILL);
        }
        self.cgroups.thaw(&container.record.spec.cgroup);
    }
}

pub(super) fn not_running(container: &str) -> Refusal {
    Refusal::new(
        RefusalKind::WrongState,
        format!("container {container} is not running"),
    )
}

/// Sends a signal to a child.
pub(super) fn kill(pid: i32, signal: i32) -> Result<(), Refusal> {
    if pid <= 1 {
        return Err(Refusal::new(
            RefusalKind::Machine,
            format!("{pid} is no child"),
        ));
    }
    #[expect(unsafe_code, reason = "real-time signals have no safe wrapper")]
    // SAFETY: kill(2) touches no memory; the number is that of one single process.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => {
            let text = process::reason(&io::Error::last_os_error());
            Err(Refusal::new(
                RefusalKind::Invalid,
                format!("send signal {signal}: {text}"),
            ))
        }
    }
}

/// What can be told before anything is made.
fn check(spec: &ContainerSpec) -> Result<(), Refusal> {
    let invalid = |message: String| Err(Refusal::new(RefusalKind::Invalid, message));
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if spec.id.is_empty()
        || spec.id.starts_with('.')
        || spec.id.len() > 128
        || !spec.id.bytes().all(is_plain)
    {
        return invalid(format!("{:?} is not fit for a container's name", spec.id));
    }
    if spec.argv.is_empty() {
        return invalid("no command specified".to_owned());
    }
    if !spec.working_dir.starts_with('/') {
        return invalid(format!(
            "working directory {:?} is not an absolute path",
            spec.working_dir
        ));
    }
    let mut strings = spec.argv.iter().chain(&spec.env);
    if let Some(string) = strings.find(|string| string.contains('\0')) {
        return invalid(format!("{string:?} contains a zero byte"));
    }
    if spec.security.unmasked_proc && !spec.security.privileged {
        return invalid(
            "an unmasked /proc needs a user namespace of its own, which containers here do not have yet"
                .to_owned(),
        );
    }
    if let Some(mount) = spec.mounts.iter().find(|mount| !mount.target.is_absolute()) {
        let target = mount.target.display();
        return invalid(format!("mount target {target} is not an absolute path"));
    }
    bundle::capabilities(spec)
        .and_then(|_| bundle::filter(spec))
        .map(drop)
}
