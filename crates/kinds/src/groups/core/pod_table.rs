//! A pod in one line: how many containers are ready, what it is doing, how often it was restarted.

use jiff::Timestamp;
use serde_json::Value;

use crate::metadata;
use crate::read::{flag, list, text};
use crate::table::{Heading, age_cell, human_duration, or_none};

const SPEC: &str = "io.k8s.api.core.v1.PodSpec";
const STATUS: &str = "io.k8s.api.core.v1.PodStatus";

pub(super) const COLUMNS: &[Heading] = &[
    Heading::NAME,
    Heading::text(
        "Ready",
        "The aggregate readiness state of this pod for accepting traffic.",
    ),
    Heading::text(
        "Status",
        "The aggregate status of the containers in this pod.",
    ),
    Heading::text(
        "Restarts",
        "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
    ),
    Heading::AGE,
    Heading::of("IP", STATUS, "podIP").wide(),
    Heading::of("Node", SPEC, "nodeName").wide(),
    Heading::of("Nominated Node", STATUS, "nominatedNodeName").wide(),
    Heading::of("Readiness Gates", SPEC, "readinessGates").wide(),
];

pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let summary = Summary::of(pod);
    let address = list(status, "podIPs")
        .first()
        .map_or(text(status, "podIP"), |address| text(address, "ip"));
    vec![
        metadata::name(pod).into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts(summary.restarts, summary.restarted, now).into(),
        age_cell(pod, now),
        or_none(address),
        or_none(text(spec, "nodeName")),
        or_none(text(status, "nominatedNodeName")),
        or_none(&gates(spec, status)),
    ]
}

fn restarts(count: i64, last: Option<Timestamp>, now: Timestamp) -> String {
    match last {
        Some(last) if count != 0 => format!(
            "{count} ({} ago)",
            human_duration(now.duration_since(last).as_secs())
        ),
        _ => count.to_string(),
    }
}

fn gates(spec: &Value, status: &Value) -> String {
    let gates = list(spec, "readinessGates");
    if gates.is_empty() {
        return String::new();
    }
    let passed = gates
        .iter()
        .filter(|gate| is_true(status, text(gate, "conditionType")))
        .count();
    format!("{passed}/{}", gates.len())
}

fn is_true(status: &Value, condition: &str) -> bool {
    list(status, "conditions")
        .iter()
        .any(|item| text(item, "type") == condition && text(item, "status") == "True")
}

#[derive(Default)]
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    restarted: Option<Timestamp>,
}

impl Summary {
    fn of(pod: &Value) -> Summary {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let mut summary = Summary {
            reason: phase(status),
            ..Summary::default()
        };
        let sidecars = list(spec, "initContainers")
            .iter()
            .filter(|container| is_sidecar(container))
            .count();
        summary.total = list(spec, "containers").len() + sidecars;
        let initializing = summary.initialize(spec, status);
        if !initializing || is_true(status, "Initialized") {
            summary.run(status);
        }
        if pod["metadata"]["deletionTimestamp"].is_string() {
            if text(status, "reason") == "NodeLost" {
                summary.reason = "Unknown".to_owned();
            } else if !["Succeeded", "Failed"].contains(&text(status, "phase")) {
                summary.reason = "Terminating".to_owned();
            }
        }
        summary
    }

    /// Goes over the containers that run first, up to the one that is not done. Says whether there is one.
    fn initialize(&mut self, spec: &Value, status: &Value) -> bool {
        let (mut all, mut of_sidecars) = ((0, None), (0, None));
        let mut waiting_for = None;
        let containers = list(spec, "initContainers");
        for (index, container) in list(status, "initContainerStatuses").iter().enumerate() {
            let declared = containers
                .iter()
                .find(|declared| declared["name"] == container["name"]);
            let sidecar = declared.is_some_and(is_sidecar);
            count(container, &mut all);
            if sidecar {
                count(container, &mut of_sidecars);
            }
            let (terminated, waiting) = (
                &container["state"]["terminated"],
                &container["state"]["waiting"],
            );
            if terminated.is_object() && terminated["exitCode"].as_i64().unwrap_or(0) == 0 {
                continue;
            }
            if sidecar && flag(container, "started") {
                self.ready += usize::from(flag(container, "ready"));
                continue;
            }
            let waiting = text(waiting, "reason");
            waiting_for = Some(if terminated.is_object() {
                format!("Init:{}", ending(terminated))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{index}/{}", containers.len())
            });
            break;
        }
        let initializing = waiting_for.is_some();
        if let Some(reason) = waiting_for {
            self.reason = reason;
        }
        // Once the pod runs, those that ran before it no longer count.
        let done = !initializing || is_true(status, "Initialized");
        (self.restarts, self.restarted) = if done { of_sidecars } else { all };
        initializing
    }

