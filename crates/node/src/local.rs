//! What a pod's worker remembers of one container.

use engine::ContainerId;
use jiff::Timestamp;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::pod::Member;
use crate::probes::{Asking, ProbeKind};
use crate::status::Waiting;

/// What is being done to a container.
pub(crate) enum Busy {
    Starting(AbortHandle),
    Stopping {
        job: AbortHandle,
        /// Until when it may take.
        deadline: Instant,
    },
}

/// What came of stopping one run.
#[derive(Default)]
pub(crate) struct Unstopped {
    /// Its preStop hook was begun, and is not begun again.
    pub(crate) hook_begun: bool,
    /// Failures to stop it, in a row.
    pub(crate) failures: u32,
    /// It could not be stopped; try not before this.
    pub(crate) retry_at: Option<Timestamp>,
}

impl Unstopped {
    /// There is a new reason to stop it.
    pub(crate) fn try_anew(&mut self) {
        self.failures = 0;
        self.retry_at = None;
    }
}

/// One container.
#[derive(Default)]
pub(crate) struct Local {
    /// Why it does not run, if it does not.
    pub(crate) waiting: Option<Waiting>,
    /// It could not be made; try not before this.
    pub(crate) retry_at: Option<Timestamp>,
    /// Failures to make it, in a row.
    pub(crate) failures: u32,
    /// It waits for its image.
    pub(crate) wants_image: bool,
    pub(crate) busy: Option<Busy>,
    /// The run that the engine shows did not end when it was to.
    pub(crate) unstopped: Unstopped,
    /// It is stopped to be run with another image.
    pub(crate) replacing: bool,
    /// The run for which "Back-off restarting" was said.
    pub(crate) held_said: Option<ContainerId>,
    /// The run that the fields below are about.
    id: Option<ContainerId>,
    /// What its startup probe found.
    pub(crate) startup: Option<bool>,
    /// What its readiness probe found.
    pub(crate) readiness: Option<bool>,
    pub(crate) probes: Vec<(ProbeKind, Asking)>,
}

impl Local {
    /// Begins anew when the engine shows another run.
    pub(crate) fn follow(&mut self, id: Option<&ContainerId>) {
        if self.id.as_ref() == id {
            return;
        }
        self.id = id.cloned();
        self.startup = None;
        self.readiness = None;
        self.replacing = false;
        self.unstopped = Unstopped::default();
        self.probes.clear();
    }

    /// It was started: nothing holds it back any more.
    pub(crate) fn has_started(&mut self) {
        self.busy = None;
        self.waiting = None;
        self.retry_at = None;
        self.failures = 0;
        self.wants_image = false;
    }

    /// Gives up a start that is under way.
    pub(crate) fn abandon_start(&mut self) {
        if let Some(Busy::Starting(job)) = &self.busy {
            job.abort();
            self.busy = None;
        }
    }

    /// A running container's startup probe has passed, and its postStart hook has returned.
    pub(crate) fn is_started(&self, member: &Member) -> bool {
        let hook = member
            .container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.post_start.as_ref());
        let in_hook = hook.is_some() && matches!(self.busy, Some(Busy::Starting(_)));
        let passed = member.container.startup_probe.is_none() || self.startup == Some(true);
        passed && !in_hook
    }

    /// A running container may get traffic.
    pub(crate) fn is_ready(&self, member: &Member) -> bool {
        let passed = member.container.readiness_probe.is_none() || self.readiness == Some(true);
        passed && self.is_started(member)
    }

    pub(crate) fn asks(&self, kind: ProbeKind) -> bool {
        self.probes.iter().any(|(known, _)| *known == kind)
    }
}
