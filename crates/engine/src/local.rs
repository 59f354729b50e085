//! The engine of this machine: what it knows, and what it hears from keepers.

mod adopt;
mod containers;
mod follow;
mod health;
mod mounted_images;
mod sandboxes;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use async_trait::async_trait;
use image::Images;
use network::Network;
use parking_lot::Mutex;
use runtime::cgroup::Cgroups;
use runtime::{Keeper, KeeperError};
use tokio::sync::mpsc;

use crate::api::{
    ContainerId, ContainerSpec, ContainerStatus, Engine, Error, Event, Exec, ExecSpec, ImageInfo,
    SandboxId, SandboxSpec, SandboxStatus, Stats, Streams,
};
use crate::error::{machine, of_keeper};
use crate::events::Listeners;
use crate::sandbox::{Container, Sandbox, advance};
use crate::user::Users;
use crate::{execute, streams};

/// Sandboxes that are made side by side; more would only make each of them slower.
const MAKING_MAX: usize = 16;

/// `/dev/shm`, as Docker and containerd give.
const SHM_SIZE: u64 = 64 << 20;

/// How long a killed container may take to be gone before the caller is told that it is stuck.
const TIMEOUT_KILL: Duration = Duration::from_secs(60);

/// What an engine works with.
#[derive(Clone)]
pub struct Config {
    /// Name of the instance: its cgroups are named after it.
    pub instance: String,
    /// Sandboxes are kept below it, in `run/sandboxes`.
    pub data_dir: PathBuf,
    /// This executable, which becomes a keeper when its first argument is
    /// [`runtime::KEEPER_ARGUMENT`]; `/proc/self/exe` outlives a replaced file.
    pub program: PathBuf,
    /// Images of this instance.
    pub images: Images,
    /// Network of this instance.
    pub network: Network,
}

/// Why an engine's cgroup stays.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// They must be removed first.
    #[error("{0} sandboxes have not been removed")]
    Sandboxes(usize),
    /// The cgroup cannot be removed.
    #[error(transparent)]
    Cgroup(#[from] runtime::cgroup::CgroupError),
}

