//! Every namespace has a ServiceAccount named `default`.

use std::sync::Arc;

use informer::{Action, Informer, Queue};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, ObjectMeta};

use crate::work::{Reconcile, work};
use crate::{Context, follow, writes};

const NAME: &str = "default";

struct Controller {
    client: kube::Client,
    namespaces: Informer<Namespace>,
    /// Of all accounts only one of each namespace matters here, but the kind is cached for others anyway.
    accounts: Informer<ServiceAccount>,
}

pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        namespaces: context.informers.of(),
        accounts: context.informers.of(),
    });
    controller.namespaces.synced().await;
    controller.accounts.synced().await;
    let queue: Queue<String> = Queue::new();
    tokio::join!(
        follow(controller.namespaces.clone(), |change| {
            queue.add(change.object().metadata.name.clone().unwrap_or_default());
        }),
        follow(controller.accounts.clone(), |change| {
            let meta = &change.object().metadata;
            if meta.name.as_deref() == Some(NAME) {
                queue.add(meta.namespace.clone().unwrap_or_default());
            }
        }),
        work(&controller, &queue, &context.drain),
    );
}

/// Whether things may be made in the namespace.
pub(crate) fn is_active(namespaces: &Informer<Namespace>, name: &str) -> bool {
    namespaces.get(None, name).is_some_and(|namespace| {
        let phase = namespace
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        namespace.metadata.deletion_timestamp.is_none() && phase != Some("Terminating")
    })
}

impl Reconcile for Controller {
    type Key = String;
    type Error = kube::Error;
    const NAME: &'static str = "service account";
    const WORKERS: usize = 8;

    async fn reconcile(&self, namespace: &String) -> Result<Action, kube::Error> {
        let is_there = self.accounts.get(Some(namespace), NAME).is_some();
        if is_there || !is_active(&self.namespaces, namespace) {
            return Ok(Action::Done);
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        match api.create(&writes::post(), &account).await {
            Ok(created) => self.accounts.caught_up_with(&created).await,
            // Already there, or the namespace has gone or is going.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 409) => {}
            Err(error) => return Err(error),
        }
        Ok(Action::Done)
    }
}
