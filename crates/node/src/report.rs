//! Writing a pod's status: at once, only what changed, one write at a time, the latest wins.

use informer::merge_difference;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Map, Value, json};

use crate::observed::Attempt;
use crate::pod;
use crate::status::{self, Remark, Situation};
use crate::volumes::VolumeKeeper;
use crate::worker::{Done, Job, Mode, Worker};

/// A pod that is only begun, or only got its address, shows so when nothing else happens for this long:
/// most often its containers run by then, and one write does for all. People do not see the difference,
/// but many pods at once are ready much sooner.
const PROGRESS_SHOWN_AFTER: SignedDuration = SignedDuration::from_millis(500);
/// A container that has ended and is being started again shows so when it does not run by then: most
/// often it does, and the pod's traffic is not sent elsewhere and back. Upstream's node looks once in a
/// second, and tools count on seeing the state before a change right after they made it.
const RESTART_SHOWN_AFTER: SignedDuration = SignedDuration::from_millis(100);

/// Where the status in the API stands.
#[derive(Debug)]
pub(crate) struct Report {
    /// The pod had ended before this daemon saw it: its status is not touched.
    frozen: bool,
    /// What is wanted is what is written.
    settled: bool,
    failures: u32,
    retry_at: Option<Timestamp>,
    begun_at: Option<Timestamp>,
    ground_since: Option<Timestamp>,
    restarting_since: Option<Timestamp>,
}

impl Report {
    pub(crate) fn new(frozen: bool) -> Report {
        Report {
            frozen,
            settled: false,
            failures: 0,
            retry_at: None,
            begun_at: None,
            ground_since: None,
            restarting_since: None,
        }
    }

    /// Nothing waits to be written.
    pub(crate) fn is_settled(&self) -> bool {
        self.frozen || self.settled
    }

    /// Takes the answer to a write; gives the object as it is now.
    pub(crate) fn written(
        &mut self,
        result: Result<Box<Pod>, kube::Error>,
        now: Timestamp,
    ) -> Option<Box<Pod>> {
        match result {
            Ok(pod) => {
                self.failures = 0;
                self.retry_at = None;
                Some(pod)
            }
            // Gone: the informer will say so.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.frozen = true;
                None
            }
            Err(error) => {
                tracing::warn!(%error, "a pod's status was not written");
                let pause = SignedDuration::from_millis(200 << self.failures.min(6));
                self.failures = self.failures.saturating_add(1);
                self.retry_at = Some(now.saturating_add(pause).unwrap_or(Timestamp::MAX));
                None
            }
        }
    }
}

impl Worker {
    /// Writes the status if it differs from what the API has.
    pub(crate) fn write_status(&mut self) {
        if self.gone || self.report.frozen || self.has_job(&Job::Status) {
            return;
        }
        if let Some(at) = self.report.retry_at.filter(|at| *at > self.context.now()) {
            self.look_again_at(at);
            return;
        }
        if !self.shows_beginning() || !self.shows_restart() {
            return;
        }
        let Some(patch) = self.difference() else {
            self.report.settled = true;
            // What was written has been seen; go on to what upstream shows next.
            self.hold_images();
            let Some(patch) = self.difference() else {
                return;
            };
            self.send(patch);
            return;
        };
        self.send(patch);
    }

    fn send(&mut self, patch: Value) {
        self.report.settled = false;
        let pods: Api<Pod> =
            Api::namespaced(self.context.client.clone(), pod::namespace(&self.pod));
        let name = pod::name(&self.pod).to_owned();
        self.spawn(Job::Status, async move {
            let params = PatchParams::default();
            let result = pods
                .patch_status(&name, &params, &Patch::Strategic(patch))
                .await;
            Done::Status(result.map(|mut pod| {
                pod.metadata.managed_fields = None;
                Box::new(pod)
            }))
        });
    }

    fn difference(&mut self) -> Option<Value> {
        let wanted = self.wanted_status();
        let before = self.pod.status.clone().unwrap_or_default();
        difference(pod::uid(&self.pod), &before, &wanted)
    }

