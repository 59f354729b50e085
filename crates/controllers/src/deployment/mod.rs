//! Brings a Deployment from one pod template to the next, at the pace that its strategy allows.
//!
//! What to do is decided in [`plan`] from the Deployment and its ReplicaSets alone, without IO; here
//! it is carried out: at most a few writes to ReplicaSets, then one to the Deployment's status. The
//! next step follows when the ReplicaSets tell of what has come of it.

mod conditions;
mod hash;
mod plan;
mod revision;
mod scale;

use std::sync::Arc;

use informer::{Action, EventType, Index, Informer, Key, Queue, Recorder};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, PropagationPolicy};

use crate::work::{Reconcile, work};
use crate::writes::{self, is_namespace_terminating, is_not_found, message_of};
use crate::{Clock, Context, claim, rest};
use plan::{Plan, Step};

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Claim(#[from] claim::Error),
    #[error("could not create the new replica set: {0}")]
    Create(String),
    #[error("the name of the new replica set {0} is taken")]
    Collision(String),
    #[error("could not change replica set {set}")]
    Change { set: String, source: kube::Error },
    #[error("could not delete the old replica set {set}")]
    Delete { set: String, source: kube::Error },
    #[error("could not write the status")]
    Status(#[source] kube::Error),
}

struct Controller {
    client: kube::Client,
    now: Clock,
    recorder: Recorder,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    sets_by_owner: Index<ReplicaSet>,
}

pub(crate) async fn run(context: Context) {
    let deployments = context.informers.of::<Deployment>();
    let sets = context.informers.of::<ReplicaSet>();
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        now: context.config.now.clone(),
        recorder: context.recorder(),
        deployments: deployments.clone(),
        sets_by_owner: claim::by_controller(&sets),
        sets: sets.clone(),
    });
    deployments.synced().await;
    sets.synced().await;
    let queue = Queue::new();
    tokio::join!(
        claim::follow_owned(
            &deployments,
            &sets,
            |one| Some(&one.spec.as_ref()?.selector),
            &queue
        ),
        work(&controller, &queue, &context.drain),
    );
}

fn name_of<K: kube::Resource>(object: &K) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

impl Reconcile for Controller {
    type Key = Key;
    type Error = Error;
    const NAME: &'static str = "deployment";
    const WORKERS: usize = 32;

    async fn reconcile(&self, key: &Key) -> Result<Action, Error> {
        let Some(deployment) = self.deployments.get(Some(&key.namespace), &key.name) else {
            return Ok(Action::Done);
        };
        let Some(spec) = &deployment.spec else {
            return Ok(Action::Done);
        };
        let Some(selector) = claim::selector(&spec.selector)? else {
            let message =
                "This deployment is selecting all pods. A non-empty selector is required.";
            let message = message.to_owned();
            self.recorder
                .event(&*deployment, EventType::Warning, "SelectingAll", message);
            return Ok(Action::Done);
        };
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &key.namespace);
        let sets: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let index = &self.sets_by_owner;
        let mine = claim::claim(&deployments, &*deployment, &sets, index, &selector, |_| {
            true
        })
        .await?;
        let now = (self.now)();
        let mut plan = plan::plan(&deployment, &mine, now);
        let carried_out = self.carry_out(&sets, &deployment, &mut plan, now).await;
        let written = self.write_status(&deployments, &deployment, &plan).await?;
        carried_out?;
        if written {
            rest(mine.len()).await;
        }
        Ok(plan.look_again.map_or(Action::Done, Action::After))
    }
}

