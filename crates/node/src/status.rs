//! The status of a pod as the API shows it, as a pure function of what is wanted and what is seen.
//!
//! Field by field, reason by reason and text by text what Kubernetes 1.36 writes.

use std::net::IpAddr;

use engine::ContainerState;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    self as core, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, Pod, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::conditions;
use crate::failure;
use crate::observed::{Attempt, Observed};
use crate::plan;
use crate::pod::{Member, Role};
use crate::resources;
use crate::security;

/// Why a container does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) reason: String,
    pub(crate) message: Option<String>,
}

/// What the worker knows of a container besides what the engine shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remark {
    pub(crate) waiting: Option<Waiting>,
    pub(crate) started: bool,
    pub(crate) ready: bool,
}

/// The end of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct End {
    /// Set when the pod was ended from outside its containers: it has failed, for this reason.
    pub(crate) failure: Option<(String, String)>,
    /// Containers that never ran are reported as lost (the pod was deleted before they started).
    pub(crate) account_for_all: bool,
}

/// All that a status is made from.
pub(crate) struct Situation<'a> {
    /// The pod with the status that was written last.
    pub(crate) pod: &'a Pod,
    pub(crate) members: &'a [Member],
    pub(crate) observed: &'a Observed,
    /// Sandbox and volumes stand.
    pub(crate) ground_ready: bool,
    /// Nothing runs any more and nothing will.
    pub(crate) end: Option<&'a End>,
    pub(crate) host_ip: IpAddr,
    pub(crate) now: Timestamp,
}

/// Makes the status.
pub(crate) fn status(situation: &Situation<'_>, remark: impl Fn(&str) -> Remark) -> PodStatus {
    let pod = situation.pod;
    let spec = pod.spec.clone().unwrap_or_default();
    let before = pod.status.clone().unwrap_or_default();
    if let Some(End {
        failure: Some((reason, message)),
        account_for_all: false,
    }) = situation.end
    {
        // It was refused: as upstream, nothing is said of what never began.
        return PodStatus {
            phase: Some("Failed".to_owned()),
            reason: Some(reason.clone()),
            message: Some(message.clone()),
            conditions: before.conditions,
            start_time: before.start_time.or(Some(Time(situation.now))),
            qos_class: Some(resources::quality_of_service(&spec).as_str().to_owned()),
            observed_generation: pod.metadata.generation,
            ..PodStatus::default()
        };
    }
    let statuses = |roles: &[Role]| -> Vec<ContainerStatus> {
        situation
            .members
            .iter()
            .filter(|member| roles.contains(&member.role))
            .map(|member| {
                let remark = remark(&member.container.name);
                container_status(situation, &spec, &before, member, &remark)
            })
            .collect()
    };
    let init = statuses(&[Role::Init, Role::Sidecar]);
    let mut main = statuses(&[Role::Main]);
    let mut ephemeral = statuses(&[Role::Ephemeral]);
    let phase = phase(situation, &spec, &init, &main);
    let generation = pod.metadata.generation;
    let conditions = conditions::of(situation, &spec, &before, phase, &init, &main);
    // Upstream keeps these two by name and the init containers in order.
    main.sort_by(|left, right| left.name.cmp(&right.name));
    ephemeral.sort_by(|left, right| left.name.cmp(&right.name));
    let failure = situation.end.and_then(|end| end.failure.clone());
    let (reason, message) = match failure {
        Some((reason, message)) => (Some(reason), Some(message)),
        None => (before.reason, before.message),
    };
    let address = match (spec.host_network, situation.observed.address) {
        _ if !situation.ground_ready => None,
        (Some(true), _) => Some(situation.host_ip.to_string()),
        (_, address) => address.map(|address| address.to_string()),
    };
    let address = address.or(before.pod_ip);
    let host_ip = situation.host_ip.to_string();
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions),
        reason,
        message,
        host_ip: Some(host_ip.clone()),
        host_ips: Some(vec![HostIP { ip: host_ip }]),
        pod_ips: address
            .clone()
            .map(|ip| vec![PodIP { ip }])
            .or(before.pod_ips),
        pod_ip: address,
        start_time: before.start_time.or(Some(Time(situation.now))),
        init_container_statuses: some_unless_empty(init),
        container_statuses: some_unless_empty(main),
        ephemeral_container_statuses: some_unless_empty(ephemeral),
        qos_class: Some(resources::quality_of_service(&spec).as_str().to_owned()),
        observed_generation: generation,
        allocated_resources: resources::pod_requests(&spec),
        resources: Some(resources::pod_resources(&spec)),
        nominated_node_name: before.nominated_node_name,
        resource_claim_statuses: before.resource_claim_statuses,
        ..PodStatus::default()
    }
}