    fn wanted_status(&mut self) -> PodStatus {
        let ground_ready = self.shows_ground();
        let end = match &self.mode {
            Mode::Ended { end } => Some(end),
            Mode::Running | Mode::Ending { .. } => None,
        };
        let situation = Situation {
            pod: &self.pod,
            members: &self.members,
            observed: &self.observed,
            ground_ready,
            end,
            host_ip: self.context.host_ip(),
            now: self.context.now(),
        };
        status::status(&situation, |name| {
            let (Some(local), Some(member)) = (self.locals.get(name), self.member(name)) else {
                return Remark::default();
            };
            Remark {
                waiting: local.waiting.clone(),
                started: local.is_started(member),
                ready: local.is_ready(member),
            }
        })
    }

    /// Whether the status shows that the pod is begun.
    fn shows_beginning(&mut self) -> bool {
        let status = self.pod.status.as_ref();
        let is_known = status.is_some_and(|status| status.start_time.is_some());
        if is_known || !matches!(self.mode, Mode::Running) || self.has_news() {
            return true;
        }
        let now = self.context.now();
        let since = *self.report.begun_at.get_or_insert(now);
        self.is_time_to_show(since, PROGRESS_SHOWN_AFTER, now)
    }

    /// Whether the status shows that a container has ended which is being started again.
    fn shows_restart(&mut self) -> bool {
        if !matches!(self.mode, Mode::Running) || !self.is_restarting() {
            self.report.restarting_since = None;
            return true;
        }
        let now = self.context.now();
        let since = *self.report.restarting_since.get_or_insert(now);
        let shown = self.is_time_to_show(since, RESTART_SHOWN_AFTER, now);
        self.report.settled &= shown;
        shown
    }

    /// Whether any container has ended and is about to run again, as nothing is in its way.
    fn is_restarting(&self) -> bool {
        self.locals.iter().any(|(name, local)| {
            let attempts = self.observed.containers.get(name);
            let has_exited = |attempt: &Option<Attempt>| {
                let attempt = attempt.as_ref();
                attempt.is_some_and(Attempt::has_exited)
            };
            local.busy.is_some()
                && attempts.is_some_and(|attempts| {
                    let current = attempts.current.as_ref();
                    !current.is_some_and(Attempt::is_running)
                        && (has_exited(&attempts.current) || has_exited(&attempts.previous))
                })
        })
    }

    /// Whether a container runs or has, or waits for something that people should know.
    fn has_news(&self) -> bool {
        let any_run = self.observed.containers.values().any(|attempts| {
            let current = attempts.current.as_ref();
            current.is_some_and(|attempt: &Attempt| attempt.is_running() || attempt.has_exited())
        });
        any_run || self.locals.values().any(|local| local.waiting.is_some())
    }

    fn is_time_to_show(&mut self, since: Timestamp, after: SignedDuration, now: Timestamp) -> bool {
        let shown_from = since.saturating_add(after).unwrap_or(Timestamp::MAX);
        if now >= shown_from {
            return true;
        }
        self.look_again_at(shown_from);
        false
    }

    /// Whether the status shows that sandbox and volumes stand.
    fn shows_ground(&mut self) -> bool {
        let stands = match self.mode {
            Mode::Running => {
                self.observed.alive
                    && self
                        .volumes
                        .as_ref()
                        .and_then(VolumeKeeper::places)
                        .is_some()
            }
            Mode::Ending { .. } => self.observed.alive,
            Mode::Ended { .. } => false,
        };
        if !stands {
            self.report.ground_since = None;
            return false;
        }
        let now = self.context.now();
        let since = *self.report.ground_since.get_or_insert(now);
        let is_known = self.pod.status.as_ref().is_some_and(|status| {
            let conditions = status.conditions.iter().flatten();
            let mut ready = conditions.filter(|known| known.type_ == "PodReadyToStartContainers");
            ready.any(|known| known.status == "True")
        });
        is_known || self.has_news() || self.is_time_to_show(since, PROGRESS_SHOWN_AFTER, now)
    }
}

