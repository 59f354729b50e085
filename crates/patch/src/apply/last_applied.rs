//! The way from `kubectl apply` to `kubectl apply --server-side`.
//!
//! Client-side apply keeps its last configuration in an annotation. Server-side apply by the same
//! tool takes over what that configuration set without a conflict, and keeps the annotation up to
//! date, so that the way back stays open.

use serde_json::{Map, Value};

use super::Wanted;
use super::compare::compare;
use super::fields::FieldSet;
use super::typed;
use crate::Shape;

/// The manager that this is for.
const MANAGER: &str = "kubectl";
const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Bytes that all annotations of an object may have together; a larger one is left out.
const ANNOTATIONS: usize = 256 << 10;

fn annotation(object: &Value) -> Option<&str> {
    object
        .get("metadata")?
        .get("annotations")?
        .get(ANNOTATION)?
        .as_str()
}

/// Whether all conflicts are about fields that client-side apply set, and that are still so.
pub(super) fn allows<S: Shape>(
    manager: &str,
    live: &Value,
    conflicts: &Wanted<'_>,
    shape: &S,
) -> bool {
    if manager != MANAGER {
        return false;
    }
    let Some(last) = annotation(live).and_then(|text| serde_json::from_str(text).ok()) else {
        return false;
    };
    let changed = compare(&last, live, Some(shape));
    let allowed = typed::owned(&last, Some(shape))
        .difference(&changed.modified)
        .difference(&changed.removed);
    let mut wanted = FieldSet::new();
    for (_, path) in conflicts {
        wanted.insert(path);
    }
    wanted.difference(&allowed).is_empty()
}

/// Writes `config` into the annotation, if there is one.
pub(super) fn refresh(manager: &str, object: &mut Value, config: &Value) {
    if manager != MANAGER || annotation(object).is_none() {
        return;
    }
    let mut config = config.clone();
    if let Some(annotations) = config.pointer_mut("/metadata/annotations")
        && let Value::Object(annotations) = annotations
    {
        annotations.remove(ANNOTATION);
    }
    let text = go_json(&config);
    if let Some(Value::Object(annotations)) = object.pointer_mut("/metadata/annotations") {
        if others(annotations) + text.len() <= ANNOTATIONS {
            annotations.insert(ANNOTATION.to_owned(), Value::String(text));
        } else {
            annotations.remove(ANNOTATION);
        }
    }
}

/// The bytes of the other annotations.
fn others(annotations: &Map<String, Value>) -> usize {
    let others = annotations.iter().filter(|(name, _)| *name != ANNOTATION);
    others
        .map(|(name, value)| name.len() + value.as_str().map_or(0, str::len))
        .sum()
}

/// JSON as Go's encoder writes it: with a newline, and without characters that HTML minds.
fn go_json(value: &Value) -> String {
    let mut text = value.to_string();
    for (character, escaped) in [
        ('<', "\\u003c"),
        ('>', "\\u003e"),
        ('&', "\\u0026"),
        ('\u{2028}', "\\u2028"),
        ('\u{2029}', "\\u2029"),
    ] {
        // They occur in strings only.
        text = text.replace(character, escaped);
    }
    text.push('\n');
    text
}