/// Why an engine cannot work here.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No control groups.
    #[error(transparent)]
    Cgroup(#[from] runtime::cgroup::CgroupError),
    /// The directory of the sandboxes.
    #[error("{step} {path}: {source}", path = path.display())]
    Directory {
        /// What was being done.
        step: &'static str,
        /// To which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Containers of this machine. Clones share it.
#[derive(Clone)]
pub struct LocalEngine(Arc<Inner>);

struct Inner {
    config: Config,
    cgroups: Cgroups,
    /// `run/sandboxes`
    directory: PathBuf,
    sandboxes: Mutex<BTreeMap<SandboxId, Arc<Sandbox>>>,
    /// Names of sandboxes that are being made.
    making: Mutex<BTreeSet<SandboxId>>,
    places: tokio::sync::Semaphore,
    users: Users,
    listeners: Listeners,
    /// Which keeper is asked next whether it answers.
    turn: AtomicUsize,
}

impl LocalEngine {
    /// Takes up everything that an earlier daemon left: sandboxes whose keepers live go on as they
    /// are, those without are listed as dead, half-made ones and what belongs to none are removed.
    pub async fn open(config: Config) -> Result<LocalEngine, OpenError> {
        let cgroups = Cgroups::detect()?;
        cgroups.prepare(&format!("/{}", config.instance))?;
        let directory = config.data_dir.join("run/sandboxes");
        let failed = |step, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Directory { step, path, source }
        };
        fs::create_dir_all(&directory).map_err(failed("make", &directory))?;
        let names: Vec<String> = fs::read_dir(&directory)
            .map_err(failed("read", &directory))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        warn_of_limits();
        let engine = LocalEngine(Arc::new(Inner {
            config,
            cgroups,
            directory,
            sandboxes: Mutex::default(),
            making: Mutex::default(),
            places: tokio::sync::Semaphore::new(MAKING_MAX),
            users: Users::default(),
            listeners: Listeners::default(),
            turn: AtomicUsize::default(),
        }));
        let adopted = futures::future::join_all(names.iter().map(|name| engine.adopt(name))).await;
        if adopted.iter().all(|&is_known| is_known) {
            engine.remove_leftovers().await;
        } else {
            tracing::warn!("nothing is cleared up, as it is not known what still belongs to whom");
        }
        Ok(engine)
    }

    /// Removes the instance's own cgroup, when all of its sandboxes have been removed. The engine
    /// must not be used afterwards.
    ///
    /// # Errors
    /// When something still runs in it.
    pub fn close(&self) -> Result<(), CloseError> {
        let inner = &self.0;
        let left = inner.sandboxes.lock().len();
        if left > 0 {
            return Err(CloseError::Sandboxes(left));
        }
        inner
            .cgroups
            .remove(&format!("/{}", inner.config.instance))?;
        Ok(())
    }
}

impl Inner {
    fn sandbox(&self, id: &SandboxId) -> Result<Arc<Sandbox>, Error> {
        self.sandboxes
            .lock()
            .get(id)
            .cloned()
            .ok_or_else(|| Error::SandboxNotFound(id.clone()))
    }

    fn container(&self, id: &ContainerId) -> Result<(Arc<Sandbox>, Container), Error> {
        let sandboxes = self.sandboxes.lock();
        sandboxes
            .values()
            .find_map(|sandbox| Some((Arc::clone(sandbox), sandbox.container(id)?)))
            .ok_or_else(|| Error::ContainerNotFound(id.clone()))
    }

    /// A container with the keeper that can act on it.
    fn running(&self, id: &ContainerId) -> Result<(Keeper, Container), Error> {
        let (sandbox, container) = self.container(id)?;
        let keeper = sandbox
            .reach()?
            .ok_or_else(|| Error::NotRunning(id.clone()))?;
        Ok((keeper, container))
    }

    /// Puts a sandbox where it is found, and follows what its keeper says.
    fn settle(
        self: &Arc<Self>,
        sandbox: Sandbox,
        records: Vec<runtime::ContainerRecord>,
        events: Option<mpsc::Receiver<runtime::Event>>,
    ) -> Arc<Sandbox> {
        let sandbox = Arc::new(sandbox);
        for record in records {
            if let Some(container) = Container::new(record) {
                sandbox.insert(container);
            }
        }
        self.sandboxes
            .lock()
            .insert(sandbox.id.clone(), Arc::clone(&sandbox));
        if sandbox.is_alive() {
            tokio::spawn(Arc::clone(self).follow(Arc::clone(&sandbox), events));
        }
        sandbox
    }

    /// As [`Inner::bury`], beside the async workers.
    async fn tidy(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), KeeperError> {
        let (inner, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        match tokio::task::spawn_blocking(move || inner.bury(&sandbox)).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The program ends; the next one finds it.
                Err(_) => Ok(()),
            },
        }
    }

    /// After a keeper is gone. One that ended as it should has left nothing to do.
    fn bury(&self, sandbox: &Sandbox) -> Result<(), KeeperError> {
        let _alone = sandbox.burying.lock();
        let mut left = Vec::new();
        let buried = Keeper::read_dead(&sandbox.directory).and_then(|dead| {
            let Some(mut dead) = dead else { return Ok(()) };
            let buried = dead.bury(&sandbox.directory, &self.cgroups);
            left = dead.containers;
            buried
        });
        for record in sandbox.end(left) {
            self.listeners.tell(&Event::Container {
                sandbox: sandbox.id.clone(),
                container: ContainerId(record.spec.id),
                state: record.state,
            });
        }
        buried
    }

    fn note_state(&self, sandbox: &Sandbox, id: &ContainerId, state: &runtime::ContainerState) {
        if let Some(container) = sandbox.container(id)
            && advance(&container, state)
        {
            self.listeners.tell(&Event::Container {
                sandbox: sandbox.id.clone(),
                container: id.clone(),
                state: state.clone(),
            });
        }
    }
}

