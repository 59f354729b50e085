//! What several controllers want to know of a pod, beyond what everybody does.

use informer::{Index, Informer};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
pub(crate) use objects::pod::{
    condition, has_ended, is_active, is_ready, is_terminating, node_name, phase,
};

/// Since when the pod has been ready; `None` if it is not.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|ready| ready.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// Whether the pod has been ready for as long as it must be to count as available, and if it is ready
/// but not for long enough, how much is missing.
pub(crate) fn availability(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Availability {
    if !is_ready(pod) {
        return Availability::NotReady;
    }
    if min_ready_seconds <= 0 {
        return Availability::Available;
    }
    let Some(since) = ready_since(pod) else {
        return Availability::NotReady;
    };
    let missing = SignedDuration::from_secs(min_ready_seconds.into()) - now.duration_since(since);
    match std::time::Duration::try_from(missing) {
        Ok(missing) if !missing.is_zero() => Availability::In(missing),
        _ => Availability::Available,
    }
}

/// See [`availability`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Availability {
    NotReady,
    /// Ready, and available if it stays so for this long.
    In(std::time::Duration),
    Available,
}

/// Pods by the name of their node; those without one are not in it.
pub(crate) fn by_node(pods: &Informer<Pod>) -> Index<Pod> {
    pods.index_by("node", |pod| {
        node_name(pod).map(str::to_owned).into_iter().collect()
    })
}
