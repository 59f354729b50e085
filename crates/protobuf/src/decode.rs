//! From the bytes of a request to the JSON that they stand for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::fields::{Field, Label, Message, message};
use crate::wire::{Reader, Wire};

/// What every body begins with (Kubernetes API concepts, "Protobuf encoding").
const MAGIC: &[u8] = b"k8s\0";
/// Messages within messages; no type of the API needs half of it.
const DEPTH_MAX: usize = 64;
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// Why a body is not what it claims to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It does not begin as all bodies do.
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    Prefix,
    /// It ends before it should.
    #[error("unexpected EOF")]
    Truncated,
    /// Something in it cannot be.
    #[error("proto: illegal {0}")]
    Malformed(&'static str),
    /// A field has a content that its type does not have.
    #[error("proto: wrong wireType for field {0}")]
    WrongType(String),
    /// No kind is named so, or none that can be sent in this form.
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    UnknownKind {
        /// Group and version.
        api_version: String,
        /// Kind.
        kind: String,
    },
    /// The object inside is in yet another form.
    #[error("content of type {0:?} inside a protobuf message is not supported")]
    Content(String),
}

/// The object that a body of `application/vnd.kubernetes.protobuf` carries, with `apiVersion` and `kind`.
pub fn decode(body: &[u8]) -> Result<Value, DecodeError> {
    let envelope = body.strip_prefix(MAGIC).ok_or(DecodeError::Prefix)?;
    let mut raw: &[u8] = &[];
    let (mut api_version, mut kind, mut content) = (String::new(), String::new(), String::new());
    let mut reader = Reader(envelope);
    while let Some((number, wire)) = reader.field()? {
        match (number, wire) {
            (1, Wire::Bytes(type_meta)) => {
                let mut type_meta = Reader(type_meta);
                while let Some((number, wire)) = type_meta.field()? {
                    match (number, wire) {
                        (1, Wire::Bytes(bytes)) => api_version = text(bytes)?,
                        (2, Wire::Bytes(bytes)) => kind = text(bytes)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (3 | 4, Wire::Bytes(bytes)) if !bytes.is_empty() => content = text(bytes)?,
            _ => {}
        }
    }
    if !content.is_empty() && content != "application/vnd.kubernetes.protobuf" {
        return Err(DecodeError::Content(content));
    }
    let Some(fields) = message_of(&api_version, &kind) else {
        return Err(DecodeError::UnknownKind { api_version, kind });
    };
    let mut object = Map::new();
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    fill(&mut object, raw, fields, 0)?;
    Ok(Value::Object(object))
}

/// Groups are packages by their first word, and the group without a name is `core`.
fn message_of(api_version: &str, kind: &str) -> Option<&'static Message> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let package = match group.split('.').next() {
        None | Some("") => "core",
        Some(word) => word,
    };
    message(&format!("io.k8s.api.{package}.{version}.{kind}"))
        .or_else(|| message(&format!("{META}.{kind}")))
}

fn fill(
    object: &mut Map<String, Value>,
    bytes: &[u8],
    fields: &'static Message,
    depth: usize,
) -> Result<(), DecodeError> {
    if depth > DEPTH_MAX {
        return Err(DecodeError::Malformed("nesting"));
    }
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        // Fields of later versions are passed over, as every protobuf reader does.
        let Some(field) = fields.get(&number) else {
            continue;
        };
        match field.label {
            Label::One => {
                let value = value(field, wire, depth)?;
                object.insert(field.name.into(), value);
            }
            Label::Many => {
                let list = object.entry(field.name).or_insert_with(|| json!([]));
                if let Value::Array(list) = list {
                    push(list, field, wire, depth)?;
                }
            }
            Label::Map => {
                let (key, value) = entry(field, wire, depth)?;
                let map = object.entry(field.name).or_insert_with(|| json!({}));
                map[key] = value;
            }
            Label::Embedded => {
                let (Wire::Bytes(bytes), Some(fields)) = (wire, message(field.kind)) else {
                    return Err(wrong(field));
                };
                fill(object, bytes, fields, depth + 1)?;
            }
        }
    }
    Ok(())
}

