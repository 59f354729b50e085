//! Which objects belong to a controller: those that name it as their controller, and those that nobody
//! controls and its selector picks.
//!
//! ```text
//!   controlled by   selector   then
//!   me              matches    mine
//!   me              no         released: my reference is taken out
//!   nobody          matches    adopted: my reference is put in, unless either of us is on the way out
//!   another         either     not mine
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use informer::{Change, Index, Informer, Key, Object, Queue};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::api::{Api, Patch};
use kube::core::{Selector, SelectorExt};
use serde_json::json;

use crate::{follow, writes};

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("could not look whether {controller} still exists")]
    Look {
        controller: String,
        source: kube::Error,
    },
    #[error("{controller} has been replaced by another of the same name")]
    Replaced { controller: String },
    #[error("could not adopt {object}")]
    Adopt { object: String, source: kube::Error },
    #[error("could not release {object}")]
    Release { object: String, source: kube::Error },
    #[error("the selector is not one")]
    Selector(#[from] kube::core::labels::ParseExpressionError),
}

/// The reference that makes an object belong to `owner` as its controller.
pub(crate) fn controller_reference<K>(owner: &K) -> OwnerReference
where
    K: kube::Resource<DynamicType = ()>,
{
    let meta = owner.meta();
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Who controls an object.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    let references = meta.owner_references.as_ref()?;
    references
        .iter()
        .find(|reference| reference.controller == Some(true))
}

/// Objects by the uid of their controller, and those without by their namespace.
pub(crate) fn by_controller<K: Object>(informer: &Informer<K>) -> Index<K> {
    informer.index_by("controller", |object| {
        let meta = object.meta();
        vec![match controller_of(meta) {
            Some(controller) => controller.uid.clone(),
            None => orphans_of(meta.namespace.as_deref().unwrap_or_default()),
        }]
    })
}

/// Has an owner looked at when it changes, or an object does that is or may become its own, until the
/// drain.
pub(crate) async fn follow_owned<Owner, K>(
    owners: &Informer<Owner>,
    objects: &Informer<K>,
    selector_of: fn(&Owner) -> Option<&LabelSelector>,
    queue: &Queue<Key>,
) where
    Owner: Object + kube::Resource<DynamicType = ()>,
    K: Object,
{
    // Who may adopt an object can be told only when they are known.
    owners.synced().await;
    tokio::join!(
        follow(owners.clone(), |change| queue
            .add(Key::of(&**change.object()))),
        follow(objects.clone(), |change| {
            let (new, old) = match change {
                Change::Applied { new, old } => (new, old.as_ref()),
                Change::Deleted(last) => (last, None),
            };
            for object in [Some(new), old].into_iter().flatten() {
                for key in owners_of(object.meta(), owners, selector_of) {
                    queue.add(key);
                }
            }
        }),
    );
}

/// The owners that a change of an object may matter to.
fn owners_of<Owner>(
    meta: &ObjectMeta,
    owners: &Informer<Owner>,
    selector_of: fn(&Owner) -> Option<&LabelSelector>,
) -> Vec<Key>
where
    Owner: Object + kube::Resource<DynamicType = ()>,
{
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    match controller_of(meta) {
        Some(controller) if controller.kind == Owner::kind(&()) => {
            vec![Key::new(namespace, &controller.name)]
        }
        Some(_) => Vec::new(),
        None => {
            let picks = |owner: &Owner| {
                let parsed = selector_of(owner).and_then(|one| selector(one).ok().flatten());
                parsed.is_some_and(|selector| selector.matches(labels(meta)))
            };
            let owners = owners.list_in(namespace);
            let picking = owners.iter().filter(|owner| picks(owner));
            picking.map(|owner| Key::of(&**owner)).collect()
        }
    }
}

/// The value by which the index of [`by_controller`] has the objects that nobody controls.
pub(crate) fn orphans_of(namespace: &str) -> String {
    format!("orphans of {namespace}")
}

/// A selector that can be asked. One that selects everything selects nothing here: upstream's rule for
/// workloads, whose selectors the API does not take when they are empty.
pub(crate) fn selector(selector: &LabelSelector) -> Result<Option<Selector>, Error> {
    let parsed = Selector::try_from(selector.clone())?;
    Ok((!parsed.selects_all()).then_some(parsed))
}

