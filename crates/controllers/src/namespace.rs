//! A namespace that is deleted takes everything in it along, and goes when nothing is left.
//!
//! Pods go first, and nothing else before the last of them has ended: what a pod needs (its claims, its
//! policies) must not be taken from it while it still runs. What is left after a round, for its grace
//! or its finalizers, is not asked after: the caches tell when it has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use informer::{Action, Informer, Queue};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, PartialObjectMeta};
use kube::core::DynamicObject;

use crate::discovery::{self, Resource};
use crate::metadata::{self, Step};
use crate::work::{Reconcile, work};
use crate::writes::{self, FIELD_MANAGER, is_not_found, message_of, whole_second};
use crate::{Clock, Context, follow, rest};

/// The finalizer that stands for this controller.
const FINALIZER: &str = "kubernetes";
/// When to look again whether content has gone that no cache tells of.
const LOOK_AGAIN: Duration = Duration::from_secs(8);
/// The longest pause after a round that failed: who deletes a namespace waits for it.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Objects of a kind per request.
const PAGE: u32 = 500;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("could not write the status of namespace {namespace}: {}", message_of(.source))]
    Status {
        namespace: String,
        source: kube::Error,
    },
    #[error("could not finalize namespace {namespace}: {}", message_of(.source))]
    Finalize {
        namespace: String,
        source: kube::Error,
    },
    #[error("could not build the request to finalize namespace {namespace}")]
    Request {
        namespace: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("content of namespace {0} could not be deleted")]
    Content(String),
}

struct Controller {
    client: kube::Client,
    now: Clock,
    namespaces: Informer<Namespace>,
    /// The kinds whose changes are followed, by name.
    followed: BTreeSet<String>,
}

pub(crate) async fn run(context: Context) {
    let Some(resources) = discovery::when_known(&context).await else {
        return;
    };
    let collectable = |one: &&Resource| one.namespaced && one.is_collectable();
    let resources: Vec<_> = resources.iter().filter(collectable).collect();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        now: context.config.now.clone(),
        namespaces: context.informers.of(),
        followed: resources.iter().map(|one| one.name()).collect(),
    });
    controller.namespaces.synced().await;
    let queue: Queue<String> = Queue::retrying_within(RETRY_MAX);
    let mut following: FuturesUnordered<_> = resources
        .iter()
        .map(|resource| {
            let (namespaces, queue) = (controller.namespaces.clone(), queue.clone());
            let note = move |step: &Step<'_>| {
                let namespace = &step.key.namespace;
                if is_less(step) && is_going(&namespaces, namespace) {
                    queue.add(namespace.to_string());
                }
            };
            metadata::cache_of(&context, resource).follow(Box::new(note))
        })
        .collect();
    tokio::join!(
        follow(controller.namespaces.clone(), |change| {
            let meta = &change.object().metadata;
            if meta.deletion_timestamp.is_some() {
                queue.add(meta.name.clone().unwrap_or_default());
            }
        }),
        async { while following.next().await.is_some() {} },
        work(&controller, &queue, &context.drain),
    );
}

fn is_going(namespaces: &Informer<Namespace>, name: &str) -> bool {
    let namespace = namespaces.get(None, name);
    namespace.is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some())
}

/// Whether there is an object less, or a finalizer of one.
fn is_less(step: &Step<'_>) -> bool {
    let old = step.old.and_then(|old| old.finalizers.as_ref());
    step.gone || old.is_some_and(|old| Some(old) != step.meta.finalizers.as_ref())
}

/// What one round through all kinds has found.
#[derive(Default)]
struct Round {
    discovery: Option<String>,
    failures: Vec<String>,
    /// How many objects of a kind are left, by `plural.group`.
    left: BTreeMap<String, usize>,
    /// How many of those wait for a finalizer, by its name.
    finalizers: BTreeMap<String, usize>,
}

impl Reconcile for Controller {
    type Key = String;
    type Error = Error;
    const NAME: &'static str = "namespace";
    const WORKERS: usize = 10;

