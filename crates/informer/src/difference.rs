//! The smallest merge patch from one state to another.

use serde_json::{Map, Value};

/// The JSON merge patch (RFC 7386) that turns `before` into `after`; `None` when they are equal, which
/// is the write that a worker should not make. Lists are taken whole, as a merge patch must.
///
/// A patch of what changed, rather than the typed object as a whole, keeps the fields that the typed
/// object does not know.
pub fn merge_difference(before: &Value, after: &Value) -> Option<Value> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            let mut patch = Map::new();
            for name in before.keys() {
                if after.get(name).is_none_or(Value::is_null) && !before[name].is_null() {
                    patch.insert(name.clone(), Value::Null);
                }
            }
            for (name, value) in after.iter().filter(|(_, value)| !value.is_null()) {
                match before.get(name) {
                    Some(old) => {
                        if let Some(inner) = merge_difference(old, value) {
                            patch.insert(name.clone(), inner);
                        }
                    }
                    None => {
                        patch.insert(name.clone(), value.clone());
                    }
                }
            }
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        _ => (before != after).then(|| after.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(before: Value, after: Value, patch: Option<Value>) {
        assert_eq!(
            merge_difference(&before, &after),
            patch,
            "{before} to {after}"
        );
    }

    #[test]
    fn only_what_changed_is_in_the_patch() {
        check(json!({"a": 1}), json!({"a": 1}), None);
        check(
            json!({"a": 1, "b": {"c": 2, "d": 3}}),
            json!({"a": 1, "b": {"c": 4, "d": 3}}),
            Some(json!({"b": {"c": 4}})),
        );
        check(
            json!({"a": 1, "b": 2}),
            json!({"b": 2}),
            Some(json!({"a": null})),
        );
        check(
            json!({}),
            json!({"a": {"b": 1}}),
            Some(json!({"a": {"b": 1}})),
        );
        check(
            json!({"a": [1, 2]}),
            json!({"a": [1]}),
            Some(json!({"a": [1]})),
        );
        check(
            json!({"a": {"b": 1}}),
            json!({"a": 5}),
            Some(json!({"a": 5})),
        );
    }

    #[test]
    fn null_and_absent_are_the_same() {
        check(json!({"a": null}), json!({}), None);
        check(json!({}), json!({"a": null}), None);
        check(
            json!({"a": 1}),
            json!({"a": null}),
            Some(json!({"a": null})),
        );
    }
}
