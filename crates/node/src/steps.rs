//! The steps of a pod's worker: what it orders, and what it makes of the answers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine::ContainerState;
use informer::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Preconditions};
use tokio::time::Instant;

use crate::context::Context;
use crate::handler;
use crate::hooks::HookError;
use crate::local::Busy;
use crate::mounts::SUB_PATHS;
use crate::observed::Attempt;
use crate::plan::Plan;
use crate::pod::{self, Member};
use crate::probes::{self, News, ProbeKind, Subject};
use crate::sandbox;
use crate::sources::SourceKey;
use crate::start::{self, Cause, Order, Refusal, Started};
use crate::status::Waiting;
use crate::stop::{Stop, StopError, pre_stop};
use crate::unsupported::{self, Obstacle};
use crate::volumes::Places;
use crate::worker::{Done, Job, Mode, Worker, after_failure};

/// First and longest wait before a missing image is looked for again.
const IMAGE_WAIT_MIN: SignedDuration = SignedDuration::from_secs(10);
const IMAGE_WAIT_MAX: SignedDuration = SignedDuration::from_secs(300);

impl Worker {
    /// Makes the sandbox, or makes it anew when its keeper is gone.
    pub(crate) fn make_sandbox(&mut self) {
        if self.has_job(&Job::Sandbox) || self.is_waiting_to_retry() {
            return;
        }
        if let Some(Obstacle { reason, message }) = unsupported::obstacle(&self.pod) {
            self.context
                .event(&self.pod, None, EventType::Warning, reason, &*message);
            self.failed("make the sandbox", &message);
            return;
        }
        let (context, pod, id) = (self.context.clone(), self.pod.clone(), self.id.clone());
        let is_replaced = self.observed.exists;
        if is_replaced {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            let reason = "SandboxChanged";
            context.event(&pod, None, EventType::Normal, reason, message);
            let ended = self
                .observed
                .containers
                .iter()
                .filter_map(|(name, attempts)| {
                    let last = attempts.current.clone()?;
                    last.has_exited().then(|| (name.clone(), last))
                });
            self.ended_before.extend(ended);
        }
        self.spawn(Job::Sandbox, async move {
            let make = async {
                if is_replaced {
                    context.engine.remove_sandbox(&id).await?;
                }
                let spec = sandbox::spec(&context, &pod);
                context.engine.run_sandbox(&id, spec).await.map(drop)
            };
            Done::Sandbox(make.await)
        });
    }

    pub(crate) fn sandbox_made(&mut self, result: Result<(), engine::Error>) {
        match result {
            Ok(()) => self.failures = 0,
            Err(error) => {
                let message = format!("Failed to create pod sandbox: {error}");
                let reason = "FailedCreatePodSandBox";
                self.context
                    .event(&self.pod, None, EventType::Warning, reason, message);
                self.failed("make the sandbox", &error.to_string());
            }
        }
    }

    pub(crate) fn stop_sandbox(&mut self) {
        let (context, id) = (self.context.clone(), self.id.clone());
        self.spawn(Job::StopSandbox, async move {
            Done::StopSandbox(context.engine.stop_sandbox(&id).await)
        });
    }

    /// Orders a container to be started.
    pub(crate) fn start(&mut self, name: &str, places: &Arc<Places>) {
        let Some(member) = self.member(name).cloned() else {
            return;
        };
        let attempts = self.observed.containers.get(name);
        let current = attempts.and_then(|attempts| attempts.current.as_ref());
        let (attempt, leftover) = match current {
            Some(made) if made.state == ContainerState::Created => {
                (made.number, Some(made.id.clone()))
            }
            Some(ended) => (ended.number + 1, None),
            None => (self.runs_before(name), None),
        };
        let outdated = attempts.map_or_else(Vec::new, |attempts| {
            let mut outdated = attempts.older.clone();
            if leftover.is_none() {
                outdated.extend(attempts.previous.iter().map(|attempt| attempt.id.clone()));
            }
            outdated
        });
        let order = Order {
            context: self.context.clone(),
            pod: self.pod.clone(),
            member,
            attempt,
            address: self.address(),
            places: places.clone(),
            leftover,
            outdated,
        };
        let job = self.spawn(Job::Start(name.to_owned()), {
            let name = name.to_owned();
            async move { Done::Start(name, start::start(order).await) }
        });
        let local = self.locals.entry(name.to_owned()).or_default();
        local.retry_at = None;
        local.busy = Some(Busy::Starting(job));
    }

