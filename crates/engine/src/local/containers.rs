//! Making, starting, stopping and removing containers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use runtime::{Dead, Keeper, KeeperError, RefusalKind};

use super::{Inner, TIMEOUT_KILL, finished};
use crate::api::{ContainerId, ContainerSpec, Error, NetworkMode, SandboxId};
use crate::error::{machine, of_keeper};
use crate::sandbox::{Container, ContainerNote, Link, Sandbox};
use crate::{convert, etc};

/// How long the keeper of a container that was killed without its help may take to say that it is gone.
const TIMEOUT_SILENT: Duration = Duration::from_secs(5);

impl Inner {
    pub(super) async fn remove_root(&self, id: &ContainerId) -> Result<(), Error> {
        self.config
            .images
            .remove_root(&id.0)
            .await
            .map_err(|error| machine("remove the root of", &id.0, error))
    }

    pub(super) async fn create_container(
        self: Arc<Self>,
        sandbox: SandboxId,
        spec: ContainerSpec,
    ) -> Result<ContainerId, Error> {
        let sandbox = self.sandbox(&sandbox)?;
        let keeper = sandbox
            .reach()?
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
        let wanted = spec.user.as_deref().unwrap_or(&image.config.user);
        let images = &self.config.images;
        let user = self.users.find(images, &image.id, &root, wanted).await?;
        let record = runtime::ContainerRecord {
            spec: runtime_spec(sandbox, spec, image, id, root, user)?,
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

    pub(super) async fn start_container(&self, id: &ContainerId) -> Result<(), Error> {
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

    pub(super) async fn stop_container(
        self: &Arc<Self>,
        id: &ContainerId,
        grace: Duration,
    ) -> Result<(), Error> {
        let (sandbox, container) = self.container(id)?;
        if !sandbox.is_alive() || container.state.borrow().pid().is_none() {
            return Ok(());
        }
        let mut state = container.state.subscribe();
        if !grace.is_zero() {
            let ended = async {
                signal(&sandbox, &container, container.note.stop_signal).await?;
                // It cannot fail: the container's state is here as long as the container.
                let _ = state.wait_for(runtime::ContainerState::is_exited).await;
                Ok(())
            };
            if let Ok(result) = tokio::time::timeout(grace, ended).await {
                return result;
            }
        }
        let patience = match signal(&sandbox, &container, libc::SIGKILL).await? {
            true => TIMEOUT_KILL,
            false => {
                self.cgroups.kill(&container.record.spec.cgroup);
                TIMEOUT_SILENT
            }
        };
        let ended = state.wait_for(runtime::ContainerState::is_exited);
        if tokio::time::timeout(patience, ended).await.is_ok() {
            return Ok(());
        }
        if sandbox.keeper().is_some() {
            let message = format!("its process did not end in {patience:?} after SIGKILL");
            return Err(machine("stop container", &id.0, message));
        }
        // Nobody will ever say how it ended, nor start another one in its place.
        let inner = Arc::clone(self);
        finished(tokio::spawn(async move {
            let _alone = sandbox.ending.lock().await;
            let has_ended = container.state.borrow().is_exited();
            match has_ended {
                true => Ok(()),
                false => inner.stop(&sandbox).await,
            }
        }))
        .await
    }

    pub(super) async fn remove_container(&self, id: &ContainerId) -> Result<(), Error> {
        let Ok((sandbox, container)) = self.container(id) else {
            return Ok(());
        };
        if container.state.borrow().pid().is_some() {
            let message = format!("container {} is running; stop it first", id.0);
            return Err(Error::Invalid(message));
        }
        let removed = match sandbox.reach()? {
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
}

/// Whether the container's keeper could be told to signal it, or there is nothing left to signal.
async fn signal(sandbox: &Sandbox, container: &Container, signal: i32) -> Result<bool, Error> {
    let id = container.id();
    let keeper = match sandbox.link() {
        Link::Connected(keeper) => keeper,
        Link::Ended => return Ok(true),
        // It is asked again and again, but the deadline is now.
        Link::Silent => match Keeper::connect(&sandbox.directory).await {
            Ok((keeper, ..)) => keeper,
            Err(_) => return Ok(false),
        },
    };
    match keeper.signal(&id.0, signal).await {
        Ok(()) => Ok(true),
        Err(KeeperError::Refused(refusal)) if refusal.kind == RefusalKind::WrongState => Ok(true),
        Err(error @ KeeperError::Refused(_)) => Err(of_keeper("signal container", &id, error)),
        Err(error) => {
            tracing::warn!(
                container = id.0, signal, %error,
                "its keeper could not be told to signal it"
            );
            Ok(false)
        }
    }
}

/// What the runtime is asked for: what the caller asked for, over what the image says.
fn runtime_spec(
    sandbox: &Sandbox,
    spec: &ContainerSpec,
    image: &image::Image,
    id: &ContainerId,
    root: image::Root,
    user: image::User,
) -> Result<runtime::ContainerSpec, Error> {
    let config = &image.config;
    let mut groups = user.groups;
    groups.extend(&spec.groups);
    // As containerd does: else a program could drop its group, and with it what a file refuses to
    // that group but grants to others.
    groups.push(user.gid);
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
    mounts.extend(spec.mounts.iter().cloned());
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
        resources: spec.resources.clone(),
        security: spec.security.clone(),
        tty: spec.tty,
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
        log_path: Some(spec.log_path.clone()).filter(|path| !path.as_os_str().is_empty()),
        oom_score_adj: spec.oom_score_adj,
        note: serde_json::to_value(note)
            .map_err(|error| machine("write the record of", &spec.name, error))?,
    })
}

/// One that the keeper does not know is as good as removed.
fn of_removal(result: Result<(), KeeperError>) -> Result<(), KeeperError> {
    match result {
        Err(KeeperError::Refused(refusal)) if refusal.kind == RefusalKind::NotFound => Ok(()),
        result => result,
    }
}

fn new_id() -> Result<ContainerId, Error> {
    let mut bytes = [0u8; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| machine("choose", "a container id", io::Error::from(error)))?;
    Ok(ContainerId(
        bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    ))
}
