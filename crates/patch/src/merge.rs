//! JSON merge patch (RFC 7386).
//!
//! One departure, as in the genuine server: an object inside a list loses its null members, too,
//! though a list is otherwise replaced as it is.

use serde_json::{Map, Value};

use crate::go;

/// Why a merge patch is refused. The genuine server answers 400 with this text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergePatchError {
    /// It is no object.
    #[error(
        "error decoding patch: json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"
    )]
    NotAnObject {
        /// What it is.
        found: &'static str,
    },
    /// It is null.
    #[error("Invalid JSON Patch")]
    Null,
}

/// Merges `patch` into `doc`: objects by member, a null deletes, everything else replaces.
///
/// # Errors
/// When the patch is no object. `doc` is as it was then.
pub fn merge_patch(doc: &mut Value, patch: &Value) -> Result<(), MergePatchError> {
    match patch {
        Value::Object(patch) => {
            merge(doc, patch);
            Ok(())
        }
        Value::Null => Err(MergePatchError::Null),
        other => Err(MergePatchError::NotAnObject {
            found: go::json_kind(other),
        }),
    }
}

fn merge(doc: &mut Value, patch: &Map<String, Value>) {
    if !doc.is_object() {
        *doc = Value::Object(Map::new());
    }
    let Value::Object(members) = doc else { return };
    for (name, value) in patch {
        match value {
            Value::Null => {
                members.remove(name);
            }
            Value::Object(patch) => merge(members.entry(name).or_insert(Value::Null), patch),
            other => {
                let mut other = other.clone();
                drop_nulls(&mut other);
                members.insert(name.clone(), other);
            }
        }
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn check(mut doc: Value, patch: Value, expected: Value) {
        merge_patch(&mut doc, &patch).expect("the patch is an object");
        assert_eq!(doc, expected);
    }

    /// The examples of RFC 7386, appendix A, whose patch is an object.
    #[test]
    fn examples_of_the_rfc() {
        check(json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"}));
        check(
            json!({"a": "b"}),
            json!({"b": "c"}),
            json!({"a": "b", "b": "c"}),
        );
        check(json!({"a": "b"}), json!({"a": null}), json!({}));
        check(
            json!({"a": "b", "b": "c"}),
            json!({"a": null}),
            json!({"b": "c"}),
        );
        check(json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"}));
        check(json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]}));
        check(
            json!({"a": {"b": "c"}}),
            json!({"a": {"b": "d", "c": null}}),
            json!({"a": {"b": "d"}}),
        );
        check(
            json!({"a": [{"b": "c"}]}),
            json!({"a": [1]}),
            json!({"a": [1]}),
        );
        check(
            json!({"e": null}),
            json!({"a": 1}),
            json!({"e": null, "a": 1}),
        );
        check(
            json!([1, 2]),
            json!({"a": "b", "c": null}),
            json!({"a": "b"}),
        );
        check(
            json!({}),
            json!({"a": {"bb": {"ccc": null}}}),
            json!({"a": {"bb": {}}}),
        );
    }

    #[test]
    fn lists_are_replaced_without_the_nulls_in_their_objects() {
        check(
            json!({"l": [5]}),
            json!({"l": [1, null, {"a": null, "b": [{"c": null}]}]}),
            json!({"l": [1, null, {"b": [{}]}]}),
        );
    }

    #[test]
    fn what_is_no_object_is_refused_as_upstream_does() {
        let check = |patch: Value, expected: &str| {
            let mut doc = json!({"a": 1});
            let refused = merge_patch(&mut doc, &patch).expect_err("is no object");
            assert_eq!(refused.to_string(), expected);
            assert_eq!(doc, json!({"a": 1}));
        };
        check(
            json!([]),
            "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
        );
        check(
            json!("x"),
            "error decoding patch: json: cannot unmarshal string into Go value of type map[string]interface {}",
        );
        check(Value::Null, "Invalid JSON Patch");
    }

    fn object() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i32>().prop_map(Value::from),
            "[a-c]".prop_map(Value::from)
        ];
        let value = leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-d]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        });
        prop::collection::btree_map("[a-d]", value, 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    /// The smallest merge patch from one object to another.
    fn difference(from: &Value, to: &Value) -> Value {
        let (Value::Object(from), Value::Object(to)) = (from, to) else {
            return to.clone();
        };
        let mut patch = Map::new();
        for name in from.keys() {
            if !to.contains_key(name) {
                patch.insert(name.clone(), Value::Null);
            }
        }
        for (name, value) in to {
            match from.get(name) {
                Some(old) if old == value => {}
                Some(old) if old.is_object() => {
                    patch.insert(name.clone(), difference(old, value));
                }
                _ => {
                    patch.insert(name.clone(), value.clone());
                }
            }
        }
        Value::Object(patch)
    }

    proptest! {
        #[test]
        fn merging_the_difference_leads_there(from in object(), to in object()) {
            let mut doc = from.clone();
            merge_patch(&mut doc, &difference(&from, &to)).expect("the patch is an object");
            prop_assert_eq!(doc, to);
        }
    }
}
