//! Making, starting, stopping and removing containers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use runtime::{Dead, Keeper, KeeperError};

use super::{Inner, TIMEOUT_KILL};
use crate::api::{ContainerId, ContainerSpec, Error, NetworkMode, SandboxId};
use crate::error::{machine, of_keeper};
use crate::sandbox::{Container, ContainerNote, Sandbox};
use crate::{convert, etc};

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
        &self,
        id: &ContainerId,
        grace: Duration,
    ) -> Result<(), Error> {
        let (sandbox, container) = self.container(id)?;
        let Some(keeper) = sandbox.reach()? else {
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
        Err(KeeperError::Refused(refusal)) if refusal.kind == runtime::RefusalKind::NotFound => {
            Ok(())
        }
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