pub(crate) fn labels(meta: &ObjectMeta) -> &BTreeMap<String, String> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    meta.labels.as_ref().unwrap_or(&NONE)
}

/// Finds what belongs to `owner`, adopting and releasing as the table of the module says.
pub(crate) async fn claim<Owner, K>(
    owners: &Api<Owner>,
    owner: &Owner,
    objects: &Api<K>,
    index: &Index<K>,
    selector: &Selector,
    adoptable: fn(&K) -> bool,
) -> Result<Vec<Arc<K>>, Error>
where
    Owner: Object + kube::Resource<DynamicType = ()>,
    K: Object + kube::Resource<DynamicType = ()>,
{
    let meta = owner.meta();
    let uid = meta.uid.as_deref().unwrap_or_default();
    let leaving = meta.deletion_timestamp.is_some();
    let mut mine = Vec::new();
    for object in index.get(uid) {
        let matches = selector.matches(labels(object.meta()));
        if matches || leaving || object.meta().deletion_timestamp.is_some() {
            // What no longer matches but is on its way out anyway is not worth a write.
            mine.extend(matches.then_some(object));
        } else {
            release(objects, &*object, uid).await?;
        }
    }
    let orphans = index.get(&orphans_of(meta.namespace.as_deref().unwrap_or_default()));
    let mut looked = false;
    for orphan in orphans {
        let leaving = leaving || orphan.meta().deletion_timestamp.is_some();
        if leaving || !adoptable(&orphan) || !selector.matches(labels(orphan.meta())) {
            continue;
        }
        if !looked {
            still_there(owners, owner).await?;
            looked = true;
        }
        mine.extend(adopt(objects, &*orphan, owner).await?.map(Arc::new));
    }
    Ok(mine)
}

/// Asks the server itself, since a stale cache must not give a new owner's objects to an old one.
async fn still_there<Owner>(owners: &Api<Owner>, owner: &Owner) -> Result<(), Error>
where
    Owner: Object + kube::Resource<DynamicType = ()>,
{
    let name = owner.meta().name.as_deref().unwrap_or_default();
    let controller = format!("{} {name}", Owner::kind(&()));
    match owners.get(name).await {
        Ok(live)
            if live.meta().uid == owner.meta().uid && live.meta().deletion_timestamp.is_none() =>
        {
            Ok(())
        }
        Ok(_) => Err(Error::Replaced { controller }),
        Err(source) => Err(Error::Look { controller, source }),
    }
}

async fn adopt<Owner, K>(objects: &Api<K>, orphan: &K, owner: &Owner) -> Result<Option<K>, Error>
where
    Owner: Object + kube::Resource<DynamicType = ()>,
    K: Object + kube::Resource<DynamicType = ()>,
{
    let patch = json!({"metadata": {
        "uid": orphan.meta().uid,
        "ownerReferences": [controller_reference(owner)],
    }});
    write_reference(objects, orphan, &patch)
        .await
        .map_err(|source| Error::Adopt {
            object: named(orphan),
            source,
        })
}

async fn release<K>(objects: &Api<K>, object: &K, owner_uid: &str) -> Result<(), Error>
where
    K: Object + kube::Resource<DynamicType = ()>,
{
    let patch = json!({"metadata": {
        "uid": object.meta().uid,
        "ownerReferences": [{"$patch": "delete", "uid": owner_uid}],
    }});
    let released = write_reference(objects, object, &patch).await;
    released.map(drop).map_err(|source| Error::Release {
        object: named(object),
        source,
    })
}

/// `None` if the object is gone, or is another one by now, which is as good.
async fn write_reference<K>(
    objects: &Api<K>,
    object: &K,
    patch: &serde_json::Value,
) -> Result<Option<K>, kube::Error>
where
    K: Object + kube::Resource<DynamicType = ()>,
{
    let name = object.meta().name.as_deref().unwrap_or_default();
    let patch = Patch::Strategic(patch);
    match objects.patch(name, &writes::patch(), &patch).await {
        Ok(written) => Ok(Some(written)),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 422 => Ok(None),
        Err(error) => Err(error),
    }
}

fn named<K: kube::Resource<DynamicType = ()>>(object: &K) -> String {
    let name = object.meta().name.as_deref().unwrap_or_default();
    format!("{} {name}", K::kind(&()))
}
