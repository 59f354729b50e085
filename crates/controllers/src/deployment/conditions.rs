//! What a Deployment's status says: counts, and the conditions Available, Progressing and
//! ReplicaFailure.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::plan::{self, size};
use super::scale;
use crate::writes::whole_second;

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";

const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// Since when nothing has moved is counted in whole seconds, and the writing of it takes its time.
const DEADLINE_SLACK: Duration = Duration::from_secs(1);

pub(crate) fn condition<'a>(
    status: &'a DeploymentStatus,
    condition_type: &str,
) -> Option<&'a DeploymentCondition> {
    let conditions = status.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == condition_type)
}

/// The seconds without progress that the Deployment allows, if it has such a limit.
pub(crate) fn deadline(deployment: &Deployment) -> Option<i32> {
    let spec = deployment.spec.as_ref()?;
    spec.progress_deadline_seconds
        .filter(|seconds| *seconds != i32::MAX)
}

/// Sets a condition, unless it already stands there with this status and reason. The time of the last
/// transition is that of the last change of its status.
fn set(
    status: &mut DeploymentStatus,
    condition_type: &str,
    value: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let known = condition(status, condition_type);
    if known.is_some_and(|known| known.status == value && known.reason.as_deref() == Some(reason)) {
        return;
    }
    let since = known.filter(|known| known.status == value);
    let last_transition_time = match since {
        Some(known) => known.last_transition_time.clone(),
        None => Some(Time(whole_second(now))),
    };
    remove(status, condition_type);
    status
        .conditions
        .get_or_insert_default()
        .push(DeploymentCondition {
            type_: condition_type.to_owned(),
            status: value.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_update_time: Some(Time(whole_second(now))),
            last_transition_time,
        });
}

fn remove(status: &mut DeploymentStatus, condition_type: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != condition_type);
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

/// Notes that the Deployment was paused or resumed, so that the deadline does not count the pause.
pub(crate) fn set_paused(deployment: &Deployment, status: &mut DeploymentStatus, now: Timestamp) {
    if deadline(deployment).is_none() {
        return;
    }
    let reason = condition(status, PROGRESSING).and_then(|known| known.reason.as_deref());
    if reason == Some(TIMED_OUT) {
        return;
    }
    match (plan::is_paused(deployment), reason == Some(PAUSED)) {
        (true, false) => {
            let message = "Deployment is paused".to_owned();
            set(status, PROGRESSING, "Unknown", PAUSED, message, now);
        }
        (false, true) => {
            let message = "Deployment is resumed".to_owned();
            set(
                status,
                PROGRESSING,
                "Unknown",
                "DeploymentResumed",
                message,
                now,
            );
        }
        _ => {}
    }
}

/// Notes that the set of the new template was made (`created`) or was there already.
pub(crate) fn set_new_set(
    deployment: &Deployment,
    status: &mut DeploymentStatus,
    set_name: &str,
    created: bool,
    now: Timestamp,
) {
    if deadline(deployment).is_none() {
        return;
    }
    if created {
        let message = format!("Created new replica set {set_name:?}");
        set(
            status,
            PROGRESSING,
            "True",
            "NewReplicaSetCreated",
            message,
            now,
        );
    } else if condition(status, PROGRESSING).is_none() {
        let message = format!("Found new replica set {set_name:?}");
        set(
            status,
            PROGRESSING,
            "True",
            "FoundNewReplicaSet",
            message,
            now,
        );
    }
}

/// Notes that the set of the new template could not be made.
pub(crate) fn set_failed_create(
    deployment: &Deployment,
    status: &mut DeploymentStatus,
    message: &str,
    now: Timestamp,
) {
    if deadline(deployment).is_some() {
        let message = message.to_owned();
        set(status, PROGRESSING, "False", "FailedCreate", message, now);
    }
}

/// The counts, and whether enough pods are available. `status` brings the conditions.
pub(crate) fn count(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    old: &[ReplicaSet],
    status: &mut DeploymentStatus,
    now: Timestamp,
) {
    let all = || old.iter().chain(new);
    let sum = |part: fn(&ReplicaSet) -> i32| all().map(part).sum::<i32>();
    // The API leaves out counts that are zero.
    let unless_zero = |count: i32| (count != 0).then_some(count);
    let available = sum(scale::available);
    let terminating = all().map(|set| set.status.as_ref()?.terminating_replicas);
    status.observed_generation = deployment.metadata.generation;
    status.replicas = unless_zero(sum(scale::actual));
    status.updated_replicas = unless_zero(new.map_or(0, scale::actual));
    status.ready_replicas = unless_zero(sum(|set| {
        let status = set.status.as_ref();
        status
            .and_then(|status| status.ready_replicas)
            .unwrap_or_default()
    }));
    status.available_replicas = unless_zero(available);
    status.unavailable_replicas = unless_zero((sum(size) - available).max(0));
    // Unknown until every set has told.
    status.terminating_replicas = terminating.sum::<Option<i32>>();
    let wanted = plan::wanted(deployment);
    if available >= wanted - scale::max_unavailable(deployment) {
        let message = "Deployment has minimum availability.".to_owned();
        set(
            status,
            AVAILABLE,
            "True",
            "MinimumReplicasAvailable",
            message,
            now,
        );
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        set(
            status,
            AVAILABLE,
            "False",
            "MinimumReplicasUnavailable",
            message,
            now,
        );
    }
}

