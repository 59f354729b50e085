//! Rules about labels: of the node (node selector and node affinity), and of the pods that are there
//! already (pod affinity and anti-affinity).

use std::collections::{BTreeMap, HashMap, HashSet};

use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinityTerm,
};
use kube::core::{Selector, SelectorExt};

use crate::cluster::{Cluster, NodeState};
use crate::filter::{Refusal, Rules};

pub(crate) type Labels = BTreeMap<String, String>;

pub(crate) fn labels(meta: &kube::api::ObjectMeta) -> &Labels {
    static NONE: Labels = Labels::new();
    meta.labels.as_ref().unwrap_or(&NONE)
}

fn affinity(pod: &Pod) -> Option<&Affinity> {
    pod.spec.as_ref()?.affinity.as_ref()
}

/// Whether a node has what the pod's `nodeSelector` and required node affinity ask for.
pub(crate) fn node_matches(pod: &Pod, name: &str, node: &Node) -> bool {
    let labels = labels(&node.metadata);
    let selector = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.node_selector.as_ref());
    let selected = selector
        .into_iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    let affinity = affinity(pod).and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| {
        affinity
            .required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    selected
        && required.is_none_or(|required| {
            required
                .node_selector_terms
                .iter()
                .any(|term| term_matches(term, name, labels))
        })
}

