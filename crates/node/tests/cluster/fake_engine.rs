//! An engine in memory: containers are records, and do what their command says.
//!
//! | command | what happens |
//! | --- | --- |
//! | (none), `run` | runs until it is stopped, then exits with 0 |
//! | `exit N` | exits with N as soon as it is started |
//! | `missing` | cannot be started |
//!
//! Commands of `exec`: `true`, `exit N`, `cat` (input to output), `flag` (0 while [`FakeEngine::set_flag`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engine::{
    ContainerId, ContainerSpec, ContainerState, ContainerStatus, Engine, Error, Event, Exec,
    ExecSpec, ImageInfo, SandboxId, SandboxSpec, SandboxStatus, Stats, Streams,
};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::mpsc;

#[derive(Default)]
pub(crate) struct FakeEngine(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    images: BTreeSet<String>,
    listeners: Vec<mpsc::Sender<Event>>,
    made: u32,
    flag: bool,
    /// What containers were given to end, the last one last.
    graces: Vec<Duration>,
    /// Containers that were told to end, and commands that were executed in them, the last one last.
    told: Vec<String>,
    /// Bytes in the roots of containers, by name.
    written: BTreeMap<String, u64>,
    /// What becomes of calls to stop containers and to begin their logs anew.
    stuck: BTreeMap<String, Stuck>,
    /// Questions about all sandboxes are not answered.
    is_silent: bool,
    /// Those who keep the containers do not answer.
    is_unwell: bool,
    /// Ports of sandboxes lead here.
    target: Option<std::net::SocketAddr>,
}

/// How one who keeps a container lets down who calls.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Stuck {
    /// It says that it cannot.
    Refuses,
    /// It says nothing.
    Hangs,
}

struct Sandbox {
    spec: SandboxSpec,
    alive: bool,
    address: Ipv4Addr,
    created_at: Timestamp,
    containers: Vec<Container>,
}

struct Container {
    id: ContainerId,
    spec: ContainerSpec,
    state: ContainerState,
    created_at: Timestamp,
}

impl State {
    fn container(&mut self, id: &ContainerId) -> Result<&mut Container, Error> {
        self.sandboxes
            .values_mut()
            .flat_map(|sandbox| &mut sandbox.containers)
            .find(|container| container.id == *id)
            .ok_or_else(|| Error::ContainerNotFound(id.clone()))
    }

    fn note(&mut self, id: &ContainerId, what: &str) {
        if let Ok(container) = self.container(id) {
            let line = format!("{}: {what}", container.spec.name);
            self.told.push(line);
        }
    }

    fn tell(&mut self, id: &ContainerId) {
        let mut found = None;
        for (sandbox, content) in &self.sandboxes {
            for container in &content.containers {
                if container.id == *id {
                    found = Some((sandbox.clone(), container.state.clone()));
                }
            }
        }
        let Some((sandbox, state)) = found else {
            return;
        };
        self.listeners.retain(|listener| {
            let event = Event::Container {
                sandbox: sandbox.clone(),
                container: id.clone(),
                state: state.clone(),
            };
            listener.try_send(event).is_ok()
        });
    }

    fn exit(&mut self, id: &ContainerId, code: i32, signal: Option<i32>) {
        let Ok(container) = self.container(id) else {
            return;
        };
        let ContainerState::Running { started_at, .. } = container.state else {
            return;
        };
        container.state = ContainerState::Exited {
            code,
            signal,
            oom_killed: false,
            started_at: Some(started_at),
            finished_at: Timestamp::now(),
            message: None,
        };
        self.tell(id);
    }
}

fn status(id: &SandboxId, sandbox: &Sandbox) -> SandboxStatus {
    let containers = sandbox.containers.iter().map(|container| ContainerStatus {
        id: container.id.clone(),
        sandbox: id.clone(),
        name: container.spec.name.clone(),
        image: container.spec.image.clone(),
        image_id: format!("sha256:{}", "0".repeat(64)),
        state: container.state.clone(),
        created_at: container.created_at,
        log_path: container.spec.log_path.clone(),
        labels: container.spec.labels.clone(),
    });
    SandboxStatus {
        id: id.clone(),
        alive: sandbox.alive,
        address: Some(sandbox.address),
        created_at: sandbox.created_at,
        labels: sandbox.spec.labels.clone(),
        containers: containers.collect(),
    }
}

impl FakeEngine {
    pub(crate) fn with_images<const N: usize>(images: [&str; N]) -> Arc<FakeEngine> {
        let engine = FakeEngine::default();
        engine.0.lock().images = images.into_iter().map(str::to_owned).collect();
        Arc::new(engine)
    }

