//! The Service by which the cluster's name server is reached.

use std::net::{Ipv4Addr, SocketAddrV4};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";

/// Why the name server's Service could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{step} {kind} {NAMESPACE}/{NAME}: {source}")]
pub struct PublishError {
    /// What was to be done.
    pub step: &'static str,
    /// To which kind of object.
    pub kind: &'static str,
    /// The server's answer.
    pub source: Box<kube::Error>,
}

/// Writes the Service `kube-dns` at `cluster_address` (named as upstream names it, whoever serves),
/// leading to the name server that listens at `listens_at`. Repeating it changes nothing.
pub async fn publish_dns_service(
    client: &kube::Client,
    cluster_address: Ipv4Addr,
    listens_at: SocketAddrV4,
) -> Result<(), PublishError> {
    // Without a selector: there are no pods behind it, and no controller makes slices of its own.
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {
                "k8s-app": "kube-dns",
                "kubernetes.io/cluster-service": "true",
                "kubernetes.io/name": "CoreDNS",
            },
        },
        "spec": {
            "clusterIP": cluster_address.to_string(),
            "clusterIPs": [cluster_address.to_string()],
            "type": "ClusterIP",
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": listens_at.port()},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": listens_at.port()},
            ],
        },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": NAME, "k8s-app": "kube-dns"},
        },
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": [listens_at.ip().to_string()],
            "conditions": {"ready": true},
        }],
        "ports": [
            {"name": "dns", "port": listens_at.port(), "protocol": "UDP"},
            {"name": "dns-tcp", "port": listens_at.port(), "protocol": "TCP"},
        ],
    });
    write::<Service>(
        Api::namespaced(client.clone(), NAMESPACE),
        "Service",
        service,
    )
    .await?;
    write::<EndpointSlice>(
        Api::namespaced(client.clone(), NAMESPACE),
        "EndpointSlice",
        slice,
    )
    .await
}

/// Makes the object, or makes the one that is there like it. One that cannot be changed (its address
/// is for life) is made anew.
async fn write<K>(api: Api<K>, kind: &'static str, object: Value) -> Result<(), PublishError>
where
    K: kube::Resource + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let failed = |step| {
        move |source| PublishError {
            step,
            kind,
            source: Box::new(source),
        }
    };
    let wanted: K = serde_json::from_value(object.clone()).map_err(|error| PublishError {
        step: "build",
        kind,
        source: Box::new(kube::Error::SerdeError(error)),
    })?;
    let refusal = match api.create(&PostParams::default(), &wanted).await {
        Ok(_) => return Ok(()),
        // It is there; or its address is, which is "already allocated" to it.
        Err(error) if has_code(&error, 409) || has_code(&error, 422) => error,
        Err(error) => return Err(failed("create")(error)),
    };
    match api
        .patch(NAME, &PatchParams::default(), &Patch::Merge(&object))
        .await
    {
        Ok(_) => Ok(()),
        Err(error) if has_code(&error, 404) => Err(failed("create")(refusal)),
        Err(error) if has_code(&error, 422) => {
            tracing::info!(kind, name = NAME, "making it anew: {error}");
            api.delete(NAME, &DeleteParams::default())
                .await
                .map_err(failed("delete"))?;
            api.create(&PostParams::default(), &wanted)
                .await
                .map_err(failed("create"))?;
            Ok(())
        }
        Err(error) => Err(failed("change")(error)),
    }
}

fn has_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}