/// Numbers may be packed: several in one run of bytes.
fn push(
    list: &mut Vec<Value>,
    field: &Field,
    wire: Wire<'_>,
    depth: usize,
) -> Result<(), DecodeError> {
    let number = matches!(field.kind, "int32" | "int64" | "uint32" | "uint64" | "bool");
    match wire {
        Wire::Bytes(bytes) if number => {
            let mut packed = Reader(bytes);
            while !packed.0.is_empty() {
                let varint = packed.varint()?;
                list.push(value(field, Wire::Varint(varint), depth)?);
            }
        }
        _ => list.push(value(field, wire, depth)?),
    }
    Ok(())
}

/// A map is a list of messages with a key in field 1 and a value in field 2; either may be missing when empty.
fn entry(field: &Field, wire: Wire<'_>, depth: usize) -> Result<(String, Value), DecodeError> {
    let Wire::Bytes(bytes) = wire else {
        return Err(wrong(field));
    };
    let (mut key, mut found) = (String::new(), None);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => key = text(bytes)?,
            (2, wire) => found = Some(value(field, wire, depth)?),
            _ => {}
        }
    }
    let found = match found {
        Some(found) => found,
        None => value(field, Wire::Bytes(&[]), depth)?,
    };
    Ok((key, found))
}

fn value(field: &Field, wire: Wire<'_>, depth: usize) -> Result<Value, DecodeError> {
    match (field.kind, wire) {
        ("string", Wire::Bytes(bytes)) => Ok(text(bytes)?.into()),
        ("bytes", Wire::Bytes(bytes)) => Ok(STANDARD.encode(bytes).into()),
        ("bool", Wire::Varint(number)) => Ok((number != 0).into()),
        // Negative numbers are sent as 64 bits; a smaller type keeps the lower ones.
        ("int32", Wire::Varint(number)) => Ok((number as i32).into()),
        ("int64", Wire::Varint(number)) => Ok((number as i64).into()),
        ("uint32", Wire::Varint(number)) => Ok((number as u32).into()),
        ("uint64", Wire::Varint(number)) => Ok(number.into()),
        ("double", Wire::Fixed64(bits)) => Ok(f64::from_bits(bits).into()),
        (kind, Wire::Bytes(bytes)) => {
            let fields = message(kind).ok_or_else(|| wrong(field))?;
            let mut object = Map::new();
            fill(&mut object, bytes, fields, depth + 1)?;
            special(kind, object)
        }
        _ => Err(wrong(field)),
    }
}

/// The messages whose JSON is not an object of the same fields.
fn special(kind: &str, object: Map<String, Value>) -> Result<Value, DecodeError> {
    let number = |name: &str| object.get(name).and_then(Value::as_i64);
    let string = |name: &str| object.get(name).cloned().unwrap_or_else(|| json!(""));
    match kind {
        "io.k8s.apimachinery.pkg.apis.meta.v1.Time"
        | "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime" => {
            // No time at all is the zero time, which JSON calls null.
            let Some(seconds) = number("seconds") else {
                return Ok(Value::Null);
            };
            let digits = if kind.ends_with("MicroTime") {
                "%.6fZ"
            } else {
                "Z"
            };
            let nanoseconds = number("nanos")
                .and_then(|nanos| i32::try_from(nanos).ok())
                .unwrap_or(0);
            let time =
                Timestamp::new(seconds, nanoseconds).map_err(|_| DecodeError::Malformed("time"))?;
            Ok(time
                .strftime(&format!("%Y-%m-%dT%H:%M:%S{digits}"))
                .to_string()
                .into())
        }
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => Ok(string("string")),
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => match number("type") {
            Some(1) => Ok(string("strVal")),
            _ => Ok(number("intVal").unwrap_or(0).into()),
        },
        "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1" => embedded_json(&object, "Raw"),
        "io.k8s.apimachinery.pkg.runtime.RawExtension" => embedded_json(&object, "raw"),
        "io.k8s.api.authentication.v1.ExtraValue" | "io.k8s.api.authorization.v1.ExtraValue" => {
            Ok(object.get("items").cloned().unwrap_or_else(|| json!([])))
        }
        _ => Ok(Value::Object(object)),
    }
}