/// The sum of the weights of the preferences that a node meets.
pub(crate) fn node_preference(pod: &Pod, name: &str, node: &Node) -> i64 {
    let affinity = affinity(pod).and_then(|affinity| affinity.node_affinity.as_ref());
    let preferred = affinity.and_then(|affinity| {
        affinity
            .preferred_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let met = preferred
        .into_iter()
        .flatten()
        .filter(|preference| term_matches(&preference.preference, name, labels(&node.metadata)));
    met.map(|preference| i64::from(preference.weight)).sum()
}

/// A term without any requirement matches nothing.
fn term_matches(term: &NodeSelectorTerm, name: &str, labels: &Labels) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let named = |field: &NodeSelectorRequirement| {
        field.key == "metadata.name" && requirement_matches(field, Some(name))
    };
    let labelled = |expression: &NodeSelectorRequirement| {
        requirement_matches(expression, labels.get(&expression.key).map(String::as_str))
    };
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(labelled)
        && fields.iter().all(named)
}

fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |value: &str| values.iter().any(|known| known == value);
    let number = |text: &str| text.parse::<i64>().ok();
    let bound = values.first().and_then(|bound| number(bound));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => value
            .and_then(number)
            .zip(bound)
            .is_some_and(|(value, bound)| value > bound),
        "Lt" => value
            .and_then(number)
            .zip(bound)
            .is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

fn required(pod: &Pod) -> &[PodAffinityTerm] {
    let affinity = affinity(pod).and_then(|affinity| affinity.pod_affinity.as_ref());
    let terms = affinity.and_then(|affinity| {
        affinity
            .required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    terms.map(Vec::as_slice).unwrap_or_default()
}

fn required_anti(pod: &Pod) -> &[PodAffinityTerm] {
    let affinity = affinity(pod).and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    let terms = affinity.and_then(|affinity| {
        affinity
            .required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    terms.map(Vec::as_slice).unwrap_or_default()
}

/// Whether the pod keeps others away.
pub(crate) fn repels(pod: &Pod) -> bool {
    !required_anti(pod).is_empty()
}

/// A term, ready to be asked about pods.
struct Term {
    key: String,
    selector: Option<Selector>,
    namespaces: HashSet<String>,
    namespace_selector: Option<Selector>,
}

impl Term {
    fn new(term: &PodAffinityTerm, owner: &Pod) -> Term {
        let parse = |selector: &Option<_>| {
            selector
                .clone()
                .and_then(|selector| Selector::try_from(selector).ok())
        };
        let mut namespaces: HashSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.extend(owner.metadata.namespace.clone());
        }
        Term {
            key: term.topology_key.clone(),
            selector: parse(&term.label_selector),
            namespaces,
            namespace_selector: parse(&term.namespace_selector),
        }
    }

    fn matches(&self, pod: &Pod, cluster: &Cluster) -> bool {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let in_namespace = self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| {
                static NONE: Labels = Labels::new();
                selector.matches(cluster.namespaces.get(namespace).unwrap_or(&NONE))
            });
        // A term without a selector picks no pods.
        let labels = labels(&pod.metadata);
        in_namespace
            && self
                .selector
                .as_ref()
                .is_some_and(|selector| selector.matches(labels))
    }
}

/// The value of a topology key on a node.
pub(crate) fn domain<'a>(state: &'a NodeState, key: &str) -> Option<&'a str> {
    let node = state.node.as_ref()?;
    labels(&node.metadata).get(key).map(String::as_str)
}

/// What the pods that are there mean for one that is to come, worked out once for all nodes.
pub(crate) struct Neighbours {
    affinity: Vec<(String, HashSet<String>)>,
    /// No pod anywhere matches, but the pod itself does: the first of its kind may go anywhere.
    first_of_kind: bool,
    anti: Vec<(String, HashSet<String>)>,
    repelled: HashSet<(String, String)>,
    preferred: HashMap<(String, String), i64>,
}

impl Neighbours {
    pub(crate) fn new(pod: &Pod, cluster: &Cluster) -> Neighbours {
        let domains = |terms: &[PodAffinityTerm]| -> Vec<(String, HashSet<String>)> {
            let terms = terms.iter().map(|term| Term::new(term, pod));
            let found = terms.map(|term| {
                let mut domains = HashSet::new();
                for state in cluster.nodes() {
                    let Some(value) = domain(state, &term.key) else {
                        continue;
                    };
                    let mut pods = state.pods.values();
                    if pods.any(|placed| term.matches(&placed.pod, cluster)) {
                        domains.insert(value.to_owned());
                    }
                }
                (term.key, domains)
            });
            found.collect()
        };
        let affinity = domains(required(pod));
        let own = |term: &PodAffinityTerm| Term::new(term, pod).matches(pod, cluster);
        let first_of_kind =
            affinity.iter().all(|(_, domains)| domains.is_empty()) && required(pod).iter().all(own);
        let mut repelled = HashSet::new();
        for (other, state) in cluster.repelling() {
            for term in required_anti(other) {
                let term = Term::new(term, other);
                if let Some(value) = domain(state, &term.key).filter(|_| term.matches(pod, cluster))
                {
                    repelled.insert((term.key.clone(), value.to_owned()));
                }
            }
        }
        Neighbours {
            affinity,
            first_of_kind,
            anti: domains(required_anti(pod)),
            repelled,
            preferred: preferred(pod, cluster),
        }
    }

    pub(crate) fn refuse(&self, state: &NodeState) -> Option<Refusal> {
        let affine = self.affinity.iter().all(|(key, domains)| {
            domain(state, key).is_some_and(|value| self.first_of_kind || domains.contains(value))
        });
        if !affine {
            let reason = "node(s) didn't match pod affinity rules";
            return Some(Refusal::new(reason, false, Rules::PODS.with(Rules::NODE)));
        }
        let anti = self
            .anti
            .iter()
            .any(|(key, domains)| domain(state, key).is_some_and(|value| domains.contains(value)));
        if anti {
            let reason = "node(s) didn't match pod anti-affinity rules";
            return Some(Refusal::new(reason, true, Rules::PODS));
        }
        let repelled = self
            .repelled
            .iter()
            .any(|(key, value)| domain(state, key) == Some(value.as_str()));
        repelled.then(|| {
            let reason = "node(s) didn't satisfy existing pods anti-affinity rules";
            Refusal::new(reason, true, Rules::PODS)
        })
    }

    /// How welcome the pod is beside those that are there: may be negative.
    pub(crate) fn preference(&self, state: &NodeState) -> i64 {
        let met = self
            .preferred
            .iter()
            .filter(|((key, value), _)| domain(state, key) == Some(value.as_str()));
        met.map(|(_, weight)| weight).sum()
    }
}

fn preferred(pod: &Pod, cluster: &Cluster) -> HashMap<(String, String), i64> {
    let mut sums = HashMap::new();
    let Some(affinity) = affinity(pod) else {
        return sums;
    };
    let near = affinity.pod_affinity.as_ref();
    let near = near.and_then(|near| {
        near.preferred_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let far = affinity.pod_anti_affinity.as_ref();
    let far = far.and_then(|far| {
        far.preferred_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let near = near.into_iter().flatten().map(|term| (term, 1));
    let far = far.into_iter().flatten().map(|term| (term, -1));
    for (weighted, sign) in near.chain(far) {
        let term = Term::new(&weighted.pod_affinity_term, pod);
        for state in cluster.nodes() {
            let Some(value) = domain(state, &term.key) else {
                continue;
            };
            let pods = state.pods.values();
            let count = pods
                .filter(|placed| term.matches(&placed.pod, cluster))
                .count() as i64;
            if count > 0 {
                let place = (term.key.clone(), value.to_owned());
                *sums.entry(place).or_default() += sign * count * i64::from(weighted.weight);
            }
        }
    }
    sums
}
