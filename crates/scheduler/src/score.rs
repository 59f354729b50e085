//! Which of the nodes that can take a pod is the best. Each rule gives 0 to 100; they are added with
//! upstream's weights.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::affinity::{self, Neighbours};
use crate::cluster::NodeState;
use crate::filter::Subject;
use crate::spread::Spread;

const MOST: i64 = 100;

/// What the rules that compare nodes with each other found on one of them.
struct Raw {
    taints: i64,
    preference: i64,
    neighbours: i64,
    crowding: i64,
    siblings: i64,
}

/// The index into `nodes` of the best one; of equally good ones the first, and since each search
/// begins with another node that is another one each time.
pub(crate) fn best(
    subject: &Subject<'_>,
    nodes: &[(&NodeState, &Node)],
    neighbours: &Neighbours,
    spread: &Spread,
) -> Option<usize> {
    if nodes.len() < 2 {
        return nodes.first().map(|_| 0);
    }
    let raw: Vec<Raw> = nodes
        .iter()
        .map(|(state, node)| Raw {
            taints: soft_taints(subject, node),
            preference: affinity::node_preference(subject.pod, &state.name, node),
            neighbours: neighbours.preference(state),
            crowding: spread.crowding(state),
            siblings: siblings(subject.pod, state),
        })
        .collect();
    let taints = scale(&raw, |raw| -raw.taints);
    let preference = scale(&raw, |raw| raw.preference);
    let neighbours = scale(&raw, |raw| raw.neighbours);
    let crowding = scale(&raw, |raw| -raw.crowding);
    let siblings = scale(&raw, |raw| -raw.siblings);
    let mut best = None;
    for (index, (state, _)) in nodes.iter().enumerate() {
        let (raw, used) = (&raw[index], used(subject, state));
        let score = 3 * taints(raw)
            + 2 * preference(raw)
            + 2 * neighbours(raw)
            + 2 * crowding(raw)
            + 2 * siblings(raw)
            + least_allocated(used)
            + balanced(used);
        if best.is_none_or(|(_, most)| score > most) {
            best = Some((index, score));
        }
    }
    best.map(|(index, _)| index)
}

/// Stretches what was found over 0 to 100; where all are equal it decides nothing.
fn scale(raw: &[Raw], part: fn(&Raw) -> i64) -> impl Fn(&Raw) -> i64 {
    let least = raw.iter().map(part).min().unwrap_or_default();
    let most = raw.iter().map(part).max().unwrap_or_default();
    move |raw| match most - least {
        0 => 0,
        width => (part(raw) - least) * MOST / width,
    }
}

fn soft_taints(subject: &Subject<'_>, node: &Node) -> i64 {
    let taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default();
    let soft = taints
        .iter()
        .filter(|taint| taint.effect == "PreferNoSchedule");
    let untolerated = soft.filter(|taint| {
        !subject
            .tolerations()
            .iter()
            .any(|toleration| objects::tolerates(toleration, taint))
    });
    untolerated.count() as i64
}

/// How many pods of the same controller the node has.
fn siblings(pod: &Pod, state: &NodeState) -> i64 {
    let Some(owner) = controller(pod) else {
        return 0;
    };
    let pods = state.pods.values();
    pods.filter(|placed| controller(&placed.pod) == Some(owner))
        .count() as i64
}

fn controller(pod: &Pod) -> Option<&str> {
    let references = pod.metadata.owner_references.as_ref()?;
    let owner = references
        .iter()
        .find(|reference| reference.controller == Some(true))?;
    Some(&owner.uid)
}

/// The shares of processor and memory, 0 to 1 and above, that would be in use with the pod.
fn used(subject: &Subject<'_>, state: &NodeState) -> (f64, f64) {
    let share = |taken: i64, asked: i64, has: i64| match has {
        0 => 1.0,
        has => (taken + asked) as f64 / has as f64,
    };
    let weight = subject.request.weight;
    (
        share(state.weight.0, weight.0, state.allocatable.milli_cpu),
        share(state.weight.1, weight.1, state.allocatable.memory),
    )
}

fn least_allocated((cpu, memory): (f64, f64)) -> i64 {
    let free = |used: f64| (1.0 - used.min(1.0)) * MOST as f64;
    ((free(cpu) + free(memory)) / 2.0) as i64
}

/// A node on which one resource runs out while the other is idle is a waste.
fn balanced((cpu, memory): (f64, f64)) -> i64 {
    let difference = (cpu.min(1.0) - memory.min(1.0)).abs() / 2.0;
    ((1.0 - difference) * MOST as f64) as i64
}

/// Counts how often each text occurs, as `2 Insufficient cpu, 1 Too many pods` sorted by the whole.
pub(crate) fn histogram(texts: impl Iterator<Item = String>) -> String {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for text in texts {
        *counts.entry(text).or_default() += 1;
    }
    let mut parts: Vec<String> = counts
        .into_iter()
        .map(|(text, count)| format!("{count} {text}"))
        .collect();
    parts.sort();
    parts.join(", ")
}
