//! Objects whose owners are gone go too.
//!
//! ```text
//!   an owner is deleted                          its dependents
//!   background                                   are deleted after it
//!   foreground (finalizer foregroundDeletion)    are deleted first; it waits for those that block it
//!   orphan (finalizer orphan)                    lose their reference to it, and stay
//! ```
//!
//! Every kind that discovery names is followed by the metadata of its objects. What is remembered on
//! top of the caches is one entry per owner reference, by the owner's uid; whether an owner is still
//! there is looked up in the cache of its kind, and asked of the server before anything is deleted for
//! its absence.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use informer::{Action, Key, Queue};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, Patch, Preconditions, PropagationPolicy};
use kube::core::DynamicObject;
use parking_lot::Mutex;
use serde_json::json;
use tracing::warn;

use crate::Context;
use crate::discovery::{self, Resource};
use crate::metadata::{self, Cache, Step};
use crate::work::{Reconcile, work};
use crate::writes::{self, is_not_found};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("could not look for the owner {kind} {name}")]
    Look {
        kind: String,
        name: String,
        source: kube::Error,
    },
    #[error("the kind {kind} of {api_version}, of an owner, is not known")]
    UnknownKind { api_version: String, kind: String },
    #[error("could not delete {object}")]
    Delete { object: String, source: kube::Error },
    #[error("could not write the references or finalizers of {object}")]
    Write { object: String, source: kube::Error },
}

/// An object of any kind: the kind's index, and its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Item {
    kind: usize,
    key: Key,
}

/// What is to be done about an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Task {
    /// See whether its owners are still there.
    Check(Item),
    /// It waits for its dependents: see which are left.
    Foreground(Item),
    /// Its dependents are to be let go.
    Orphan(Item),
}

struct Kind {
    resource: Resource,
    cache: Arc<dyn Cache>,
}

/// Who depends on whom, by the owners' uids.
type Dependents = Mutex<HashMap<String, HashSet<Item>>>;

struct Collector {
    client: kube::Client,
    kinds: Vec<Kind>,
    dependents: Dependents,
    queue: Queue<Task>,
}

pub(crate) async fn run(context: Context) {
    let Some(resources) = discovery::when_known(&context).await else {
        return;
    };
    let collectable = resources.into_iter().filter(Resource::is_collectable);
    let kinds = collectable.map(|resource| Kind {
        cache: metadata::cache_of(&context, &resource),
        resource,
    });
    let collector = Arc::new(Collector {
        client: context.client.clone(),
        kinds: kinds.collect(),
        dependents: Mutex::default(),
        queue: Queue::new(),
    });
    let mut following = tokio::task::JoinSet::new();
    for (index, kind) in collector.kinds.iter().enumerate() {
        let collector = collector.clone();
        let note = move |step: &Step<'_>| collector.note(index, step);
        following.spawn(kind.cache.follow(Box::new(note)));
    }
    work(&collector, &collector.queue, &context.drain).await;
}

fn owners(meta: &ObjectMeta) -> &[OwnerReference] {
    meta.owner_references.as_deref().unwrap_or_default()
}

/// Whether an owner that is deleted in the foreground has to wait for the object.
fn blocks(owner: &OwnerReference) -> bool {
    owner.block_owner_deletion.unwrap_or_default()
}

fn waits_with(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.deletion_timestamp.is_some() && has_finalizer(meta, finalizer)
}

fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    let mut finalizers = meta.finalizers.iter().flatten();
    finalizers.any(|known| known == finalizer)
}

impl Reconcile for Collector {
    type Key = Task;
    type Error = Error;
    const NAME: &'static str = "garbage";
    const WORKERS: usize = 20;

    async fn reconcile(&self, task: &Task) -> Result<Action, Error> {
        match task {
            Task::Check(item) => self.check(item).await?,
            Task::Foreground(item) => self.finish_foreground(item).await?,
            Task::Orphan(item) => self.orphan(item).await?,
        }
        Ok(Action::Done)
    }
}

impl Collector {
    /// Keeps the table of dependents, and finds what a change calls for.
    fn note(&self, kind: usize, step: &Step<'_>) {
        let meta = step.meta;
        let item = Item {
            kind,
            key: step.key.clone(),
        };
        if step.gone {
            self.move_dependent(&item, owners(meta), &[]);
            let uid = meta.uid.as_deref().unwrap_or_default();
            for dependent in self.dependents_of(uid) {
                self.queue.add(Task::Check(dependent));
            }
            for owner in owners(meta) {
                self.tell_owner(owner, &item);
            }
            return;
        }
        let before = step.old.map(owners).unwrap_or_default();
        if before != owners(meta) {
            self.move_dependent(&item, before, owners(meta));
            self.queue.add(Task::Check(item.clone()));
            for owner in before.iter().filter(|owner| blocks(owner)) {
                let uid = &owner.uid;
                let mut now = owners(meta).iter();
                if !now.any(|owner| owner.uid == *uid && blocks(owner)) {
                    self.tell_owner(owner, &item);
                }
            }
        }
        if waits_with(meta, FOREGROUND) {
            self.queue.add(Task::Foreground(item));
        } else if waits_with(meta, ORPHAN) {
            self.queue.add(Task::Orphan(item));
        }
    }

