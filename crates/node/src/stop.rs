//! Ending one container: its preStop hook, then the stop signal, then the kill.

use std::time::Duration;

use engine::{ContainerId, Engine};
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use tokio::time::Instant;

use crate::handler;
use crate::hooks::{self, HookError};

/// A container has at least this long to end after its preStop hook took its time.
const GRACE_AFTER_HOOK: Duration = Duration::from_secs(2);

/// Why a container was not ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StopError {
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error("its time is over, and {} later it is not known to have ended", handler::seconds(*.0))]
    Late(Duration),
}

/// A running container, and by when it is to have ended.
pub(crate) struct Stop<'a> {
    pub(crate) engine: &'a dyn Engine,
    pub(crate) id: &'a ContainerId,
    pub(crate) container: &'a Container,
    /// Where its pod can be reached.
    pub(crate) address: &'a str,
    pub(crate) deadline: Instant,
    /// How long after that the engine may be silent: who keeps the container may hang.
    pub(crate) patience: Duration,
}

impl Stop<'_> {
    /// Runs `hook` first, if there is one; `complain` hears how it failed. A hook that is still running
    /// at the deadline is not waited for.
    pub(crate) async fn run(
        self,
        hook: Option<&LifecycleHandler>,
        complain: impl FnOnce(HookError),
    ) -> Result<(), StopError> {
        let mut grace = self.left();
        if let Some(hook) = hook {
            let run = hooks::run(self.engine, self.id, self.container, self.address, hook);
            if let Ok(Err(error)) = tokio::time::timeout(grace, run).await {
                complain(error);
            }
            grace = self.left().max(GRACE_AFTER_HOOK);
        }
        let stop = self.engine.stop_container(self.id, grace);
        match tokio::time::timeout(grace + self.patience, stop).await {
            Ok(stopped) => Ok(stopped?),
            Err(_) => Err(StopError::Late(self.patience)),
        }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// The handler that a container wants to be run before it ends.
pub(crate) fn pre_stop(container: &Container) -> Option<&LifecycleHandler> {
    container.lifecycle.as_ref()?.pre_stop.as_ref()
}
