//! What a ReplicaSet's status says: how many pods there are, and what went wrong.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::Error;
use crate::claim;
use crate::pods::{self, Availability};
use crate::writes::whole_second;

/// The status of a set with these pods, after `failure`, if there was one.
pub(super) fn status_of(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<&Error>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let spec = set.spec.clone().unwrap_or_default();
    let described = spec.template.and_then(|template| template.metadata);
    let described = described.and_then(|meta| meta.labels).unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or_default();
    let count =
        |holds: &dyn Fn(&Pod) -> bool| active.iter().filter(|pod| holds(pod)).count() as i32;
    let fully_labeled = count(&|pod| {
        let labels = claim::labels(&pod.metadata);
        described
            .iter()
            .all(|(name, value)| labels.get(name) == Some(value))
    });
    let ready = count(&pods::is_ready);
    let available =
        count(&|pod| pods::availability(pod, min_ready, now) == Availability::Available);
    // The API leaves out counts that are zero, but for the first and the last.
    let unless_zero = |count: i32| (count != 0).then_some(count);
    let old = set.status.clone().unwrap_or_default();
    ReplicaSetStatus {
        replicas: active.len() as i32,
        fully_labeled_replicas: unless_zero(fully_labeled),
        ready_replicas: unless_zero(ready),
        available_replicas: unless_zero(available),
        terminating_replicas: Some(terminating as i32),
        observed_generation: set.metadata.generation,
        conditions: conditions_of(old.conditions, failure, now),
    }
}

fn conditions_of(
    old: Option<Vec<ReplicaSetCondition>>,
    failure: Option<&Error>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = old.unwrap_or_default();
    let known = conditions
        .iter()
        .position(|condition| condition.type_ == "ReplicaFailure");
    let reason = match failure {
        Some(Error::Create(text)) => Some(("FailedCreate", text)),
        Some(Error::Delete(text)) => Some(("FailedDelete", text)),
        _ => None,
    };
    match (reason, known) {
        (Some((reason, text)), None) => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(text.clone()),
            last_transition_time: Some(Time(whole_second(now))),
        }),
        (None, Some(index)) => {
            conditions.remove(index);
        }
        _ => {}
    }
    (!conditions.is_empty()).then_some(conditions)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_failure_is_noted_once_and_taken_back() {
        let now = Timestamp::from_second(1_000_000).expect("in range");
        let failed = conditions_of(None, Some(&Error::Create("forbidden".to_owned())), now);
        let text = |conditions: &Option<Vec<ReplicaSetCondition>>| json!(conditions);
        assert_eq!(
            text(&failed),
            json!([{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "forbidden",
                "lastTransitionTime": "1970-01-12T13:46:40Z"}])
        );
        let later = now + k8s_openapi::jiff::SignedDuration::from_secs(60);
        let again = conditions_of(
            failed.clone(),
            Some(&Error::Create("other".to_owned())),
            later,
        );
        assert_eq!(text(&again), text(&failed));
        assert_eq!(conditions_of(failed, None, later), None);
    }
}