    /// Runs that the API knows of, and the engine no more (its sandbox was made anew).
    fn runs_before(&self, name: &str) -> u32 {
        let status = self.pod.status.clone().unwrap_or_default();
        let lists = [
            status.init_container_statuses,
            status.container_statuses,
            status.ephemeral_container_statuses,
        ];
        lists
            .into_iter()
            .flatten()
            .flatten()
            .find(|known| known.name == name && known.container_id.is_some())
            .and_then(|known| u32::try_from(known.restart_count).ok())
            .map_or(0, |count| count + 1)
    }

    pub(crate) fn member(&self, name: &str) -> Option<&Member> {
        self.members
            .iter()
            .find(|member| member.container.name == name)
    }

    /// The address under which the pod's containers are reached.
    pub(crate) fn address(&self) -> Option<String> {
        let spec = self.pod.spec.as_ref();
        if spec.and_then(|spec| spec.host_network) == Some(true) {
            return Some(self.context.host_ip().to_string());
        }
        self.observed.address.map(|address| address.to_string())
    }

    pub(crate) fn started(&mut self, name: &str, result: Result<Started, Refusal>) {
        let local = self.locals.entry(name.to_owned()).or_default();
        if self.mode != Mode::Running {
            local.busy = None;
            return;
        }
        match result {
            Ok(Started { hook_failed }) => {
                local.has_started();
                if hook_failed {
                    let grace = pod::grace(&self.pod);
                    self.stop(name, "FailedPostStartHook", grace);
                }
            }
            Err(refusal) => self.refused(name, refusal),
        }
    }

    fn refused(&mut self, name: &str, refusal: Refusal) {
        let now = self.context.now();
        let local = self.locals.entry(name.to_owned()).or_default();
        local.busy = None;
        local.failures = local.failures.saturating_add(1);
        let exponent = local.failures.saturating_sub(1).min(10);
        let doubled = |first: SignedDuration, most: SignedDuration| {
            first.saturating_mul(1 << exponent).min(most)
        };
        let after = |pause| now.saturating_add(pause).unwrap_or(Timestamp::MAX);
        local.wants_image = refusal.cause == Cause::Image;
        local.retry_at = match &refusal.cause {
            Cause::Ran => None,
            Cause::Image => Some(after(doubled(IMAGE_WAIT_MIN, IMAGE_WAIT_MAX))),
            Cause::Source { .. } | Cause::Other => Some(after(doubled(
                SignedDuration::from_secs(1),
                SignedDuration::from_mins(1),
            ))),
        };
        if refusal.cause == Cause::Ran {
            local.failures = 0;
        }
        local.waiting = Some(refusal.waiting);
        if let Cause::Source { key, absent } = refusal.cause {
            self.wait_for_source(name, key, absent);
        }
    }

    /// Tries again as soon as an object changes (or has come, if it was absent).
    fn wait_for_source(&mut self, name: &str, key: SourceKey, absent: bool) {
        let job = Job::Source(name.to_owned());
        if self.has_job(&job) {
            return;
        }
        let mut subscription = self.context.sources.subscribe(&key);
        let name = name.to_owned();
        self.spawn(job, async move {
            let is_there = subscription.data().await.is_ok();
            if !(is_there && absent) {
                subscription.changed().await;
            }
            Done::Source(name)
        });
    }

    /// Images came or went: containers that wait for theirs look again.
    pub(crate) fn retry_images(&mut self) {
        for local in self.locals.values_mut() {
            if local.wants_image {
                local.retry_at = None;
            }
        }
    }

    /// Says of containers in a crash loop that they are.
    pub(crate) fn hold(&mut self, plan: &Plan) {
        for held in &plan.held {
            let Some(member) = self.member(&held.name).cloned() else {
                continue;
            };
            let name = &held.name;
            let pod = pod::formatted(&self.pod);
            let seconds = held.delay.as_secs();
            let delay = handler::seconds(Duration::from_secs(seconds.unsigned_abs()));
            let run = self
                .observed
                .current(name)
                .map(|attempt| attempt.id.clone());
            let local = self.locals.entry(name.clone()).or_default();
            local.waiting = Some(Waiting {
                reason: "CrashLoopBackOff".to_owned(),
                message: Some(format!(
                    "back-off {delay} restarting failed container={name} pod={pod}"
                )),
            });
            if local.held_said != run {
                local.held_said = run;
                let message = format!("Back-off restarting failed container {name} in pod {pod}");
                self.context.event(
                    &self.pod,
                    Some(&member),
                    EventType::Warning,
                    "BackOff",
                    message,
                );
            }
        }
    }

