//! Pods that go without their owner having asked for it: first it is said what has become of them, for
//! those who count failures, and then they are deleted.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch};
use serde_json::json;

use crate::pods;
use crate::writes::{self, is_not_found, whole_second};

/// What is said of a pod that has to go.
pub(crate) struct Disruption {
    /// The reason and the message of its condition DisruptionTarget, if somebody else than its owner
    /// is behind it.
    pub(crate) target: Option<(&'static str, &'static str)>,
    /// Whether the pod has failed by it, for nobody else will say so.
    pub(crate) fails: bool,
}

/// Deletes a pod, after having said so in its status. One that has ended is just deleted, and one that
/// is gone is as good as that.
pub(crate) async fn disrupt(
    client: &kube::Client,
    pod: &Pod,
    disruption: &Disruption,
    params: &DeleteParams,
    now: Timestamp,
) -> Result<(), kube::Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    if !pods::has_ended(pod) {
        let mut status = json!({});
        if let Some((reason, message)) = disruption.target {
            status["conditions"] = json!([{
                "type": "DisruptionTarget",
                "status": "True",
                "reason": reason,
                "message": message,
                "lastProbeTime": null,
                "lastTransitionTime": whole_second(now),
                "observedGeneration": pod.metadata.generation,
            }]);
        }
        if disruption.fails {
            status["phase"] = json!("Failed");
            status["observedGeneration"] = json!(pod.metadata.generation);
        }
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
        let patch = Patch::Strategic(&patch);
        match api.patch_status(name, &writes::patch(), &patch).await {
            Err(error) if is_not_found(&error) => return Ok(()),
            outcome => drop(outcome?),
        }
    }
    writes::deleted(api.delete(name, params).await)
}