    fn move_dependent(&self, item: &Item, from: &[OwnerReference], to: &[OwnerReference]) {
        let mut dependents = self.dependents.lock();
        for owner in from {
            if let Some(items) = dependents.get_mut(&owner.uid) {
                items.remove(item);
                if items.is_empty() {
                    dependents.remove(&owner.uid);
                }
            }
        }
        for owner in to {
            dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(item.clone());
        }
    }

    fn dependents_of(&self, uid: &str) -> Vec<Item> {
        let dependents = self.dependents.lock();
        dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    /// An owner that waits for its dependents has one less.
    fn tell_owner(&self, owner: &OwnerReference, dependent: &Item) {
        if let Some(owner_item) = self.item_of(owner, &dependent.key.namespace) {
            let meta = self.look(&owner_item);
            if meta.is_some_and(|meta| waits_with(&meta, FOREGROUND)) {
                self.queue.add(Task::Foreground(owner_item));
            }
        }
    }

    fn look(&self, item: &Item) -> Option<ObjectMeta> {
        self.kinds[item.kind].cache.get(&item.key)
    }

    /// Where an owner is to be found: in the namespace of its dependent, or in none.
    fn item_of(&self, owner: &OwnerReference, namespace: &str) -> Option<Item> {
        let (group, version) = match owner.api_version.split_once('/') {
            Some((group, version)) => (group, version),
            None => ("", owner.api_version.as_str()),
        };
        // Of a version that there is not, nobody can say whether the owner is still there.
        let kind = self.kinds.iter().position(|kind| {
            let resource = &kind.resource;
            resource.api.group == group
                && resource.api.kind == owner.kind
                && resource.versions.iter().any(|known| known == version)
        })?;
        let namespaced = self.kinds[kind].resource.namespaced;
        Some(Item {
            kind,
            key: Key::new(if namespaced { namespace } else { "" }, &owner.name),
        })
    }

    async fn check(&self, item: &Item) -> Result<(), Error> {
        let Some(mut meta) = self.look(item) else {
            return Ok(());
        };
        loop {
            let Some(policy) = self.judge(item, &meta).await? else {
                return Ok(());
            };
            // That an owner went and that this object was let go before come over two watches, in any
            // order: an orphan must not be deleted because the cache does not know yet that it is one.
            let live = self.api(item).get_metadata_opt(&item.key.name).await;
            let live = live.map_err(|source| Error::Look {
                kind: self.kinds[item.kind].resource.api.kind.clone(),
                name: item.key.name.to_string(),
                source,
            })?;
            let Some(live) = live.map(|live| live.metadata) else {
                return Ok(());
            };
            if live.uid != meta.uid {
                return Ok(());
            }
            if live.resource_version == meta.resource_version {
                return self.delete(item, &live, policy).await;
            }
            meta = live;
        }
    }

    /// How the object is to be deleted, if it is, going by this metadata. What is to be done about it
    /// else is done.
    async fn judge(
        &self,
        item: &Item,
        meta: &ObjectMeta,
    ) -> Result<Option<PropagationPolicy>, Error> {
        if owners(meta).is_empty() {
            return Ok(None);
        }
        if waits_with(meta, FOREGROUND) {
            self.finish_foreground(item).await?;
            return Ok(None);
        }
        if meta.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let mut solid = Vec::new();
        let mut waiting = Vec::new();
        for owner in owners(meta) {
            match self.find_owner(item, owner).await? {
                Owner::There => solid.push(owner),
                Owner::Waits => waiting.push(owner),
                Owner::Gone => {}
            }
        }
        if !solid.is_empty() {
            if solid.len() < owners(meta).len() {
                let rest = json!({ "ownerReferences": solid });
                self.write(item, meta, rest).await?;
            }
            return Ok(None);
        }
        let dependents = self.dependents_of(meta.uid.as_deref().unwrap_or_default());
        let policy = if !waiting.is_empty() && !dependents.is_empty() {
            // Whoever waits for this one waits for its dependents too; but where one of these waits
            // itself, it may be in a circle, for this one: then nobody is to wait for this one.
            let waits = |item: &Item| {
                let meta = self.look(item);
                meta.is_some_and(|meta| waits_with(&meta, FOREGROUND))
            };
            if dependents.iter().any(waits) {
                self.unblock(item, meta).await?;
            }
            PropagationPolicy::Foreground
        } else if has_finalizer(meta, ORPHAN) {
            PropagationPolicy::Orphan
        } else if has_finalizer(meta, FOREGROUND) {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        Ok(Some(policy))
    }

    async fn find_owner(&self, item: &Item, owner: &OwnerReference) -> Result<Owner, Error> {
        let Some(owner_item) = self.item_of(owner, &item.key.namespace) else {
            return Err(Error::UnknownKind {
                api_version: owner.api_version.clone(),
                kind: owner.kind.clone(),
            });
        };
        let kind = &self.kinds[owner_item.kind].resource;
        if kind.namespaced && item.key.namespace.is_empty() {
            // An object of the cluster cannot belong to one of a namespace. It is a mistake of its
            // maker, and no reason to delete anything.
            warn!(owner = owner.name, dependent = %item.key, "an owner reference crosses namespaces");
            return Ok(Owner::There);
        }
        let state = |meta: &ObjectMeta| match waits_with(meta, FOREGROUND) {
            true => Owner::Waits,
            false => Owner::There,
        };
        let same = |meta: &ObjectMeta| meta.uid.as_ref() == Some(&owner.uid);
        if let Some(meta) = self.look(&owner_item).filter(same) {
            return Ok(state(&meta));
        }
        let live = self.api(&owner_item).get_metadata_opt(&owner.name).await;
        let live = live.map_err(|source| Error::Look {
            kind: owner.kind.clone(),
            name: owner.name.clone(),
            source,
        })?;
        let live = live.map(|live| live.metadata).filter(same);
        Ok(live.map_or(Owner::Gone, |meta| state(&meta)))
    }

    /// Lets an owner go when nothing that blocks it is left, and sees to what is left.
    async fn finish_foreground(&self, item: &Item) -> Result<(), Error> {
        let Some(meta) = self.look(item).filter(|meta| waits_with(meta, FOREGROUND)) else {
            return Ok(());
        };
        let uid = meta.uid.as_deref().unwrap_or_default();
        let mut blocked = false;
        for dependent in self.dependents_of(uid) {
            let Some(dependent_meta) = self.look(&dependent) else {
                continue;
            };
            let mut references = owners(&dependent_meta).iter();
            blocked |= references.any(|owner| owner.uid == uid && blocks(owner));
            if dependent_meta.deletion_timestamp.is_none() {
                self.queue.add(Task::Check(dependent));
            }
        }
        if blocked {
            return Ok(());
        }
        self.remove_finalizer(item, &meta, FOREGROUND).await
    }

    async fn orphan(&self, item: &Item) -> Result<(), Error> {
        let Some(meta) = self.look(item).filter(|meta| waits_with(meta, ORPHAN)) else {
            return Ok(());
        };
        let uid = meta.uid.as_deref().unwrap_or_default();
        for dependent in self.dependents_of(uid) {
            let Some(dependent_meta) = self.look(&dependent) else {
                continue;
            };
            let rest: Vec<_> = owners(&dependent_meta)
                .iter()
                .filter(|owner| owner.uid != uid)
                .collect();
            let rest = json!({ "ownerReferences": rest });
            self.write(&dependent, &dependent_meta, rest).await?;
        }
        self.remove_finalizer(item, &meta, ORPHAN).await
    }

    /// Has no owner wait for this object.
    async fn unblock(&self, item: &Item, meta: &ObjectMeta) -> Result<(), Error> {
        let mut references = owners(meta).to_vec();
        if !references.iter().any(blocks) {
            return Ok(());
        }
        for owner in &mut references {
            owner.block_owner_deletion = Some(false);
        }
        let fields = json!({ "ownerReferences": references });
        self.write(item, meta, fields).await
    }

    async fn remove_finalizer(
        &self,
        item: &Item,
        meta: &ObjectMeta,
        finalizer: &str,
    ) -> Result<(), Error> {
        let finalizers = meta.finalizers.iter().flatten();
        let rest: Vec<_> = finalizers.filter(|known| *known != finalizer).collect();
        self.write(item, meta, json!({ "finalizers": rest })).await
    }

    /// Writes metadata, if the object is still the one that was looked at.
    async fn write(
        &self,
        item: &Item,
        meta: &ObjectMeta,
        mut fields: serde_json::Value,
    ) -> Result<(), Error> {
        fields["uid"] = json!(meta.uid);
        fields["resourceVersion"] = json!(meta.resource_version);
        let patch = Patch::Merge(json!({ "metadata": fields }));
        let api = self.api(item);
        match api.patch(&item.key.name, &writes::patch(), &patch).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(source) => Err(Error::Write {
                object: self.named(item),
                source,
            }),
        }
    }

    /// Deletes the object if it is still as it was looked at; else it has to be looked at again.
    async fn delete(
        &self,
        item: &Item,
        meta: &ObjectMeta,
        policy: PropagationPolicy,
    ) -> Result<(), Error> {
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        match self.api(item).delete(&item.key.name, &params).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(source) => Err(Error::Delete {
                object: self.named(item),
                source,
            }),
        }
    }

    fn api(&self, item: &Item) -> Api<DynamicObject> {
        let kind = &self.kinds[item.kind].resource;
        match kind.namespaced {
            true => Api::namespaced_with(self.client.clone(), &item.key.namespace, &kind.api),
            false => Api::all_with(self.client.clone(), &kind.api),
        }
    }

    fn named(&self, item: &Item) -> String {
        format!("{} {}", self.kinds[item.kind].resource.api.kind, item.key)
    }
}

/// What has become of an owner.
enum Owner {
    There,
    /// It is to go, and waits for its dependents to go first.
    Waits,
    Gone,
}