impl Controller {
    async fn carry_out(
        &self,
        sets: &Api<ReplicaSet>,
        deployment: &Deployment,
        plan: &mut Plan,
        now: Timestamp,
    ) -> Result<(), Error> {
        for step in std::mem::take(&mut plan.steps) {
            match step {
                Step::Create(set) => self.create(sets, deployment, &set, plan, now).await?,
                Step::Change { set, from } => self.change(sets, deployment, &set, from).await?,
                Step::Delete(set) => {
                    let params = DeleteParams {
                        propagation_policy: Some(PropagationPolicy::Background),
                        ..writes::delete(&set.metadata)
                    };
                    let outcome = sets.delete(name_of(&*set), &params).await;
                    writes::deleted(outcome).map_err(|source| Error::Delete {
                        set: name_of(&*set).to_owned(),
                        source,
                    })?;
                }
            }
        }
        Ok(())
    }

    async fn create(
        &self,
        sets: &Api<ReplicaSet>,
        deployment: &Deployment,
        set: &ReplicaSet,
        plan: &mut Plan,
        now: Timestamp,
    ) -> Result<(), Error> {
        match sets.create(&writes::post(), set).await {
            Ok(created) => {
                let size = plan::size(set);
                if size > 0 {
                    let message =
                        format!("Scaled up replica set {} from 0 to {size}", name_of(set));
                    let normal = EventType::Normal;
                    self.recorder
                        .event(deployment, normal, "ScalingReplicaSet", message);
                }
                self.sets.caught_up_with(&created).await;
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                let live = sets
                    .get(name_of(set))
                    .await
                    .map_err(|source| Error::Change {
                        set: name_of(set).to_owned(),
                        source,
                    })?;
                let owner = claim::controller_of(&live.metadata).map(|owner| owner.uid.clone());
                if owner == deployment.metadata.uid && plan::same_template(&live, deployment) {
                    self.sets.caught_up_with(&live).await;
                    return Ok(());
                }
                // Another template has the same hash: the next try counts this in.
                let count = plan.status.collision_count.unwrap_or_default();
                plan.status.collision_count = Some(count + 1);
                Err(Error::Collision(name_of(set).to_owned()))
            }
            Err(error) if is_namespace_terminating(&error) => Ok(()),
            Err(error) => {
                let text = message_of(&error);
                let message = format!(
                    "Failed to create new replica set {:?}: {text}",
                    name_of(set)
                );
                conditions::set_failed_create(deployment, &mut plan.status, &message, now);
                let warning = EventType::Warning;
                self.recorder
                    .event(deployment, warning, "ReplicaSetCreateError", message);
                Err(Error::Create(text))
            }
        }
    }

    async fn change(
        &self,
        sets: &Api<ReplicaSet>,
        deployment: &Deployment,
        set: &ReplicaSet,
        from: i32,
    ) -> Result<(), Error> {
        let name = name_of(set);
        let changed = sets.replace(name, &writes::post(), set).await;
        let changed = changed.map_err(|source| Error::Change {
            set: name.to_owned(),
            source,
        })?;
        let to = plan::size(set);
        if from != to {
            let direction = if to > from { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
            self.recorder
                .event(deployment, EventType::Normal, "ScalingReplicaSet", message);
        }
        self.sets.caught_up_with(&changed).await;
        Ok(())
    }

    /// Writes status and revision in one, as upstream does, if either differs.
    async fn write_status(
        &self,
        deployments: &Api<Deployment>,
        deployment: &Deployment,
        plan: &Plan,
    ) -> Result<bool, Error> {
        let mut desired = deployment.clone();
        desired.status = Some(plan.status.clone());
        if let Some(number) = &plan.revision {
            let annotations = desired.metadata.annotations.get_or_insert_default();
            annotations.insert(revision::REVISION.to_owned(), number.clone());
        }
        if desired.status == deployment.status
            && desired.metadata.annotations == deployment.metadata.annotations
        {
            return Ok(false);
        }
        match deployments
            .replace_status(name_of(deployment), &writes::post(), &desired)
            .await
        {
            Ok(written) => {
                self.deployments.caught_up_with(&written).await;
                Ok(true)
            }
            Err(error) if is_not_found(&error) => Ok(false),
            Err(error) => Err(Error::Status(error)),
        }
    }
}
