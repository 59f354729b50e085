//! Histories of objects of a custom kind, replayed: `genuine.json` holds what was sent to the
//! genuine server (1.36) and what it answered; the same must come out here.

mod schema;

use patch::apply::{ApplyError, FieldSet, Request, apply, update};
use patch::merge_patch;
use schema::Schema;
use serde_json::{Map, Value, json};

fn thing() -> Schema {
    let text = json!({"type": "string"});
    let number = json!({"type": "integer"});
    let texts = json!({"type": "object", "additionalProperties": text});
    Schema::new(json!({"type": "object", "properties": {
        "apiVersion": text, "kind": text,
        "metadata": {"type": "object", "open": true, "properties": {
            "name": text, "labels": texts, "annotations": texts,
            "finalizers": {"type": "array", "list": "set", "items": text},
        }},
        "status": {"type": "object", "open": true},
        "spec": {"type": "object", "properties": {
            "any": {"type": "object", "open": true},
            "map": texts,
            "atom": {"type": "object", "atomic": true, "additionalProperties": text},
            "nested": {"type": "object", "properties": {"a": number, "b": number}},
            "set": {"type": "array", "list": "set", "items": text},
            "list": {"type": "array", "items": text},
            "keyed": {"type": "array", "list": ["name"], "items": {"type": "object",
                "properties": {"name": text, "v": number, "w": number}}},
            "ports": {"type": "array", "list": ["port", "protocol"], "items": {"type": "object",
                "properties": {"port": number, "v": number,
                    "protocol": {"type": "string", "default": "TCP"}}}},
        }},
    }}))
}

/// What the server does beside patching: defaults, and no metadata that is empty.
fn finish(object: &mut Value) {
    if let Some(ports) = object
        .pointer_mut("/spec/ports")
        .and_then(Value::as_array_mut)
    {
        for port in ports {
            if let Value::Object(port) = port {
                port.entry("protocol").or_insert(json!("TCP"));
            }
        }
    }
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.retain(|_, value| match value {
            Value::Object(map) => !map.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => true,
        });
    }
}

/// What the server keeps of the stored object where the request does not reach.
fn restore(object: &mut Value, stored: &Value, names: &[&str]) {
    let Value::Object(object) = object else {
        return;
    };
    for name in names {
        match stored.get(name) {
            Some(value) => object.insert((*name).to_owned(), value.clone()),
            None => object.remove(*name),
        };
    }
}

struct Step<'a>(&'a Value);

impl Step<'_> {
    fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or("")
    }

    fn body(&self) -> Value {
        let mut body = self.0["body"].clone();
        if self.text("kind") != "merge" {
            body["apiVersion"] = json!("patch.example.com/v1");
            body["kind"] = json!("Thing");
            body["metadata"]["name"] = json!("name");
        }
        body
    }

    fn run(&self, live: Option<&Value>, now: &str) -> Result<Value, ApplyError> {
        let is_status = self.text("sub") == "status";
        let unreached: &[&str] = if is_status {
            &["spec", "metadata"]
        } else {
            &["status"]
        };
        let ignored = FieldSet::of_fields(unreached.iter().copied());
        let request = Request {
            manager: self.text("manager"),
            api_version: "patch.example.com/v1",
            subresource: self.text("sub"),
            now,
            ignored: &ignored,
            force: self.0["force"] == true,
        };
        let shape = thing();
        let body = self.body();
        if self.text("kind") == "apply" {
            let mut applied = apply(live, &body, &request, &shape)?;
            finish(&mut applied);
            return Ok(applied);
        }
        let object = match live {
            Some(live) => {
                let mut object = live.clone();
                merge_patch(&mut object, &body).map(|()| object)
            }
            None => Ok(body),
        };
        let mut object = object.expect("the patch is an object");
        restore(&mut object, live.unwrap_or(&Value::Null), unreached);
        finish(&mut object);
        update(live, &mut object, &request, &shape);
        Ok(object)
    }
}

/// The answer in the form of the recording.
fn summary(result: &Result<Value, ApplyError>) -> Value {
    match result {
        Ok(object) => {
            let mut summary = Map::new();
            let metadata = &object["metadata"];
            summary.insert("spec".to_owned(), object["spec"].clone());
            let members = [
                ("status", object.get("status")),
                ("labels", metadata.get("labels")),
                ("annotations", metadata.get("annotations")),
                ("finalizers", metadata.get("finalizers")),
            ];
            for (name, value) in members {
                summary.extend(value.map(|value| (name.to_owned(), value.clone())));
            }
            let entries = metadata.get("managedFields").and_then(Value::as_array);
            let mut managers: Vec<Value> = entries
                .into_iter()
                .flatten()
                .map(|entry| {
                    let subresource = entry.get("subresource").cloned();
                    json!([
                        entry["manager"],
                        entry["operation"],
                        subresource.unwrap_or_else(|| json!("")),
                        entry["fieldsV1"]
                    ])
                })
                .collect();
            managers.sort_by_key(|manager| {
                [0, 1, 2].map(|index| manager[index].as_str().map(str::to_owned))
            });
            summary.insert("managers".to_owned(), Value::Array(managers));
            Value::Object(summary)
        }
        Err(error) => {
            // The genuine server tells the causes of several managers in any order.
            let mut causes: Vec<[String; 2]> = match error {
                ApplyError::Conflicts(conflicts) => conflicts
                    .iter()
                    .map(|conflict| [conflict.message(), conflict.path.clone()])
                    .collect(),
                _ => Vec::new(),
            };
            causes.sort();
            json!({"message": error.to_string(), "causes": causes})
        }
    }
}

#[test]
fn the_genuine_server_answers_the_same() {
    let histories: Value =
        serde_json::from_str(include_str!("genuine.json")).expect("the recording is JSON");
    let mut count = 0;
    let mut different = Vec::new();
    for history in histories.as_array().expect("is a list") {
        let mut live: Option<Value> = None;
        for (index, step) in history["steps"]
            .as_array()
            .expect("is a list")
            .iter()
            .enumerate()
        {
            let now = format!("2026-01-01T00:00:{index:02}Z");
            let result = Step(step).run(live.as_ref(), &now);
            count += 1;
            let found = summary(&result);
            if found != step["answer"] {
                different.push(format!(
                    "{} step {index}: {}\n  genuine {}\n  ours    {found}",
                    history["title"], step["body"], step["answer"]
                ));
                break;
            }
            if let Ok(object) = result {
                live = Some(object);
            }
        }
    }
    assert!(count > 300, "only {count} steps were compared");
    assert!(different.is_empty(), "{}", different.join("\n"));
}
