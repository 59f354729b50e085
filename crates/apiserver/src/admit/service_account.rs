//! Every pod runs as a ServiceAccount and, unless it does not want to, gets that account's token,
//! the cluster's certificate and its namespace mounted where client libraries look for them.

use serde_json::{Value, json};

use super::Admission;
use crate::authorize::node::{Wanted, items};
use crate::encode::metadata_str;
use crate::status::Failure;
use crate::verbs::change::generated_name;

/// Where client libraries look.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Seconds that a mounted token is good for: an hour and what lets upstream's kubelet tell these
/// tokens from those that pods asked for themselves.
const TOKEN_SECONDS: i64 = 3607;
/// The annotation of pods that a node runs by itself.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod that a node runs by itself is only shown here; it must not open to the node what it names.
fn mirror_fault(spec: &Value) -> Option<&'static str> {
    let account = spec["serviceAccountName"].as_str().unwrap_or_default();
    let has_token = items(spec, "volumes")
        .flat_map(|volume| items(&volume["projected"], "sources"))
        .any(|source| source["serviceAccountToken"].is_object());
    if !account.is_empty() {
        Some("a mirror pod may not reference service accounts")
    } else if !Wanted::Secret.names_in(spec).is_empty() {
        Some("a mirror pod may not reference secrets")
    } else if has_token {
        Some("a mirror pod may not use ServiceAccountToken volume projections")
    } else {
        None
    }
}

/// Fills in the account and mounts its token.
pub(super) fn admit(admission: &mut Admission<'_>) -> Result<(), Failure> {
    if !admission.creates("", "Pod") {
        return Ok(());
    }
    let call = admission.call;
    let pod = &mut *admission.object;
    let pod_name = metadata_str(pod, "name").to_owned();
    if pod["metadata"]["annotations"][MIRROR].is_string() {
        return match mirror_fault(&pod["spec"]) {
            Some(why) => Err(Failure::forbidden(call.resource.name(), &pod_name, why)),
            None => Ok(()),
        };
    }
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    let name = match spec.get("serviceAccountName").and_then(Value::as_str) {
        None | Some("") => "default".to_owned(),
        Some(name) => name.to_owned(),
    };
    spec.insert("serviceAccountName".into(), name.as_str().into());
    spec.insert("serviceAccount".into(), name.as_str().into());
    let namespace = call.info.namespace.as_str();
    let accounts = call.core.builtin("", "v1", "serviceaccounts");
    let account = call.core.read(accounts, namespace, &name).ok_or_else(|| {
        Failure::forbidden(
            call.resource.name(),
            &pod_name,
            format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"),
        )
    })?;
    let automount = spec
        .get("automountServiceAccountToken")
        .and_then(Value::as_bool)
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if automount {
        mount_token(spec);
    }
    let none = |list: Option<&Value>| list.and_then(Value::as_array).is_none_or(Vec::is_empty);
    if none(spec.get("imagePullSecrets")) && !none(account.get("imagePullSecrets")) {
        spec.insert(
            "imagePullSecrets".into(),
            account["imagePullSecrets"].clone(),
        );
    }
    Ok(())
}

/// Adds the volume and mounts it into every container that has nothing there.
fn mount_token(spec: &mut serde_json::Map<String, Value>) {
    let volumes = spec.get("volumes").and_then(Value::as_array);
    let existing = volumes.into_iter().flatten().find_map(|volume| {
        let name = volume["name"].as_str()?;
        name.starts_with("kube-api-access-")
            .then(|| name.to_owned())
    });
    let volume = existing
        .clone()
        .unwrap_or_else(|| generated_name("kube-api-access-"));
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let Some(container) = container.as_object_mut() else {
                continue;
            };
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            if mounts.is_null() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else {
                continue;
            };
            if mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH) {
                continue;
            }
            mounted = true;
            mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
        }
    }
    if !mounted || existing.is_some() {
        return;
    }
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if volumes.is_null() {
        *volumes = json!([]);
    }
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(projected(&volume));
    }
}

fn projected(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "defaultMode": 420,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {
                    "name": "kube-root-ca.crt",
                    "items": [{"key": "ca.crt", "path": "ca.crt"}],
                }},
                {"downwardAPI": {"items": [{
                    "path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }]}},
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_get_the_token_unless_something_is_mounted_there() {
        let mut pod = json!({
            "initContainers": [{"name": "i"}],
            "containers": [
                {"name": "a"},
                {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]},
            ],
        });
        let spec = pod.as_object_mut().expect("an object");
        mount_token(spec);
        let volume = pod["volumes"][0]["name"]
            .as_str()
            .expect("a volume")
            .to_owned();
        assert!(volume.starts_with("kube-api-access-"));
        assert_eq!(
            pod["containers"][0]["volumeMounts"][0]["name"],
            volume.as_str()
        );
        assert_eq!(
            pod["initContainers"][0]["volumeMounts"][0]["mountPath"],
            MOUNT_PATH
        );
        assert_eq!(
            pod["containers"][1]["volumeMounts"]
                .as_array()
                .map(Vec::len),
            Some(1)
        );
    }
}