    async fn reconcile(&self, name: &String) -> Result<Action, Error> {
        let Some(namespace) = self.namespaces.get(None, name) else {
            return Ok(Action::Done);
        };
        let finalizers = namespace
            .spec
            .as_ref()
            .and_then(|spec| spec.finalizers.as_ref());
        let ours = finalizers.is_some_and(|all| all.iter().any(|one| one == FINALIZER));
        if namespace.metadata.deletion_timestamp.is_none() || !ours {
            return Ok(Action::Done);
        }
        let round = self.delete_content(name).await;
        let written = self.write_status(&namespace, &round).await?;
        if round.discovery.is_some() || !round.failures.is_empty() {
            return Err(Error::Content(name.to_owned()));
        }
        if !round.left.is_empty() {
            // A thousand pods that go one after the other are not worth a round each.
            rest(round.left.values().sum()).await;
            let is_told = round.left.keys().all(|kind| self.followed.contains(kind));
            return Ok(match is_told {
                true => Action::Done,
                false => Action::After(LOOK_AGAIN),
            });
        }
        self.finalize(written).await?;
        Ok(Action::Done)
    }
}

impl Controller {
    async fn delete_content(&self, namespace: &str) -> Round {
        let mut round = Round::default();
        let resources = match discovery::resources(&self.client).await {
            Ok(resources) => resources,
            Err(error) => {
                round.discovery = Some(message_of(&error));
                return round;
            }
        };
        let deletable = |one: &&Resource| one.namespaced && one.can("delete") && one.can("list");
        let is_pods = |one: &&Resource| one.api.group.is_empty() && one.api.plural == "pods";
        let (pods, others): (Vec<_>, Vec<_>) =
            resources.iter().filter(deletable).partition(is_pods);
        for stage in [pods, others] {
            for resource in stage {
                if let Err(error) = self.delete_kind(namespace, resource, &mut round).await {
                    round.failures.push(message_of(&error));
                }
            }
            if !round.failures.is_empty() || !round.left.is_empty() {
                break;
            }
        }
        round
    }

    async fn delete_kind(
        &self,
        namespace: &str,
        resource: &Resource,
        round: &mut Round,
    ) -> Result<(), kube::Error> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource.api);
        let mut left = list(&api).await?;
        let stays = |object: &Found| object.metadata.deletion_timestamp.is_none();
        if left.iter().any(stays) {
            let delete = DeleteParams::background();
            if resource.can("deletecollection") {
                let all = ListParams::default();
                api.delete_collection(&delete, &all).await?;
            } else {
                for object in left.into_iter().filter(stays) {
                    let name = object.metadata.name.unwrap_or_default();
                    match api.delete(&name, &delete).await {
                        Err(kube::Error::Api(status)) if status.code == 404 => {}
                        result => drop(result?),
                    }
                }
            }
            left = list(&api).await?;
        }
        if left.is_empty() {
            return Ok(());
        }
        round.left.insert(resource.name(), left.len());
        let finalizers = left.iter().flat_map(|object| &object.metadata.finalizers);
        for finalizer in finalizers.flatten() {
            *round.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
        Ok(())
    }

    async fn write_status(&self, namespace: &Namespace, round: &Round) -> Result<Namespace, Error> {
        let old = namespace.status.clone().unwrap_or_default();
        let mut desired = namespace.clone();
        let status = desired.status.get_or_insert_default();
        status.phase = Some("Terminating".to_owned());
        set_conditions(
            status.conditions.get_or_insert_default(),
            round,
            (self.now)(),
        );
        if desired.status.as_ref() == Some(&old) {
            return Ok(desired);
        }
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let api: Api<Namespace> = Api::all(self.client.clone());
        match api.replace_status(name, &writes::post(), &desired).await {
            Ok(written) => {
                self.namespaces.caught_up_with(&written).await;
                Ok(written)
            }
            Err(source) => Err(Error::Status {
                namespace: name.to_owned(),
                source,
            }),
        }
    }

    async fn finalize(&self, mut namespace: Namespace) -> Result<(), Error> {
        let name = namespace.metadata.name.clone().unwrap_or_default();
        let spec = namespace.spec.as_mut();
        if let Some(finalizers) = spec.and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        let uri = format!("/api/v1/namespaces/{name}/finalize?fieldManager={FIELD_MANAGER}");
        let request = serde_json::to_vec(&namespace)
            .map_err(Into::into)
            .and_then(|body| {
                let request = http::Request::put(uri).header("content-type", "application/json");
                request.body(body).map_err(Into::into)
            });
        let request = request.map_err(|source| Error::Request {
            namespace: name.clone(),
            source,
        })?;
        match self.client.request::<Namespace>(request).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(source) => Err(Error::Finalize {
                namespace: name,
                source,
            }),
        }
    }
}

type Found = PartialObjectMeta<DynamicObject>;

/// All objects of a kind in the namespace.
async fn list(api: &Api<DynamicObject>) -> Result<Vec<Found>, kube::Error> {
    let mut params = ListParams::default().limit(PAGE);
    let mut objects = Vec::new();
    loop {
        let page = api.list_metadata(&params).await?;
        objects.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(objects),
        }
    }
}

