//! How `managedFields` is kept: times, order, the limit, creation, and what clients write into it.

mod schema;

use patch::apply::{ApplyError, FieldSet, Request, apply, update};
use schema::Schema;
use serde_json::{Value, json};

fn shape() -> Schema {
    let texts = json!({"type": "object", "additionalProperties": {"type": "string"}});
    Schema::new(json!({"type": "object", "open": true,
        "zero": {"spec": {"selector": null, "strategy": {},
            "template": {"metadata": {"creationTimestamp": null}, "spec": {"containers": null}}},
            "status": {}},
        "properties": {
            "metadata": {"type": "object", "open": true, "properties": {"labels": texts, "name": {"type": "string"}}},
            "data": texts,
            "spec": {"type": "object", "properties": {
                "replicas": {"type": "integer"},
                "selector": {"type": "object", "atomic": true},
                "strategy": {"type": "object", "properties": {"type": {"type": "string"}}},
                "template": {"type": "object", "properties": {
                    "metadata": {"type": "object", "properties": {"labels": texts}},
                    "spec": {"type": "object", "properties": {
                        "containers": {"type": "array", "list": ["name"], "items": {"type": "object"}}
                    }},
                }},
            }},
        }
    }))
}

fn request<'a>(manager: &'a str, now: &'a str, ignored: &'a FieldSet) -> Request<'a> {
    Request {
        manager,
        api_version: "v1",
        subresource: "",
        now,
        ignored,
        force: false,
    }
}

fn updated(old: Option<&Value>, mut new: Value, manager: &str, now: &str) -> Value {
    let ignored = FieldSet::new();
    update(old, &mut new, &request(manager, now, &ignored), &shape());
    new
}

fn applied(live: Option<&Value>, config: Value, manager: &str, now: &str) -> Value {
    let ignored = FieldSet::new();
    apply(live, &config, &request(manager, now, &ignored), &shape()).expect("applies")
}

/// `manager operation time`, in the order in which they stand.
fn managers(object: &Value) -> Vec<String> {
    let entries = object
        .pointer("/metadata/managedFields")
        .and_then(Value::as_array);
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or("-").to_owned();
    entries
        .into_iter()
        .flatten()
        .map(|entry| {
            let words = ["manager", "operation", "time"].map(|name| text(entry, name));
            words.join(" ")
        })
        .collect()
}

fn data(pairs: &[(&str, &str)]) -> Value {
    let data: serde_json::Map<String, Value> = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect();
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "n"}, "data": data})
}

/// The object with other data, as a client sends it that has read it.
fn with_data(object: &Value, pairs: &[(&str, &str)]) -> Value {
    let mut object = object.clone();
    object["data"] = data(pairs)["data"].clone();
    object
}

#[test]
fn a_write_that_changes_nothing_changes_no_accounts() {
    let first = updated(None, data(&[("a", "1")]), "u", "T1");
    assert_eq!(updated(Some(&first), first.clone(), "v", "T2"), first);
    let second = applied(Some(&first), data(&[("a", "1")]), "m", "T3");
    assert_eq!(managers(&second), ["m Apply T3", "u Update T1"]);
    assert_eq!(
        applied(Some(&second), data(&[("a", "1")]), "m", "T4"),
        second
    );
    let third = updated(Some(&second), with_data(&second, &[("a", "2")]), "u", "T5");
    assert_eq!(managers(&third), ["u Update T5"]);
}

#[test]
fn appliers_come_first_then_older_ones_then_names() {
    let object = updated(None, data(&[("a", "1")]), "z", "T1");
    let object = updated(
        Some(&object),
        with_data(&object, &[("a", "1"), ("b", "1")]),
        "b",
        "T2",
    );
    let object = updated(
        Some(&object),
        with_data(&object, &[("a", "1"), ("b", "1"), ("c", "1")]),
        "a",
        "T2",
    );
    let object = applied(Some(&object), data(&[("d", "1")]), "m", "T3");
    assert_eq!(
        managers(&object),
        ["m Apply T3", "z Update T1", "a Update T2", "b Update T2"]
    );
}

