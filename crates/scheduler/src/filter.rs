//! Why a node cannot take a pod: one function per rule, in the order in which upstream asks them.

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use objects::tolerates;

use crate::affinity;
use crate::cluster::{HostPort, NodeState, host_ports};
use crate::request::Request;

/// The rules that can turn a node down, as a set of bits: a pod that waits is looked at again when
/// something changes that one of its rules depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules(u8);

impl Rules {
    /// What a node says of itself: its labels, its taints, whether it takes pods at all.
    pub(crate) const NODE: Rules = Rules(1);
    /// What is free on a node.
    pub(crate) const ROOM: Rules = Rules(2);
    /// Which pods are where.
    pub(crate) const PODS: Rules = Rules(4);

    pub(crate) fn with(self, other: Rules) -> Rules {
        Rules(self.0 | other.0)
    }

    pub(crate) fn overlap(self, other: Rules) -> bool {
        self.0 & other.0 != 0
    }
}

/// Why a node was turned down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// In upstream's words.
    pub(crate) reasons: Vec<String>,
    /// Whether it would help if other pods went.
    pub(crate) resolvable: bool,
    pub(crate) rule: Rules,
}

impl Refusal {
    pub(crate) fn new(reason: &str, resolvable: bool, rule: Rules) -> Refusal {
        Refusal {
            reasons: vec![reason.to_owned()],
            resolvable,
            rule,
        }
    }
}

/// What of a pod the rules look at, worked out once for all nodes.
pub(crate) struct Subject<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) request: Request,
    ports: Vec<HostPort>,
}

impl<'a> Subject<'a> {
    pub(crate) fn new(pod: &'a Pod) -> Self {
        Subject {
            pod,
            request: Request::of(pod),
            ports: host_ports(pod),
        }
    }

    pub(crate) fn tolerations(&self) -> &[Toleration] {
        let spec = self.pod.spec.as_ref();
        spec.and_then(|spec| spec.tolerations.as_deref())
            .unwrap_or_default()
    }
}

/// The rules that look at one node alone.
pub(crate) fn refuse(subject: &Subject<'_>, state: &NodeState, node: &Node) -> Option<Refusal> {
    unschedulable(subject, node)
        .or_else(|| other_name(subject, state))
        .or_else(|| taints(subject, node))
        .or_else(|| node_affinity(subject, state, node))
        .or_else(|| ports(subject, state))
        .or_else(|| room(subject, state))
}

fn unschedulable(subject: &Subject<'_>, node: &Node) -> Option<Refusal> {
    let spec = node.spec.as_ref();
    let is_closed = spec.and_then(|spec| spec.unschedulable).unwrap_or_default();
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    let may = subject
        .tolerations()
        .iter()
        .any(|toleration| tolerates(toleration, &taint));
    (is_closed && !may).then(|| Refusal::new("node(s) were unschedulable", false, Rules::NODE))
}

fn other_name(subject: &Subject<'_>, state: &NodeState) -> Option<Refusal> {
    let spec = subject.pod.spec.as_ref();
    let wanted = spec
        .and_then(|spec| spec.node_name.as_deref())
        .unwrap_or_default();
    let other = !wanted.is_empty() && wanted != state.name;
    other.then(|| {
        Refusal::new(
            "node(s) didn't match the requested node name",
            false,
            Rules::NODE,
        )
    })
}

fn taints(subject: &Subject<'_>, node: &Node) -> Option<Refusal> {
    let taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default();
    let hard = taints
        .iter()
        .filter(|taint| taint.effect != "PreferNoSchedule");
    let tolerations = subject.tolerations();
    let untolerated = |taint: &Taint| !tolerations.iter().any(|one| tolerates(one, taint));
    hard.into_iter()
        .any(untolerated)
        .then(|| Refusal::new("node(s) had untolerated taint(s)", false, Rules::NODE))
}

fn node_affinity(subject: &Subject<'_>, state: &NodeState, node: &Node) -> Option<Refusal> {
    let reason = "node(s) didn't match Pod's node affinity/selector";
    let matches = affinity::node_matches(subject.pod, &state.name, node);
    (!matches).then(|| Refusal::new(reason, false, Rules::NODE))
}

fn ports(subject: &Subject<'_>, state: &NodeState) -> Option<Refusal> {
    let clash = |one: &HostPort, other: &HostPort| {
        let same_address = one.0.is_empty() || other.0.is_empty() || one.0 == other.0;
        same_address && one.1 == other.1 && one.2 == other.2
    };
    let taken = subject
        .ports
        .iter()
        .any(|port| state.ports.iter().any(|other| clash(port, other)));
    let reason = "node(s) didn't have free ports for the requested pod ports";
    taken.then(|| Refusal::new(reason, true, Rules::ROOM))
}

fn room(subject: &Subject<'_>, state: &NodeState) -> Option<Refusal> {
    let wanted = &subject.request.resources;
    let (has, taken) = (&state.allocatable, &state.requested);
    let mut reasons = Vec::new();
    let mut resolvable = true;
    if state.pods.len() as i64 >= state.pods_max {
        reasons.push("Too many pods".to_owned());
        resolvable &= state.pods_max > 0;
    }
    let mut check = |name: &str, wanted: i64, has: i64, taken: i64| {
        if wanted > 0 && wanted > has - taken {
            reasons.push(format!("Insufficient {name}"));
            resolvable &= wanted <= has;
        }
    };
    check("cpu", wanted.milli_cpu, has.milli_cpu, taken.milli_cpu);
    check("memory", wanted.memory, has.memory, taken.memory);
    let (storage, has_storage) = (wanted.ephemeral_storage, has.ephemeral_storage);
    check(
        "ephemeral-storage",
        storage,
        has_storage,
        taken.ephemeral_storage,
    );
    for (name, amount) in &wanted.others {
        let of =
            |all: &crate::request::Resources| all.others.get(name).copied().unwrap_or_default();
        check(name, *amount, of(has), of(taken));
    }
    (!reasons.is_empty()).then_some(Refusal {
        reasons,
        resolvable,
        rule: Rules::ROOM.with(Rules::NODE),
    })
}