    /// After `ErrImagePull` was shown: what upstream shows while it waits to pull again.
    pub(crate) fn hold_images(&mut self) {
        for (name, local) in &mut self.locals {
            let Some(waiting) = &mut local.waiting else {
                continue;
            };
            if waiting.reason != "ErrImagePull" {
                continue;
            }
            let member = self
                .members
                .iter()
                .find(|member| member.container.name == *name);
            let image = member.and_then(|member| member.container.image.as_deref());
            let image = image.unwrap_or_default();
            let cause = waiting.message.take().unwrap_or_default();
            *waiting = Waiting {
                reason: "ImagePullBackOff".to_owned(),
                message: Some(format!(
                    "Back-off pulling image \"{image}\": ErrImagePull: {cause}"
                )),
            };
            let say = |event_type, reason, message| {
                self.context
                    .event(&self.pod, member, event_type, reason, message);
            };
            let message = format!("Back-off pulling image \"{image}\"");
            say(EventType::Normal, "BackOff", message);
            say(
                EventType::Warning,
                "Failed",
                "Error: ImagePullBackOff".to_owned(),
            );
        }
    }

    /// Stops a container, its preStop hook first. With less time than a stop that is under way, that
    /// one is given up for this. After one that failed it is not tried again at once.
    pub(crate) fn stop(&mut self, name: &str, message: &str, grace: Duration) {
        let Some(member) = self.member(name).cloned() else {
            return;
        };
        let Some(attempt) = self.observed.current(name).cloned() else {
            return;
        };
        let deadline = Instant::now() + grace;
        let now = self.context.now();
        let local = self.locals.entry(name.to_owned()).or_default();
        if let Some(at) = local.unstopped.retry_at.filter(|at| *at > now) {
            self.look_again_at(at);
            return;
        }
        match &local.busy {
            Some(Busy::Stopping {
                job,
                deadline: known,
            }) => {
                if deadline + Duration::from_millis(500) >= *known {
                    return;
                }
                job.abort();
            }
            Some(Busy::Starting(job)) => job.abort(),
            None => {}
        }
        let with_hook = !std::mem::replace(&mut local.unstopped.hook_begun, true);
        if with_hook {
            self.context.event(
                &self.pod,
                Some(&member),
                EventType::Normal,
                "Killing",
                message,
            );
        }
        let (context, pod) = (self.context.clone(), self.pod.clone());
        let address = self.address().unwrap_or_default();
        let container = name.to_owned();
        let job = self.spawn(Job::Stop(name.to_owned()), async move {
            let result = stop(
                &context, &pod, &member, &attempt, &address, deadline, with_hook,
            );
            Done::Stop(container, result.await)
        });
        let local = self.locals.entry(name.to_owned()).or_default();
        local.probes.clear();
        local.busy = Some(Busy::Stopping { job, deadline });
    }

    /// An attempt to stop a container is over; after one that failed there is another one later.
    pub(crate) fn stopped(&mut self, name: String, has_ended: bool) {
        let now = self.context.now();
        let local = self.locals.entry(name).or_default();
        if matches!(local.busy, Some(Busy::Stopping { .. })) {
            local.busy = None;
        }
        let unstopped = &mut local.unstopped;
        match has_ended {
            true => unstopped.try_anew(),
            false => unstopped.retry_at = Some(after_failure(&mut unstopped.failures, now)),
        }
    }

    /// Whether stopping a container has failed, and is not being tried.
    pub(crate) fn is_unstoppable(&self, name: &str) -> bool {
        let local = self.locals.get(name);
        local.is_some_and(|local| local.unstopped.failures > 0 && local.busy.is_none())
    }

    /// Begins to ask the probes whose time has come.
    pub(crate) fn tend_probes(&mut self) {
        for member in &self.members {
            let name = &member.container.name;
            let Some(attempt) = self.observed.current(name) else {
                continue;
            };
            let ContainerState::Running { started_at, .. } = attempt.state else {
                continue;
            };
            let address = self.address().unwrap_or_default();
            let Some(local) = self
                .locals
                .get_mut(name)
                .filter(|local| local.busy.is_none())
            else {
                continue;
            };
            let subject = Subject {
                context: self.context.clone(),
                pod: self.pod.clone(),
                member: member.clone(),
                id: attempt.id.clone(),
                started_at,
                address,
                news: self.news.clone(),
            };
            let has_to_start = member.container.startup_probe.is_some();
            let kinds: &[ProbeKind] = match has_to_start && local.startup != Some(true) {
                true => &[ProbeKind::Startup],
                false => &[ProbeKind::Liveness, ProbeKind::Readiness],
            };
            for kind in kinds {
                if !local.asks(*kind)
                    && let Some(asking) = probes::ask(&subject, *kind)
                {
                    local.probes.push((*kind, asking));
                }
            }
        }
    }

