//! What the containers of a pod need next, as a pure function of what is wanted and what is seen.
//!
//! ```text
//!  init₁ ─► init₂ ─► sidecar₃ (up) ─► init₄ ─► every main container
//!                       └───── restarted whenever it ends, until the main containers have
//! ```
//!
//! The rules are those of the pod lifecycle page of the Kubernetes documentation: init containers one
//! after the other; a sidecar only has to be up; an init container that fails is run again unless the
//! pod's policy is `Never`; once the main containers run, ended init containers are history.

use engine::ContainerState;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, PodSpec};

use crate::backoff::{BackOffs, Turn};
use crate::observed::{Attempt, Observed};
use crate::pod::{Member, Role};

/// What the worker knows of a container besides what the engine shows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Knowledge {
    /// A start or a stop is under way: leave it alone.
    pub(crate) busy: bool,
    /// Its startup probe passed and its postStart hook returned.
    pub(crate) started: bool,
    /// It was stopped because the spec names another image: run again, whatever the policy.
    pub(crate) replacing: bool,
    /// It could not be made; try not before this.
    pub(crate) retry_at: Option<Timestamp>,
}

/// A container that has to wait for its turn to be restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) name: String,
    pub(crate) delay: SignedDuration,
    pub(crate) until: Timestamp,
}

/// Where the pod as a whole stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Something runs or will run.
    Going,
    /// All that had to run has ended, or an init container failed for good.
    Over,
}

/// The next steps. All lists are in starting order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// To be started now.
    pub(crate) start: Vec<String>,
    /// To be replaced: the image in the spec is another one.
    pub(crate) replace: Vec<String>,
    /// In a crash loop.
    pub(crate) held: Vec<Held>,
    /// When to plan again, if nothing happens before.
    pub(crate) again_at: Option<Timestamp>,
    pub(crate) verdict: Verdict,
}

/// Plans. Takes turns from `delays` for every restart that it orders.
pub(crate) fn plan(
    spec: &PodSpec,
    members: &[Member],
    observed: &Observed,
    knowledge: impl Fn(&str) -> Knowledge,
    delays: &mut BackOffs,
    now: Timestamp,
) -> Plan {
    let mut planner = Planner {
        spec,
        observed,
        knowledge,
        delays,
        now,
        plan: Plan {
            start: Vec::new(),
            replace: Vec::new(),
            held: Vec::new(),
            again_at: None,
            verdict: Verdict::Going,
        },
    };
    planner.run(members);
    planner.plan
}

/// `restartPolicy` of a pod or a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Always,
    OnFailure,
    Never,
}

impl Policy {
    fn parse(text: Option<&str>) -> Option<Policy> {
        match text {
            Some("Always") => Some(Policy::Always),
            Some("OnFailure") => Some(Policy::OnFailure),
            Some("Never") => Some(Policy::Never),
            _ => None,
        }
    }

    fn of(spec: &PodSpec) -> Policy {
        Policy::parse(spec.restart_policy.as_deref()).unwrap_or(Policy::Always)
    }

    fn restarts(self, code: i32) -> bool {
        match self {
            Policy::Always => true,
            Policy::OnFailure => code != 0,
            Policy::Never => false,
        }
    }
}

/// Whether a container that exited with `code` is to be run again.
pub(crate) fn restarts(spec: &PodSpec, role: Role, container: &Container, code: i32) -> bool {
    let by_rule = || {
        let rule = container
            .restart_policy_rules
            .iter()
            .flatten()
            .find(|rule| {
                rule.exit_codes.as_ref().is_some_and(|codes| {
                    let listed = codes.values.iter().flatten().any(|value| *value == code);
                    match codes.operator.as_str() {
                        "In" => listed,
                        "NotIn" => !listed,
                        _ => false,
                    }
                })
            });
        rule.is_some_and(|rule| rule.action != "Terminate")
    };
    match role {
        Role::Sidecar => true,
        Role::Ephemeral => false,
        // An init container is done when it succeeded, whatever the policy.
        Role::Init if code == 0 => false,
        Role::Init | Role::Main => {
            by_rule()
                || Policy::parse(container.restart_policy.as_deref())
                    .unwrap_or_else(|| Policy::of(spec))
                    .restarts(code)
        }
    }
}

struct Planner<'a, K> {
    spec: &'a PodSpec,
    observed: &'a Observed,
    knowledge: K,
    delays: &'a mut BackOffs,
    now: Timestamp,
    plan: Plan,
}

