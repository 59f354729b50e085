//! Every namespace has a ConfigMap `kube-root-ca.crt` with the certificates by which its pods may trust
//! the API server.

use std::collections::BTreeMap;
use std::sync::Arc;

use informer::{Action, Informer, Queue};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, ObjectMeta, PostParams};

use crate::{Context, FIELD_MANAGER, follow, service_account};

const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using \
    internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
    guaranteed across distributions of Kubernetes clusters.";

pub(crate) async fn run(context: Context) {
    let namespaces = context.informers.of::<Namespace>();
    let selector = format!("metadata.name={NAME}");
    let maps = context.informers.of_fields::<ConfigMap>(&selector);
    namespaces.synced().await;
    maps.synced().await;
    let queue: Queue<String> = Queue::new();
    let certificates: Arc<str> = context.config.root_certificates.as_str().into();
    tokio::join!(
        follow(namespaces.clone(), |change| {
            queue.add(change.object().metadata.name.clone().unwrap_or_default());
        }),
        follow(maps.clone(), |change| {
            queue.add(
                change
                    .object()
                    .metadata
                    .namespace
                    .clone()
                    .unwrap_or_default(),
            );
        }),
        queue.clone().run(
            "root certificates",
            8,
            |namespace| {
                let (client, namespaces) = (context.client.clone(), namespaces.clone());
                let (maps, certificates) = (maps.clone(), certificates.clone());
                async move {
                    match service_account::is_active(&namespaces, &namespace) {
                        true => publish(client, &maps, &namespace, &certificates).await,
                        false => Ok(Action::Done),
                    }
                }
            },
            context.drain.clone(),
        ),
    );
}

async fn publish(
    client: kube::Client,
    maps: &Informer<ConfigMap>,
    namespace: &str,
    certificates: &str,
) -> Result<Action, kube::Error> {
    let data = BTreeMap::from([("ca.crt".to_owned(), certificates.to_owned())]);
    let description = (
        "kubernetes.io/description".to_owned(),
        DESCRIPTION.to_owned(),
    );
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let api: Api<ConfigMap> = Api::namespaced(client, namespace);
    let written = match maps.get(Some(namespace), NAME) {
        Some(known) if known.data.as_ref() == Some(&data) => return Ok(Action::Done),
        Some(known) => {
            let mut map = (*known).clone();
            map.data = Some(data);
            map.metadata
                .annotations
                .get_or_insert_default()
                .extend([description]);
            api.replace(NAME, &params, &map).await
        }
        None => {
            let map = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    namespace: Some(namespace.to_owned()),
                    annotations: Some(BTreeMap::from([description])),
                    ..ObjectMeta::default()
                },
                data: Some(data),
                ..ConfigMap::default()
            };
            api.create(&params, &map).await
        }
    };
    match written {
        Ok(written) => maps.caught_up_with(&written).await,
        // The namespace has gone or is going.
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {}
        Err(error) => return Err(error),
    }
    Ok(Action::Done)
}
