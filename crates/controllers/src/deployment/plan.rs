//! What a Deployment needs next, from what is known of it and its ReplicaSets.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::{conditions, hash, revision, scale};
use crate::claim;

const TEMPLATE_HASH: &str = "pod-template-hash";

/// What is to be done. The status and the revision are those after the steps.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) status: DeploymentStatus,
    /// The Deployment's revision, if a set for its template is known.
    pub(crate) revision: Option<String>,
    pub(crate) look_again: Option<Duration>,
}

#[derive(Debug)]
pub(crate) enum Step {
    Create(Box<ReplicaSet>),
    /// To be written as it is; its size was `from`.
    Change {
        set: Box<ReplicaSet>,
        from: i32,
    },
    Delete(Box<ReplicaSet>),
}

/// The size that a set is to have.
pub(crate) fn size(set: &ReplicaSet) -> i32 {
    set.spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

/// The number of pods that the Deployment is to have.
pub(crate) fn wanted(deployment: &Deployment) -> i32 {
    deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

pub(crate) fn is_paused(deployment: &Deployment) -> bool {
    deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.paused)
        .unwrap_or_default()
}

pub(crate) fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// Older sets first; of equally old ones by name.
pub(crate) fn by_age(one: &ReplicaSet, other: &ReplicaSet) -> Ordering {
    let key = |set: &ReplicaSet| {
        let created = set.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, set.metadata.name.clone())
    };
    key(one).cmp(&key(other))
}

/// Whether the set is the one for the Deployment's template.
pub(crate) fn same_template(set: &ReplicaSet, deployment: &Deployment) -> bool {
    let Some(spec) = &deployment.spec else {
        return false;
    };
    let mut template = set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.clone())
        .unwrap_or_default();
    let labels = template
        .metadata
        .as_mut()
        .and_then(|meta| meta.labels.as_mut());
    labels.and_then(|labels| labels.remove(TEMPLATE_HASH));
    // What is empty and what is not there are the same; but to look that closely is rarely needed.
    template == spec.template || without_empty(&template) == without_empty(&spec.template)
}

fn without_empty(template: &PodTemplateSpec) -> Value {
    /// Tells whether the value is empty itself, when nothing empty is left in it.
    fn prune(value: &mut Value) -> bool {
        match value {
            Value::Object(fields) => {
                fields.retain(|_, field| !prune(field));
                fields.is_empty()
            }
            Value::Array(items) => {
                // Places count in a list: what is empty in it stays.
                for item in items.iter_mut() {
                    prune(item);
                }
                items.is_empty()
            }
            Value::Null => true,
            _ => false,
        }
    }
    let mut value = serde_json::to_value(template).unwrap_or_default();
    prune(&mut value);
    value
}

/// Decides. `sets` are all ReplicaSets of the Deployment.
pub(crate) fn plan(deployment: &Deployment, sets: &[Arc<ReplicaSet>], now: Timestamp) -> Plan {
    Planner::new(deployment, sets, now).decide()
}

struct Planner<'a> {
    deployment: &'a Deployment,
    new: Option<ReplicaSet>,
    /// The new set as the server knows it; `None` while it is yet to be made.
    new_known: Option<ReplicaSet>,
    old: Vec<ReplicaSet>,
    old_known: Vec<ReplicaSet>,
    deleted: Vec<ReplicaSet>,
    status: DeploymentStatus,
    now: Timestamp,
}

impl<'a> Planner<'a> {
    fn new(deployment: &'a Deployment, sets: &[Arc<ReplicaSet>], now: Timestamp) -> Self {
        let mut known: Vec<ReplicaSet> = sets.iter().map(|set| (**set).clone()).collect();
        known.sort_by(by_age);
        // Of several with the same template (a defect of old) the oldest counts.
        let index = known.iter().position(|set| same_template(set, deployment));
        let new = index.map(|index| known.remove(index));
        Planner {
            deployment,
            new_known: new.clone(),
            new,
            old_known: known.clone(),
            old: known,
            deleted: Vec::new(),
            status: deployment.status.clone().unwrap_or_default(),
            now,
        }
    }

    fn decide(mut self) -> Plan {
        let progress = if self.deployment.metadata.deletion_timestamp.is_some() {
            false
        } else {
            conditions::set_paused(self.deployment, &mut self.status, self.now);
            self.update_new();
            if is_paused(self.deployment) || self.is_scaling() {
                self.keep_size();
                if is_paused(self.deployment) {
                    self.clean_up();
                }
                false
            } else {
                match is_recreate(self.deployment) {
                    true => self.recreate(),
                    false => self.roll(),
                }
                true
            }
        };
        self.finish(progress)
    }