fn some_unless_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}

fn container_status(
    situation: &Situation<'_>,
    spec: &PodSpec,
    before: &PodStatus,
    member: &Member,
    remark: &Remark,
) -> ContainerStatus {
    let container = &member.container;
    let attempts = situation.observed.containers.get(&container.name);
    let current = attempts.and_then(|attempts| attempts.current.as_ref());
    let previous = attempts.and_then(|attempts| attempts.previous.as_ref());
    let known = previous_status(before, &container.name);
    let (state, last_state) = states(situation, spec, member, remark, current, previous, known);
    let is_running = state.running.is_some();
    let succeeded = state
        .terminated
        .as_ref()
        .is_some_and(|terminated| terminated.exit_code == 0);
    let made = current.filter(|attempt| attempt.state != ContainerState::Created);
    let wanted_image = container.image.clone().unwrap_or_default();
    let (id, image, image_id) = match (made, known) {
        (Some(made), _) => (
            Some(container_id(made)),
            made.image_name.clone(),
            made.image_id.clone(),
        ),
        (None, Some(known)) => (
            known.container_id.clone(),
            known.image.clone(),
            known.image_id.clone(),
        ),
        (None, None) => (None, wanted_image, String::new()),
    };
    let has_run = id.is_some();
    ContainerStatus {
        name: container.name.clone(),
        image,
        image_id,
        ready: match member.role {
            Role::Init => succeeded,
            Role::Sidecar | Role::Main => is_running && remark.ready,
            Role::Ephemeral => false,
        },
        started: Some(is_running && remark.started),
        restart_count: i32::try_from(current.map_or_else(
            || known.map_or(0, |known| i64::from(known.restart_count)),
            |attempt| i64::from(attempt.number),
        ))
        .unwrap_or(i32::MAX),
        state: Some(state),
        last_state: Some(last_state),
        allocated_resources: has_run.then(|| resources::requests(container)).flatten(),
        resources: has_run.then(|| resources::effective(container)),
        user: id
            .as_ref()
            .and_then(|_| security::user_shown(spec, container)),
        volume_mounts: some_unless_empty(volume_mounts(container)),
        container_id: id,
        ..ContainerStatus::default()
    }
}

fn previous_status<'a>(before: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    let lists = [
        &before.init_container_statuses,
        &before.container_statuses,
        &before.ephemeral_container_statuses,
    ];
    lists
        .into_iter()
        .flatten()
        .flatten()
        .find(|status| status.name == name)
}

pub(crate) fn container_id(attempt: &Attempt) -> String {
    format!("wharf://{}", attempt.id.0)
}

/// `state` and `lastState`.
fn states(
    situation: &Situation<'_>,
    spec: &PodSpec,
    member: &Member,
    remark: &Remark,
    current: Option<&Attempt>,
    previous: Option<&Attempt>,
    known: Option<&ContainerStatus>,
) -> (core::ContainerState, core::ContainerState) {
    let last = previous.and_then(terminated).map_or_else(
        // The engine has forgotten it (the sandbox was made anew): what was written stays true.
        || match (current, known) {
            (None, Some(known)) if known.state.as_ref().is_some_and(|s| s.terminated.is_some()) => {
                known.state.clone().unwrap_or_default()
            }
            (_, Some(known)) => known
                .last_state
                .clone()
                .filter(|_| known.restart_count > 0)
                .unwrap_or_default(),
            (_, None) => core::ContainerState::default(),
        },
        of_terminated,
    );
    match current.map(|attempt| (attempt, &attempt.state)) {
        Some((_, ContainerState::Running { started_at, .. })) => {
            let running = ContainerStateRunning {
                started_at: Some(Time(*started_at)),
            };
            let state = core::ContainerState {
                running: Some(running),
                ..core::ContainerState::default()
            };
            (state, last)
        }
        Some((attempt, ContainerState::Exited { .. })) => {
            let ended = terminated(attempt).map(of_terminated).unwrap_or_default();
            match (&remark.waiting, situation.end) {
                (Some(waiting), None) => (of_waiting(waiting.clone()), ended),
                _ => (ended, last),
            }
        }
        Some((_, ContainerState::Created)) | None => {
            if let Some(lost) = lost(situation, member, known) {
                return (lost, last);
            }
            let waiting = remark.waiting.clone().unwrap_or_else(|| {
                let has_init = spec.init_containers.iter().flatten().next().is_some();
                let reason = match has_init {
                    true => "PodInitializing",
                    false => "ContainerCreating",
                };
                Waiting {
                    reason: reason.to_owned(),
                    message: None,
                }
            });
            (of_waiting(waiting), last)
        }
    }
}

