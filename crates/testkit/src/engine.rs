//! An engine without a kernel: sandboxes and containers are records, and do what the script says.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use engine::{
    ContainerId, ContainerSpec, ContainerState, ContainerStatus, Engine, Error, Event, Exec,
    ExecSpec, ImageInfo, SandboxId, SandboxSpec, SandboxStatus, Stats, Streams,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::script::Script;

/// Events that wait for a slow listener; after that it is told that it has missed some.
const EVENTS_WAITING: usize = 256;
/// The process id of every make-believe process.
const PID: i32 = 4_194_304;

/// What an engine was asked to do so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sandboxes made.
    pub sandboxes: u32,
    /// Containers made.
    pub containers: u32,
    /// Containers started.
    pub starts: u32,
    /// Containers told to stop while they ran.
    pub stops: u32,
}

/// See the module. Clones are the same engine; it outlives the agent that uses it.
#[derive(Clone)]
pub struct FakeEngine {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    script: Script,
    clock: Clock,
    /// The node's part of the pod network.
    network: Ipv4Addr,
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    addresses: BTreeSet<u8>,
    listeners: Vec<Listener>,
    counts: Counts,
}

struct Listener {
    sender: mpsc::Sender<Event>,
    has_missed: bool,
}

struct Sandbox {
    spec: SandboxSpec,
    alive: bool,
    address: Option<u8>,
    created_at: jiff::Timestamp,
    containers: Vec<Container>,
}

struct Container {
    id: ContainerId,
    spec: ContainerSpec,
    state: ContainerState,
    created_at: jiff::Timestamp,
}

impl FakeEngine {
    /// An engine with nothing on it, whose sandboxes get addresses from the /24 at `network`.
    pub fn new(script: Script, clock: Clock, network: Ipv4Addr) -> FakeEngine {
        FakeEngine {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                script,
                clock,
                network,
            }),
        }
    }

    /// What it was asked to do so far.
    pub fn counts(&self) -> Counts {
        self.shared.state.lock().counts
    }

    /// How many sandboxes there are.
    pub fn sandbox_count(&self) -> usize {
        self.shared.state.lock().sandboxes.len()
    }

    /// The ids of all containers that run.
    pub fn running(&self) -> BTreeSet<ContainerId> {
        let state = self.shared.state.lock();
        let all = state
            .sandboxes
            .values()
            .flat_map(|sandbox| &sandbox.containers);
        all.filter(|container| matches!(container.state, ContainerState::Running { .. }))
            .map(|container| container.id.clone())
            .collect()
    }

    /// Ends a sandbox's keeper, and with it all that it held, as a crash would.
    pub fn lose_sandbox(&self, id: &SandboxId) {
        let mut state = self.shared.state.lock();
        state.stop(id, &self.shared.clock);
        state.tell(&Event::SandboxGone(id.clone()));
    }
}

impl State {
    fn container(&mut self, id: &ContainerId) -> Result<(&SandboxId, &mut Container), Error> {
        for (sandbox, content) in &mut self.sandboxes {
            if let Some(found) = content.containers.iter_mut().find(|known| known.id == *id) {
                return Ok((sandbox, found));
            }
        }
        Err(Error::ContainerNotFound(id.clone()))
    }

    /// Ends a container that runs; nothing otherwise.
    fn exit(&mut self, id: &ContainerId, code: i32, signal: Option<i32>, clock: &Clock) {
        let Ok((sandbox, container)) = self.container(id) else {
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
            finished_at: clock.now(),
            message: None,
        };
        let event = Event::Container {
            sandbox: sandbox.clone(),
            container: id.clone(),
            state: container.state.clone(),
        };
        self.tell(&event);
    }

    fn tell(&mut self, event: &Event) {
        self.listeners.retain_mut(|listener| {
            if listener.has_missed {
                listener.has_missed = listener.sender.try_send(Event::Missed).is_err();
            }
            if !listener.has_missed {
                listener.has_missed = listener.sender.try_send(event.clone()).is_err();
            }
            !listener.sender.is_closed()
        });
    }

    fn stop(&mut self, id: &SandboxId, clock: &Clock) {
        let Some(sandbox) = self.sandboxes.get_mut(id) else {
            return;
        };
        sandbox.alive = false;
        if let Some(address) = sandbox.address.take() {
            self.addresses.remove(&address);
        }
        let containers: Vec<ContainerId> = sandbox
            .containers
            .iter()
            .map(|container| container.id.clone())
            .collect();
        for container in containers {
            self.exit(&container, 137, Some(9), clock);
        }
    }
}

impl Shared {
    fn status_of(&self, id: &SandboxId, sandbox: &Sandbox) -> SandboxStatus {
        let containers = sandbox.containers.iter();
        SandboxStatus {
            id: id.clone(),
            alive: sandbox.alive,
            address: sandbox.address.map(|last| {
                let [first, second, third, _] = self.network.octets();
                Ipv4Addr::new(first, second, third, last)
            }),
            created_at: sandbox.created_at,
            labels: sandbox.spec.labels.clone(),
            containers: containers
                .map(|container| status_of(id, container))
                .collect(),
        }
    }
}