    fn wanted(&self) -> i32 {
        wanted(self.deployment)
    }

    fn next_revision(&self) -> i64 {
        let newest = self.old.iter().filter_map(revision::revision).max();
        newest.unwrap_or_default() + 1
    }

    /// Keeps the new set's revision, annotations and readiness rule as the Deployment's.
    fn update_new(&mut self) {
        let number = self.next_revision();
        if let Some(new) = &mut self.new {
            revision::set_revision(new, self.deployment, number);
            let min_ready = self
                .deployment
                .spec
                .as_ref()
                .and_then(|spec| spec.min_ready_seconds);
            if let Some(spec) = &mut new.spec {
                spec.min_ready_seconds = min_ready;
            }
            let name = new.metadata.name.clone().unwrap_or_default();
            conditions::set_new_set(self.deployment, &mut self.status, &name, false, self.now);
        }
    }

    /// Whether the Deployment's size has changed since the active sets were last scaled.
    fn is_scaling(&self) -> bool {
        let active = self.old.iter().chain(&self.new).filter(|set| size(set) > 0);
        active
            .filter_map(revision::desired_replicas)
            .any(|desired| desired != self.wanted())
    }

    /// Gives a set another size.
    fn resize(set: &mut ReplicaSet, to: i32, deployment: &Deployment) {
        if let Some(spec) = &mut set.spec {
            spec.replicas = Some(to);
        }
        let most = wanted(deployment) + scale::max_surge(deployment);
        revision::set_replicas(set, wanted(deployment), most);
    }

    /// Grows or shrinks what is there, without going on from one template to the other.
    fn keep_size(&mut self) {
        let (deployment, wanted) = (self.deployment, self.wanted());
        let saturated = self
            .new
            .as_ref()
            .is_some_and(|new| is_saturated(deployment, new));
        let mut active: Vec<&mut ReplicaSet> = Vec::new();
        active.extend(self.old.iter_mut().filter(|set| size(set) > 0));
        active.extend(self.new.iter_mut().filter(|set| size(set) > 0));
        match active.as_mut_slice() {
            [] => {
                let latest = match &mut self.new {
                    Some(new) => Some(new),
                    None => self.old.last_mut(),
                };
                if let Some(set) = latest.filter(|set| size(set) != wanted) {
                    Self::resize(set, wanted, deployment);
                }
            }
            [only] => Self::resize(only, wanted, deployment),
            _ if saturated => {
                for set in self.old.iter_mut().filter(|set| size(set) > 0) {
                    Self::resize(set, 0, deployment);
                }
            }
            several if !is_recreate(deployment) => {
                let sets: Vec<ReplicaSet> = several.iter().map(|set| (**set).clone()).collect();
                let sizes = scale::shares(deployment, &sets);
                for (set, size) in several.iter_mut().zip(sizes) {
                    Self::resize(set, size, deployment);
                }
            }
            _ => {}
        }
    }

    fn create_new(&mut self) {
        let Some(spec) = &self.deployment.spec else {
            return;
        };
        let hash = hash::template_hash(&spec.template, self.status.collision_count);
        let mut template = spec.template.clone();
        let labels = template
            .metadata
            .get_or_insert_default()
            .labels
            .get_or_insert_default();
        labels.insert(TEMPLATE_HASH.to_owned(), hash.clone());
        let labels = labels.clone();
        let mut selector = spec.selector.clone();
        let match_labels = selector.match_labels.get_or_insert_default();
        match_labels.insert(TEMPLATE_HASH.to_owned(), hash.clone());
        let name = self.deployment.metadata.name.as_deref().unwrap_or_default();
        let name = format!("{name}-{hash}");
        let mut new = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: self.deployment.metadata.namespace.clone(),
                labels: Some(labels),
                owner_references: Some(vec![claim::controller_reference(self.deployment)]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(0),
                min_ready_seconds: spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        };
        let size = scale::new_size(self.deployment, &new, &self.old);
        Self::resize(&mut new, size, self.deployment);
        revision::set_revision(&mut new, self.deployment, self.next_revision());
        conditions::set_new_set(self.deployment, &mut self.status, &name, true, self.now);
        self.new = Some(new);
    }

