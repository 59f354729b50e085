//! The conditions of a pod, in the words of Kubernetes 1.36.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::excess::EVICTED;
use crate::pod::{Member, Role};
use crate::status::Situation;

/// Whether an init container has done what the ones behind it wait for.
fn is_complete(role: Role, status: &ContainerStatus) -> bool {
    match role {
        Role::Sidecar => status.started == Some(true),
        _ => status.ready,
    }
}

/// Init containers for which others wait.
pub(crate) fn incomplete(members: &[Member], init: &[ContainerStatus]) -> Vec<String> {
    members
        .iter()
        .zip(init)
        .filter(|(member, status)| !is_complete(member.role, status))
        .map(|(_, status)| status.name.clone())
        .collect()
}

/// A condition before its times are filled in.
struct Draft {
    name: &'static str,
    is_true: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

/// All conditions: the five of the node, one more of a pod that it ended for its own sake, then those of others as they were.
pub(crate) fn of(
    situation: &Situation<'_>,
    spec: &PodSpec,
    before: &PodStatus,
    phase: &str,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Vec<PodCondition> {
    let containers_ready = containers_ready(situation, phase, init, main);
    let ready = match containers_ready.is_true {
        true => gates_ready(spec, before),
        false => Draft {
            name: "Ready",
            is_true: false,
            reason: containers_ready.reason,
            message: containers_ready.message.clone(),
        },
    };
    let plain = |name, is_true| Draft {
        name,
        is_true,
        reason: None,
        message: None,
    };
    let mut drafts = vec![
        plain("PodReadyToStartContainers", situation.ground_ready),
        initialized(situation, phase, init, main),
        ready,
        containers_ready,
        plain("PodScheduled", true),
    ];
    drafts.extend(disrupted(situation));
    let known = before.conditions.as_deref().unwrap_or_default();
    let own: Vec<&str> = drafts.iter().map(|draft| draft.name).collect();
    let others = known
        .iter()
        .filter(|condition| !own.contains(&condition.type_.as_str()))
        .cloned();
    let finish = |draft: &Draft| {
        let status = if draft.is_true { "True" } else { "False" };
        let since = known
            .iter()
            .find(|condition| condition.type_ == draft.name && condition.status == status)
            .and_then(|condition| condition.last_transition_time.clone())
            .unwrap_or(Time(situation.now));
        PodCondition {
            type_: draft.name.to_owned(),
            status: status.to_owned(),
            reason: draft.reason.map(str::to_owned),
            message: draft.message.clone(),
            last_transition_time: Some(since),
            last_probe_time: None,
            observed_generation: situation.pod.metadata.generation,
        }
    };
    drafts.iter().map(finish).chain(others).collect()
}

fn disrupted(situation: &Situation<'_>) -> Option<Draft> {
    let (reason, message) = situation.end?.failure.as_ref()?;
    (reason == EVICTED).then(|| Draft {
        name: "DisruptionTarget",
        is_true: true,
        reason: Some("TerminationByKubelet"),
        message: Some(message.clone()),
    })
}

fn initialized(
    situation: &Situation<'_>,
    phase: &str,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Draft {
    let done = |reason| Draft {
        name: "Initialized",
        is_true: true,
        reason,
        message: None,
    };
    if phase == "Succeeded" {
        return done(Some("PodCompleted"));
    }
    let has_begun = main.iter().any(|status| status.container_id.is_some());
    let missing = incomplete(situation.members, init);
    if has_begun || missing.is_empty() {
        return done(None);
    }
    Draft {
        name: "Initialized",
        is_true: false,
        reason: Some("ContainersNotInitialized"),
        message: Some(format!(
            "containers with incomplete status: [{}]",
            missing.join(" ")
        )),
    }
}

fn containers_ready(
    situation: &Situation<'_>,
    phase: &str,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Draft {
    let not = |reason, message| Draft {
        name: "ContainersReady",
        is_true: false,
        reason: Some(reason),
        message,
    };
    match phase {
        "Succeeded" => return not("PodCompleted", None),
        "Failed" => return not("PodFailed", None),
        _ => {}
    }
    let unready: Vec<&str> = situation
        .members
        .iter()
        .filter(|member| matches!(member.role, Role::Sidecar | Role::Main))
        .map(|member| member.container.name.as_str())
        .filter(|name| {
            !init
                .iter()
                .chain(main)
                .any(|status| status.name == *name && status.ready)
        })
        .collect();
    if unready.is_empty() {
        return Draft {
            name: "ContainersReady",
            is_true: true,
            reason: None,
            message: None,
        };
    }
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    not("ContainersNotReady", Some(message))
}

fn gates_ready(spec: &PodSpec, before: &PodStatus) -> Draft {
    let known = before.conditions.as_deref().unwrap_or_default();
    let faults: Vec<String> = spec
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let name = &gate.condition_type;
            match known.iter().find(|condition| condition.type_ == *name) {
                None => Some(format!(
                    "corresponding condition of pod readiness gate \"{name}\" does not exist."
                )),
                Some(condition) if condition.status != "True" => Some(format!(
                    "the status of pod readiness gate \"{name}\" is not \"True\", but {}",
                    condition.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    let is_true = faults.is_empty();
    Draft {
        name: "Ready",
        is_true,
        reason: (!is_true).then_some("ReadinessGatesNotReady"),
        message: (!is_true).then(|| faults.join(", ")),
    }
}
