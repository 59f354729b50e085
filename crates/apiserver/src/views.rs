//! Two kinds that show the same stored objects: events of the core group and of `events.k8s.io`.
//!
//! They are stored as those of the core group; the newer kind calls some of the fields otherwise.

use kinds::Kind;
use serde_json::Value;

/// (name in the core group, name in `events.k8s.io`)
const EVENT: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// The fields of a kind that are called otherwise where its objects are stored.
pub(crate) fn renames(kind: &Kind) -> &'static [(&'static str, &'static str)] {
    match (kind.group(), kind.kind()) {
        ("events.k8s.io", "Event") => EVENT,
        _ => &[],
    }
}

/// The label by which field selectors of a kind know a field that the stored objects have under
/// `stored`; `None` if they do not.
pub(crate) fn field_label(kind: &Kind, stored: &'static str) -> Option<&'static str> {
    if renames(kind).is_empty() {
        return Some(stored);
    }
    Some(match stored {
        "involvedObject.kind" => "regarding.kind",
        "involvedObject.namespace" => "regarding.namespace",
        "involvedObject.name" => "regarding.name",
        "involvedObject.uid" => "regarding.uid",
        "involvedObject.apiVersion" => "regarding.apiVersion",
        "involvedObject.resourceVersion" => "regarding.resourceVersion",
        "involvedObject.fieldPath" => "regarding.fieldPath",
        "reportingComponent" => "reportingController",
        "source" => return None,
        same => same,
    })
}

/// The kind that objects of a kind are stored as.
pub(crate) fn stored_kind(kind: &'static Kind) -> &'static Kind {
    if renames(kind).is_empty() {
        return kind;
    }
    kinds::builtin()
        .by_kind("", "v1", kind.kind())
        .expect("a kind with another view is in the core group")
}

/// A stored object under the names of a kind.
pub(crate) fn shown(
    mut object: Value,
    renames: &[(&str, &str)],
    kind: &str,
    api_version: &str,
) -> Value {
    rename(&mut object, renames.iter().copied());
    object["kind"] = kind.into();
    object["apiVersion"] = api_version.into();
    object
}

/// An object under the names that it is stored with.
pub(crate) fn stored(mut object: Value, renames: &[(&str, &str)]) -> Value {
    rename(
        &mut object,
        renames.iter().map(|(stored, shown)| (*shown, *stored)),
    );
    object
}

fn rename<'a>(object: &mut Value, names: impl Iterator<Item = (&'a str, &'a str)>) {
    if let Some(members) = object.as_object_mut() {
        for (from, to) in names {
            if let Some(value) = members.remove(from) {
                members.insert(to.to_owned(), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_has_two_views() {
        let core = json!({"kind": "Event", "apiVersion": "v1", "message": "m", "reason": "r"});
        let newer = shown(core.clone(), EVENT, "Event", "events.k8s.io/v1");
        assert_eq!(
            newer,
            json!({"kind": "Event", "apiVersion": "events.k8s.io/v1", "note": "m", "reason": "r"})
        );
        assert_eq!(stored(newer, EVENT)["message"], "m");
    }
}
