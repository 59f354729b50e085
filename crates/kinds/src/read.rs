//! Reading of fields of objects that were decoded, so that what is there has the right type.

use serde_json::{Map, Value};

/// A string field; empty when absent.
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

/// A list field; empty when absent.
pub(crate) fn list<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object[field].as_array().map_or(&[], Vec::as_slice)
}

/// The entries of a map; none when it is absent.
pub(crate) fn entries(map: &Value) -> impl Iterator<Item = (&String, &Value)> {
    map.as_object().into_iter().flat_map(Map::iter)
}

/// A boolean field; false when absent.
pub(crate) fn flag(object: &Value, field: &str) -> bool {
    object[field].as_bool().unwrap_or_default()
}

/// Fills in a field that is absent, null or the empty string.
pub(crate) fn fill(object: &mut Value, field: &str, value: impl Into<Value>) {
    let missing = object[field].is_null() || object[field] == "";
    if missing && let Value::Object(fields) = object {
        fields.insert(field.to_owned(), value.into());
    }
}

/// Takes a field away.
pub(crate) fn remove(object: &mut Value, field: &str) {
    if let Value::Object(fields) = object {
        fields.remove(field);
    }
}
