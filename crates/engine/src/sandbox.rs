//! One sandbox as the engine knows it, and what its keeper says about it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use runtime::{ContainerRecord, Keeper};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::api::{
    ContainerId, ContainerStatus, Error, Labels, SandboxId, SandboxSpec, SandboxStatus,
};
use crate::error::machine;

/// What the engine notes in a sandbox's record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxNote {
    pub(crate) spec: SandboxSpec,
}

/// `engine.json`: what is known only when a sandbox has been made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) address: Option<Ipv4Addr>,
}

/// What the engine notes in a container's record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerNote {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) image_id: String,
    pub(crate) stop_signal: i32,
    pub(crate) labels: Labels,
}

pub(crate) struct Sandbox {
    pub(crate) id: SandboxId,
    pub(crate) directory: PathBuf,
    pub(crate) cgroup: String,
    pub(crate) spec: SandboxSpec,
    pub(crate) created_at: Timestamp,
    pub(crate) address: Option<Ipv4Addr>,
    /// Held while it is being stopped or removed.
    pub(crate) ending: tokio::sync::Mutex<()>,
    /// Held while what its keeper left is put in order: who stops it and who follows it both do.
    pub(crate) burying: Mutex<()>,
    state: Mutex<State>,
}

/// How a sandbox's keeper is spoken with.
#[derive(Clone)]
pub(crate) enum Link {
    Connected(Keeper),
    /// It is not known to have ended, but cannot be spoken with; containers run on.
    Silent,
    /// It has ended, and with it all containers.
    Ended,
}

struct State {
    link: Link,
    containers: BTreeMap<ContainerId, Container>,
}

/// One container, cheap to clone.
#[derive(Clone)]
pub(crate) struct Container {
    pub(crate) record: Arc<ContainerRecord>,
    pub(crate) note: Arc<ContainerNote>,
    pub(crate) state: watch::Sender<runtime::ContainerState>,
}

impl Container {
    /// `None` for a record that this engine did not write.
    pub(crate) fn new(record: ContainerRecord) -> Option<Container> {
        let note = serde_json::from_value(record.spec.note.clone()).ok()?;
        Some(Container {
            state: watch::Sender::new(record.state.clone()),
            record: Arc::new(record),
            note: Arc::new(note),
        })
    }

    pub(crate) fn id(&self) -> ContainerId {
        ContainerId(self.record.spec.id.clone())
    }

    pub(crate) fn status(&self, sandbox: &SandboxId) -> ContainerStatus {
        ContainerStatus {
            id: self.id(),
            sandbox: sandbox.clone(),
            name: self.note.name.clone(),
            image: self.note.image.clone(),
            image_id: self.note.image_id.clone(),
            state: self.state.borrow().clone(),
            created_at: self.record.created_at,
            log_path: self.record.spec.log_path.clone().unwrap_or_default(),
            labels: self.note.labels.clone(),
        }
    }
}

impl Sandbox {
    pub(crate) fn new(
        id: SandboxId,
        directory: PathBuf,
        record: &runtime::SandboxRecord,
        spec: SandboxSpec,
        address: Option<Ipv4Addr>,
        link: Link,
    ) -> Sandbox {
        Sandbox {
            id,
            directory,
            cgroup: record.spec.cgroup.clone(),
            spec,
            created_at: record.created_at,
            address,
            ending: tokio::sync::Mutex::default(),
            burying: Mutex::default(),
            state: Mutex::new(State {
                link,
                containers: BTreeMap::new(),
            }),
        }
    }

    pub(crate) fn link(&self) -> Link {
        self.state.lock().link.clone()
    }

    /// Its keeper, while it can be spoken with.
    pub(crate) fn keeper(&self) -> Option<Keeper> {
        match self.link() {
            Link::Connected(keeper) => Some(keeper),
            Link::Silent | Link::Ended => None,
        }
    }

    /// Its keeper; `None` if it has ended.
    ///
    /// # Errors
    /// When it may be there and cannot be spoken with.
    pub(crate) fn reach(&self) -> Result<Option<Keeper>, Error> {
        match self.link() {
            Link::Connected(keeper) => Ok(Some(keeper)),
            Link::Silent => Err(machine(
                "reach the keeper of sandbox",
                &self.id.0,
                "it does not answer; it is asked again and again",
            )),
            Link::Ended => Ok(None),
        }
    }

    /// Whether it is not known to have ended.
    pub(crate) fn is_alive(&self) -> bool {
        !matches!(self.link(), Link::Ended)
    }

    /// Its keeper has ended and all containers with it, in these states: nobody sees the one without the
    /// other. Returns those that are news.
    pub(crate) fn end(&self, containers: Vec<ContainerRecord>) -> Vec<ContainerRecord> {
        let mut state = self.state.lock();
        state.link = Link::Ended;
        let is_news = |record: &ContainerRecord| {
            let known = state.containers.get(&ContainerId(record.spec.id.clone()));
            known.is_some_and(|container| advance(container, &record.state))
        };
        containers.into_iter().filter(is_news).collect()
    }

    /// Changes how its keeper is spoken with; false if that is over for good.
    pub(crate) fn relink(&self, link: Link) -> bool {
        let mut state = self.state.lock();
        let goes_on = !matches!(state.link, Link::Ended);
        if goes_on {
            state.link = link;
        }
        goes_on
    }

    pub(crate) fn insert(&self, container: Container) {
        self.state
            .lock()
            .containers
            .insert(container.id(), container);
    }

    pub(crate) fn forget(&self, id: &ContainerId) {
        self.state.lock().containers.remove(id);
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Option<Container> {
        self.state.lock().containers.get(id).cloned()
    }

    pub(crate) fn containers(&self) -> Vec<Container> {
        self.state.lock().containers.values().cloned().collect()
    }

    pub(crate) fn status(&self) -> SandboxStatus {
        let state = self.state.lock();
        let mut containers: Vec<_> = state
            .containers
            .values()
            .map(|container| container.status(&self.id))
            .collect();
        containers.sort_by_key(|container| container.created_at);
        SandboxStatus {
            id: self.id.clone(),
            alive: !matches!(state.link, Link::Ended),
            address: self.address,
            created_at: self.created_at,
            labels: self.spec.labels.clone(),
            containers,
        }
    }
}

/// Takes over a newer state; states only go forwards, whatever way the news came. False if it is
/// no news.
pub(crate) fn advance(container: &Container, state: &runtime::ContainerState) -> bool {
    let age = |state: &runtime::ContainerState| match state {
        runtime::ContainerState::Created => 0,
        runtime::ContainerState::Running { .. } => 1,
        runtime::ContainerState::Exited { .. } => 2,
    };
    container.state.send_if_modified(|known| {
        let newer = age(state) > age(known);
        if newer {
            known.clone_from(state);
        }
        newer
    })
}