    pub(crate) fn load(&self, image: &str) {
        self.0.lock().images.insert(image.to_owned());
    }

    pub(crate) fn set_flag(&self, flag: bool) {
        self.0.lock().flag = flag;
    }

    /// Whether it leaves questions about all sandboxes without an answer.
    pub(crate) fn set_silent(&self, is_silent: bool) {
        self.0.lock().is_silent = is_silent;
    }

    /// Whether those who keep its containers do not answer.
    pub(crate) fn set_unwell(&self, is_unwell: bool) {
        self.0.lock().is_unwell = is_unwell;
    }

    /// Lets containers named so have that many bytes in their roots.
    pub(crate) fn set_written(&self, name: &str, bytes: u64) {
        self.0.lock().written.insert(name.to_owned(), bytes);
    }

    /// From now on containers named so cannot be stopped, nor their logs begun anew.
    pub(crate) fn set_stuck(&self, name: &str, stuck: Stuck) {
        self.0.lock().stuck.insert(name.to_owned(), stuck);
    }

    /// Whether the container does what it is told to.
    async fn listens(&self, id: &ContainerId) -> Result<(), Error> {
        let stuck = {
            let mut state = self.0.lock();
            let name = state.container(id)?.spec.name.clone();
            state.stuck.get(&name).copied()
        };
        match stuck {
            None => Ok(()),
            Some(Stuck::Refuses) => Err(Error::Invalid("it does not answer".to_owned())),
            Some(Stuck::Hangs) => std::future::pending().await,
        }
    }

    pub(crate) fn set_target(&self, target: std::net::SocketAddr) {
        self.0.lock().target = Some(target);
    }

    /// Ids and specs of all containers named so, the oldest first.
    pub(crate) fn containers(&self, name: &str) -> Vec<(ContainerId, ContainerSpec)> {
        let state = self.0.lock();
        let all = state
            .sandboxes
            .values()
            .flat_map(|sandbox| &sandbox.containers);
        all.filter(|container| container.spec.name == name)
            .map(|container| (container.id.clone(), container.spec.clone()))
            .collect()
    }

    /// How long containers were given to end, in the order in which they were told to.
    pub(crate) fn graces(&self) -> Vec<Duration> {
        self.0.lock().graces.clone()
    }

    /// What was done to containers that run: `NAME: COMMAND` for each exec, `NAME: stop` for each stop.
    pub(crate) fn told(&self) -> Vec<String> {
        self.0.lock().told.clone()
    }

    pub(crate) fn sandbox_count(&self) -> usize {
        self.0.lock().sandboxes.len()
    }

    /// Makes a running container exit by itself.
    pub(crate) fn exit(&self, name: &str, code: i32) {
        let running = {
            let state = self.0.lock();
            let all = state
                .sandboxes
                .values()
                .flat_map(|sandbox| &sandbox.containers);
            all.filter(|container| container.spec.name == name)
                .map(|container| container.id.clone())
                .next_back()
        };
        let id = running.expect("there is such a container");
        self.0.lock().exit(&id, code, None);
    }

    /// As after a new start of the machine: nothing runs, and nobody has seen how it ended.
    pub(crate) fn reboot(&self) {
        let mut state = self.0.lock();
        let containers: Vec<ContainerId> = state
            .sandboxes
            .values_mut()
            .flat_map(|sandbox| {
                sandbox.alive = false;
                &sandbox.containers
            })
            .map(|container| container.id.clone())
            .collect();
        for container in containers {
            state.exit(&container, 255, None);
        }
    }

    /// What the container sees of a volume: the content of a file below one of its mounts.
    pub(crate) fn read(&self, name: &str, path: &str) -> Option<String> {
        let (_, spec) = self.containers(name).pop()?;
        let path = std::path::Path::new(path);
        let (mount, rest) = spec
            .mounts
            .iter()
            .find_map(|mount| Some((mount, path.strip_prefix(&mount.target).ok()?)))?;
        let source: PathBuf = match rest.as_os_str().is_empty() {
            true => mount.source.clone(),
            false => mount.source.join(rest),
        };
        std::fs::read_to_string(source).ok()
    }

    /// Fills a file in a directory that a container has mounted.
    pub(crate) fn write_bytes(&self, name: &str, path: &str, bytes: usize) {
        let (_, spec) = self
            .containers(name)
            .pop()
            .expect("there is such a container");
        let mut mounts = spec.mounts.iter();
        let mount = mounts.find(|mount| mount.target.as_os_str() == path);
        let file = mount.expect("it is mounted").source.join("file");
        std::fs::write(file, vec![1; bytes]).expect("written");
    }

