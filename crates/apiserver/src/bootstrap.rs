//! The objects that every cluster has from its first moment.

use std::net::Ipv4Addr;
use std::sync::Arc;

use access::Reconciled;
use futures::future::try_join_all;
use serde_json::{Value, json};
use store::Entry;

use crate::StartError;
use crate::encode::metadata_str;
use crate::handle::{Call, Core};
use crate::meta::Meta;
use crate::options::{DeleteOptions, FieldValidation, WriteOptions};
use crate::status::Failure;
use crate::verbs::delete::delete_object;
use crate::verbs::{answer, body, change};

/// The namespaces that upstream makes, in its order.
const NAMESPACES: &[&str] = &["kube-system", "kube-public", "kube-node-lease", "default"];

/// Writes the objects that are missing. Of those that are there, roles and bindings are brought up
/// to what this program knows, as it may be newer than the one that wrote them; the others are left
/// as they are.
pub(crate) async fn write(core: &Arc<Core>) -> Result<(), StartError> {
    let namespaces = NAMESPACES
        .iter()
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    ensure_all(core, namespaces).await?;
    ensure_all(core, priority_classes()).await?;
    let roles = access::bootstrap();
    // Side by side, so that the store commits them together.
    try_join_all(roles.into_iter().map(|role| reconcile(core, role))).await?;
    if let Some(roles) = &core.roles {
        // So that the first request does not wait for it.
        roles.policy();
    }
    core.set_started();
    Ok(())
}

/// Side by side, so that the store commits them together.
async fn ensure_all(
    core: &Arc<Core>,
    objects: impl Iterator<Item = Value>,
) -> Result<(), StartError> {
    try_join_all(objects.map(|object| ensure(core, object)))
        .await
        .map(drop)
}

fn priority_classes() -> impl Iterator<Item = Value> {
    let class = |name: &str, value: i64, description: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
            "description": description,
            "preemptionPolicy": "PreemptLowerPriority",
        })
    };
    [
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ]
    .into_iter()
}

/// Writes the Service `kubernetes` with endpoints at `addresses`:`port`. The endpoints follow the
/// addresses at each start; the Service is made once.
pub(crate) async fn write_service(
    core: &Arc<Core>,
    addresses: &[Ipv4Addr],
    port: u16,
) -> Result<(), StartError> {
    let cidr = core.config.service_cidr;
    if cidr.prefix > 29 {
        return Err(StartError::ServiceRange(cidr));
    }
    let first = Ipv4Addr::from(u32::from(cidr.address) + 1);
    ensure(
        core,
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": "kubernetes",
                "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"},
            },
            "spec": {
                "clusterIP": first.to_string(),
                "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}],
                "sessionAffinity": "None",
                "type": "ClusterIP",
            },
        }),
    )
    .await?;
    let listed: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"ip": address.to_string()}))
        .collect();
    put(
        core,
        json!({
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {
                "name": "kubernetes",
                "namespace": "default",
                "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
            },
            "subsets": [{
                "addresses": listed,
                "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
            }],
        }),
    )
    .await?;
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address.to_string()], "conditions": {"ready": true}}))
        .collect();
    put(
        core,
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kubernetes",
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }),
    )
    .await
}

/// Makes the object unless one of its name is there.
async fn ensure(core: &Arc<Core>, object: Value) -> Result<(), StartError> {
    let Some(call) = call_for(core, &object) else {
        return Ok(());
    };
    let text = describe(&object);
    if core.store().get(&call.key()).is_some() {
        return Ok(());
    }
    create(&call, object)
        .await
        .map_err(|failure| failed(text, &failure))
}

/// Makes the role or binding, or gives the one that is there what it lacks.
async fn reconcile(core: &Arc<Core>, wanted: Value) -> Result<(), StartError> {
    let Some(call) = call_for(core, &wanted) else {
        return Ok(());
    };
    let text = describe(&wanted);
    let Some(entry) = core.store().get(&call.key()) else {
        return create(&call, wanted)
            .await
            .map_err(|failure| failed(text, &failure));
    };
    if let Err(failure) = follow(&call, &entry, wanted).await {
        // Whoever changed it can change it again; a cluster that does not start could not be mended.
        let why = failure.message();
        tracing::error!(object = text, why, "it is not brought up to date");
    }
    Ok(())
}

async fn follow(call: &Call, entry: &Entry<Meta>, wanted: Value) -> Result<(), Failure> {
    let stored = answer::parse(call, entry)?;
    match access::reconcile(&stored, &wanted) {
        Reconciled::Unchanged => Ok(()),
        Reconciled::Update(_) => {
            let update = |old: &Value| match access::reconcile(old, &wanted) {
                Reconciled::Update(new) => Ok(new),
                Reconciled::Unchanged | Reconciled::Recreate => Ok(old.clone()),
            };
            change::update(call, &options(), None, update)
                .await
                .map(drop)
        }
        Reconciled::Recreate => {
            let options = DeleteOptions {
                uid: Some(metadata_str(&stored, "uid").to_owned()),
                ..DeleteOptions::default()
            };
            delete_object(call, &options).await?;
            create(call, wanted).await
        }
    }
}

/// Makes the object, or makes the one that is there equal to it.
async fn put(core: &Arc<Core>, mut object: Value) -> Result<(), StartError> {
    let Some(call) = call_for(core, &object) else {
        return Ok(());
    };
    let text = describe(&object);
    if core.store().get(&call.key()).is_none() {
        return create(&call, object)
            .await
            .map_err(|failure| failed(text, &failure));
    }
    let options = options();
    complete(&call, &mut object).map_err(|failure| failed(text.clone(), &failure))?;
    change::update(&call, &options, None, |_old| Ok(object.clone()))
        .await
        .map(drop)
        .map_err(|failure| failed(text, &failure))
}

async fn create(call: &Call, mut object: Value) -> Result<(), Failure> {
    let options = options();
    complete(call, &mut object)?;
    change::create(call, object, &options).await.map(drop)
}

fn complete(call: &Call, object: &mut Value) -> Result<(), Failure> {
    body::complete(call, &call.resource, object, FieldValidation::Strict).map_err(Failure::internal)
}

fn options() -> WriteOptions {
    WriteOptions {
        manager: "kube-apiserver".into(),
        validation: FieldValidation::Ignore,
        ..WriteOptions::internal()
    }
}

/// `None` for kinds that are not built in: a cluster without them does without the object.
fn call_for(core: &Arc<Core>, object: &Value) -> Option<Call> {
    let api_version = object["apiVersion"].as_str()?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let resource = core.resource_of_kind(group, version, object["kind"].as_str()?)?;
    Some(Call::internal(
        core,
        resource,
        metadata_str(object, "namespace"),
        metadata_str(object, "name"),
    ))
}

fn describe(object: &Value) -> String {
    format!(
        "{} {}",
        object["kind"].as_str().unwrap_or_default(),
        metadata_str(object, "name")
    )
}

fn failed(object: String, failure: &Failure) -> StartError {
    StartError::Bootstrap {
        object,
        reason: failure.message().to_owned(),
    }
}