/// Whether all pods are of the new template and available, and none of an old one is left.
pub(crate) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = plan::wanted(deployment);
    status.updated_replicas.unwrap_or_default() == wanted
        && status.replicas.unwrap_or_default() == wanted
        && status.available_replicas.unwrap_or_default() == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let replicas = |status: &DeploymentStatus| status.replicas.unwrap_or_default();
    let updated = |status: &DeploymentStatus| status.updated_replicas.unwrap_or_default();
    let left = |status: &DeploymentStatus| replicas(status) - updated(status);
    let ready = |status: &DeploymentStatus| status.ready_replicas.unwrap_or_default();
    let available = |status: &DeploymentStatus| status.available_replicas.unwrap_or_default();
    updated(new) > updated(old)
        || left(new) < left(old)
        || ready(new) > ready(old)
        || available(new) > available(old)
}

/// How long ago the last progress was noted, and how long that may be.
fn waited(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<(SignedDuration, SignedDuration)> {
    let since = condition(status, PROGRESSING)?.last_update_time.as_ref()?.0;
    let allowed = SignedDuration::from_secs(deadline(deployment)?.into());
    Some((now.duration_since(since), allowed))
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let reason = condition(status, PROGRESSING).and_then(|known| known.reason.as_deref());
    match reason {
        Some(NEW_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => waited(deployment, status, now).is_some_and(|(waited, allowed)| waited > allowed),
    }
}

/// Says how the roll-out goes. `status` has the new counts already.
pub(crate) fn set_progress(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    status: &mut DeploymentStatus,
    now: Timestamp,
) {
    if deadline(deployment).is_none() {
        remove(status, PROGRESSING);
        return;
    }
    let old = deployment.status.clone().unwrap_or_default();
    let current = condition(status, PROGRESSING).cloned();
    let was_complete = current.as_ref().and_then(|known| known.reason.as_deref())
        == Some(NEW_SET_AVAILABLE)
        && status.replicas == status.updated_replicas;
    if was_complete {
        return;
    }
    let subject = match new {
        Some(set) => format!(
            "ReplicaSet {:?}",
            set.metadata.name.as_deref().unwrap_or_default()
        ),
        None => {
            let name = deployment.metadata.name.as_deref().unwrap_or_default();
            format!("Deployment {name:?}")
        }
    };
    if is_complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        set(status, PROGRESSING, "True", NEW_SET_AVAILABLE, message, now);
    } else if has_progressed(&old, status) {
        // Written even if it says the same: the deadline counts from its last update.
        let since = current.filter(|known| known.status == "True");
        remove(status, PROGRESSING);
        let message = format!("{subject} is progressing.");
        set(
            status,
            PROGRESSING,
            "True",
            "ReplicaSetUpdated",
            message,
            now,
        );
        let written = status
            .conditions
            .as_mut()
            .and_then(|conditions| conditions.last_mut());
        if let (Some(since), Some(written)) = (since, written) {
            written.last_transition_time = since.last_transition_time;
        }
    } else if has_timed_out(deployment, status, now) {
        let message = format!("{subject} has timed out progressing.");
        set(status, PROGRESSING, "False", TIMED_OUT, message, now);
    }
}

/// Passes on why a set could not make its pods, the new one's reason first.
pub(crate) fn set_failure(
    new: Option<&ReplicaSet>,
    old: &[ReplicaSet],
    status: &mut DeploymentStatus,
) {
    let failure = |set: &ReplicaSet| -> Option<ReplicaSetCondition> {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions
            .iter()
            .find(|known| known.type_ == REPLICA_FAILURE)
            .cloned()
    };
    let Some(failed) = new.into_iter().chain(old).find_map(failure) else {
        return remove(status, REPLICA_FAILURE);
    };
    let known = condition(status, REPLICA_FAILURE);
    if known.is_some_and(|known| known.status == failed.status && known.reason == failed.reason) {
        return;
    }
    remove(status, REPLICA_FAILURE);
    status
        .conditions
        .get_or_insert_default()
        .push(DeploymentCondition {
            type_: failed.type_,
            status: failed.status,
            reason: failed.reason,
            message: failed.message,
            last_update_time: failed.last_transition_time.clone(),
            last_transition_time: failed.last_transition_time,
        });
}

/// When to look whether the deadline has passed; `None` if that cannot happen.
pub(crate) fn look_again(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let reason = condition(status, PROGRESSING)?.reason.as_deref();
    if reason == Some(TIMED_OUT) || is_complete(deployment, status) || plan::is_paused(deployment) {
        return None;
    }
    let (waited, allowed) = waited(deployment, status, now)?;
    let left = Duration::try_from(allowed - waited).unwrap_or_default();
    Some(left + DEADLINE_SLACK)
}
