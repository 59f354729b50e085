//! From the server's text to typed objects, one object at a time.
//!
//! What one client writes must not blind all readers of the kind. Go's clients write `null` where a time
//! is not set, also where the typed object must have one, and the server keeps it. So an object that
//! cannot be read as it is is read once more with what Go would have put there; and one that cannot
//! be read even then is left out, while everything round it goes on.

use kube::api::{ListMeta, ObjectMeta};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::informers::Object;

/// A time that was never set, as Go has it.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// A list whose objects are yet to be read.
#[derive(Deserialize)]
pub(crate) struct List<'a> {
    #[serde(default)]
    pub(crate) metadata: ListMeta,
    /// Go's clients and servers may say `null` for an empty list.
    #[serde(borrow, default)]
    pub(crate) items: Option<Vec<&'a RawValue>>,
}

/// An event of a watch whose object is yet to be read.
#[derive(Deserialize)]
pub(crate) struct Frame<'a> {
    #[serde(rename = "type")]
    pub(crate) event: &'a str,
    #[serde(borrow)]
    pub(crate) object: &'a RawValue,
}

/// What is known of an object that cannot be read.
#[derive(Debug)]
pub(crate) struct Unreadable {
    /// Which object it is, as far as that can be read.
    pub(crate) metadata: ObjectMeta,
    pub(crate) error: serde_json::Error,
}

#[derive(Deserialize)]
struct OnlyMetadata {
    #[serde(default)]
    metadata: ObjectMeta,
}

/// Reads an object, see the module.
pub(crate) fn object<K: Object>(text: &RawValue) -> Result<K, Box<Unreadable>> {
    let error = match serde_json::from_str(text.get()) {
        Ok(object) => return Ok(object),
        Err(error) => error,
    };
    let mut value: Value = serde_json::from_str(text.get()).unwrap_or_default();
    complete(&mut value);
    if let Ok(object) = serde_json::from_value(value) {
        return Ok(object);
    }
    let metadata = serde_json::from_str::<OnlyMetadata>(text.get());
    Err(Box::new(Unreadable {
        metadata: metadata.map(|only| only.metadata).unwrap_or_default(),
        error,
    }))
}

/// Takes out what is `null`, and gives each condition the time that it must have.
fn complete(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            let conditions = fields.get_mut("conditions").and_then(Value::as_array_mut);
            for condition in conditions.into_iter().flatten() {
                if let Value::Object(condition) = condition {
                    let time = condition.entry("lastTransitionTime").or_insert(Value::Null);
                    if time.is_null() {
                        *time = ZERO_TIME.into();
                    }
                }
            }
            fields.values_mut().for_each(complete);
        }
        Value::Array(items) => items.iter_mut().for_each(complete),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Pod, Service};
    use serde_json::json;

    use super::*;

    fn read<K: Object>(value: &Value) -> Result<K, Box<Unreadable>> {
        let text = RawValue::from_string(value.to_string()).expect("is JSON");
        object(&text)
    }

    #[test]
    fn a_time_that_was_never_set_is_no_reason_to_be_blind() {
        let service: Service = read(&json!({
            "metadata": {"name": "web", "creationTimestamp": null, "deletionTimestamp": null},
            "status": {"conditions": [{"type": "A", "status": "True", "reason": "B", "message": "", "lastTransitionTime": null}]},
        }))
        .expect("is read");
        assert_eq!(service.metadata.deletion_timestamp, None);
        let condition = service
            .status
            .and_then(|status| status.conditions?.into_iter().next());
        let time = condition.expect("is there").last_transition_time.0;
        assert_eq!(time.to_string(), ZERO_TIME);
    }

    #[test]
    fn of_what_cannot_be_read_the_name_is_known() {
        let unreadable = read::<Pod>(&json!({
            "metadata": {"name": "web", "namespace": "default"}, "spec": {"containers": "none"},
        }))
        .expect_err("is no pod");
        assert_eq!(unreadable.metadata.name.as_deref(), Some("web"));
        assert_eq!(unreadable.metadata.namespace.as_deref(), Some("default"));
    }
}
