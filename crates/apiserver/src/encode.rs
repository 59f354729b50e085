//! Objects as bytes: the form that is stored is the form that goes out.
//!
//! ```text
//! {"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"  1042  ","name":"web",…},"spec":…}
//! └──────── the head of the kind ────────┘                         │
//! └──────────────── the same for every object of the kind ───────┘ └ filled in by the store's writer
//! ```
//!
//! `kind` and `apiVersion` come first so that a LIST can leave them out of its items, as upstream
//! does, by skipping a prefix of known length.

use bytes::Bytes;
use serde_json::{Map, Value};
use store::Body;

/// Text fragments that all objects of a kind share.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// `{"kind":"Pod","apiVersion":"v1",`
    types_len: usize,
    /// All up to where the revision stands.
    before_revision: Bytes,
}

impl Head {
    pub(crate) fn new(kind: &str, api_version: &str) -> Head {
        let types = format!(
            "{{\"kind\":{},\"apiVersion\":{},",
            Value::from(kind),
            Value::from(api_version)
        );
        Head {
            types_len: types.len(),
            before_revision: format!("{types}\"metadata\":{{\"resourceVersion\":\"").into(),
        }
    }

    /// Whether stored bytes are of this kind, and not of another view of the same objects.
    pub(crate) fn is_head_of(&self, bytes: &[u8]) -> bool {
        bytes.starts_with(&self.before_revision)
    }

    /// The same object at another revision, without parsing it.
    pub(crate) fn restamp(&self, bytes: &Bytes) -> Body {
        let start = self.before_revision.len();
        let digits = bytes[start.min(bytes.len())..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        Body::new(
            self.before_revision.clone(),
            bytes.slice((start + digits).min(bytes.len())..),
        )
    }

    /// An object as a value of the store. The object's own `resourceVersion` is not looked at.
    pub(crate) fn body(&self, object: &Value) -> Body {
        let mut after = Vec::with_capacity(1024);
        after.push(b'"');
        if let Some(metadata) = object.get("metadata").and_then(Value::as_object) {
            for (name, value) in metadata {
                if name != "resourceVersion" {
                    after.push(b',');
                    write_member(&mut after, name, value);
                }
            }
        }
        after.push(b'}');
        for (name, value) in object.as_object().into_iter().flatten() {
            if !matches!(name.as_str(), "kind" | "apiVersion" | "metadata") {
                after.push(b',');
                write_member(&mut after, name, value);
            }
        }
        after.push(b'}');
        Body::new(self.before_revision.clone(), after)
    }

    /// The stored bytes as an item of a list: without `kind` and `apiVersion`. The opening brace
    /// is left to the caller, so that nothing is copied.
    pub(crate) fn item<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(self.types_len..).unwrap_or_default()
    }
}

/// An object that is not stored (dry run, review) as bytes, in the same order.
pub(crate) fn unstored(object: &Value) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1024);
    let Some(members) = object.as_object() else {
        write_value(&mut bytes, object);
        return bytes;
    };
    bytes.push(b'{');
    let leading = ["kind", "apiVersion", "metadata"]
        .into_iter()
        .filter_map(|name| members.get_key_value(name));
    let others = members
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "kind" | "apiVersion" | "metadata"));
    for (index, (name, value)) in leading.chain(others).enumerate() {
        if index > 0 {
            bytes.push(b',');
        }
        write_member(&mut bytes, name, value);
    }
    bytes.push(b'}');
    bytes
}

/// Two-space indented, with `kind` and `apiVersion` first, as upstream prints for people.
pub(crate) fn pretty(object: &Value) -> Vec<u8> {
    let ordered = unstored(object);
    let mut bytes = Vec::with_capacity(ordered.len() * 2);
    indent(&ordered, &mut bytes);
    bytes
}

/// Indents compact JSON without changing the order of members.
fn indent(compact: &[u8], out: &mut Vec<u8>) {
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut escaped = false;
    let mut previous = 0_u8;
    let new_line = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.extend(std::iter::repeat_n(b' ', depth * 2));
    };
    for &byte in compact {
        if in_string {
            out.push(byte);
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            previous = byte;
            continue;
        }
        match byte {
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if !matches!(previous, b'{' | b'[') {
                    new_line(out, depth);
                }
                out.push(byte);
            }
            _ => {
                if matches!(previous, b'{' | b'[' | b',') {
                    new_line(out, depth);
                }
                out.push(byte);
                match byte {
                    b'{' | b'[' => depth += 1,
                    b':' => out.push(b' '),
                    b'"' => in_string = true,
                    _ => {}
                }
            }
        }
        previous = byte;
    }
}

fn write_member(out: &mut Vec<u8>, name: &str, value: &Value) {
    serde_json::to_writer(&mut *out, name).expect("a string always serialises into memory");
    out.push(b':');
    write_value(out, value);
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    serde_json::to_writer(out, value).expect("a Value always serialises into memory");
}

/// The members of an object, made if they are not there. An object that is none becomes one.
pub(crate) fn members<'a>(object: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let object = object.as_object_mut().expect("made an object above");
    let member = object
        .entry(name)
        .or_insert_with(|| Value::Object(Map::new()));
    if !member.is_object() {
        *member = Value::Object(Map::new());
    }
    member.as_object_mut().expect("made an object above")
}

/// `metadata.NAME` as text.
pub(crate) fn metadata_str<'a>(object: &'a Value, name: &str) -> &'a str {
    object["metadata"][name].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use store::Revision;

    #[test]
    fn stored_bytes_hold_their_revision_and_drop_the_types_in_lists() {
        let head = Head::new("Event", "events.k8s.io/v1");
        let object = json!({
            "action": "x", "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": "a", "resourceVersion": "7"},
        });
        let bytes = head.body(&object).at(Revision(42));
        assert_eq!(
            std::str::from_utf8(&bytes).expect("text"),
            r#"{"kind":"Event","apiVersion":"events.k8s.io/v1","metadata":{"resourceVersion":"42","name":"a"},"action":"x"}"#
        );
        assert_eq!(
            std::str::from_utf8(head.item(&bytes)).expect("text"),
            r#""metadata":{"resourceVersion":"42","name":"a"},"action":"x"}"#
        );
        assert_eq!(
            std::str::from_utf8(&unstored(&object)).expect("text"),
            r#"{"kind":"Event","apiVersion":"events.k8s.io/v1","metadata":{"name":"a","resourceVersion":"7"},"action":"x"}"#
        );
    }

    #[test]
    fn pretty_json_is_indented_by_two() {
        let object = json!({"kind": "A", "b": [], "c": [1, {"d": "e\"{"}], "f": {}});
        assert_eq!(
            std::str::from_utf8(&pretty(&object)).expect("text"),
            "{\n  \"kind\": \"A\",\n  \"b\": [],\n  \"c\": [\n    1,\n    {\n      \"d\": \"e\\\"{\"\n    }\n  ],\n  \"f\": {}\n}"
        );
    }
}