#[test]
fn the_oldest_of_too_many_updaters_become_ancient() {
    let names: Vec<String> = (0..13).map(|number| format!("k{number:02}")).collect();
    let pairs: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
    let mut object = updated(None, data(&pairs[..1]), "k00", "T00");
    for count in 1..13 {
        let new = with_data(&object, &pairs[..=count]);
        let now = format!("T{count:02}");
        object = updated(Some(&object), new, &names[count], &now);
    }
    let managers = managers(&object);
    assert_eq!(managers.len(), 10);
    assert_eq!(managers[0], "ancient-changes Update T03");
    assert_eq!(managers[1], "k04 Update T04");
    assert_eq!(
        object["metadata"]["managedFields"][0]["fieldsV1"],
        json!({"f:data": {".": {}, "f:k00": {}, "f:k01": {}, "f:k02": {}, "f:k03": {}}})
    );
}

#[test]
fn a_creator_does_not_own_what_is_always_there() {
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "d", "labels": {"app": "d"}, "uid": "u", "generation": 1},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "d"}},
            "strategy": {"type": "RollingUpdate"},
            "template": {"metadata": {"creationTimestamp": null, "labels": {"app": "d"}},
                "spec": {"containers": [{"name": "nginx", "image": "nginx", "resources": {}}]}}},
        "status": {}});
    let created = updated(None, object, "kubectl-create", "T1");
    assert_eq!(
        created["metadata"]["managedFields"][0]["fieldsV1"],
        json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {
                "f:replicas": {},
                "f:selector": {},
                "f:strategy": {"f:type": {}},
                "f:template": {
                    "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                    "f:spec": {"f:containers": {
                        "k:{\"name\":\"nginx\"}": {".": {}, "f:image": {}, "f:name": {}, "f:resources": {}}
                    }},
                },
            },
        })
    );
}

#[test]
fn clients_may_write_the_accounts() {
    let object = updated(None, data(&[("a", "1")]), "u", "T1");
    let given = |entries: Value| {
        let mut new = object.clone();
        new["metadata"]["managedFields"] = entries;
        updated(Some(&object), new, "v", "T2")
    };
    let entry = json!({"manager": "kubectl", "operation": "Apply", "apiVersion": "v1",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:a": {}}}});
    assert_eq!(managers(&given(json!([entry]))), ["kubectl Apply -"]);
    assert_eq!(managers(&given(json!([{}]))), [""; 0]);
    assert_eq!(managers(&given(json!([]))), ["u Update T1"]);
    assert_eq!(
        managers(&given(json!([{"manager": "half"}]))),
        ["u Update T1"]
    );
    assert_eq!(managers(&given(json!("nonsense"))), ["u Update T1"]);

    let ignored = FieldSet::new();
    let mut through_status = object.clone();
    through_status["metadata"]["managedFields"] = json!([entry]);
    let request = Request {
        subresource: "status",
        ..request("v", "T2", &ignored)
    };
    update(Some(&object), &mut through_status, &request, &shape());
    assert_eq!(managers(&through_status), ["u Update T1"]);
}

#[test]
fn a_configuration_does_not_say_who_manages_what() {
    let mut config = data(&[("a", "1")]);
    config["metadata"]["managedFields"] = json!([{"manager": "m"}]);
    let ignored = FieldSet::new();
    let refused = apply(None, &config, &request("m", "T1", &ignored), &shape());
    assert_eq!(refused, Err(ApplyError::ManagedFields));
    config["metadata"]["managedFields"] = Value::Null;
    assert!(apply(None, &config, &request("m", "T1", &ignored), &shape()).is_ok());
}

#[test]
fn several_faults_are_told_at_once() {
    let config = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "ns"},
        "spec": {"replicas": "x", "nope": 1}});
    let ignored = FieldSet::new();
    let refused = apply(None, &config, &request("m", "T1", &ignored), &shape());
    assert_eq!(
        refused.expect_err("does not fit").to_string(),
        "failed to create typed patch object (ns/d; apps/v1, Kind=Deployment): errors:\n  .spec.nope: field not declared in schema\n  .spec.replicas: expected numeric (int or float), got string"
    );
}