/// Says once what this machine will not let containers have.
fn warn_of_limits() {
    const SYS_RESOURCE: u32 = 24;
    let permitted = fs::read_to_string("/proc/self/status")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("CapPrm:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or_default();
    if permitted & (1 << SYS_RESOURCE) == 0 {
        tracing::warn!(
            "no CAP_SYS_RESOURCE: out-of-memory scores of containers are not lowered below this process's own"
        );
    }
}

#[async_trait]
impl Engine for LocalEngine {
    async fn health(&self) -> Result<(), Error> {
        self.0.reach_a_keeper().await
    }

    async fn sandboxes(&self) -> Vec<SandboxStatus> {
        let sandboxes: Vec<_> = self.0.sandboxes.lock().values().cloned().collect();
        sandboxes.iter().map(|sandbox| sandbox.status()).collect()
    }

    async fn sandbox(&self, id: &SandboxId) -> Result<SandboxStatus, Error> {
        Ok(self.0.sandbox(id)?.status())
    }

    async fn run_sandbox(&self, id: &SandboxId, spec: SandboxSpec) -> Result<SandboxStatus, Error> {
        let work = Arc::clone(&self.0).run_sandbox(id.clone(), spec);
        finished(tokio::spawn(work)).await
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        let Ok(sandbox) = self.0.sandbox(id) else {
            return Ok(());
        };
        let inner = Arc::clone(&self.0);
        finished(tokio::spawn(async move {
            let _alone = sandbox.ending.lock().await;
            inner.stop(&sandbox).await
        }))
        .await
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), Error> {
        let (inner, id) = (Arc::clone(&self.0), id.clone());
        finished(tokio::spawn(async move { inner.remove(&id).await })).await
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        spec: ContainerSpec,
    ) -> Result<ContainerId, Error> {
        let work = Arc::clone(&self.0).create_container(sandbox.clone(), spec);
        finished(tokio::spawn(work)).await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), Error> {
        self.0.start_container(id).await
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), Error> {
        self.0.stop_container(id, grace).await
    }

    async fn signal_container(&self, id: &ContainerId, signal: i32) -> Result<(), Error> {
        let (keeper, _) = self.0.running(id)?;
        keeper
            .signal(&id.0, signal)
            .await
            .map_err(|error| of_keeper("signal container", id, error))
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), Error> {
        let (inner, id) = (Arc::clone(&self.0), id.clone());
        finished(tokio::spawn(
            async move { inner.remove_container(&id).await },
        ))
        .await
    }

    async fn container(&self, id: &ContainerId) -> Result<ContainerStatus, Error> {
        let (sandbox, container) = self.0.container(id)?;
        Ok(container.status(&sandbox.id))
    }

    async fn exec(&self, id: &ContainerId, spec: ExecSpec) -> Result<Exec, Error> {
        let (keeper, container) = self.0.running(id)?;
        execute::execute(id, &keeper, &container, spec).await
    }

    async fn attach(&self, id: &ContainerId) -> Result<Streams, Error> {
        let (keeper, container) = self.0.running(id)?;
        let ends = keeper
            .attach(&id.0)
            .await
            .map_err(|error| of_keeper("attach to container", id, error))?;
        streams::streams(ends, container.record.spec.stdin)
            .map_err(|error| machine("attach to container", &id.0, error))
    }

    async fn dial(&self, sandbox: &SandboxId, port: u16) -> Result<tokio::net::TcpStream, Error> {
        let sandbox = self.0.sandbox(sandbox)?;
        let subject = || format!("localhost:{port} of sandbox {}", sandbox.id.0);
        let keeper = sandbox
            .reach()?
            .ok_or_else(|| Error::SandboxNotFound(sandbox.id.clone()))?;
        let stream = keeper
            .dial(port)
            .await
            .map_err(|error| machine("connect to", subject(), error))?;
        tokio::net::TcpStream::from_std(stream)
            .map_err(|error| machine("connect to", subject(), error))
    }

    async fn stats(&self, id: &ContainerId) -> Result<Stats, Error> {
        let (_, container) = self.0.running(id)?;
        if container.state.borrow().pid().is_none() {
            return Err(Error::NotRunning(id.clone()));
        }
        let usage = self
            .0
            .cgroups
            .usage(&container.record.spec.cgroup)
            .map_err(|error| machine("read the use of resources of", &id.0, error))?;
        Ok(Stats {
            cpu: usage.cpu,
            memory: usage.memory,
            memory_working_set: usage.memory_working_set,
            pids: usage.pids,
        })
    }

    async fn written(&self, id: &ContainerId, most: u64) -> Result<u64, Error> {
        let images = &self.0.config.images;
        let measured = images.root_size(&id.0, most).await;
        measured.map_err(|error| machine("measure the root of", &id.0, error))
    }

    async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error> {
        let (keeper, _) = self.0.running(id)?;
        keeper
            .reopen_log(&id.0)
            .await
            .map_err(|error| of_keeper("reopen the log of", id, error))
    }

    fn events(&self) -> mpsc::Receiver<Event> {
        self.0.listeners.listen()
    }

    async fn image(&self, reference: &str) -> Option<ImageInfo> {
        self.0
            .config
            .images
            .find(reference)
            .map(|image| info(&image))
    }

    async fn images(&self) -> Vec<ImageInfo> {
        self.0
            .config
            .images
            .list()
            .iter()
            .map(|image| info(image))
            .collect()
    }

    async fn mount_image(
        &self,
        sandbox: &SandboxId,
        name: &str,
        image: &str,
        target: &Path,
    ) -> Result<(), Error> {
        self.0.mount_image(sandbox, name, image, target).await
    }
}

/// Work that goes on to its end even if nobody waits for it any more.
async fn finished<T>(work: tokio::task::JoinHandle<Result<T, Error>>) -> Result<T, Error> {
    match work.await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(machine("finish", "a call while the program ends", error)),
        },
    }
}

fn info(image: &image::Image) -> ImageInfo {
    ImageInfo {
        id: image.id.to_string(),
        references: image.references.iter().map(ToString::to_string).collect(),
        size: image.size,
        user: image.config.user.clone(),
        has_command: !(image.config.entrypoint.is_empty() && image.config.cmd.is_empty()),
    }
}
