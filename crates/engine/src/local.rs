//! The engine of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use image::Images;
use network::{Frontend, Network, Protocol, PublishedPort};
use parking_lot::Mutex;
use runtime::cgroup::Cgroups;
use runtime::{Dead, Keeper, KeeperError};
use tokio::sync::mpsc;

use crate::api::{
    ContainerId, ContainerSpec, ContainerStatus, Engine, Error, Event, Exec, ExecSpec, ImageInfo,
    NetworkMode, PortMapping, SandboxId, SandboxSpec, SandboxStatus, Stats, Streams,
};
use crate::error::{machine, of_keeper};
use crate::events::Listeners;
use crate::sandbox::{Container, ContainerNote, Made, Sandbox, SandboxNote, advance};
use crate::user::Users;
use crate::{convert, etc, execute, streams};

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
}

impl LocalEngine {
    /// Takes up everything that an earlier daemon left: sandboxes whose keepers live go on as they
    /// are, those without are listed as dead, half-made ones and what belongs to none are removed.
    pub async fn open(config: Config) -> Result<LocalEngine, OpenError> {
        let cgroups = Cgroups::detect()?;
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
        }));
        futures::future::join_all(names.iter().map(|name| engine.adopt(name))).await;
        engine.remove_leftovers().await;
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

    async fn adopt(&self, name: &str) {
        let (id, directory) = (SandboxId(name.to_owned()), self.0.directory.join(name));
        let result = match Keeper::connect(&directory).await {
            Ok(found) => self.adopt_living(&id, &directory, found).await,
            Err(reason) => self.adopt_dead(&id, &directory, &reason),
        };
        if let Err(error) = result {
            tracing::warn!(sandbox = name, %error, "a sandbox of an earlier run is removed");
            if let Err(error) = self.0.clear(&id, &directory).await {
                tracing::warn!(sandbox = name, %error, "it could not be removed completely");
            }
        }
    }

    async fn adopt_living(
        &self,
        id: &SandboxId,
        directory: &Path,
        (keeper, record, containers, events): runtime::Found,
    ) -> Result<(), Error> {
        let result = read_made(directory).and_then(|made| Ok((made, read_note(&record)?)));
        let (made, note) = match result {
            Ok(read) => read,
            Err(error) => {
                // Half-made: nobody was told of it.
                let _ = keeper.end().await;
                return Err(error);
            }
        };
        let sandbox = Sandbox::new(
            id.clone(),
            directory.to_owned(),
            &record,
            note.spec,
            made.address,
            Some(keeper),
        );
        self.0.settle(sandbox, containers, Some(events));
        Ok(())
    }

    fn adopt_dead(
        &self,
        id: &SandboxId,
        directory: &Path,
        reason: &KeeperError,
    ) -> Result<(), Error> {
        let failed = |error: KeeperError| machine("read what is left of", &id.0, error);
        let mut dead = Keeper::read_dead(directory)
            .map_err(failed)?
            .ok_or_else(|| Error::SandboxNotFound(id.clone()))?;
        let (made, note) = (read_made(directory)?, read_note(&dead.sandbox)?);
        tracing::info!(sandbox = id.0, %reason, "the sandbox has no keeper");
        dead.bury(directory, &self.0.cgroups).map_err(failed)?;
        let sandbox = Sandbox::new(
            id.clone(),
            directory.to_owned(),
            &dead.sandbox,
            note.spec,
            made.address,
            None,
        );
        self.0.settle(sandbox, dead.containers, None);
        Ok(())
    }

    /// Addresses, roots and cgroups that belong to no sandbox.
    async fn remove_leftovers(&self) {
        let inner = &self.0;
        let sandboxes: Vec<Arc<Sandbox>> = inner.sandboxes.lock().values().cloned().collect();
        let living = sandboxes
            .iter()
            .filter(|sandbox| sandbox.keeper().is_some())
            .map(|sandbox| sandbox.id.0.clone());
        if let Err(error) = inner.config.network.release_except(living).await {
            tracing::warn!(%error, "addresses of sandboxes that are gone could not be released");
        }
        let known: BTreeSet<String> = sandboxes
            .iter()
            .flat_map(|sandbox| sandbox.containers())
            .map(|container| container.id().0)
            .collect();
        for root in inner.config.images.roots() {
            if !known.contains(&root)
                && let Err(error) = inner.config.images.remove_root(&root).await
            {
                tracing::warn!(container = root, %error, "a root that belongs to no container stays");
            }
        }
        let used: Vec<String> = sandboxes
            .iter()
            .filter(|sandbox| sandbox.keeper().is_some())
            .map(|sandbox| sandbox.cgroup.clone())
            .collect();
        inner.remove_cgroups(&format!("/{}/pods", inner.config.instance), &used);
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
            .keeper()
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
        if let Some(events) = events {
            tokio::spawn(Arc::clone(self).follow(Arc::clone(&sandbox), events));
        }
        sandbox
    }

    async fn follow(
        self: Arc<Self>,
        sandbox: Arc<Sandbox>,
        mut events: mpsc::Receiver<runtime::Event>,
    ) {
        while let Some(event) = events.recv().await {
            if let runtime::Event::Container { container, state } = event {
                self.note_state(&sandbox, &ContainerId(container), &state);
            }
        }
        // The connection is over: the keeper ended, by itself or because it was asked to.
        sandbox.forget_keeper();
        if let Err(error) = self.tidy(&sandbox).await {
            tracing::warn!(sandbox = sandbox.id.0, %error, "what a keeper left is not in order");
        }
        self.listeners.tell(&Event::SandboxGone(sandbox.id.clone()));
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
        if let Some(mut dead) = Keeper::read_dead(&sandbox.directory)? {
            dead.bury(&sandbox.directory, &self.cgroups)?;
            for record in dead.containers {
                let id = ContainerId(record.spec.id.clone());
                self.note_state(sandbox, &id, &record.state);
            }
        }
        Ok(())
    }

    fn note_state(&self, sandbox: &Sandbox, id: &ContainerId, state: &runtime::ContainerState) {
        if let Some(container) = sandbox.container(id)
            && advance(&container, state)
        {
            self.listeners.tell(&Event::Container {
                sandbox: sandbox.id.clone(),
                container: id.clone(),
                state: convert::state(state),
            });
        }
    }

    async fn run_sandbox(
        self: Arc<Self>,
        id: SandboxId,
        spec: SandboxSpec,
    ) -> Result<SandboxStatus, Error> {
        check_id(&id)?;
        let name_taken = || Error::Exists(format!("sandbox {}", id.0));
        if self.sandboxes.lock().contains_key(&id) || !self.making.lock().insert(id.clone()) {
            return Err(name_taken());
        }
        let directory = self.directory.join(&id.0);
        let place = self.places.acquire().await;
        let cgroup = self.cgroup(&id, &spec);
        let result = self.make_sandbox(&id, &directory, spec).await;
        drop(place);
        if result.is_err() {
            self.prune_cgroups(&cgroup);
            if let Err(error) = self.clear(&id, &directory).await {
                tracing::warn!(sandbox = id.0, %error, "a sandbox that failed left something behind");
            }
        }
        self.making.lock().remove(&id);
        result.map(|sandbox| sandbox.status())
    }

    async fn make_sandbox(
        self: &Arc<Self>,
        id: &SandboxId,
        directory: &Path,
        spec: SandboxSpec,
    ) -> Result<Arc<Sandbox>, Error> {
        let (keeper, events) = Keeper::start(
            &self.config.program,
            directory,
            self.keeper_spec(id, &spec)?,
        )
        .await
        .map_err(|error| machine("start the keeper of", &id.0, error))?;
        let result = self.connect_sandbox(id, directory, &spec, &keeper).await;
        let address = match result {
            Ok(address) => address,
            Err(error) => {
                let _ = keeper.end().await;
                return Err(error);
            }
        };
        let (record, containers) = keeper
            .list()
            .await
            .map_err(|error| machine("ask the keeper of", &id.0, error))?;
        let sandbox = Sandbox::new(
            id.clone(),
            directory.to_owned(),
            &record,
            spec,
            address,
            Some(keeper),
        );
        Ok(self.settle(sandbox, containers, Some(events)))
    }

    fn cgroup(&self, id: &SandboxId, spec: &SandboxSpec) -> String {
        match spec.cgroup.trim_matches('/') {
            "" => format!("/{}/pods/{}", self.config.instance, id.0),
            below => format!("/{}/{below}", self.config.instance),
        }
    }

    fn keeper_spec(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
    ) -> Result<runtime::SandboxSpec, Error> {
        let own_network = spec.network != NetworkMode::Host;
        let note = SandboxNote { spec: spec.clone() };
        Ok(runtime::SandboxSpec {
            id: id.0.clone(),
            hostname: own_network.then(|| spec.hostname.clone()),
            own_network,
            own_ipc: !spec.host_ipc,
            share_processes: spec.share_processes,
            host_processes: spec.host_processes,
            sysctls: spec.sysctls.clone(),
            cgroup: self.cgroup(id, spec),
            keeper_cgroup: format!("/{}/keepers", self.config.instance),
            resources: convert::resources(&spec.resources),
            shm_size: SHM_SIZE,
            note: serde_json::to_value(note)
                .map_err(|error| machine("write the record of", &id.0, error))?,
        })
    }

    /// The address, the ports and the files; when this has returned, the sandbox is made.
    async fn connect_sandbox(
        &self,
        id: &SandboxId,
        directory: &Path,
        spec: &SandboxSpec,
        keeper: &Keeper,
    ) -> Result<Option<std::net::Ipv4Addr>, Error> {
        let network = &self.config.network;
        let failed = |error| machine("connect sandbox", &id.0, error);
        let address = if spec.network == NetworkMode::Own {
            let namespace = PathBuf::from(format!("/proc/{}/ns/net", keeper.pid()));
            let attachment = network.attach(&namespace, &id.0).await.map_err(failed)?;
            let ports = published(&spec.ports)?;
            if !ports.is_empty() {
                network.publish(&id.0, ports).await.map_err(failed)?;
            }
            Some(attachment.address)
        } else {
            None
        };
        etc::write(directory, spec, address)?;
        let made = serde_json::to_vec(&Made { address })
            .map_err(|error| machine("write the record of", &id.0, error))?;
        let (new, path) = (directory.join("engine.new"), directory.join("engine.json"));
        fs::write(&new, made)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|error| machine("write", path.display().to_string(), error))?;
        Ok(address)
    }

    /// Ends the keeper and gives the address back.
    async fn stop(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        let name = &sandbox.id.0;
        // First, so that nothing new comes in while everything ends.
        self.config
            .network
            .detach(name)
            .await
            .map_err(|error| machine("disconnect sandbox", name, error))?;
        if let Some(keeper) = sandbox.keeper() {
            keeper
                .end()
                .await
                .map_err(|error| machine("end the keeper of", name, error))?;
            sandbox.forget_keeper();
            self.tidy(sandbox)
                .await
                .map_err(|error| machine("clear up after", name, error))?;
        }
        Ok(())
    }

    async fn remove(self: &Arc<Self>, id: &SandboxId) -> Result<(), Error> {
        let Ok(sandbox) = self.sandbox(id) else {
            return Ok(());
        };
        let _alone = sandbox.ending.lock().await;
        self.stop(&sandbox).await?;
        for container in sandbox.containers() {
            self.remove_root(&container.id()).await?;
            sandbox.forget(&container.id());
        }
        self.clear(id, &sandbox.directory).await?;
        // On version 1 nothing else removes the directories between.
        let above = sandbox
            .cgroup
            .rsplit_once('/')
            .map_or("/", |(above, _)| above);
        self.cgroups
            .prune(above, &format!("/{}", self.config.instance));
        self.sandboxes.lock().remove(id);
        Ok(())
    }

    /// Removes what a sandbox has on this machine, beside its containers' roots.
    async fn clear(&self, id: &SandboxId, directory: &Path) -> Result<(), Error> {
        self.config
            .network
            .detach(&id.0)
            .await
            .map_err(|error| machine("disconnect sandbox", &id.0, error))?;
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(machine("remove", directory.display().to_string(), error))
            }
            _ => Ok(()),
        }
    }

    async fn remove_root(&self, id: &ContainerId) -> Result<(), Error> {
        self.config
            .images
            .remove_root(&id.0)
            .await
            .map_err(|error| machine("remove the root of", &id.0, error))
    }

    async fn create_container(
        self: Arc<Self>,
        sandbox: SandboxId,
        spec: ContainerSpec,
    ) -> Result<ContainerId, Error> {
        let sandbox = self.sandbox(&sandbox)?;
        let keeper = sandbox
            .keeper()
            .ok_or_else(|| Error::SandboxNotFound(sandbox.id.clone()))?;
        let images = &self.config.images;
        let image = images
            .find(&spec.image)
            .ok_or_else(|| Error::ImageNotFound(spec.image.clone()))?;
        let id = new_id()?;
        let root = images
            .root(&image, &id.0)
            .await
            .map_err(|error| machine("prepare the root of", &spec.name, error))?;
        let result = self
            .register(&sandbox, &keeper, &spec, &image, &id, root)
            .await;
        if let Err(error) = result {
            if let Err(error) = self.remove_root(&id).await {
                tracing::warn!(%error, "a container that was not made left its root behind");
            }
            return Err(error);
        }
        Ok(id)
    }

    async fn register(
        &self,
        sandbox: &Sandbox,
        keeper: &Keeper,
        spec: &ContainerSpec,
        image: &image::Image,
        id: &ContainerId,
        root: image::Root,
    ) -> Result<(), Error> {
        let record = runtime::ContainerRecord {
            spec: self.runtime_spec(sandbox, spec, image, id, root)?,
            created_at: jiff::Timestamp::now(),
            state: runtime::ContainerState::Created,
        };
        let container = Container::new(record)
            .ok_or_else(|| Error::Invalid(format!("container {} cannot be recorded", spec.name)))?;
        keeper
            .create(container.record.spec.clone())
            .await
            .map_err(|error| of_keeper("create container", id, error))?;
        sandbox.insert(container);
        Ok(())
    }

    fn runtime_spec(
        &self,
        sandbox: &Sandbox,
        spec: &ContainerSpec,
        image: &image::Image,
        id: &ContainerId,
        root: image::Root,
    ) -> Result<runtime::ContainerSpec, Error> {
        let config = &image.config;
        let wanted = spec.user.as_deref().unwrap_or(&config.user);
        let user = self.users.find(&image.id, &root, wanted)?;
        let mut groups = user.groups.clone();
        groups.extend(&spec.groups);
        groups.sort_unstable();
        groups.dedup();
        let hostname = match sandbox.spec.network {
            NetworkMode::Host => rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            _ => sandbox.spec.hostname.clone(),
        };
        let read_only = spec.security.read_only_root;
        let mut mounts = etc::mounts(&sandbox.directory, &spec.mounts, read_only);
        mounts.extend(spec.mounts.iter().map(convert::mount));
        let note = ContainerNote {
            name: spec.name.clone(),
            image: spec.image.clone(),
            image_id: image.id.to_string(),
            stop_signal: convert::stop_signal(spec, config)?,
            labels: spec.labels.clone(),
        };
        Ok(runtime::ContainerSpec {
            id: id.0.clone(),
            argv: convert::argv(spec, config)?,
            env: convert::env(spec, config, &hostname, &user.home),
            working_dir: convert::working_dir(spec, config),
            user: runtime::User {
                uid: user.uid,
                gid: user.gid,
                groups,
            },
            root: runtime::Root::Overlay {
                lower: root.lower,
                upper: root.upper,
                work: root.work,
            },
            mounts,
            cgroup: format!("{}/{}", sandbox.cgroup, id.0),
            resources: convert::resources(&spec.resources),
            security: convert::security(&spec.security),
            tty: spec.tty,
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
            log_path: Some(spec.log_path.clone()).filter(|path| !path.as_os_str().is_empty()),
            oom_score_adj: spec.oom_score_adj,
            note: serde_json::to_value(note)
                .map_err(|error| machine("write the record of", &spec.name, error))?,
        })
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), Error> {
        let (sandbox, _) = self.container(id)?;
        let (keeper, _) = self.running(id)?;
        match keeper.start_container(&id.0).await {
            Ok(state) => {
                self.note_state(&sandbox, id, &state);
                Ok(())
            }
            Err(error) => {
                // The exit is on its way as an event; who asks next must see it already.
                if let Ok((_, records)) = keeper.list().await
                    && let Some(record) = records.iter().find(|record| record.spec.id == id.0)
                {
                    self.note_state(&sandbox, id, &record.state);
                }
                Err(of_keeper("start container", id, error))
            }
        }
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), Error> {
        let (sandbox, container) = self.container(id)?;
        let Some(keeper) = sandbox.keeper() else {
            return Ok(());
        };
        if container.state.borrow().pid().is_none() {
            return Ok(());
        }
        let mut state = container.state.subscribe();
        let signal = async |signal: i32| match keeper.signal(&id.0, signal).await {
            Err(KeeperError::Refused(refusal))
                if refusal.kind == runtime::RefusalKind::WrongState =>
            {
                Ok(())
            }
            Err(KeeperError::Gone(_)) => Ok(()),
            result => result.map_err(|error| of_keeper("signal container", id, error)),
        };
        if !grace.is_zero() {
            signal(container.note.stop_signal).await?;
            let ended = state.wait_for(runtime::ContainerState::is_exited);
            if tokio::time::timeout(grace, ended).await.is_ok() {
                return Ok(());
            }
        }
        signal(libc::SIGKILL).await?;
        let ended = state.wait_for(runtime::ContainerState::is_exited);
        match tokio::time::timeout(TIMEOUT_KILL, ended).await {
            Ok(_) => Ok(()),
            Err(_) => Err(machine(
                "stop container",
                &id.0,
                format!("its process did not end in {TIMEOUT_KILL:?} after SIGKILL"),
            )),
        }
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), Error> {
        let Ok((sandbox, container)) = self.container(id) else {
            return Ok(());
        };
        if container.state.borrow().pid().is_some() {
            let message = format!("container {} is running; stop it first", id.0);
            return Err(Error::Invalid(message));
        }
        let removed = match sandbox.keeper() {
            Some(keeper) => keeper.remove(&id.0).await,
            None => Dead::remove_container(&sandbox.directory, &id.0),
        };
        match of_removal(removed) {
            Err(KeeperError::Gone(_)) => Dead::remove_container(&sandbox.directory, &id.0),
            result => result,
        }
        .map_err(|error| of_keeper("remove container", id, error))?;
        self.remove_root(id).await?;
        sandbox.forget(id);
        Ok(())
    }

    /// Removes a sandbox's cgroup, which is empty, and those above it that became so.
    fn prune_cgroups(&self, cgroup: &str) {
        self.cgroups
            .prune(cgroup, &format!("/{}", self.config.instance));
    }

    /// Removes cgroups that no living sandbox uses, with what runs in them.
    fn remove_cgroups(&self, path: &str, used: &[String]) {
        let is_above = |above: &str, below: &str| {
            below
                .strip_prefix(above)
                .is_some_and(|rest| rest.starts_with('/'))
        };
        for name in self.cgroups.children(path) {
            let child = format!("{path}/{name}");
            if used.contains(&child) {
                continue;
            }
            if used.iter().any(|one| is_above(&child, one)) {
                self.remove_cgroups(&child, used);
                continue;
            }
            self.cgroups.kill(&child);
            if let Err(error) = self.cgroups.remove(&child) {
                tracing::warn!(%error, "a cgroup that belongs to no sandbox stays");
            }
        }
    }
}

