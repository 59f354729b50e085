//! What is not worth keeping of a pod by those who only count pods and find places for them.
//!
//! A whole pod is 14 KB in memory, most of it for the node that runs it: volumes, mounts, environment,
//! probes, the states of its containers. Whoever looks at all pods of a cluster needs a third of that.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus};

/// An annotation that may be as large as the pod itself.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Leaves of a pod what decides over where it goes, whom it serves, and when it goes.
pub(crate) fn pod(pod: &mut Pod) {
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
    if let Some(spec) = pod.spec.take() {
        pod.spec = Some(trim_spec(spec));
    }
    if let Some(status) = pod.status.take() {
        pod.status = Some(trim_status(status));
    }
}

fn trim_spec(spec: PodSpec) -> PodSpec {
    let containers =
        |containers: Vec<Container>| containers.into_iter().map(trim_container).collect();
    let mut volumes = spec.volumes.unwrap_or_default();
    // A claim may tie the pod to certain nodes.
    volumes.retain(|volume| volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some());
    PodSpec {
        containers: containers(spec.containers),
        init_containers: spec.init_containers.map(containers),
        volumes: (!volumes.is_empty()).then_some(volumes),
        affinity: spec.affinity,
        host_network: spec.host_network,
        hostname: spec.hostname,
        node_name: spec.node_name,
        node_selector: spec.node_selector,
        overhead: spec.overhead,
        preemption_policy: spec.preemption_policy,
        priority: spec.priority,
        resource_claims: spec.resource_claims,
        resources: spec.resources,
        restart_policy: spec.restart_policy,
        scheduler_name: spec.scheduler_name,
        scheduling_gates: spec.scheduling_gates,
        subdomain: spec.subdomain,
        termination_grace_period_seconds: spec.termination_grace_period_seconds,
        tolerations: spec.tolerations,
        topology_spread_constraints: spec.topology_spread_constraints,
        ..PodSpec::default()
    }
}

fn trim_container(container: Container) -> Container {
    Container {
        name: container.name,
        image: container.image,
        ports: container.ports,
        resources: container.resources,
        restart_policy: container.restart_policy,
        ..Container::default()
    }
}

fn trim_status(status: PodStatus) -> PodStatus {
    let mut conditions = status.conditions.unwrap_or_default();
    conditions.retain(|condition| {
        !matches!(
            condition.type_.as_str(),
            "Initialized" | "ContainersReady" | "PodReadyToStartContainers"
        )
    });
    let restarted = status.container_statuses.into_iter().flatten();
    let restarted: Vec<ContainerStatus> = restarted
        .filter(|container| container.restart_count > 0)
        .map(|container| ContainerStatus {
            name: container.name,
            ready: container.ready,
            restart_count: container.restart_count,
            ..ContainerStatus::default()
        })
        .collect();
    PodStatus {
        conditions: (!conditions.is_empty()).then_some(conditions),
        container_statuses: (!restarted.is_empty()).then_some(restarted),
        nominated_node_name: status.nominated_node_name,
        phase: status.phase,
        pod_ip: status.pod_ip,
        pod_ips: status.pod_ips,
        qos_class: status.qos_class,
        reason: status.reason,
        ..PodStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_decides_over_a_pod_stays_and_what_runs_it_goes() {
        let mut whole: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "labels": {"a": "b"},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "keep": "me"}},
            "spec": {
                "nodeName": "node-1", "nodeSelector": {"disk": "ssd"},
                "containers": [{"name": "c", "image": "a:1", "command": ["x"], "env": [{"name": "A", "value": "b"}],
                    "ports": [{"containerPort": 80}], "resources": {"requests": {"cpu": "1"}},
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "tmp", "emptyDir": {}}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "hostIP": "10.0.0.2",
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}],
                "containerStatuses": [
                    {"name": "c", "ready": true, "restartCount": 2, "image": "a:1", "imageID": "sha256:0"},
                    {"name": "d", "ready": true, "restartCount": 0, "image": "a:1", "imageID": "sha256:0"}]},
        }))
        .expect("is a pod");
        pod(&mut whole);
        assert_eq!(
            json!(whole),
            json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "web", "labels": {"a": "b"}, "annotations": {"keep": "me"}},
                "spec": {
                    "nodeName": "node-1", "nodeSelector": {"disk": "ssd"},
                    "containers": [{"name": "c", "image": "a:1", "ports": [{"containerPort": 80}],
                        "resources": {"requests": {"cpu": "1"}}}],
                    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]},
                "status": {"phase": "Running", "podIP": "10.0.0.1",
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "containerStatuses": [{"name": "c", "ready": true, "restartCount": 2, "image": "", "imageID": ""}]},
            })
        );
    }
}
