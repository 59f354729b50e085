//! Who manages the number of replicas, as it is told of an object and of its scale.
//!
//! The object's `metadata.managedFields` hold it. A configuration that is applied to the scale is
//! compared with what the scale shows of them, and what comes of that goes back into the object's.

use serde_json::{Value, json};

const SCALE_VERSION: &str = "autoscaling/v1";

/// The entries of an object that are about the number of replicas, as those of its scale.
pub(super) fn of_scale(managed: &Value) -> Vec<Value> {
    entries(managed)
        .filter(|entry| owns(entry))
        .map(|entry| {
            let mut entry = entry.clone();
            entry["apiVersion"] = SCALE_VERSION.into();
            entry["fieldsV1"] = replicas();
            entry
        })
        .collect()
}

/// The entries of the object after its scale was written: `managed` are those before, `scale` those
/// of the scale.
pub(super) fn of_object(managed: &Value, scale: &Value, api_version: &str) -> Vec<Value> {
    let owners: Vec<&Value> = entries(scale).filter(|entry| owns(entry)).collect();
    let mut all: Vec<Value> = entries(managed).cloned().collect();
    for entry in &mut all {
        if !owners.iter().any(|owner| is_same(owner, entry)) {
            disown(entry);
        }
    }
    all.retain(|entry| {
        let fields = entry["fieldsV1"].as_object();
        fields.is_none_or(|fields| !fields.is_empty())
    });
    for owner in owners {
        let known = all.iter_mut().find(|entry| is_same(owner, entry));
        if let Some(known) = known {
            known["fieldsV1"]["f:spec"]["f:replicas"] = json!({});
        } else {
            let mut entry = owner.clone();
            entry["apiVersion"] = api_version.into();
            entry["fieldsV1"] = replicas();
            all.push(entry);
        }
    }
    all
}

fn entries(managed: &Value) -> impl Iterator<Item = &Value> {
    managed.as_array().into_iter().flatten()
}

fn replicas() -> Value {
    json!({"f:spec": {"f:replicas": {}}})
}

fn owns(entry: &Value) -> bool {
    entry["fieldsV1"]["f:spec"]["f:replicas"].is_object()
}

fn is_same(one: &Value, other: &Value) -> bool {
    ["manager", "operation", "subresource"]
        .iter()
        .all(|field| one[field] == other[field])
}

fn disown(entry: &mut Value) {
    let Some(fields) = entry["fieldsV1"].as_object_mut() else {
        return;
    };
    let Some(spec) = fields.get_mut("f:spec").and_then(Value::as_object_mut) else {
        return;
    };
    spec.remove("f:replicas");
    if spec.is_empty() {
        fields.remove("f:spec");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(manager: &str, subresource: Option<&str>, version: &str, fields: Value) -> Value {
        let mut entry = json!({
            "manager": manager, "operation": "Update", "apiVersion": version, "fieldsV1": fields,
        });
        if let Some(subresource) = subresource {
            entry["subresource"] = subresource.into();
        }
        entry
    }

    #[test]
    fn who_manages_replicas_goes_from_the_object_to_its_scale_and_back() {
        let rest = json!({"f:metadata": {}, "f:spec": {"f:paused": {}}});
        let mut whole = rest.clone();
        whole["f:spec"]["f:replicas"] = json!({});
        let begun = entry("kubectl", None, "apps/v1", whole.clone());
        let other = entry("other", None, "apps/v1", rest.clone());
        let managed = json!([begun, other]);
        let told = of_scale(&managed);
        assert_eq!(told, [entry("kubectl", None, SCALE_VERSION, replicas())]);
        assert_eq!(
            of_object(&managed, &json!(told), "apps/v1"),
            [begun, other.clone()]
        );

        let taken = entry("x", Some("scale"), SCALE_VERSION, replicas());
        let after = of_object(&managed, &json!([taken]), "apps/v1");
        let left = entry("kubectl", None, "apps/v1", rest);
        let new = entry("x", Some("scale"), "apps/v1", replicas());
        assert_eq!(after, [left.clone(), other.clone(), new]);
        let given_up = of_object(&json!(after), &json!([]), "apps/v1");
        assert_eq!(given_up, [left, other]);
    }
}