/// One that the keeper does not know is as good as removed.
fn of_removal(result: Result<(), KeeperError>) -> Result<(), KeeperError> {
    match result {
        Err(KeeperError::Refused(refusal)) if refusal.kind == runtime::RefusalKind::NotFound => {
            Ok(())
        }
        result => result,
    }
}

fn read_note(record: &runtime::SandboxRecord) -> Result<SandboxNote, Error> {
    serde_json::from_value(record.spec.note.clone())
        .map_err(|error| machine("read the record of", &record.spec.id, error))
}

fn read_made(directory: &Path) -> Result<Made, Error> {
    let path = directory.join("engine.json");
    let shown = path.display().to_string();
    let bytes = fs::read(&path).map_err(|error| machine("read", &shown, error))?;
    serde_json::from_slice(&bytes).map_err(|error| machine("read", &shown, error))
}

fn published(ports: &[PortMapping]) -> Result<Vec<PublishedPort>, Error> {
    ports
        .iter()
        .map(|mapping| {
            let protocol = match mapping.protocol.as_str() {
                "TCP" | "" => Protocol::Tcp,
                "UDP" => Protocol::Udp,
                "SCTP" => Protocol::Sctp,
                other => return Err(Error::Invalid(format!("unknown protocol {other:?}"))),
            };
            let address = match mapping.host_address {
                None => None,
                Some(std::net::IpAddr::V4(address)) => {
                    Some(address).filter(|address| !address.is_unspecified())
                }
                Some(std::net::IpAddr::V6(address)) => {
                    let message = format!("port {} of {address}: no IPv6 here", mapping.host_port);
                    return Err(Error::Invalid(message));
                }
            };
            Ok(PublishedPort {
                frontend: Frontend {
                    address,
                    protocol,
                    port: mapping.host_port,
                },
                port: mapping.port,
            })
        })
        .collect()
}

fn check_id(id: &SandboxId) -> Result<(), Error> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=64).contains(&id.0.len()) && id.0.bytes().all(is_plain) {
        return Ok(());
    }
    let message = format!(
        "{:?} is not a sandbox name: it must match [a-z0-9-]{{1,64}}",
        id.0
    );
    Err(Error::Invalid(message))
}

fn new_id() -> Result<ContainerId, Error> {
    let mut bytes = [0u8; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| machine("choose", "a container id", io::Error::from(error)))?;
    Ok(ContainerId(
        bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    ))
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
            .keeper()
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
