//! What all objects have in common: names, labels, annotations, owners, finalizers.

use serde_json::Value;

use crate::Fault;
use crate::fault::Path;
use crate::names::{self, NameCheck};
use crate::read::{entries, list, text};

const METADATA: Path<'static> = Path::new("metadata");
/// All keys and values of the annotations together.
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

/// The name of an object; empty while it has none.
pub fn name(object: &Value) -> &str {
    text(&object["metadata"], "name")
}

/// The namespace of an object; empty if it has none.
pub fn namespace(object: &Value) -> &str {
    text(&object["metadata"], "namespace")
}

pub(crate) fn selectable_fields(object: &Value, namespaced: bool) -> Vec<(&'static str, String)> {
    let mut fields = vec![("metadata.name", name(object).to_owned())];
    if namespaced {
        fields.push(("metadata.namespace", namespace(object).to_owned()));
    }
    fields
}

/// The metadata of a new object.
pub(crate) fn validate(
    object: &Value,
    namespaced: bool,
    check: NameCheck,
    faults: &mut Vec<Fault>,
) {
    let metadata = &object["metadata"];
    let path = METADATA;
    let generate_name = text(metadata, "generateName");
    for problem in if generate_name.is_empty() {
        Vec::new()
    } else {
        check(generate_name, true)
    } {
        faults.push(Fault::invalid(
            path.child("generateName"),
            generate_name,
            problem,
        ));
    }
    let name = text(metadata, "name");
    if name.is_empty() {
        faults.push(Fault::required(
            path.child("name"),
            "name or generateName is required",
        ));
    } else {
        for problem in check(name, false) {
            faults.push(Fault::invalid(path.child("name"), name, problem));
        }
    }
    let namespace = text(metadata, "namespace");
    if namespaced {
        if namespace.is_empty() {
            faults.push(Fault::required(path.child("namespace"), ""));
        } else {
            for problem in names::label_name(namespace, false) {
                faults.push(Fault::invalid(path.child("namespace"), namespace, problem));
            }
        }
    } else if !namespace.is_empty() {
        faults.push(Fault::forbidden(
            path.child("namespace"),
            "not allowed on this type",
        ));
    }
    validate_attachments(metadata, path, faults);
}

/// Labels, annotations, owners, finalizers: what an update may change.
fn validate_attachments(metadata: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    if let Some(generation) = metadata["generation"]
        .as_i64()
        .filter(|generation| *generation < 0)
    {
        faults.push(Fault::invalid(
            path.child("generation"),
            generation,
            NOT_NEGATIVE,
        ));
    }
    validate_labels(&metadata["labels"], path.child("labels"), faults);
    validate_annotations(&metadata["annotations"], path.child("annotations"), faults);
    validate_owners(metadata, path, faults);
    validate_finalizers(metadata, path, faults);
}

/// The text for numbers below zero.
pub(crate) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
/// The text for fields that may not change.
pub(crate) const IMMUTABLE: &str = "field is immutable";

/// A map of labels.
pub(crate) fn validate_labels(labels: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    for (key, value) in entries(labels) {
        for problem in names::qualified_name(key) {
            faults.push(Fault::invalid(path, key.as_str(), problem));
        }
        let value = value.as_str().unwrap_or_default();
        for problem in names::label_value(value) {
            faults.push(Fault::invalid(path, value, problem));
        }
    }
}