    /// The strategy RollingUpdate: first the new set grows as far as it may, then the old ones shrink.
    fn roll(&mut self) {
        if self.new.is_none() {
            self.create_new();
            return;
        }
        if self.grow_new() {
            return;
        }
        let sizes = scale::old_sizes(self.deployment, self.new.as_ref(), &self.old);
        if sizes.is_empty() {
            self.clean_up_if_complete();
        }
        for (index, size) in sizes {
            Self::resize(&mut self.old[index], size, self.deployment);
        }
    }

    /// The strategy Recreate: only when nothing of the old ones is left the new set is made.
    fn recreate(&mut self) {
        let mut shrunk = false;
        for set in self.old.iter_mut().filter(|set| size(set) > 0) {
            Self::resize(set, 0, self.deployment);
            shrunk = true;
        }
        if shrunk || self.old_known.iter().any(still_runs) {
            return;
        }
        match self.new {
            None => self.create_new(),
            Some(_) => {
                self.grow_new();
            }
        }
        self.clean_up_if_complete();
    }

    fn grow_new(&mut self) -> bool {
        let (deployment, wanted) = (self.deployment, self.wanted());
        let Some(new) = &mut self.new else {
            return false;
        };
        let to = match size(new).cmp(&wanted) {
            Ordering::Equal => return false,
            Ordering::Greater => wanted,
            Ordering::Less => scale::new_size(deployment, new, &self.old),
        };
        if to == size(new) {
            return false;
        }
        Self::resize(new, to, deployment);
        true
    }

    fn clean_up_if_complete(&mut self) {
        let status = self.deployment.status.clone().unwrap_or_default();
        if conditions::is_complete(self.deployment, &status) {
            self.clean_up();
        }
    }

    /// Deletes the oldest revisions above the number that is to be kept, if nothing of them is left.
    fn clean_up(&mut self) {
        let spec = self.deployment.spec.as_ref();
        let Some(limit) = spec.and_then(|spec| spec.revision_history_limit) else {
            return;
        };
        let limit = usize::try_from(limit).unwrap_or_default();
        let alive = self
            .old
            .iter()
            .filter(|set| set.metadata.deletion_timestamp.is_none());
        let mut oldest_first: Vec<ReplicaSet> = alive.cloned().collect();
        let excess = oldest_first.len().saturating_sub(limit);
        oldest_first.sort_by_key(|set| revision::revision(set).unwrap_or_default());
        let unused = |set: &ReplicaSet| {
            let observed = set
                .status
                .as_ref()
                .and_then(|status| status.observed_generation);
            size(set) == 0 && scale::actual(set) == 0 && set.metadata.generation <= observed
        };
        self.deleted = oldest_first
            .into_iter()
            .take(excess)
            .filter(unused)
            .collect();
    }

    fn finish(mut self, progress: bool) -> Plan {
        // A set that is only about to be made has no pods yet, but its size counts already.
        let (new, old) = (self.new.as_ref(), &self.old);
        conditions::count(self.deployment, new, old, &mut self.status, self.now);
        if progress {
            conditions::set_progress(self.deployment, new, &mut self.status, self.now);
            conditions::set_failure(new, old, &mut self.status);
        }
        let look_again = conditions::look_again(self.deployment, &self.status, self.now);
        let revision = self.new.as_ref().and_then(revision::revision);
        let mut steps = Vec::new();
        match (self.new, self.new_known) {
            (Some(new), None) => steps.push(Step::Create(Box::new(new))),
            (Some(new), Some(known)) => steps.extend(change(new, &known)),
            (None, _) => {}
        }
        for (set, known) in self.old.into_iter().zip(&self.old_known) {
            steps.extend(change(set, known));
        }
        steps.extend(
            self.deleted
                .into_iter()
                .map(|set| Step::Delete(Box::new(set))),
        );
        Plan {
            steps,
            status: self.status,
            revision: revision.map(|number| number.to_string()),
            look_again,
        }
    }
}

fn change(set: ReplicaSet, known: &ReplicaSet) -> Option<Step> {
    let from = size(known);
    (set != *known).then(|| Step::Change {
        set: Box::new(set),
        from,
    })
}

/// Whether pods of the set may still be running: its status must have caught up with its size, and
/// count none, not even any on their way out.
fn still_runs(set: &ReplicaSet) -> bool {
    let Some(status) = &set.status else {
        return true;
    };
    status.observed_generation < set.metadata.generation
        || status.replicas > 0
        || status.terminating_replicas.unwrap_or_default() > 0
}

/// Whether the set has taken over the whole Deployment.
fn is_saturated(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let wanted = wanted(deployment);
    size(set) == wanted
        && scale::available(set) == wanted
        && revision::desired_replicas(set) == Some(wanted)
}
