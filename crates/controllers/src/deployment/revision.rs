//! The annotations that tie a ReplicaSet to a revision of its Deployment.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that say something about it alone.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];
/// How long the list of former revisions may get, in bytes; the oldest are left out.
const HISTORY_BYTES_MAX: usize = 2000;

fn annotation<'a>(set: &'a ReplicaSet, name: &str) -> Option<&'a str> {
    set.metadata
        .annotations
        .as_ref()?
        .get(name)
        .map(String::as_str)
}

/// The revision of a set; `None` if it has none that can be read.
pub(crate) fn revision(set: &ReplicaSet) -> Option<i64> {
    annotation(set, REVISION)?.parse().ok()
}

/// The size that the Deployment asked for when the set was last scaled.
pub(crate) fn desired_replicas(set: &ReplicaSet) -> Option<i32> {
    annotation(set, DESIRED_REPLICAS)?.parse().ok()
}

/// The most pods that the Deployment might have had when the set was last scaled.
pub(crate) fn max_replicas(set: &ReplicaSet) -> Option<i32> {
    annotation(set, MAX_REPLICAS)?.parse().ok()
}

/// Notes on the set which size its Deployment is to have. Whether that was news.
pub(crate) fn set_replicas(set: &mut ReplicaSet, desired: i32, max: i32) -> bool {
    let annotations = set.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (name, value) in [(DESIRED_REPLICAS, desired), (MAX_REPLICAS, max)] {
        changed |= put(annotations, name, value.to_string());
    }
    changed
}

/// Makes `set` the one of revision `number`, with the Deployment's annotations. Whether that was news.
/// When the set already had an older revision (the Deployment was rolled back to it), that one is
/// kept in its history.
pub(crate) fn set_revision(set: &mut ReplicaSet, deployment: &Deployment, number: i64) -> bool {
    let annotations = set.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (name, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&name.as_str()) {
            changed |= put(annotations, name, value.clone());
        }
    }
    let old = annotations.get(REVISION).cloned();
    let old_number = match old.as_deref().map(str::parse::<i64>) {
        None => 0,
        Some(Ok(old)) => old,
        // Somebody has written into it; leave it to them.
        Some(Err(_)) => return changed,
    };
    if old_number < number {
        annotations.insert(REVISION.to_owned(), number.to_string());
        changed = true;
        if let Some(old) = old {
            let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
            if !history.is_empty() {
                history.push(',');
            }
            history.push_str(&old);
            while history.len() > HISTORY_BYTES_MAX {
                match history.split_once(',') {
                    Some((_, rest)) => *history = rest.to_owned(),
                    None => history.clear(),
                }
            }
        }
    }
    changed
}

fn put(annotations: &mut BTreeMap<String, String>, name: &str, value: String) -> bool {
    if annotations.get(name) == Some(&value) {
        return false;
    }
    annotations.insert(name.to_owned(), value);
    true
}