/// What a container does for those behind it.
enum Stage {
    /// The next one may start.
    Passed,
    /// The next one waits.
    Pending,
    /// The pod has failed.
    Failed,
}

impl<K: Fn(&str) -> Knowledge> Planner<'_, K> {
    fn run(&mut self, members: &[Member]) {
        let has_begun = members
            .iter()
            .filter(|member| member.role == Role::Main)
            .any(|member| self.observed.current(&member.container.name).is_some());
        for member in members {
            let stage = match member.role {
                Role::Init if has_begun => Stage::Passed,
                Role::Init => self.init(member),
                Role::Sidecar => self.sidecar(member),
                Role::Main | Role::Ephemeral => break,
            };
            match stage {
                Stage::Passed => {}
                // A sidecar that is being restarted does not hold up main containers that already run.
                Stage::Pending if has_begun => {}
                Stage::Pending => return,
                Stage::Failed => {
                    self.plan.verdict = Verdict::Over;
                    return;
                }
            }
        }
        let mut held_by_hook = false;
        let mut over = true;
        for member in members {
            match member.role {
                Role::Main => over &= self.main(member, &mut held_by_hook),
                Role::Ephemeral => self.ephemeral(member),
                Role::Init | Role::Sidecar => {}
            }
        }
        if over {
            self.plan.verdict = Verdict::Over;
            self.plan.start.clear();
            self.plan.held.clear();
        }
    }

    fn init(&mut self, member: &Member) -> Stage {
        match self.state(member) {
            Some(ContainerState::Exited { code: 0, .. }) => return Stage::Passed,
            Some(ContainerState::Exited {
                code, finished_at, ..
            }) => {
                if !self.restarts(member, code) {
                    return Stage::Failed;
                }
                self.restart(member, finished_at);
            }
            Some(ContainerState::Running { .. }) => self.replace_if_changed(member),
            Some(ContainerState::Created) | None => self.start(member),
        }
        Stage::Pending
    }

    fn sidecar(&mut self, member: &Member) -> Stage {
        match self.state(member) {
            Some(ContainerState::Running { .. }) => {
                self.replace_if_changed(member);
                if (self.knowledge)(&member.container.name).started {
                    return Stage::Passed;
                }
            }
            Some(ContainerState::Exited { finished_at, .. }) => self.restart(member, finished_at),
            Some(ContainerState::Created) | None => self.start(member),
        }
        Stage::Pending
    }

    /// Whether it has ended for good. `held_by_hook`: an earlier container's postStart hook still runs.
    fn main(&mut self, member: &Member, held_by_hook: &mut bool) -> bool {
        let name = &member.container.name;
        let over = match self.state(member) {
            Some(ContainerState::Exited {
                code, finished_at, ..
            }) => {
                let again = self.restarts(member, code);
                if again && !*held_by_hook {
                    self.restart(member, finished_at);
                }
                !again
            }
            Some(ContainerState::Running { .. }) => {
                self.replace_if_changed(member);
                false
            }
            Some(ContainerState::Created) | None => {
                if !*held_by_hook {
                    self.start(member);
                }
                false
            }
        };
        let has_hook = member
            .container
            .lifecycle
            .as_ref()
            .is_some_and(|lifecycle| lifecycle.post_start.is_some());
        let starts = (self.knowledge)(name).busy || self.plan.start.contains(name);
        *held_by_hook |= has_hook && starts;
        over
    }

    fn ephemeral(&mut self, member: &Member) {
        if self.state(member).is_none() {
            self.start(member);
        }
    }

    fn restarts(&self, member: &Member, code: i32) -> bool {
        (self.knowledge)(&member.container.name).replacing
            || restarts(self.spec, member.role, &member.container, code)
    }

    fn state(&self, member: &Member) -> Option<ContainerState> {
        self.observed
            .current(&member.container.name)
            .map(|attempt| attempt.state.clone())
    }

    fn start(&mut self, member: &Member) {
        let name = &member.container.name;
        let known = (self.knowledge)(name);
        if known.busy {
            return;
        }
        match known.retry_at {
            Some(at) if at > self.now => self.again_at(at),
            _ => self.plan.start.push(name.clone()),
        }
    }

    fn restart(&mut self, member: &Member, failed_at: Timestamp) {
        let name = &member.container.name;
        let known = (self.knowledge)(name);
        if known.busy {
            return;
        }
        if let Some(at) = known.retry_at.filter(|at| *at > self.now) {
            // The turn was taken already; making the container failed since.
            self.again_at(at);
            return;
        }
        if known.retry_at.is_some() || known.replacing {
            self.plan.start.push(name.clone());
            return;
        }
        match self.delays.ask(name, failed_at, self.now) {
            Turn::Now => self.plan.start.push(name.clone()),
            Turn::Wait { length, until } => {
                self.again_at(until);
                self.plan.held.push(Held {
                    name: name.clone(),
                    delay: length,
                    until,
                });
            }
        }
    }

    fn changed(&self, member: &Member) -> bool {
        let attempt: Option<&Attempt> = self.observed.current(&member.container.name);
        let wanted = member.container.image.as_deref().unwrap_or_default();
        attempt.is_some_and(|attempt| attempt.image != wanted)
    }

    fn replace_if_changed(&mut self, member: &Member) {
        let name = &member.container.name;
        if self.changed(member) && !(self.knowledge)(name).busy {
            self.plan.replace.push(name.clone());
        }
    }

    fn again_at(&mut self, at: Timestamp) {
        self.plan.again_at = Some(self.plan.again_at.map_or(at, |known| known.min(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Attempts;
    use crate::pod::members;
    use engine::ContainerId;
    use serde_json::json;
    use std::collections::BTreeMap;

    const NOW: i64 = 1_700_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(NOW + seconds).expect("in range")
    }

    /// `-` absent, `+` running, `*` running and started, `b` busy (absent), digits: exited with that code.
    fn observed(states: &[(&str, &str)]) -> (Observed, BTreeMap<String, Knowledge>) {
        let mut observed = Observed {
            alive: true,
            exists: true,
            ..Observed::default()
        };
        let mut knowledge = BTreeMap::new();
        for (name, state) in states {
            let state = match *state {
                "-" => continue,
                "b" => {
                    let busy = Knowledge {
                        busy: true,
                        ..Knowledge::default()
                    };
                    knowledge.insert((*name).to_owned(), busy);
                    continue;
                }
                "+" | "*" => {
                    let known = Knowledge {
                        started: *state == "*",
                        ..Knowledge::default()
                    };
                    knowledge.insert((*name).to_owned(), known);
                    ContainerState::Running {
                        pid: 1,
                        started_at: at(-9),
                    }
                }
                code => ContainerState::Exited {
                    code: code.parse().expect("an exit code"),
                    signal: None,
                    oom_killed: false,
                    started_at: Some(at(-9)),
                    finished_at: at(0),
                    message: None,
                },
            };
            let attempt = Attempt {
                id: ContainerId((*name).to_owned()),
                number: 0,
                image: "x:1".into(),
                image_name: "docker.io/library/x:1".into(),
                image_id: "sha256:1".into(),
                state,
                created_at: at(-9),
                message: None,
            };
            observed.containers.insert(
                (*name).to_owned(),
                Attempts {
                    current: Some(attempt),
                    ..Attempts::default()
                },
            );
        }
        (observed, knowledge)
    }

    fn spec(policy: &str) -> PodSpec {
        serde_json::from_value(json!({
            "restartPolicy": policy,
            "initContainers": [
                {"name": "i", "image": "x:1"},
                {"name": "s", "image": "x:1", "restartPolicy": "Always"},
                {"name": "j", "image": "x:1"},
            ],
            "containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "x:1"}],
        }))
        .expect("a spec")
    }

    #[track_caller]
    fn check(policy: &str, states: &[(&str, &str)], start: &[&str], verdict: Verdict) {
        let spec = spec(policy);
        let (observed, knowledge) = observed(states);
        let plan = plan(
            &spec,
            &members(&spec),
            &observed,
            |name| knowledge.get(name).copied().unwrap_or_default(),
            &mut BackOffs::default(),
            at(0),
        );
        assert_eq!(
            (plan.start.as_slice(), plan.verdict),
            (strings(start).as_slice(), verdict)
        );
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn init_containers_run_one_after_the_other() {
        use Verdict::Going;
        check("Always", &[], &["i"], Going);
        check("Always", &[("i", "b")], &[], Going);
        check("Always", &[("i", "+")], &[], Going);
        check("Always", &[("i", "0")], &["s"], Going);
        check("Always", &[("i", "0"), ("s", "+")], &[], Going);
        check("Always", &[("i", "0"), ("s", "*")], &["j"], Going);
        check(
            "Always",
            &[("i", "0"), ("s", "*"), ("j", "0")],
            &["a", "b"],
            Going,
        );
    }

    #[test]
    fn an_init_container_that_fails() {
        check("Always", &[("i", "1")], &["i"], Verdict::Going);
        check("OnFailure", &[("i", "1")], &["i"], Verdict::Going);
        check("Never", &[("i", "1")], &[], Verdict::Over);
    }

    #[test]
    fn main_containers_end_by_policy() {
        let states = |a, b| [("i", "0"), ("s", "*"), ("j", "0"), ("a", a), ("b", b)];
        check("Always", &states("0", "*"), &["a"], Verdict::Going);
        check("OnFailure", &states("0", "*"), &[], Verdict::Going);
        check("OnFailure", &states("1", "*"), &["a"], Verdict::Going);
        check("OnFailure", &states("0", "0"), &[], Verdict::Over);
        check("Never", &states("1", "*"), &[], Verdict::Going);
        check("Never", &states("1", "0"), &[], Verdict::Over);
    }

    #[test]
    fn a_sidecar_comes_back_while_the_pod_runs_and_never_after() {
        let states = |a, b| [("i", "0"), ("s", "0"), ("j", "0"), ("a", a), ("b", b)];
        check("Never", &states("+", "+"), &["s"], Verdict::Going);
        check("Never", &states("+", "-"), &["s", "b"], Verdict::Going);
        check("Never", &states("0", "0"), &[], Verdict::Over);
    }

    #[test]
    fn a_crash_loop_waits_and_says_until_when() {
        let spec = spec("Always");
        let states = [("i", "0"), ("s", "*"), ("j", "0"), ("a", "3"), ("b", "*")];
        let (observed, knowledge) = observed(&states);
        let mut delays = BackOffs::default();
        let mut next = |now| {
            plan(
                &spec,
                &members(&spec),
                &observed,
                |name| knowledge.get(name).copied().unwrap_or_default(),
                &mut delays,
                now,
            )
        };
        assert_eq!(next(at(0)).start, ["a"]);
        let held = next(at(1));
        assert!(held.start.is_empty());
        assert_eq!(held.again_at, Some(at(10)));
        assert_eq!(held.held[0].delay.as_secs(), 10);
        assert_eq!(next(at(10)).start, ["a"]);
    }

    #[test]
    fn a_post_start_hook_holds_up_the_containers_behind_it() {
        let spec: PodSpec = serde_json::from_value(json!({"containers": [
            {"name": "a", "image": "x:1", "lifecycle": {"postStart": {"sleep": {"seconds": 1}}}},
            {"name": "b", "image": "x:1"},
        ]}))
        .expect("a spec");
        for (states, start) in [
            (vec![], strings(&["a"])),
            (vec![("a", "b")], strings(&[])),
            (vec![("a", "*")], strings(&["b"])),
        ] {
            let (observed, knowledge) = observed(&states);
            let plan = plan(
                &spec,
                &members(&spec),
                &observed,
                |name| knowledge.get(name).copied().unwrap_or_default(),
                &mut BackOffs::default(),
                at(0),
            );
            assert_eq!(plan.start, start, "{states:?}");
        }
    }

    #[test]
    fn another_image_replaces_the_container() {
        let mut spec = spec("Never");
        spec.containers[0].image = Some("x:2".into());
        let states = [("i", "0"), ("s", "*"), ("j", "0"), ("a", "*"), ("b", "*")];
        let (observed, knowledge) = observed(&states);
        let plan = plan(
            &spec,
            &members(&spec),
            &observed,
            |name| knowledge.get(name).copied().unwrap_or_default(),
            &mut BackOffs::default(),
            at(0),
        );
        assert_eq!(plan.replace, ["a"]);
        assert!(plan.start.is_empty());
    }

    #[test]
    fn restart_rules_come_before_the_policy() {
        let spec = spec("Never");
        let container: Container = serde_json::from_value(json!({
            "name": "a", "restartPolicy": "Never",
            "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}],
        }))
        .expect("a container");
        assert!(restarts(&spec, Role::Main, &container, 42));
        assert!(!restarts(&spec, Role::Main, &container, 1));
    }
}
