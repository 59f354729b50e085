//! Pods stay five minutes on a node that is not ready or not reachable, unless they say otherwise.

use serde_json::{Value, json};

use super::{Admission, Operation};

const SECONDS: i64 = 300;
const KEYS: &[&str] = &[
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
];

/// Adds the tolerations that are missing: to a new pod, and to one whose tolerations are replaced, so
/// that a client may name only its own.
pub(super) fn admit(admission: &mut Admission<'_>) {
    let is_written = matches!(admission.operation, Operation::Create | Operation::Update);
    if !is_written || admission.subresource.is_some() || !admission.call.resource.is("", "Pod") {
        return;
    }
    let Some(spec) = admission
        .object
        .get_mut("spec")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    if tolerations.is_null() {
        *tolerations = json!([]);
    }
    let Some(tolerations) = tolerations.as_array_mut() else {
        return;
    };
    for key in KEYS {
        let tolerated = tolerations.iter().any(|toleration| {
            let of_key = toleration["key"] == *key
                || toleration["key"].as_str().unwrap_or_default().is_empty();
            let of_effect = matches!(
                toleration["effect"].as_str().unwrap_or_default(),
                "" | "NoExecute"
            );
            of_key && of_effect
        });
        if !tolerated {
            tolerations.push(json!({
                "key": key,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": SECONDS,
            }));
        }
    }
}