fn status_of(sandbox: &SandboxId, container: &Container) -> ContainerStatus {
    ContainerStatus {
        id: container.id.clone(),
        sandbox: sandbox.clone(),
        name: container.spec.name.clone(),
        image: container.spec.image.clone(),
        image_id: image_id(&container.spec.image),
        state: container.state.clone(),
        created_at: container.created_at,
        log_path: container.spec.log_path.clone(),
        labels: container.spec.labels.clone(),
    }
}

/// Sixty-four digits that belong to the name.
fn image_id(name: &str) -> String {
    let digits: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits:0<64.64}")
}

/// The name as the engine stores it.
fn full_name(name: &str) -> String {
    match name.contains('/') {
        true => name.to_owned(),
        false => format!("docker.io/library/{name}"),
    }
}

/// Finds by the name that the script has, or by its full form.
fn familiar(reference: &str) -> &str {
    reference
        .strip_prefix("docker.io/library/")
        .unwrap_or(reference)
}

fn info(name: &str) -> ImageInfo {
    let full = full_name(name);
    ImageInfo {
        id: image_id(&full),
        references: vec![full],
        size: 1 << 20,
        user: String::new(),
        has_command: true,
    }
}

/// Ends a container later, if it still runs then and the engine is still there.
fn exit_later(shared: &Arc<Shared>, id: ContainerId, after: Duration, code: i32) {
    let shared: Weak<Shared> = Arc::downgrade(shared);
    tokio::spawn(async move {
        tokio::time::sleep(after).await;
        if let Some(shared) = shared.upgrade() {
            shared.state.lock().exit(&id, code, None, &shared.clock);
        }
    });
}

#[async_trait]
impl Engine for FakeEngine {
    async fn sandboxes(&self) -> Vec<SandboxStatus> {
        let state = self.shared.state.lock();
        let all = state.sandboxes.iter();
        all.map(|(id, sandbox)| self.shared.status_of(id, sandbox))
            .collect()
    }

    async fn sandbox(&self, id: &SandboxId) -> Result<SandboxStatus, Error> {
        let state = self.shared.state.lock();
        let sandbox = state.sandboxes.get(id);
        let sandbox = sandbox.ok_or_else(|| Error::SandboxNotFound(id.clone()))?;
        Ok(self.shared.status_of(id, sandbox))
    }

    async fn run_sandbox(&self, id: &SandboxId, spec: SandboxSpec) -> Result<SandboxStatus, Error> {
        let mut state = self.shared.state.lock();
        if state.sandboxes.contains_key(id) {
            return Err(Error::Exists(format!("sandbox {}", id.0)));
        }
        let address = match spec.network {
            engine::NetworkMode::Own => {
                // The first is the node's own.
                let free = (2..=254).find(|last| !state.addresses.contains(last));
                let free = free.ok_or_else(|| Error::Machine {
                    step: "find an address for",
                    subject: id.0.clone(),
                    source: "all are taken".into(),
                })?;
                state.addresses.insert(free);
                Some(free)
            }
            engine::NetworkMode::Host | engine::NetworkMode::None => None,
        };
        let sandbox = Sandbox {
            spec,
            alive: true,
            address,
            created_at: self.shared.clock.now(),
            containers: Vec::new(),
        };
        state.counts.sandboxes += 1;
        let status = self.shared.status_of(id, &sandbox);
        state.sandboxes.insert(id.clone(), sandbox);
        Ok(status)
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        self.shared.state.lock().stop(id, &self.shared.clock);
        Ok(())
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        let mut state = self.shared.state.lock();
        state.stop(id, &self.shared.clock);
        state.sandboxes.remove(id);
        Ok(())
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        spec: ContainerSpec,
    ) -> Result<ContainerId, Error> {
        if self.shared.script.find(familiar(&spec.image)).is_none() {
            return Err(Error::ImageNotFound(spec.image));
        }
        let mut state = self.shared.state.lock();
        let number = state.counts.containers + 1;
        let id = ContainerId(format!(
            "{:032x}{number:032x}",
            self.shared.network.to_bits()
        ));
        let found = state.sandboxes.get_mut(sandbox).filter(|found| found.alive);
        let found = found.ok_or_else(|| Error::SandboxNotFound(sandbox.clone()))?;
        found.containers.push(Container {
            id: id.clone(),
            spec,
            state: ContainerState::Created,
            created_at: self.shared.clock.now(),
        });
        state.counts.containers = number;
        Ok(id)
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), Error> {
        let image = {
            let mut state = self.shared.state.lock();
            state.container(id)?.1.spec.image.clone()
        };
        let behaviour = self.shared.script.find(familiar(&image));
        let behaviour = behaviour.ok_or_else(|| Error::ImageNotFound(image))?;
        if !behaviour.start_takes.is_zero() {
            tokio::time::sleep(behaviour.start_takes).await;
        }
        let mut state = self.shared.state.lock();
        let (sandbox, container) = state.container(id)?;
        if container.state != ContainerState::Created {
            return Err(Error::Exists(format!("container {}", id.0)));
        }
        container.state = ContainerState::Running {
            pid: PID,
            started_at: self.shared.clock.now(),
        };
        let event = Event::Container {
            sandbox: sandbox.clone(),
            container: id.clone(),
            state: container.state.clone(),
        };
        state.counts.starts += 1;
        state.tell(&event);
        drop(state);
        if let Some((after, code)) = behaviour.exits {
            exit_later(&self.shared, id.clone(), after, code);
        }
        Ok(())
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), Error> {
        let image = {
            let mut state = self.shared.state.lock();
            let Ok((_, container)) = state.container(id) else {
                return Ok(());
            };
            if !matches!(container.state, ContainerState::Running { .. }) {
                return Ok(());
            }
            let image = container.spec.image.clone();
            state.counts.stops += 1;
            image
        };
        let behaviour = self
            .shared
            .script
            .find(familiar(&image))
            .unwrap_or_default();
        let (code, signal) = match behaviour.stop_takes <= grace {
            true => (0, None),
            false => (137, Some(9)),
        };
        let pause = behaviour.stop_takes.min(grace);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let mut state = self.shared.state.lock();
        state.exit(id, code, signal, &self.shared.clock);
        Ok(())
    }