/// A strategic merge patch from one status to another; nothing if they are the same.
///
/// Conditions go by type, so that those of others are left alone; all other lists are written whole.
fn difference(uid: &str, before: &PodStatus, after: &PodStatus) -> Option<Value> {
    let value = |status: &PodStatus| serde_json::to_value(status).unwrap_or(Value::Null);
    let (before, after) = (value(before), value(after));
    let mut status = match merge_difference(&before, &after)? {
        Value::Object(status) => status,
        _ => return None,
    };
    if status.contains_key("conditions") {
        conditions(&before, &after, &mut status);
    }
    for (list, key) in [("podIPs", "ip"), ("hostIPs", "ip")] {
        if let Some(wanted) = status.get_mut(list) {
            forget_others(&before[list], wanted, key);
        }
    }
    Some(json!({"metadata": {"uid": uid}, "status": status}))
}

fn conditions(before: &Value, after: &Value, status: &mut Map<String, Value>) {
    let of = |value: &'_ Value| value["conditions"].as_array().cloned().unwrap_or_default();
    let known = of(before);
    let wanted = of(after);
    let find = |kind: &Value| known.iter().find(|condition| condition["type"] == *kind);
    let changed: Vec<Value> = wanted
        .iter()
        .filter_map(|condition| match find(&condition["type"]) {
            None => Some(condition.clone()),
            Some(same) if same == condition => None,
            Some(other) => {
                let mut changes = merge_difference(other, condition)?;
                changes["type"] = condition["type"].clone();
                Some(changes)
            }
        })
        .collect();
    let order: Vec<Value> = wanted
        .iter()
        .map(|condition| json!({"type": condition["type"]}))
        .collect();
    status.insert("conditions".to_owned(), Value::Array(changed));
    status.insert(
        "$setElementOrder/conditions".to_owned(),
        Value::Array(order),
    );
}

/// A list that is merged by key drops an element only when told to.
fn forget_others(before: &Value, wanted: &mut Value, key: &str) {
    let Value::Array(wanted) = wanted else { return };
    for old in before.as_array().into_iter().flatten() {
        if !wanted.iter().any(|new| new[key] == old[key]) {
            wanted.push(json!({"$patch": "delete", key: old[key]}));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(before: Value, after: Value, expected: Option<Value>) {
        let status =
            |value: Value| -> PodStatus { serde_json::from_value(value).expect("a status") };
        let patch = difference("u-1", &status(before), &status(after));
        let expected = expected.map(|status| json!({"metadata": {"uid": "u-1"}, "status": status}));
        assert_eq!(patch, expected);
    }

    #[test]
    fn only_what_changed_is_written() {
        let same = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        check(same.clone(), same, None);
        check(
            json!({"phase": "Pending", "message": "m", "hostIP": "1.1.1.1"}),
            json!({"phase": "Running", "hostIP": "1.1.1.1"}),
            Some(json!({"phase": "Running", "message": null})),
        );
    }

    #[test]
    fn conditions_go_by_type() {
        check(
            json!({"conditions": [
                {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m"},
                {"type": "PodScheduled", "status": "True"},
                {"type": "other/gate", "status": "True"},
            ]}),
            json!({"conditions": [
                {"type": "Initialized", "status": "True"},
                {"type": "Ready", "status": "True"},
                {"type": "PodScheduled", "status": "True"},
                {"type": "other/gate", "status": "True"},
            ]}),
            Some(json!({
                "conditions": [
                    {"type": "Initialized", "status": "True"},
                    {"type": "Ready", "status": "True", "reason": null, "message": null},
                ],
                "$setElementOrder/conditions": [
                    {"type": "Initialized"}, {"type": "Ready"}, {"type": "PodScheduled"}, {"type": "other/gate"},
                ],
            })),
        );
    }

    #[test]
    fn an_address_that_changes_takes_the_old_one_away() {
        check(
            json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}),
            json!({"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}]}),
            Some(json!({
                "podIP": "10.0.0.2",
                "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "delete", "ip": "10.0.0.1"}],
            })),
        );
    }
}
