//! Every namespace has a ConfigMap `kube-root-ca.crt` with the certificates by which its pods may trust
//! the API server.

use std::collections::BTreeMap;
use std::sync::Arc;

use informer::{Action, Informer, Queue};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, ObjectMeta};

use crate::work::{Reconcile, work};
use crate::{Context, follow, service_account, writes};

const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using \
    internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
    guaranteed across distributions of Kubernetes clusters.";

struct Controller {
    client: kube::Client,
    namespaces: Informer<Namespace>,
    maps: Informer<ConfigMap>,
    certificates: String,
}

pub(crate) async fn run(context: Context) {
    let selector = format!("metadata.name={NAME}");
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        namespaces: context.informers.of(),
        maps: context.informers.of_fields(&selector),
        certificates: context.config.root_certificates.clone(),
    });
    controller.namespaces.synced().await;
    controller.maps.synced().await;
    let queue: Queue<String> = Queue::new();
    tokio::join!(
        follow(controller.namespaces.clone(), |change| {
            queue.add(change.object().metadata.name.clone().unwrap_or_default());
        }),
        follow(controller.maps.clone(), |change| {
            let namespace = change.object().metadata.namespace.clone();
            queue.add(namespace.unwrap_or_default());
        }),
        work(&controller, &queue, &context.drain),
    );
}

impl Reconcile for Controller {
    type Key = String;
    type Error = kube::Error;
    const NAME: &'static str = "root certificates";
    const WORKERS: usize = 8;

    async fn reconcile(&self, namespace: &String) -> Result<Action, kube::Error> {
        if !service_account::is_active(&self.namespaces, namespace) {
            return Ok(Action::Done);
        }
        let data = BTreeMap::from([("ca.crt".to_owned(), self.certificates.clone())]);
        let description = (
            "kubernetes.io/description".to_owned(),
            DESCRIPTION.to_owned(),
        );
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let written = match self.maps.get(Some(namespace), NAME) {
            Some(known) if known.data.as_ref() == Some(&data) => return Ok(Action::Done),
            Some(known) => {
                let mut map = (*known).clone();
                map.data = Some(data);
                map.metadata
                    .annotations
                    .get_or_insert_default()
                    .extend([description]);
                api.replace(NAME, &writes::post(), &map).await
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
                api.create(&writes::post(), &map).await
            }
        };
        match written {
            Ok(written) => self.maps.caught_up_with(&written).await,
            // The namespace has gone or is going.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {}
            Err(error) => return Err(error),
        }
        Ok(Action::Done)
    }
}