/// What a condition says: its type, whether it holds, why, and in words.
type Said = (&'static str, bool, &'static str, String);

/// What the conditions say after a round, in upstream's words and order.
fn said_of(round: &Round) -> [Said; 5] {
    let counts = |counts: &BTreeMap<String, usize>, what: &str| {
        let parts = counts
            .iter()
            .map(|(name, count)| format!("{name} {what}{count} resource instances"));
        parts.collect::<Vec<_>>().join(", ")
    };
    let say = |holds: bool, yes: (&'static str, String), no: (&'static str, &str)| match holds {
        true => (true, yes.0, yes.1),
        false => (false, no.0, no.1.to_owned()),
    };
    let discovery = round.discovery.as_deref().unwrap_or_default();
    let discovery = say(
        round.discovery.is_some(),
        (
            "DiscoveryFailed",
            format!("Discovery failed for some groups: {discovery}"),
        ),
        (
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
    );
    let failures = format!(
        "Failed to delete all resource types, {} remaining: {}",
        round.failures.len(),
        round.failures.join(", ")
    );
    let content = say(
        !round.failures.is_empty(),
        ("ContentDeletionFailed", failures),
        (
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
    );
    let left = counts(&round.left, "has ");
    let remaining = say(
        !round.left.is_empty(),
        (
            "SomeResourcesRemain",
            format!("Some resources are remaining: {left}"),
        ),
        ("ContentRemoved", "All content successfully removed"),
    );
    let held = counts(&round.finalizers, "in ");
    let finalizers = say(
        !round.finalizers.is_empty(),
        (
            "SomeFinalizersRemain",
            format!("Some content in the namespace has finalizers remaining: {held}"),
        ),
        (
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    );
    let parsed = (
        false,
        "ParsedGroupVersions",
        "All legacy kube types successfully parsed".to_owned(),
    );
    [
        ("NamespaceDeletionDiscoveryFailure", discovery),
        ("NamespaceDeletionGroupVersionParsingFailure", parsed),
        ("NamespaceDeletionContentFailure", content),
        ("NamespaceContentRemaining", remaining),
        ("NamespaceFinalizersRemaining", finalizers),
    ]
    .map(|(condition_type, (holds, reason, message))| (condition_type, holds, reason, message))
}

fn set_conditions(conditions: &mut Vec<NamespaceCondition>, round: &Round, now: Timestamp) {
    for (condition_type, holds, reason, message) in said_of(round) {
        let status = if holds { "True" } else { "False" };
        let known = conditions
            .iter_mut()
            .find(|known| known.type_ == condition_type);
        let new = NamespaceCondition {
            type_: condition_type.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(Time(whole_second(now))),
        };
        match known {
            None => conditions.push(new),
            Some(known) if known.status == new.status => {
                known.reason = new.reason;
                known.message = new.message;
            }
            Some(known) => *known = new,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conditions_tell_what_is_left_and_why() {
        let round = Round {
            left: BTreeMap::from([("pods.".to_owned(), 2)]),
            finalizers: BTreeMap::from([("example.com/wait".to_owned(), 1)]),
            ..Round::default()
        };
        let mut conditions = Vec::new();
        set_conditions(&mut conditions, &round, Timestamp::UNIX_EPOCH);
        let texts: Vec<_> = conditions
            .iter()
            .map(|known| {
                let reason = known.reason.as_deref().unwrap_or_default();
                let message = known.message.as_deref().unwrap_or_default();
                format!("{} {} {reason}: {message}", known.type_, known.status)
            })
            .collect();
        assert_eq!(
            texts,
            [
                "NamespaceDeletionDiscoveryFailure False ResourcesDiscovered: All resources successfully discovered",
                "NamespaceDeletionGroupVersionParsingFailure False ParsedGroupVersions: All legacy kube types successfully parsed",
                "NamespaceDeletionContentFailure False ContentDeleted: All content successfully deleted, may be waiting on finalization",
                "NamespaceContentRemaining True SomeResourcesRemain: Some resources are remaining: pods. has 2 resource instances",
                "NamespaceFinalizersRemaining True SomeFinalizersRemain: Some content in the namespace has finalizers remaining: example.com/wait in 1 resource instances",
            ]
        );
        set_conditions(&mut conditions, &Round::default(), Timestamp::UNIX_EPOCH);
        assert_eq!(conditions.len(), 5);
        assert!(conditions.iter().all(|known| known.status == "False"));
    }
}
