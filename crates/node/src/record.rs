//! What must be known of a pod to end it as it asked, when its object is gone.
//!
//! A pod whose object was removed while no daemon ran is only what the labels of its containers tell.
//! The names are upstream's.

use std::collections::BTreeMap;

use engine::{ContainerStatus, Labels, SandboxId, SandboxStatus};
use k8s_openapi::api::core::v1::{Container, ContainerPort, Lifecycle, LifecycleHandler, Pod};

use crate::observed::label;
use crate::pod::{Member, Role};

/// Seconds that the pod's containers have to end.
const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
/// The container's preStop handler, as JSON.
const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
/// The container's ports, as JSON, if it has such a handler: it may name one.
const PORTS: &str = "io.kubernetes.container.ports";
/// On a sidecar: it ends after the others.
const SIDECAR: &str = "io.kubernetes.container.sidecar";

/// Labels for a container, besides those by which it is known again.
pub(crate) fn labels(pod: &Pod, member: &Member) -> Labels {
    let mut labels = Labels::new();
    let spec = pod.spec.as_ref();
    if let Some(grace) = spec.and_then(|spec| spec.termination_grace_period_seconds) {
        labels.insert(GRACE.to_owned(), grace.to_string());
    }
    if member.role == Role::Sidecar {
        labels.insert(SIDECAR.to_owned(), "true".to_owned());
    }
    let lifecycle = member.container.lifecycle.as_ref();
    let hook = lifecycle.and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    if let Some(Ok(hook)) = hook.map(serde_json::to_string) {
        labels.insert(PRE_STOP.to_owned(), hook);
        if let Some(Ok(ports)) = member.container.ports.as_ref().map(serde_json::to_string) {
            labels.insert(PORTS.to_owned(), ports);
        }
    }
    labels
}

/// As much of a pod as its sandbox tells: enough to stop and remove what is left of it.
pub(crate) fn remembered(sandbox: &SandboxStatus) -> Pod {
    let SandboxId(uid) = &sandbox.id;
    let of = |name: &str| sandbox.labels.get(name).cloned();
    let mut pod = Pod::default();
    pod.metadata.uid = of(label::POD_UID).or_else(|| Some(uid.clone()));
    pod.metadata.name = of(label::POD_NAME);
    pod.metadata.namespace = of(label::POD_NAMESPACE);
    // The last run of each container is the one that may run.
    let mut newest: BTreeMap<&String, &ContainerStatus> = BTreeMap::new();
    for container in &sandbox.containers {
        if let Some(name) = container.labels.get(label::CONTAINER_NAME) {
            let known = newest.entry(name).or_insert(container);
            if container.created_at > known.created_at {
                *known = container;
            }
        }
    }
    let spec = pod.spec.get_or_insert_default();
    for (name, found) in newest {
        let grace = found.labels.get(GRACE).and_then(|text| text.parse().ok());
        spec.termination_grace_period_seconds = grace.or(spec.termination_grace_period_seconds);
        let mut container = container(name, &found.labels);
        match found.labels.contains_key(SIDECAR) {
            true => {
                container.restart_policy = Some("Always".to_owned());
                spec.init_containers.get_or_insert_default().push(container);
            }
            false => spec.containers.push(container),
        }
    }
    pod
}

fn container(name: &str, labels: &Labels) -> Container {
    let hook = labels.get(PRE_STOP);
    let hook: Option<LifecycleHandler> = hook.and_then(|text| serde_json::from_str(text).ok());
    let ports = labels.get(PORTS);
    let ports: Option<Vec<ContainerPort>> = ports.and_then(|text| serde_json::from_str(text).ok());
    Container {
        name: name.to_owned(),
        ports,
        lifecycle: hook.map(|hook| Lifecycle {
            pre_stop: Some(hook),
            ..Lifecycle::default()
        }),
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use engine::{ContainerId, ContainerState};
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::pod::members;

    #[test]
    fn a_pod_is_ended_as_it_asked_when_its_object_is_gone() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"uid": "u", "name": "p", "namespace": "n"},
            "spec": {
                "terminationGracePeriodSeconds": 7,
                "initContainers": [{"name": "s", "restartPolicy": "Always"}],
                "containers": [
                    {"name": "a", "ports": [{"name": "web", "containerPort": 80}],
                     "lifecycle": {"preStop": {"httpGet": {"port": "web"}}}},
                    {"name": "b"},
                ],
            },
        }))
        .expect("a pod");
        let spec = pod.spec.as_ref().expect("a spec");
        let containers = members(spec).into_iter().map(|member| {
            let name = member.container.name.clone();
            let mut labels = labels(&pod, &member);
            labels.insert(label::CONTAINER_NAME.to_owned(), name.clone());
            ContainerStatus {
                id: ContainerId(name.clone()),
                sandbox: SandboxId("u".into()),
                name,
                image: "x".into(),
                image_id: "sha256:1".into(),
                state: ContainerState::Created,
                created_at: Timestamp::UNIX_EPOCH,
                log_path: "/log".into(),
                labels,
            }
        });
        let known = remembered(&SandboxStatus {
            id: SandboxId("u".into()),
            alive: true,
            address: None,
            created_at: Timestamp::UNIX_EPOCH,
            labels: crate::start::pod_labels(&pod),
            containers: containers.collect(),
        });
        assert_eq!(known.metadata.uid, pod.metadata.uid);
        let found = known.spec.as_ref().expect("a spec");
        assert_eq!(found.termination_grace_period_seconds, Some(7));
        assert_eq!(found.init_containers, spec.init_containers);
        assert_eq!(found.containers, spec.containers);
    }
}
