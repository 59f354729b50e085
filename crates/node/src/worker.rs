//! One task per pod: sees what is wanted and what is there, and takes the next steps.
//!
//! ```text
//!   Running ──deleted · deadline · all done──► Ending ──nothing runs──► Ended ──deleted──► (gone)
//! ```
//!
//! The loop is level-triggered: whatever woke it, it looks at the engine anew, plans
//! ([`crate::plan`]), orders jobs, and writes the status if it came out different. Jobs (starting,
//! stopping, writing) run beside the loop, so a slow one never hides a deletion. Nothing is done on
//! a timer but what has a time of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engine::{ContainerId, ContainerState, SandboxId};
use informer::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;

use crate::admission::Rejection;
use crate::backoff::BackOffs;
use crate::context::Context;
use crate::excess::{self, EVICTED};
use crate::local::Local;
use crate::observed::{Attempt, Observed};
use crate::plan::{self, Knowledge, Plan, Verdict};
use crate::pod::{self, Member, Role};
use crate::probes::News;
use crate::report::Report;
use crate::start::{Refusal, Started};
use crate::status::End;
use crate::stop::StopError;
use crate::termination;
use crate::volumes::VolumeKeeper;

/// What the API says about a pod.
#[derive(Clone)]
pub(crate) struct Feed {
    pub(crate) pod: Arc<Pod>,
    /// The object does not exist any more.
    pub(crate) gone: bool,
}

/// Where the pod is in its life on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Running,
    Ending {
        /// Until when the containers may take.
        deadline: Instant,
        end: End,
    },
    /// Nothing runs and nothing will.
    Ended {
        end: End,
    },
}

/// What a job was about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    Sandbox,
    StopSandbox,
    Start(String),
    Stop(String),
    /// Waits until an object that a container needs has changed.
    Source(String),
    Status,
    TearDown,
    Remove,
}

/// How a job ended.
pub(crate) enum Done {
    Sandbox(Result<(), engine::Error>),
    StopSandbox(Result<(), engine::Error>),
    Start(String, Result<Started, Refusal>),
    Stop(String, Result<(), StopError>),
    Source(String),
    Status(Result<Box<Pod>, kube::Error>),
    TearDown(Result<(), String>),
    Remove(Result<(), String>),
}

/// A pod's worker.
pub(crate) struct Worker {
    pub(crate) context: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) members: Vec<Member>,
    pub(crate) id: SandboxId,
    pub(crate) gone: bool,
    pub(crate) mode: Mode,
    pub(crate) observed: Observed,
    pub(crate) locals: HashMap<String, Local>,
    pub(crate) delays: BackOffs,
    pub(crate) volumes: Option<VolumeKeeper>,
    pub(crate) report: Report,
    pub(crate) news: mpsc::Sender<News>,
    admitted: bool,
    pub(crate) torn_down: bool,
    pub(crate) removed: bool,
    /// When to look again, if nothing happens before.
    pub(crate) again_at: Option<Timestamp>,
    /// Failures in a row of making the sandbox or of cleaning up, and when to try again.
    pub(crate) failures: u32,
    pub(crate) retry_at: Option<Timestamp>,
    messages: HashMap<ContainerId, Option<String>>,
    /// How containers ended in the sandbox before this one: the engine has forgotten them with it.
    pub(crate) ended_before: HashMap<String, Attempt>,
    jobs: JoinSet<Done>,
    job_kinds: HashMap<tokio::task::Id, (Job, AbortHandle)>,
}

/// Runs a pod's worker until the pod is gone from the API and from this machine, or the program drains.
pub(crate) async fn run(context: Arc<Context>, mut feed: watch::Receiver<Feed>, wake: Arc<Notify>) {
    let first = feed.borrow_and_update().clone();
    let (news, mut heard) = mpsc::channel(16);
    let mut images_changed = context.images_changed.subscribe();
    let drain = context.drain.clone();
    let mut worker = Worker::new(context, first, news);
    worker.observe().await;
    worker.adopt();
    loop {
        worker.step();
        if worker.removed {
            return;
        }
        let again = worker.until_again();
        tokio::select! {
            biased;
            () = drain.signaled() => return,
            changed = feed.changed() => match changed {
                Ok(()) => {
                    let feed = feed.borrow_and_update().clone();
                    worker.hear(feed);
                }
                Err(_) => return,
            },
            Some(done) = worker.jobs.join_next_with_id(), if !worker.jobs.is_empty() => {
                worker.finish(done);
                worker.observe().await;
            }
            () = wake.notified() => worker.observe().await,
            Some(news) = heard.recv() => worker.hear_probe(&news),
            () = volumes_changed(&mut worker.volumes) => {}
            Ok(()) = images_changed.changed() => worker.retry_images(),
            () = sleep(again) => {}
        }
    }
}