/// The end of a container of which the engine has no record.
fn lost(
    situation: &Situation<'_>,
    member: &Member,
    known: Option<&ContainerStatus>,
) -> Option<core::ContainerState> {
    let end = situation.end?;
    if let Some(state) = known.and_then(|known| known.state.clone())
        && state.terminated.is_some()
    {
        return Some(state);
    }
    let had_run = known.is_some_and(|known| known.container_id.is_some());
    let is_accounted_for = end.account_for_all && member.role == Role::Main;
    if !had_run && !is_accounted_for {
        return None;
    }
    Some(of_terminated(ContainerStateTerminated {
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".to_owned()),
        message: Some("The container could not be located when the pod was terminated".to_owned()),
        container_id: known.and_then(|known| known.container_id.clone()),
        ..ContainerStateTerminated::default()
    }))
}

fn of_waiting(waiting: Waiting) -> core::ContainerState {
    core::ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(waiting.reason),
            message: waiting.message,
        }),
        ..core::ContainerState::default()
    }
}

fn of_terminated(terminated: ContainerStateTerminated) -> core::ContainerState {
    core::ContainerState {
        terminated: Some(terminated),
        ..core::ContainerState::default()
    }
}

fn terminated(attempt: &Attempt) -> Option<ContainerStateTerminated> {
    let ContainerState::Exited {
        code,
        signal: _,
        oom_killed,
        started_at,
        finished_at,
        message,
    } = &attempt.state
    else {
        return None;
    };
    let reason = match (started_at, oom_killed, code) {
        (None, _, _) => "StartError",
        (_, true, _) => "OOMKilled",
        (_, _, 0) => "Completed",
        _ => "Error",
    };
    Some(ContainerStateTerminated {
        container_id: Some(container_id(attempt)),
        exit_code: *code,
        reason: Some(reason.to_owned()),
        message: match (started_at, message) {
            (None, Some(cause)) => Some(failure::of_start(cause)),
            _ => message.clone().or_else(|| attempt.message.clone()),
        },
        started_at: Some(Time(started_at.unwrap_or(Timestamp::UNIX_EPOCH))),
        finished_at: Some(Time(*finished_at)),
        ..ContainerStateTerminated::default()
    })
}

fn volume_mounts(container: &core::Container) -> Vec<core::VolumeMountStatus> {
    container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| {
            let read_only = mount.read_only == Some(true);
            core::VolumeMountStatus {
                name: mount.name.clone(),
                mount_path: mount.mount_path.clone(),
                read_only: read_only.then_some(true),
                recursive_read_only: read_only.then(|| "Disabled".to_owned()),
                ..core::VolumeMountStatus::default()
            }
        })
        .collect()
}