    /// Writes a file below one of a container's mounts, as the container would.
    pub(crate) fn write(&self, name: &str, path: &str, text: &str) {
        let (_, spec) = self
            .containers(name)
            .pop()
            .expect("there is such a container");
        let mount = spec
            .mounts
            .iter()
            .find(|mount| mount.target.as_os_str() == path);
        std::fs::write(&mount.expect("it is mounted").source, text).expect("written");
    }
}

#[async_trait]
impl Engine for FakeEngine {
    async fn health(&self) -> Result<(), Error> {
        match self.0.lock().is_unwell {
            false => Ok(()),
            true => Err(Error::Invalid("nobody answers".to_owned())),
        }
    }

    async fn sandboxes(&self) -> Vec<SandboxStatus> {
        while self.0.lock().is_silent {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let state = self.0.lock();
        state
            .sandboxes
            .iter()
            .map(|(id, sandbox)| status(id, sandbox))
            .collect()
    }

    async fn sandbox(&self, id: &SandboxId) -> Result<SandboxStatus, Error> {
        let state = self.0.lock();
        let found = state.sandboxes.get(id).map(|sandbox| status(id, sandbox));
        found.ok_or_else(|| Error::SandboxNotFound(id.clone()))
    }

    async fn run_sandbox(&self, id: &SandboxId, spec: SandboxSpec) -> Result<SandboxStatus, Error> {
        let mut state = self.0.lock();
        if state.sandboxes.contains_key(id) {
            return Err(Error::Exists(id.0.clone()));
        }
        state.made += 1;
        let last = u8::try_from(state.made + 1).expect("tests make few");
        let sandbox = Sandbox {
            spec,
            alive: true,
            address: Ipv4Addr::new(10, 244, 0, last),
            created_at: Timestamp::now(),
            containers: Vec::new(),
        };
        let made = status(id, &sandbox);
        state.sandboxes.insert(id.clone(), sandbox);
        Ok(made)
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        let mut state = self.0.lock();
        let Some(sandbox) = state.sandboxes.get_mut(id) else {
            return Ok(());
        };
        sandbox.alive = false;
        let ids: Vec<ContainerId> = sandbox.containers.iter().map(|c| c.id.clone()).collect();
        for id in ids {
            state.exit(&id, 137, Some(9));
        }
        Ok(())
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        self.stop_sandbox(id).await?;
        self.0.lock().sandboxes.remove(id);
        Ok(())
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        spec: ContainerSpec,
    ) -> Result<ContainerId, Error> {
        let mut state = self.0.lock();
        state.made += 1;
        let id = ContainerId(format!("{:064x}", state.made));
        let found = state.sandboxes.get_mut(sandbox);
        let found = found.ok_or_else(|| Error::SandboxNotFound(sandbox.clone()))?;
        found.containers.push(Container {
            id: id.clone(),
            spec,
            state: ContainerState::Created,
            created_at: Timestamp::now(),
        });
        Ok(id)
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), Error> {
        // About what it takes in earnest, so that what others see meanwhile is seen.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut state = self.0.lock();
        let container = state.container(id)?;
        let command = container.spec.command.clone().unwrap_or_default();
        if command.first().is_some_and(|program| program == "missing") {
            let message = "exec: \"missing\": executable file not found in $PATH".to_owned();
            container.state = ContainerState::Exited {
                code: 128,
                signal: None,
                oom_killed: false,
                started_at: None,
                finished_at: Timestamp::now(),
                message: Some(message.clone()),
            };
            state.tell(id);
            return Err(Error::Command(message));
        }
        let mut log = std::fs::File::create(&container.spec.log_path).expect("a log");
        let restarts = container
            .spec
            .labels
            .get("io.kubernetes.container.restartCount");
        let run = restarts.map_or("?", String::as_str);
        writeln!(log, "2026-01-01T00:00:00.5Z stdout F run {run}").expect("written");
        container.state = ContainerState::Running {
            pid: 1,
            started_at: Timestamp::now(),
        };
        state.tell(id);
        if let [program, code] = command.as_slice()
            && program == "exit"
        {
            state.exit(id, code.parse().expect("a code"), None);
        }
        Ok(())
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), Error> {
        {
            let mut state = self.0.lock();
            state.graces.push(grace);
            state.note(id, "stop");
        }
        self.listens(id).await?;
        let mut state = self.0.lock();
        state.exit(id, 0, None);
        Ok(())
    }

    async fn signal_container(&self, id: &ContainerId, signal: i32) -> Result<(), Error> {
        self.0.lock().exit(id, 128 + signal, Some(signal));
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), Error> {
        for sandbox in self.0.lock().sandboxes.values_mut() {
            sandbox.containers.retain(|container| container.id != *id);
        }
        Ok(())
    }

    async fn container(&self, id: &ContainerId) -> Result<ContainerStatus, Error> {
        let state = self.0.lock();
        let all = state
            .sandboxes
            .iter()
            .flat_map(|(id, sandbox)| status(id, sandbox).containers);
        let mut found = all.filter(|container| container.id == *id);
        found
            .next()
            .ok_or_else(|| Error::ContainerNotFound(id.clone()))
    }

    async fn exec(&self, id: &ContainerId, spec: ExecSpec) -> Result<Exec, Error> {
        self.0.lock().note(id, &spec.argv.join(" "));
        let words: Vec<&str> = spec.argv.iter().map(String::as_str).collect();
        let (stdin, mut from_client) = tokio::io::duplex(1024);
        let (mut to_client, stdout) = tokio::io::duplex(1024);
        let code = match words.as_slice() {
            ["true"] => 0,
            ["flag"] => i32::from(!self.0.lock().flag),
            ["exit", code] => code.parse().expect("a code"),
            ["cat"] => {
                let copied =
                    tokio::spawn(
                        async move { tokio::io::copy(&mut from_client, &mut to_client).await },
                    );
                return Ok(Exec {
                    streams: Streams {
                        stdin: Some(Box::pin(stdin)),
                        stdout: Box::pin(stdout),
                        stderr: None,
                        resize: None,
                    },
                    exit: Box::pin(async move {
                        copied.await.expect("copies").expect("copied");
                        Ok(0)
                    }),
                    kill: Arc::new(|| {}),
                });
            }
            _ => {
                let message = format!(
                    "exec: \"{}\": executable file not found in $PATH",
                    spec.argv[0]
                );
                return Err(Error::Command(message));
            }
        };
        Ok(Exec {
            streams: Streams {
                stdin: None,
                stdout: Box::pin(tokio::io::empty()),
                stderr: None,
                resize: None,
            },
            exit: Box::pin(async move { Ok(code) }),
            kill: Arc::new(|| {}),
        })
    }

    async fn attach(&self, id: &ContainerId) -> Result<Streams, Error> {
        Err(Error::NotRunning(id.clone()))
    }

    async fn dial(&self, _: &SandboxId, port: u16) -> Result<tokio::net::TcpStream, Error> {
        let target = self.0.lock().target;
        let failed = |source: std::io::Error| Error::Machine {
            step: "connect to",
            subject: format!("localhost:{port}"),
            source: Box::new(source),
        };
        match target.filter(|_| port == 80) {
            Some(target) => tokio::net::TcpStream::connect(target).await.map_err(failed),
            None => Err(failed(std::io::ErrorKind::ConnectionRefused.into())),
        }
    }

    async fn stats(&self, _: &ContainerId) -> Result<Stats, Error> {
        Ok(Stats::default())
    }

    async fn written(&self, id: &ContainerId, most: u64) -> Result<u64, Error> {
        let mut state = self.0.lock();
        let name = state.container(id)?.spec.name.clone();
        Ok(state
            .written
            .get(&name)
            .copied()
            .unwrap_or(0)
            .min(most.saturating_add(1)))
    }

    async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error> {
        self.listens(id).await?;
        let log = self.0.lock().container(id)?.spec.log_path.clone();
        std::fs::write(log, "").expect("the directory is there");
        Ok(())
    }

    fn events(&self) -> mpsc::Receiver<Event> {
        let (sender, receiver) = mpsc::channel(256);
        self.0.lock().listeners.push(sender);
        receiver
    }

    async fn image(&self, reference: &str) -> Option<ImageInfo> {
        let known = self.0.lock().images.contains(reference);
        known.then(|| ImageInfo {
            id: format!("sha256:{}", "0".repeat(64)),
            references: vec![format!("docker.io/library/{reference}")],
            size: 1,
            user: String::new(),
            has_command: true,
        })
    }

    async fn images(&self) -> Vec<ImageInfo> {
        Vec::new()
    }

    async fn mount_image(
        &self,
        _sandbox: &SandboxId,
        _name: &str,
        image: &str,
        target: &Path,
    ) -> Result<(), Error> {
        if self.image(image).await.is_none() {
            return Err(Error::ImageNotFound(image.to_owned()));
        }
        std::fs::write(target.join("image"), image).expect("the directory is there");
        Ok(())
    }
}