    fn run(&mut self, status: &Value) {
        let mut running = false;
        for container in list(status, "containerStatuses").iter().rev() {
            let mut counted = (self.restarts, self.restarted);
            count(container, &mut counted);
            (self.restarts, self.restarted) = counted;
            let (waiting, terminated) = (
                text(&container["state"]["waiting"], "reason"),
                &container["state"]["terminated"],
            );
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if terminated.is_object() {
                self.reason = ending(terminated);
            } else if flag(container, "ready") && container["state"]["running"].is_object() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            self.reason = if is_true(status, "Ready") {
                "Running"
            } else {
                "NotReady"
            }
            .to_owned();
        }
    }
}

fn phase(status: &Value) -> String {
    let gated = list(status, "conditions").iter().any(|condition| {
        text(condition, "type") == "PodScheduled" && text(condition, "reason") == "SchedulingGated"
    });
    match text(status, "reason") {
        _ if gated => "SchedulingGated".to_owned(),
        "" => text(status, "phase").to_owned(),
        reason => reason.to_owned(),
    }
}

fn is_sidecar(container: &Value) -> bool {
    text(container, "restartPolicy") == "Always"
}

fn count(container: &Value, (restarts, last): &mut (i64, Option<Timestamp>)) {
    *restarts += container["restartCount"].as_i64().unwrap_or(0);
    let finished = container["lastState"]["terminated"]["finishedAt"].as_str();
    *last = (*last).max(finished.and_then(|time| time.parse().ok()));
}

fn ending(terminated: &Value) -> String {
    let signal = terminated["signal"].as_i64().unwrap_or(0);
    match text(terminated, "reason") {
        "" if signal != 0 => format!("Signal:{signal}"),
        "" => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        reason => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(spec: Value, status: Value, expected: &[&str]) {
        let pod = json!({"metadata": {"name": "p"}, "spec": spec, "status": status});
        let now = "2024-01-01T00:10:00Z".parse().expect("a time");
        let cells = cells(&pod, now);
        let words: Vec<&str> = cells
            .iter()
            .skip(1)
            .take(3)
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(words, expected, "{status}", status = pod["status"]);
    }

    #[test]
    fn one_line_tells_what_a_pod_is_doing() {
        let one = || json!({"containers": [{"name": "c"}]});
        let state = |state: Value, ready: bool| json!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": ready, "restartCount": 0, "state": state}]});
        check(one(), json!({"phase": "Pending"}), &["0/1", "Pending", "0"]);
        check(
            one(),
            state(json!({"running": {}}), true),
            &["1/1", "Running", "0"],
        );
        check(
            one(),
            state(json!({"waiting": {"reason": "CrashLoopBackOff"}}), false),
            &["0/1", "CrashLoopBackOff", "0"],
        );
        check(
            one(),
            state(json!({"terminated": {"exitCode": 3}}), false),
            &["0/1", "ExitCode:3", "0"],
        );
        check(
            one(),
            state(json!({"terminated": {"signal": 9, "exitCode": 137}}), false),
            &["0/1", "Signal:9", "0"],
        );
        let restarted = json!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": true, "restartCount": 2, "state": {"running": {}}, "lastState": {"terminated": {"finishedAt": "2024-01-01T00:09:55Z"}}}]});
        check(one(), restarted, &["1/1", "Running", "2 (5s ago)"]);
    }

    #[test]
    fn containers_that_run_first_show_while_they_do() {
        let spec = || json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "c"}]});
        let first = |state: Value| json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 1, "state": state}, {"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}}]});
        check(
            spec(),
            first(json!({"running": {}})),
            &["0/1", "Init:0/2", "1"],
        );
        check(
            spec(),
            first(json!({"terminated": {"exitCode": 0}})),
            &["0/1", "Init:1/2", "1"],
        );
        check(
            spec(),
            first(json!({"terminated": {"exitCode": 1, "reason": "Error"}})),
            &["0/1", "Init:Error", "1"],
        );
        check(
            spec(),
            first(json!({"waiting": {"reason": "CrashLoopBackOff"}})),
            &["0/1", "Init:CrashLoopBackOff", "1"],
        );
    }
}