/// `Pending`, `Running`, `Succeeded` or `Failed`.
fn phase(
    situation: &Situation<'_>,
    spec: &PodSpec,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> &'static str {
    let exit_code = |status: &ContainerStatus| {
        let state = status.state.as_ref()?;
        Some(state.terminated.as_ref()?.exit_code)
    };
    if let Some(end) = situation.end {
        let failed = end.failure.is_some()
            || !main.iter().all(|status| exit_code(status) == Some(0))
            || main.is_empty();
        return if failed { "Failed" } else { "Succeeded" };
    }
    let has_begun = main
        .iter()
        .any(|status| status.container_id.is_some() || status.restart_count > 0);
    if !has_begun && !conditions::incomplete(situation.members, init).is_empty() {
        return "Pending";
    }
    let is_waiting = |status: &ContainerStatus| {
        let has = |state: &Option<core::ContainerState>,
                   test: fn(&core::ContainerState) -> bool| {
            state.as_ref().is_some_and(test)
        };
        has(&status.state, |state| state.waiting.is_some())
            && !has(&status.last_state, |state| state.terminated.is_some())
    };
    if main.iter().any(is_waiting) {
        return "Pending";
    }
    let restarts = |status: &ContainerStatus| {
        let member = situation
            .members
            .iter()
            .find(|member| member.container.name == status.name);
        match (member, exit_code(status)) {
            (Some(member), Some(code)) => {
                plan::restarts(spec, member.role, &member.container, code)
            }
            _ => true,
        }
    };
    let sidecar_runs = init.iter().any(|status| {
        status
            .state
            .as_ref()
            .is_some_and(|state| state.running.is_some())
    });
    if main.iter().any(restarts) || sidecar_runs {
        return "Running";
    }
    match main.iter().all(|status| exit_code(status) == Some(0)) {
        true => "Succeeded",
        false => "Failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Attempts;
    use crate::pod::members;
    use engine::ContainerId;
    use serde_json::{Value, json};

    const NOW: i64 = 1_700_000_000;

    /// A pod of containers that are seen as `states` say: `+` running, `++` running and ready, digits
    /// exited with that code, a word waiting for that reason; after a `/`, what the last run exited with.
    fn seen(spec: Value, states: &[(&str, &str)], end: Option<&End>) -> Value {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "generation": 1}, "spec": spec,
        }))
        .expect("a pod");
        let members = members(pod.spec.as_ref().expect("a spec"));
        let now = Timestamp::from_second(NOW).expect("in range");
        let exited = |code: &str| ContainerState::Exited {
            code: code.parse().expect("a code"),
            signal: None,
            oom_killed: false,
            started_at: Some(now),
            finished_at: now,
            message: None,
        };
        let mut observed = Observed {
            alive: end.is_none(),
            exists: true,
            address: Some([10, 244, 0, 5].into()),
            ..Observed::default()
        };
        let attempt = |name: &str, number, state| Attempt {
            id: ContainerId(format!("{name}{number}")),
            number,
            image: "x:1".into(),
            image_name: "docker.io/library/x:1".into(),
            image_id: "sha256:1".into(),
            state,
            created_at: now,
            message: None,
        };
        for (name, text) in states {
            let (state, last) = text
                .split_once('/')
                .map_or((*text, None), |(s, l)| (s, Some(l)));
            let number = u32::from(last.is_some());
            let running = ContainerState::Running {
                pid: 1,
                started_at: now,
            };
            let current = match state {
                "+" | "++" => Some(running),
                code if code.parse::<i32>().is_ok() => Some(exited(code)),
                _ => None,
            };
            let attempts = Attempts {
                current: current.map(|state| attempt(name, number, state)),
                previous: last.map(|code| attempt(name, 0, exited(code))),
                older: Vec::new(),
            };
            observed.containers.insert((*name).to_owned(), attempts);
        }
        let situation = Situation {
            pod: &pod,
            members: &members,
            observed: &observed,
            ground_ready: end.is_none(),
            end,
            host_ip: [192, 0, 2, 1].into(),
            now,
        };
        let status = status(&situation, |name| {
            let found = states.iter().find(|(known, _)| *known == name);
            let state = found.map_or("", |(_, state)| state.split('/').next().unwrap_or_default());
            let is_reason = state.starts_with(|first: char| first.is_ascii_uppercase());
            Remark {
                waiting: is_reason.then(|| Waiting {
                    reason: state.to_owned(),
                    message: None,
                }),
                started: state.starts_with('+'),
                ready: state == "++",
            }
        });
        serde_json::to_value(status).expect("plain data")
    }

    /// `Type=Status (Reason) message` of a condition.
    fn said(status: &Value, name: &str) -> String {
        let conditions = status["conditions"].as_array().expect("conditions");
        let found = conditions.iter().find(|known| known["type"] == name);
        let found = found.expect("every condition is there");
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        format!(
            "{} ({}) {}",
            text("status"),
            text("reason"),
            text("message")
        )
    }

    fn two() -> Value {
        json!({"restartPolicy": "Never", "containers": [
            {"name": "c", "image": "x:1"}, {"name": "a", "image": "x:1"},
        ]})
    }

    #[test]
    fn phases() {
        let check = |policy: &str, states: &[(&str, &str)], end: Option<&End>, expected: &str| {
            let mut spec = two();
            spec["restartPolicy"] = json!(policy);
            assert_eq!(
                seen(spec, states, end)["phase"],
                expected,
                "{policy} {states:?}"
            );
        };
        check("Always", &[], None, "Pending");
        check(
            "Always",
            &[("a", "++"), ("c", "ErrImagePull")],
            None,
            "Pending",
        );
        check("Always", &[("a", "++"), ("c", "+")], None, "Running");
        check("Always", &[("a", "0"), ("c", "0")], None, "Running");
        check("OnFailure", &[("a", "0"), ("c", "1")], None, "Running");
        check("OnFailure", &[("a", "0"), ("c", "0")], None, "Succeeded");
        check("Never", &[("a", "+"), ("c", "1")], None, "Running");
        check("Never", &[("a", "0"), ("c", "1")], None, "Failed");
        let end = End {
            failure: None,
            account_for_all: true,
        };
        check("Always", &[("a", "0"), ("c", "0")], Some(&end), "Succeeded");
        check("Always", &[("a", "0"), ("c", "137")], Some(&end), "Failed");
    }

    #[test]
    fn conditions_in_the_words_of_kubernetes() {
        let status = seen(two(), &[("a", "++")], None);
        assert_eq!(said(&status, "PodReadyToStartContainers"), "True () ");
        assert_eq!(said(&status, "Initialized"), "True () ");
        let unready = "False (ContainersNotReady) containers with unready status: [c]";
        assert_eq!(said(&status, "Ready"), unready);
        assert_eq!(said(&status, "ContainersReady"), unready);
        let status = seen(two(), &[("a", "++"), ("c", "++")], None);
        assert_eq!(said(&status, "Ready"), "True () ");
        let mut gated = two();
        gated["readinessGates"] = json!([{"conditionType": "x/y"}]);
        let status = seen(gated, &[("a", "++"), ("c", "++")], None);
        assert_eq!(
            said(&status, "Ready"),
            "False (ReadinessGatesNotReady) corresponding condition of pod readiness gate \"x/y\" does not exist."
        );
        assert_eq!(said(&status, "ContainersReady"), "True () ");
        let status = seen(two(), &[("a", "0"), ("c", "0")], Some(&End::default()));
        assert_eq!(said(&status, "PodReadyToStartContainers"), "False () ");
        assert_eq!(said(&status, "Initialized"), "True (PodCompleted) ");
        assert_eq!(said(&status, "Ready"), "False (PodCompleted) ");
    }

    #[test]
    fn init_containers_and_sidecars() {
        let spec = json!({
            "initContainers": [{"name": "i", "image": "x:1"}, {"name": "s", "image": "x:1", "restartPolicy": "Always"}],
            "containers": [{"name": "c", "image": "x:1"}],
        });
        let status = seen(spec.clone(), &[("i", "+")], None);
        assert_eq!(status["phase"], "Pending");
        assert_eq!(
            said(&status, "Initialized"),
            "False (ContainersNotInitialized) containers with incomplete status: [i s]"
        );
        assert_eq!(
            said(&status, "Ready"),
            "False (ContainersNotReady) containers with unready status: [s c]"
        );
        let waiting = &status["containerStatuses"][0]["state"]["waiting"]["reason"];
        assert_eq!(waiting, "PodInitializing");
        let status = seen(spec, &[("i", "0"), ("s", "++"), ("c", "++")], None);
        assert_eq!(said(&status, "Ready"), "True () ");
        assert_eq!(status["initContainerStatuses"][0]["ready"], true);
    }

    #[test]
    fn main_containers_are_listed_by_name() {
        let status = seen(two(), &[], None);
        let names: Vec<_> = status["containerStatuses"]
            .as_array()
            .expect("statuses")
            .iter()
            .map(|status| status["name"].as_str().expect("a name"))
            .collect();
        assert_eq!(names, ["a", "c"]);
    }

    #[test]
    fn a_container_between_two_runs() {
        let status = seen(two(), &[("a", "++"), ("c", "1/2")], None);
        let state = &status["containerStatuses"][1];
        assert_eq!(state["restartCount"], 1);
        assert_eq!(state["state"]["terminated"]["exitCode"], 1);
        assert_eq!(state["lastState"]["terminated"]["exitCode"], 2);
        assert_eq!(state["started"], false);
        assert_eq!(state["image"], "docker.io/library/x:1");
    }

    #[test]
    fn containers_that_never_ran_are_accounted_for() {
        let end = End {
            failure: Some(("DeadlineExceeded".to_owned(), "too long".to_owned())),
            account_for_all: true,
        };
        let status = seen(two(), &[("a", "0")], Some(&end));
        assert_eq!(
            (&status["phase"], &status["reason"]),
            (&json!("Failed"), &json!("DeadlineExceeded"))
        );
        let lost = &status["containerStatuses"][1]["state"]["terminated"];
        assert_eq!(lost["reason"], "ContainerStatusUnknown");
        assert_eq!(lost["exitCode"], 137);
        assert_eq!(said(&status, "Ready"), "False (PodFailed) ");
    }
}
