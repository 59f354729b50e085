//! Topology spread: how evenly the pods of a kind lie over zones, nodes or other domains.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Pod, TopologySpreadConstraint};
use kube::core::{Selector, SelectorExt};

use crate::affinity::{self, domain};
use crate::cluster::{Cluster, NodeState};
use crate::filter::{Refusal, Rules, Subject};

struct Constraint {
    key: String,
    max_skew: i64,
    hard: bool,
    /// Whether the pod counts itself.
    own: i64,
    counts: HashMap<String, i64>,
    least: i64,
}

/// The constraints of a pod, with how many of its kind each domain has.
pub(crate) struct Spread(Vec<Constraint>);

impl Spread {
    pub(crate) fn new(subject: &Subject<'_>, cluster: &Cluster) -> Spread {
        let spec = subject.pod.spec.as_ref();
        let constraints = spec.and_then(|spec| spec.topology_spread_constraints.as_deref());
        let constraints = constraints.unwrap_or_default();
        let hard_keys: Vec<&str> = constraints
            .iter()
            .filter(|constraint| is_hard(constraint))
            .map(|constraint| constraint.topology_key.as_str())
            .collect();
        let counted = constraints
            .iter()
            .map(|constraint| count(constraint, &hard_keys, subject, cluster));
        Spread(counted.collect())
    }

    pub(crate) fn refuse(&self, state: &NodeState) -> Option<Refusal> {
        for constraint in self.0.iter().filter(|constraint| constraint.hard) {
            let Some(value) = domain(state, &constraint.key) else {
                let reason =
                    "node(s) didn't match pod topology spread constraints (missing required label)";
                return Some(Refusal::new(reason, false, Rules::NODE));
            };
            let count = constraint.counts.get(value).copied().unwrap_or_default();
            if count + constraint.own - constraint.least > constraint.max_skew {
                let reason = "node(s) didn't match pod topology spread constraints";
                return Some(Refusal::new(reason, true, Rules::PODS.with(Rules::NODE)));
            }
        }
        None
    }

    /// How many pods of its kind the soft constraints find in the node's domains: the fewer the
    /// better.
    pub(crate) fn crowding(&self, state: &NodeState) -> i64 {
        let soft = self.0.iter().filter(|constraint| !constraint.hard);
        let counts = soft.map(|constraint| match domain(state, &constraint.key) {
            Some(value) => constraint.counts.get(value).copied().unwrap_or_default(),
            None => constraint
                .counts
                .values()
                .max()
                .copied()
                .unwrap_or_default(),
        });
        counts.sum()
    }
}

fn is_hard(constraint: &TopologySpreadConstraint) -> bool {
    constraint.when_unsatisfiable == "DoNotSchedule"
}

fn count(
    constraint: &TopologySpreadConstraint,
    hard_keys: &[&str],
    subject: &Subject<'_>,
    cluster: &Cluster,
) -> Constraint {
    let pod = subject.pod;
    let selector = selector_of(constraint, pod);
    let counts_for = |other: &Pod| {
        other.metadata.namespace == pod.metadata.namespace
            && selector
                .as_ref()
                .is_some_and(|selector| selector.matches(affinity::labels(&other.metadata)))
    };
    let honors_affinity = constraint.node_affinity_policy.as_deref() != Some("Ignore");
    let honors_taints = constraint.node_taints_policy.as_deref() == Some("Honor");
    let mut counts: HashMap<String, i64> = HashMap::new();
    for state in cluster.nodes() {
        let Some(node) = &state.node else {
            continue;
        };
        let tainted = || {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
            let mut hard = taints
                .unwrap_or_default()
                .iter()
                .filter(|taint| taint.effect != "PreferNoSchedule");
            hard.any(|taint| {
                !subject
                    .tolerations()
                    .iter()
                    .any(|one| objects::tolerates(one, taint))
            })
        };
        // Only nodes that have all the hard constraints' labels make up domains.
        let labelled =
            !is_hard(constraint) || hard_keys.iter().all(|key| domain(state, key).is_some());
        if !labelled
            || (honors_affinity && !affinity::node_matches(pod, &state.name, node))
            || (honors_taints && tainted())
        {
            continue;
        }
        if let Some(value) = domain(state, &constraint.topology_key) {
            let pods = state.pods.values();
            let of_kind = pods.filter(|placed| {
                placed.pod.metadata.deletion_timestamp.is_none() && counts_for(&placed.pod)
            });
            *counts.entry(value.to_owned()).or_default() += of_kind.count() as i64;
        }
    }
    let wanted = usize::try_from(constraint.min_domains.unwrap_or(1)).unwrap_or(1);
    let least = match counts.len() < wanted {
        true => 0,
        false => counts.values().min().copied().unwrap_or_default(),
    };
    Constraint {
        key: constraint.topology_key.clone(),
        max_skew: i64::from(constraint.max_skew),
        hard: is_hard(constraint),
        own: i64::from(counts_for(pod)),
        counts,
        least,
    }
}

/// The constraint's selector, narrowed to pods that have the same values as this one in the labels of
/// `matchLabelKeys`.
fn selector_of(constraint: &TopologySpreadConstraint, pod: &Pod) -> Option<Selector> {
    let mut selector = constraint.label_selector.clone()?;
    let own = affinity::labels(&pod.metadata);
    for key in constraint.match_label_keys.iter().flatten() {
        if let Some(value) = own.get(key) {
            let labels = selector.match_labels.get_or_insert_default();
            labels.insert(key.clone(), value.clone());
        }
    }
    Selector::try_from(selector).ok()
}