/// A map of annotations. Keys may be written in capitals.
pub(crate) fn validate_annotations(annotations: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let mut size = 0;
    for (key, value) in entries(annotations) {
        for problem in names::qualified_name(&key.to_lowercase()) {
            faults.push(Fault::invalid(path, key.as_str(), problem));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_LIMIT {
        faults.push(Fault::too_long(path, ANNOTATIONS_LIMIT));
    }
}

fn validate_owners(metadata: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let owners = path.child("ownerReferences");
    let mut controller = "";
    for owner in list(metadata, "ownerReferences") {
        // Upstream leaves the index out.
        let path = owners;
        let version = text(owner, "apiVersion");
        if version.rsplit('/').next().unwrap_or_default().is_empty() {
            faults.push(Fault::invalid(
                path.child("apiVersion"),
                version,
                "version must not be empty",
            ));
        }
        if version.matches('/').count() > 1 {
            faults.push(Fault::invalid(
                path.child("apiVersion"),
                version,
                format!("unexpected GroupVersion string: {version}"),
            ));
        }
        for (field, what) in [
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if text(owner, field).is_empty() {
                faults.push(Fault::invalid(path.child(field), "", what));
            }
        }
        if owner["controller"] == true {
            if !controller.is_empty() {
                let text = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {controller} and {}",
                    text(owner, "name")
                );
                faults.push(Fault::invalid(
                    owners,
                    metadata["ownerReferences"].clone(),
                    text,
                ));
            } else {
                controller = text(owner, "name");
            }
        }
    }
}

fn validate_finalizers(metadata: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let mut conflicting = Vec::new();
    for (index, finalizer) in list(metadata, "finalizers").iter().enumerate() {
        let finalizer = finalizer.as_str().unwrap_or_default();
        let finalizers = path.child("finalizers");
        for problem in names::qualified_name(finalizer) {
            faults.push(Fault::invalid(finalizers, finalizer, problem));
        }
        if !finalizer.contains('/')
            && !["orphan", "foregroundDeletion", "kubernetes"].contains(&finalizer)
        {
            let text = "name is neither a standard finalizer name nor is it fully qualified";
            faults.push(Fault::invalid(finalizers.index(index), finalizer, text));
        }
        if finalizer == "orphan" || finalizer == "foregroundDeletion" {
            conflicting.push(finalizer);
        }
    }
    if conflicting.contains(&"orphan") && conflicting.contains(&"foregroundDeletion") {
        let text = "finalizer orphan and foregroundDeletion cannot be both set";
        faults.push(Fault::invalid(
            path.child("finalizers"),
            metadata["finalizers"].clone(),
            text,
        ));
    }
}

/// The metadata of a changed object: what may never change, and what must stay well-formed.
pub(crate) fn validate_update(new: &Value, old: &Value, faults: &mut Vec<Fault>) {
    let path = METADATA;
    let (new, old) = (&new["metadata"], &old["metadata"]);
    for field in [
        "name",
        "namespace",
        "uid",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        // Absent values are filled in from the old object before an update is checked.
        if !new[field].is_null() && new[field] != old[field] {
            faults.push(Fault::invalid(
                path.child(field),
                new[field].clone(),
                IMMUTABLE,
            ));
        }
    }
    if text(new, "resourceVersion").is_empty() {
        faults.push(Fault::invalid(
            path.child("resourceVersion"),
            "",
            "must be specified for an update",
        ));
    }
    if new["generation"].as_i64().unwrap_or(0) < old["generation"].as_i64().unwrap_or(0) {
        faults.push(Fault::invalid(
            path.child("generation"),
            new["generation"].clone(),
            "must not be decremented",
        ));
    }
    if !old["deletionTimestamp"].is_null() {
        let known = list(old, "finalizers");
        let added: Vec<&str> = list(new, "finalizers")
            .iter()
            .filter(|item| !known.contains(item))
            .filter_map(Value::as_str)
            .collect();
        if !added.is_empty() {
            let text = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added
                    .iter()
                    .map(|item| crate::quote(item))
                    .collect::<Vec<_>>()
                    .join(", ")
            );
            faults.push(Fault::forbidden(path.child("finalizers"), text));
        }
    }
    validate_attachments(new, path, faults);
}

/// Drops owners that stand more than once.
pub(crate) fn drop_repeated_owners(object: &mut Value) {
    if let Some(Value::Array(owners)) = object.pointer_mut("/metadata/ownerReferences") {
        let mut known: Vec<Value> = Vec::with_capacity(owners.len());
        owners.retain(|owner| {
            let new = !known.contains(owner);
            if new {
                known.push(owner.clone());
            }
            new
        });
    }
}

/// Takes from the old object what no writer can change: when it was made, and how often its spec changed.
pub(crate) fn keep(new: &mut Value, old: &Value) {
    let Value::Object(fields) = &mut new["metadata"] else {
        return;
    };
    for field in ["creationTimestamp", "generation"] {
        match old["metadata"].get(field) {
            Some(value) => drop(fields.insert(field.to_owned(), value.clone())),
            None => drop(fields.remove(field)),
        }
    }
    fields.remove("selfLink");
}

/// Counts `metadata.generation` on if `spec` changed.
pub(crate) fn count_generation(new: &mut Value, old: &Value) {
    let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
    let changed = new["spec"] != old["spec"];
    new["metadata"]["generation"] = (generation + i64::from(changed)).into();
}