    pub(crate) fn hear_probe(&mut self, news: &News) {
        let name = &news.container;
        let is_current = self
            .observed
            .current(name)
            .is_some_and(|attempt| attempt.id == news.id && attempt.is_running());
        if !is_current || self.mode != Mode::Running {
            return;
        }
        let local = self.locals.entry(name.clone()).or_default();
        let probe = match (news.kind, news.is_success) {
            (ProbeKind::Readiness, is_success) => {
                local.readiness = Some(is_success);
                return;
            }
            (ProbeKind::Startup, true) => {
                local.startup = Some(true);
                return;
            }
            (ProbeKind::Liveness, true) => return,
            (ProbeKind::Startup, false) => "startup",
            (ProbeKind::Liveness, false) => "liveness",
        };
        let message = format!("Container {name} failed {probe} probe, will be restarted");
        let container = self.member(name).map(|member| &member.container);
        let own_grace = container
            .and_then(|container| match news.kind {
                ProbeKind::Startup => container.startup_probe.as_ref(),
                _ => container.liveness_probe.as_ref(),
            })
            .and_then(|probe| probe.termination_grace_period_seconds)
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map(Duration::from_secs);
        let grace = own_grace.unwrap_or_else(|| pod::grace(&self.pod));
        self.stop(name, &message, grace);
    }

    /// Cleans up after a pod that has ended, as far as it can be now.
    pub(crate) fn step_ended(&mut self) {
        if self.is_waiting_to_retry() || self.has_job(&Job::TearDown) || self.has_job(&Job::Remove)
        {
            return;
        }
        if !self.torn_down {
            self.volumes = None;
            let pod_dir = self.context.pod_dir(pod::uid(&self.pod));
            self.context.tokens.forget(pod::uid(&self.pod));
            self.spawn(Job::TearDown, async move {
                // What is bound from the volumes first, then the volumes.
                let directories = [pod_dir.join(SUB_PATHS), pod_dir.join("volumes")];
                let work = tokio::task::spawn_blocking(move || remove_all(&directories));
                let result = match work.await {
                    Ok(result) => result.map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                Done::TearDown(result)
            });
            return;
        }
        let is_told = self.gone || self.report.is_settled();
        if (self.gone || pod::is_deleted(&self.pod)) && is_told {
            let (context, pod) = (self.context.clone(), self.pod.clone());
            let (id, gone) = (self.id.clone(), self.gone);
            self.spawn(Job::Remove, async move {
                let remove = async {
                    context
                        .engine
                        .remove_sandbox(&id)
                        .await
                        .map_err(|error| error.to_string())?;
                    if !gone {
                        delete(&context, &pod)
                            .await
                            .map_err(|error| error.to_string())?;
                    }
                    let directories = [context.pod_dir(pod::uid(&pod)), context.log_dir(&pod)];
                    tokio::task::spawn_blocking(move || remove_all(&directories))
                        .await
                        .map_err(|error| error.to_string())?
                        .map_err(|error| error.to_string())
                };
                Done::Remove(remove.await)
            });
        }
    }
}

fn remove_all(directories: &[PathBuf]) -> Result<(), volume::MachineError> {
    directories
        .iter()
        .try_for_each(|directory| volume::remove(directory))
}

/// Removes the object, now that nothing of it is left here.
async fn delete(context: &Context, pod: &Pod) -> Result<(), kube::Error> {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), pod::namespace(pod));
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: Some(pod::uid(pod).to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let conflict = match pods.delete(pod::name(pod), &params).await {
        Ok(_) => return Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => status,
        Err(error) => return Err(error),
    };
    // Another pod may have its name by now.
    let found = pods.get_opt(pod::name(pod)).await?;
    match found.is_some_and(|found| pod::uid(&found) == pod::uid(pod)) {
        true => Err(kube::Error::Api(conflict)),
        false => Ok(()),
    }
}

/// Ends a container by the deadline, and tells of what goes wrong.
async fn stop(
    context: &Context,
    pod: &Pod,
    member: &Member,
    attempt: &Attempt,
    address: &str,
    deadline: Instant,
    with_hook: bool,
) -> Result<(), StopError> {
    let container = &member.container;
    let warn = |reason, message: &str| {
        context.event(pod, Some(member), EventType::Warning, reason, message);
    };
    let stop = Stop {
        engine: &*context.engine,
        id: &attempt.id,
        container,
        address,
        deadline,
        patience: context.config.heartbeat,
    };
    let hook = pre_stop(container).filter(|_| with_hook && attempt.is_running());
    let complain = |error: HookError| {
        tracing::info!(%error, pod = pod::formatted(pod), container = container.name, "preStop hook failed");
        warn("FailedPreStopHook", "PreStopHook failed");
    };
    let stopped = stop.run(hook, complain).await;
    if let Err(error) = &stopped {
        tracing::warn!(%error, pod = pod::formatted(pod), container = container.name, "it was not stopped");
        warn("FailedKillPod", &format!("error killing pod: {error}"));
    }
    stopped
}