/// Bytes that are JSON themselves; they were made base64 on the way.
fn embedded_json(object: &Map<String, Value>, name: &str) -> Result<Value, DecodeError> {
    let Some(encoded) = object.get(name).and_then(Value::as_str) else {
        return Ok(Value::Null);
    };
    let bytes = STANDARD
        .decode(encoded)
        .map_err(|_| DecodeError::Malformed("embedded JSON"))?;
    serde_json::from_slice(&bytes).map_err(|_| DecodeError::Malformed("embedded JSON"))
}

fn text(bytes: &[u8]) -> Result<String, DecodeError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError::Malformed("string"))
}

fn wrong(field: &Field) -> DecodeError {
    DecodeError::WrongType(field.name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A field of wire type 2.
    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        let mut field = vec![number << 3 | 2, u8::try_from(content.len()).expect("short")];
        field.extend(content);
        field
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let type_meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
        [MAGIC, &bytes(1, &type_meta), &bytes(2, raw)].concat()
    }

    #[test]
    fn a_config_map_with_metadata_and_data() {
        let metadata = [
            bytes(1, b"web"),
            bytes(8, &[]),
            bytes(11, &[bytes(1, b"app"), bytes(2, b"x")].concat()),
        ]
        .concat();
        let raw = [
            bytes(1, &metadata),
            bytes(2, &[bytes(1, b"k"), bytes(2, b"v")].concat()),
            bytes(3, &[bytes(1, b"b"), bytes(2, &[255])].concat()),
        ]
        .concat();
        assert_eq!(
            decode(&body("v1", "ConfigMap", &raw)),
            Ok(json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "web", "creationTimestamp": null, "labels": {"app": "x"}},
                "data": {"k": "v"}, "binaryData": {"b": "/w=="}}))
        );
    }

    #[test]
    fn embedded_messages_and_special_types_take_their_place() {
        // spec.volumes[0]: {name: v, emptyDir: {sizeLimit: 1Gi}}
        let quantity = bytes(2, &bytes(1, b"1Gi"));
        let volume = [bytes(1, b"v"), bytes(2, &bytes(2, &quantity))].concat();
        let raw = bytes(2, &bytes(1, &volume));
        let decoded = decode(&body("v1", "Pod", &raw)).expect("a pod");
        assert_eq!(
            decoded["spec"]["volumes"],
            json!([{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}])
        );
        // spec.ports[0]: {port: 80, targetPort: http}
        let port = [
            vec![3 << 3, 80],
            bytes(4, &[vec![1 << 3, 1], bytes(3, b"http")].concat()),
        ]
        .concat();
        let decoded =
            decode(&body("v1", "Service", &bytes(2, &bytes(1, &port)))).expect("a service");
        assert_eq!(
            decoded["spec"]["ports"],
            json!([{"port": 80, "targetPort": "http"}])
        );
    }

    #[test]
    fn delete_options_come_under_any_version() {
        let decoded = decode(&body("v1", "DeleteOptions", &[1 << 3, 0])).expect("options");
        assert_eq!(decoded["gracePeriodSeconds"], 0);
        assert!(decode(&body("apps/v1", "DeleteOptions", &[])).is_ok());
    }

    #[test]
    fn what_is_not_protobuf_is_refused() {
        assert_eq!(decode(b"{}"), Err(DecodeError::Prefix));
        assert_eq!(decode(b"k8s\0\x0a\xff"), Err(DecodeError::Truncated));
        assert!(matches!(
            decode(&body("v1", "Unicorn", &[])),
            Err(DecodeError::UnknownKind { .. })
        ));
        assert_eq!(
            decode(&body("v1", "Pod", &[1 << 3, 1])),
            Err(DecodeError::WrongType("metadata".into()))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(raw in proptest::collection::vec(any::<u8>(), 0..200), kind in "(Pod|Service|Secret|Event|Deployment)") {
            let api_version = if kind == "Deployment" { "apps/v1" } else { "v1" };
            let short = &raw[..raw.len().min(120)];
            let _ = decode(&body(api_version, &kind, short));
            let _ = decode(&raw);
        }
    }
}
