//! Every namespace has a ServiceAccount named `default`.

use informer::{Action, Informer, Queue};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, ObjectMeta, PostParams};

use crate::{Context, FIELD_MANAGER, follow};

const NAME: &str = "default";

pub(crate) async fn run(context: Context) {
    let namespaces = context.informers.of::<Namespace>();
    // Of all accounts only these matter here, but the kind as a whole is cached for others anyway.
    let accounts = context.informers.of::<ServiceAccount>();
    namespaces.synced().await;
    accounts.synced().await;
    let queue: Queue<String> = Queue::new();
    tokio::join!(
        follow(namespaces.clone(), |change| {
            queue.add(change.object().metadata.name.clone().unwrap_or_default());
        }),
        follow(accounts.clone(), |change| {
            let meta = &change.object().metadata;
            if meta.name.as_deref() == Some(NAME) {
                queue.add(meta.namespace.clone().unwrap_or_default());
            }
        }),
        queue.clone().run(
            "service account",
            8,
            |namespace| {
                let (client, namespaces) = (context.client.clone(), namespaces.clone());
                let accounts = accounts.clone();
                async move { reconcile(client, &namespaces, &accounts, &namespace).await }
            },
            context.drain.clone(),
        ),
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

async fn reconcile(
    client: kube::Client,
    namespaces: &Informer<Namespace>,
    accounts: &Informer<ServiceAccount>,
    namespace: &str,
) -> Result<Action, kube::Error> {
    if !is_active(namespaces, namespace) || accounts.get(Some(namespace), NAME).is_some() {
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
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let api: Api<ServiceAccount> = Api::namespaced(client, namespace);
    match api.create(&params, &account).await {
        Ok(created) => accounts.caught_up_with(&created).await,
        // Already there, or the namespace has gone or is going.
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 409) => {}
        Err(error) => return Err(error),
    }
    Ok(Action::Done)
}