    async fn signal_container(&self, id: &ContainerId, signal: i32) -> Result<(), Error> {
        let mut state = self.shared.state.lock();
        state.container(id)?;
        state.exit(id, 128 + signal, Some(signal), &self.shared.clock);
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), Error> {
        for sandbox in self.shared.state.lock().sandboxes.values_mut() {
            sandbox.containers.retain(|container| container.id != *id);
        }
        Ok(())
    }

    async fn container(&self, id: &ContainerId) -> Result<ContainerStatus, Error> {
        let mut state = self.shared.state.lock();
        let (sandbox, container) = state.container(id)?;
        Ok(status_of(sandbox, container))
    }

    async fn exec(&self, id: &ContainerId, _spec: ExecSpec) -> Result<Exec, Error> {
        let image = {
            let mut state = self.shared.state.lock();
            let (_, container) = state.container(id)?;
            if !matches!(container.state, ContainerState::Running { .. }) {
                return Err(Error::NotRunning(id.clone()));
            }
            container.spec.image.clone()
        };
        let behaviour = self
            .shared
            .script
            .find(familiar(&image))
            .unwrap_or_default();
        Ok(Exec {
            streams: Streams {
                stdin: None,
                stdout: Box::pin(Cursor::new(behaviour.exec_output.into_bytes())),
                stderr: None,
                resize: None,
            },
            exit: Box::pin(std::future::ready(Ok(behaviour.exec_code))),
            kill: Arc::new(|| {}),
        })
    }

    async fn attach(&self, _id: &ContainerId) -> Result<Streams, Error> {
        Err(Error::Invalid(
            "a make-believe process has no streams".into(),
        ))
    }

    async fn dial(&self, _: &SandboxId, port: u16) -> Result<tokio::net::TcpStream, Error> {
        Err(Error::Machine {
            step: "connect to",
            subject: format!("localhost:{port}"),
            source: Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)),
        })
    }

    async fn stats(&self, id: &ContainerId) -> Result<Stats, Error> {
        self.shared.state.lock().container(id)?;
        Ok(Stats::default())
    }

    async fn written(&self, _: &ContainerId, _: u64) -> Result<u64, Error> {
        Ok(0)
    }

    async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error> {
        self.shared.state.lock().container(id)?;
        Ok(())
    }

    fn events(&self) -> mpsc::Receiver<Event> {
        let (sender, receiver) = mpsc::channel(EVENTS_WAITING);
        self.shared.state.lock().listeners.push(Listener {
            sender,
            has_missed: false,
        });
        receiver
    }

    async fn image(&self, reference: &str) -> Option<ImageInfo> {
        let name = familiar(reference);
        self.shared.script.find(name).map(|_| info(name))
    }

    async fn images(&self) -> Vec<ImageInfo> {
        let names = self.shared.script.images();
        names.iter().map(|name| info(name)).collect()
    }

    async fn mount_image(
        &self,
        _sandbox: &SandboxId,
        _name: &str,
        image: &str,
        _target: &Path,
    ) -> Result<(), Error> {
        match self.image(image).await {
            Some(_) => Ok(()),
            None => Err(Error::ImageNotFound(image.to_owned())),
        }
    }
}