async fn volumes_changed(volumes: &mut Option<VolumeKeeper>) {
    match volumes {
        Some(volumes) => volumes.changed().await,
        None => std::future::pending().await,
    }
}

async fn sleep(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

impl Worker {
    fn new(context: Arc<Context>, feed: Feed, news: mpsc::Sender<News>) -> Worker {
        let report = Report::new(pod::is_terminal(&feed.pod));
        let members = feed.pod.spec.as_ref().map(pod::members).unwrap_or_default();
        Worker {
            id: SandboxId(pod::uid(&feed.pod).to_owned()),
            context,
            members,
            gone: feed.gone,
            pod: feed.pod,
            mode: Mode::Running,
            observed: Observed::default(),
            locals: HashMap::new(),
            delays: BackOffs::default(),
            volumes: None,
            report,
            news,
            admitted: false,
            torn_down: false,
            removed: false,
            again_at: None,
            failures: 0,
            retry_at: None,
            messages: HashMap::new(),
            ended_before: HashMap::new(),
            jobs: JoinSet::new(),
            job_kinds: HashMap::new(),
        }
    }

    /// Takes up what an earlier daemon left: back-offs, and what the probes had found.
    fn adopt(&mut self) {
        let status = self.pod.status.clone().unwrap_or_default();
        let known = [status.init_container_statuses, status.container_statuses];
        for known in known.into_iter().flatten().flatten() {
            let Some(attempt) = self.observed.current(&known.name) else {
                continue;
            };
            self.delays
                .adopt(&known.name, attempt.number, attempt.created_at);
            if known.container_id.as_deref() != Some(&crate::status::container_id(attempt)) {
                continue;
            }
            let local = self.locals.entry(known.name).or_default();
            local.startup = known.started.filter(|started| *started);
            local.readiness = Some(known.ready);
        }
    }

    /// A newer state of the object.
    fn hear(&mut self, feed: Feed) {
        self.gone |= feed.gone;
        self.take(feed.pod);
    }

    /// Keeps the newer of two states.
    fn take(&mut self, pod: Arc<Pod>) {
        if pod::resource_version(&pod) < pod::resource_version(&self.pod) {
            return;
        }
        self.members = pod.spec.as_ref().map(pod::members).unwrap_or_default();
        self.pod = pod;
        if let Some(volumes) = &self.volumes {
            volumes.update(&self.pod);
        }
    }

    /// Looks at the engine.
    pub(crate) async fn observe(&mut self) {
        let mut observed = match self.context.engine.sandbox(&self.id).await {
            Ok(sandbox) => Observed::new(sandbox),
            Err(engine::Error::SandboxNotFound(_)) => Observed::default(),
            Err(error) => {
                tracing::warn!(%error, pod = pod::formatted(&self.pod), "the engine did not answer");
                self.look_again_in(SignedDuration::from_secs(1));
                return;
            }
        };
        self.read_messages(&mut observed);
        observed.recall(&self.ended_before);
        for member in &self.members {
            let name = &member.container.name;
            let id = observed.current(name).map(|attempt| &attempt.id);
            let local = self.locals.entry(name.clone()).or_default();
            local.follow(id);
        }
        self.observed = observed;
    }

    fn read_messages(&mut self, observed: &mut Observed) {
        let pod_dir = self.context.pod_dir(pod::uid(&self.pod));
        let mut known = std::mem::take(&mut self.messages);
        for member in &self.members {
            let name = &member.container.name;
            let Some(attempts) = observed.containers.get_mut(name) else {
                continue;
            };
            let both = [attempts.current.as_mut(), attempts.previous.as_mut()];
            for attempt in both.into_iter().flatten() {
                let ContainerState::Exited { code, .. } = attempt.state else {
                    continue;
                };
                let read = || {
                    let file = termination::file(&pod_dir, name, attempt.number);
                    let log = self.context.log_file(&self.pod, name, attempt.number);
                    termination::message(&member.container, &file, &log, code)
                };
                let message = known.remove(&attempt.id).unwrap_or_else(read);
                attempt.message.clone_from(&message);
                self.messages.insert(attempt.id.clone(), message);
            }
        }
    }

    /// Takes all steps that can be taken now.
    pub(crate) fn step(&mut self) {
        self.again_at = self.retry_at;
        self.turn();
        match self.mode {
            Mode::Running => self.step_running(),
            Mode::Ending { .. } => self.step_ending(),
            Mode::Ended { .. } => {}
        }
        self.write_status();
        if let Mode::Ended { .. } = self.mode {
            self.step_ended();
        }
    }

    /// Changes the mode if it is time to.
    fn turn(&mut self) {
        if self.mode != Mode::Running {
            self.shorten_grace();
            return;
        }
        let is_ended_from_outside = self.gone || pod::is_deleted(&self.pod);
        if is_ended_from_outside {
            self.end(End {
                failure: None,
                account_for_all: true,
            });
        } else if pod::is_terminal(&self.pod) {
            self.end(End::default());
        } else if let Err(rejection) = self.admit() {
            let Rejection { reason, message } = rejection;
            self.context
                .event(&self.pod, None, EventType::Warning, &reason, &*message);
            self.end(End {
                failure: Some((reason, format!("Pod was rejected: {message}"))),
                account_for_all: false,
            });
        } else if self.is_past_deadline() {
            let message = "Pod was active on the node longer than the specified deadline";
            let reason = "DeadlineExceeded";
            self.context
                .event(&self.pod, None, EventType::Normal, reason, message);
            self.end(End {
                failure: Some((reason.to_owned(), message.to_owned())),
                account_for_all: true,
            });
        } else if let Some(message) = self.volumes.as_ref().and_then(VolumeKeeper::excess) {
            self.evict(message);
        }
    }

    /// Ends a pod that takes more of this machine than it said.
    fn evict(&mut self, message: String) {
        self.context
            .event(&self.pod, None, EventType::Warning, EVICTED, &*message);
        self.end(End {
            failure: Some((EVICTED.to_owned(), message)),
            account_for_all: true,
        });
        if let Mode::Ending { deadline, .. } = &mut self.mode {
            *deadline = (*deadline).min(Instant::now() + excess::GRACE);
        }
    }

    fn admit(&mut self) -> Result<(), Rejection> {
        if !self.admitted {
            let runs_already = self.observed.exists;
            let labels = self.context.node_labels();
            self.context
                .admission
                .admit(&self.pod, runs_already, &labels)?;
            self.admitted = true;
        }
        Ok(())
    }

    fn is_past_deadline(&mut self) -> bool {
        let limit = self
            .pod
            .spec
            .as_ref()
            .and_then(|spec| spec.active_deadline_seconds);
        let started = self
            .pod
            .status
            .as_ref()
            .and_then(|status| status.start_time.as_ref());
        let (Some(limit), Some(started)) = (limit, started) else {
            return false;
        };
        let at = started
            .0
            .saturating_add(SignedDuration::from_secs(limit))
            .unwrap_or(Timestamp::MAX);
        if self.context.now() >= at {
            return true;
        }
        self.look_again_at(at);
        false
    }

    /// Leaves the running mode: what is being started is given up, what runs will be stopped.
    pub(crate) fn end(&mut self, end: End) {
        for local in self.locals.values_mut() {
            local.abandon_start();
            local.probes.clear();
            local.unstopped.try_anew();
        }
        self.abort(|job| matches!(job, Job::Sandbox | Job::Source(_)));
        let deadline = Instant::now() + pod::grace(&self.pod);
        self.mode = Mode::Ending { deadline, end };
        self.retry_at = None;
        self.failures = 0;
    }

    /// A second deletion may allow less time than the first.
    fn shorten_grace(&mut self) {
        let grace = pod::grace(&self.pod);
        if let Mode::Ending { deadline, .. } = &mut self.mode
            && pod::is_deleted(&self.pod)
        {
            *deadline = (*deadline).min(Instant::now() + grace);
        }
    }

    fn step_running(&mut self) {
        if self.volumes.is_none() {
            let keeper = VolumeKeeper::start(self.context.clone(), self.pod.clone());
            self.volumes = Some(keeper);
        }
        let places = self.volumes.as_ref().and_then(VolumeKeeper::places);
        let can_start = self.observed.alive && places.is_some();
        let plan = self.plan(can_start);
        if plan.verdict == Verdict::Over {
            self.end(End::default());
            self.step_ending();
            return;
        }
        if !self.observed.alive {
            self.make_sandbox();
            return;
        }
        let Some(places) = places else {
            return;
        };
        if let Some(at) = plan.again_at {
            self.look_again_at(at);
        }
        self.hold(&plan);
        for name in &plan.replace {
            let message = format!("Container {name} definition changed, will be restarted");
            self.locals.entry(name.clone()).or_default().replacing = true;
            self.stop(name, &message, pod::grace(&self.pod));
        }
        for name in &plan.start {
            self.start(name, &places);
        }
        self.tend_probes();
    }

    /// Turns for restarts are only taken if they can be used.
    fn plan(&mut self, can_start: bool) -> Plan {
        let mut unused = self.delays.clone();
        let delays = match can_start {
            true => &mut self.delays,
            false => &mut unused,
        };
        let now = self.context.now();
        let spec = self.pod.spec.clone().unwrap_or_default();
        let locals = &self.locals;
        let members = &self.members;
        let observed = &self.observed;
        let knowledge = |name: &str| -> Knowledge {
            let Some(local) = locals.get(name) else {
                return Knowledge::default();
            };
            let member = members.iter().find(|member| member.container.name == name);
            Knowledge {
                busy: local.busy.is_some(),
                started: member.is_some_and(|member| local.is_started(member)),
                replacing: local.replacing,
                retry_at: local.retry_at,
            }
        };
        plan::plan(&spec, members, observed, knowledge, delays, now)
    }

    /// Stops what runs: main containers side by side, then sidecars from the last to the first.
    fn step_ending(&mut self) {
        let Mode::Ending { deadline, end } = &self.mode else {
            return;
        };
        let (deadline, end) = (*deadline, end.clone());
        let running: Vec<(String, Role)> = self
            .members
            .iter()
            .filter(|member| {
                let current = self.observed.current(&member.container.name);
                current.is_some_and(Attempt::is_running)
            })
            .map(|member| (member.container.name.clone(), member.role))
            .collect();
        let (sidecars, others): (Vec<_>, Vec<_>) = running
            .into_iter()
            .partition(|(_, role)| *role == Role::Sidecar);
        let next = match others.is_empty() {
            false => others,
            true => sidecars.into_iter().next_back().into_iter().collect(),
        };
        let grace = deadline.saturating_duration_since(Instant::now());
        let given_up = grace.is_zero() && next.iter().all(|(name, _)| self.is_unstoppable(name));
        if !given_up {
            for (name, _) in &next {
                self.stop(name, &format!("Stopping container {name}"), grace);
            }
            if !grace.is_zero() && next.iter().any(|(name, _)| self.is_unstoppable(name)) {
                self.look_again_in(grace.try_into().unwrap_or(SignedDuration::MAX));
            }
        }
        let is_idle = !self.job_kinds.values().any(|(job, _)| {
            matches!(
                job,
                Job::Start(_) | Job::Stop(_) | Job::Sandbox | Job::StopSandbox
            )
        });
        if !(next.is_empty() || given_up) || !is_idle {
            return;
        }
        // The engine ends by force what does not end.
        if self.observed.alive || self.observed.any_running() {
            if !self.is_waiting_to_retry() {
                self.stop_sandbox();
            }
            return;
        }
        self.retry_at = None;
        self.failures = 0;
        self.context.admission.release(pod::uid(&self.pod));
        self.mode = Mode::Ended { end };
    }

    /// A job has ended.
    fn finish(&mut self, done: Result<(tokio::task::Id, Done), JoinError>) {
        match done {
            Ok((task, done)) => {
                self.job_kinds.remove(&task);
                self.settle(done);
            }
            Err(error) => {
                let job = self.job_kinds.remove(&error.id()).map(|(job, _)| job);
                if error.is_cancelled() {
                    return;
                }
                tracing::error!(
                    ?job,
                    pod = pod::formatted(&self.pod),
                    "a step panicked: {error}"
                );
                match job {
                    Some(Job::Stop(name)) => self.stopped(name, false),
                    Some(Job::Start(name)) => {
                        let retry_at = self.after_failure();
                        let local = self.locals.entry(name).or_default();
                        local.busy = None;
                        local.retry_at = Some(retry_at);
                    }
                    _ => self.retry_at = Some(self.after_failure()),
                }
            }
        }
    }

    fn settle(&mut self, done: Done) {
        match done {
            Done::Sandbox(result) => self.sandbox_made(result),
            Done::StopSandbox(Err(error)) => self.failed("stop the sandbox", &error.to_string()),
            // If it is shown as it was, not at once again.
            Done::StopSandbox(Ok(())) => self.retry_at = Some(self.after_failure()),
            Done::Start(name, result) => self.started(&name, result),
            Done::Stop(name, result) => self.stopped(name, result.is_ok()),
            Done::Source(name) => self.locals.entry(name).or_default().retry_at = None,
            Done::Status(result) => {
                let now = self.context.now();
                if let Some(pod) = self.report.written(result, now) {
                    self.take(Arc::new(*pod));
                }
            }
            Done::TearDown(Ok(())) => self.torn_down = true,
            Done::TearDown(Err(error)) => self.failed("remove the volumes", &error),
            Done::Remove(Ok(())) => self.removed = true,
            Done::Remove(Err(error)) => self.failed("remove the pod", &error),
        }
    }

    /// A step of the pod as a whole failed: it will be tried again.
    pub(crate) fn failed(&mut self, step: &str, error: &str) {
        let pod = pod::formatted(&self.pod);
        tracing::warn!(pod, error, "could not {step}");
        self.retry_at = Some(self.after_failure());
    }

    fn after_failure(&mut self) -> Timestamp {
        let now = self.context.now();
        after_failure(&mut self.failures, now)
    }

    pub(crate) fn is_waiting_to_retry(&self) -> bool {
        self.retry_at.is_some_and(|at| at > self.context.now())
    }

    pub(crate) fn look_again_at(&mut self, at: Timestamp) {
        self.again_at = Some(self.again_at.map_or(at, |known| known.min(at)));
    }

    pub(crate) fn look_again_in(&mut self, pause: SignedDuration) {
        let now = self.context.now();
        self.look_again_at(now.saturating_add(pause).unwrap_or(Timestamp::MAX));
    }

    /// How long until it is time to look again. A time that has passed counts only once.
    fn until_again(&mut self) -> Option<Duration> {
        let now = self.context.now();
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
        let until = self.again_at?.duration_since(now);
        Some(until.try_into().unwrap_or(Duration::ZERO))
    }

    pub(crate) fn spawn(
        &mut self,
        kind: Job,
        job: impl Future<Output = Done> + Send + 'static,
    ) -> AbortHandle {
        let handle = self.jobs.spawn(job);
        self.job_kinds.insert(handle.id(), (kind, handle.clone()));
        handle
    }

    pub(crate) fn has_job(&self, wanted: &Job) -> bool {
        self.job_kinds.values().any(|(job, _)| job == wanted)
    }

    fn abort(&self, which: impl Fn(&Job) -> bool) {
        for (job, handle) in self.job_kinds.values() {
            if which(job) {
                handle.abort();
            }
        }
    }
}

/// Counts a failure; 1 s, 2 s, 4 s … 60 s from now.
pub(crate) fn after_failure(failures: &mut u32, now: Timestamp) -> Timestamp {
    let pause =
        SignedDuration::from_secs(1 << (*failures).min(6)).min(SignedDuration::from_mins(1));
    *failures = failures.saturating_add(1);
    now.saturating_add(pause).unwrap_or(Timestamp::MAX)
}
