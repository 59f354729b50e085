//! Request bodies: JSON, YAML or protobuf to an object of the kind that the request is about.

use bytes::Bytes;
use http::{HeaderMap, header};
use serde_json::Value;

use super::yaml;
use crate::handle::{Call, Resource};
use crate::options::FieldValidation;
use crate::status::Failure;

/// Bytes of a body that an error text quotes.
const QUOTED: usize = 1024;

/// Reads, checks and completes an object: types are those of the resource, unknown fields are
/// dropped or refused as asked, defaults are filled in.
pub(crate) fn object(
    call: &Call,
    bytes: &Bytes,
    validation: FieldValidation,
) -> Result<Value, Failure> {
    object_of(call, &call.resource, bytes, validation)
}

/// The same for a body of another kind than the resource's, as subresources have: a type that is not
/// looked at would make what was meant look as if it were not there.
pub(crate) fn object_of(
    call: &Call,
    resource: &Resource,
    bytes: &Bytes,
    validation: FieldValidation,
) -> Result<Value, Failure> {
    let kind = resource.kind;
    let encoding = Encoding::of(&call.headers)?;
    let mut object = parse(bytes, encoding, kind.kind())?;
    set_types(call, resource, &mut object).map_err(|wrong| wrong.refused(kind.kind()))?;
    let asks = validation != FieldValidation::Ignore;
    let read = match encoding {
        Encoding::Json if asks => Read::Json(bytes),
        Encoding::Yaml if asks => Read::Yaml(bytes),
        _ => Read::Patched(&[]),
    };
    complete_read(call, resource, &mut object, read, validation).map_err(|why| {
        Failure::bad_request(format!(
            "{} in version {} cannot be handled as a {}: {why}",
            kind.kind(),
            kinds::quote(kind.version()),
            kind.kind()
        ))
    })?;
    Ok(object)
}

/// The text that an object was read from, if it may hold more than the object.
#[derive(Clone, Copy)]
enum Read<'a> {
    Json(&'a [u8]),
    Yaml(&'a [u8]),
    /// None, but what a patch said twice.
    Patched(&'a [String]),
}

/// Brings an object of this resource into the shape of its type, with defaults. The error says
/// why it is none.
pub(crate) fn complete(
    call: &Call,
    resource: &Resource,
    object: &mut Value,
    validation: FieldValidation,
) -> Result<(), String> {
    complete_read(call, resource, object, Read::Patched(&[]), validation)
}

/// The same for an object that was patched, and `duplicates` are the complaints of the patch.
pub(crate) fn complete_patched(
    call: &Call,
    resource: &Resource,
    object: &mut Value,
    duplicates: &[String],
    validation: FieldValidation,
) -> Result<(), String> {
    complete_read(
        call,
        resource,
        object,
        Read::Patched(duplicates),
        validation,
    )
}

fn complete_read(
    call: &Call,
    resource: &Resource,
    object: &mut Value,
    read: Read<'_>,
    validation: FieldValidation,
) -> Result<(), String> {
    let kind = resource.kind;
    let raw = match read {
        Read::Json(raw) => Some(raw),
        _ => None,
    };
    let decoded = kind.decode(object, raw);
    if let Some(error) = decoded.error {
        return Err(error);
    }
    let is_strict = validation == FieldValidation::Strict;
    let repeated = match read {
        Read::Json(_) => Vec::new(),
        Read::Yaml(text) => match yaml::repeated_keys(text) {
            repeated if is_strict && !repeated.is_empty() => vec![yaml::in_one(&repeated)],
            repeated => repeated,
        },
        Read::Patched(duplicates) => duplicates.to_vec(),
    };
    let faults: Vec<String> = repeated.into_iter().chain(decoded.faults).collect();
    match validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => faults.into_iter().for_each(|fault| call.warn(fault)),
        FieldValidation::Strict if faults.is_empty() => {}
        FieldValidation::Strict => {
            return Err(format!("strict decoding error: {}", faults.join(", ")));
        }
    }
    kind.default(object);
    Ok(())
}

/// The form of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// `application/json`, also where nothing is said.
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`, which typed Go clients send.
    Protobuf,
}

impl Encoding {
    /// What the headers say.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Encoding, Failure> {
        let Some(value) = headers.get(header::CONTENT_TYPE) else {
            return Ok(Encoding::Json);
        };
        let media = value.to_str().unwrap_or_default();
        match media.split(';').next().unwrap_or_default().trim() {
            "" | "application/json" => Ok(Encoding::Json),
            "application/yaml" => Ok(Encoding::Yaml),
            "application/vnd.kubernetes.protobuf" => Ok(Encoding::Protobuf),
            _ => Err(Failure::unsupported_body()),
        }
    }
}

/// The body as a JSON object; `expected` is the kind that it should be of.
pub(crate) fn parse(bytes: &[u8], encoding: Encoding, expected: &str) -> Result<Value, Failure> {
    read(bytes, encoding).map_err(|why| {
        Failure::bad_request(format!(
            "the object provided is unrecognized (must be of type {expected}): {why} ({})",
            excerpt(bytes)
        ))
    })
}

/// The step at which what is no object is found out.
const STEP: &str = "couldn't get version/kind; json parse error";

/// Why another value is no object.
pub(crate) fn not_an_object(value: &Value) -> String {
    format!(
        "{STEP}: json: cannot unmarshal {} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
        kinds::go_kind(value)
    )
}

/// The body as a JSON object, or why it is none.
pub(crate) fn read(bytes: &[u8], encoding: Encoding) -> Result<Value, String> {
    let value: Value = match encoding {
        Encoding::Protobuf => protobuf::decode(bytes).map_err(|error| error.to_string())?,
        Encoding::Yaml => yaml::value(bytes).map_err(|error| format!("yaml: {error}"))?,
        Encoding::Json => serde_json::from_slice(bytes)
            .map_err(|error| format!("{STEP}: {}", go_syntax_error(bytes, &error)))?,
    };
    let members = match &value {
        Value::Object(members) => members,
        // Go reads null into anything.
        Value::Null => return Ok(Value::Object(serde_json::Map::new())),
        other => {
            return Err(not_an_object(other));
        }
    };
    for name in ["kind", "apiVersion"] {
        let odd = members
            .get(name)
            .filter(|given| !given.is_null() && !given.is_string());
        if let Some(odd) = odd {
            return Err(format!(
                "{STEP}: json: cannot unmarshal {} into Go struct field .{name} of type string",
                kinds::go_kind(odd)
            ));
        }
    }
    Ok(value)
}

/// What an error text shows of a body.
fn excerpt(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "<empty>".into();
    }
    let shown = &bytes[..bytes.len().min(QUOTED)];
    match std::str::from_utf8(shown) {
        Ok(text) if bytes.first() == Some(&b'{') => text.to_owned(),
        _ => crate::caller::hexadecimal(shown),
    }
}

/// A syntax error in the words of Go's JSON decoder.
pub(crate) fn go_syntax_error(bytes: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".into();
    }
    let text = error.to_string();
    let context = [
        (
            "key must be a string",
            "looking for beginning of object key string",
        ),
        ("expected `:`", "after object key"),
        ("expected `,` or `}`", "after object key:value pair"),
        ("expected `,` or `]`", "after array element"),
        ("trailing characters", "after top-level value"),
        ("control character", "in string literal"),
        ("invalid escape", "in string escape code"),
        ("invalid number", "in numeric literal"),
        ("expected ident", "in literal"),
        ("recursion limit", "exceeded max depth"),
    ]
    .iter()
    .find(|(ours, _)| text.starts_with(ours))
    .map_or("looking for beginning of value", |(_, go)| go);
    let line_start: usize = bytes
        .split_inclusive(|byte| *byte == b'\n')
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    let offset = (line_start + error.column().saturating_sub(1)).min(bytes.len().saturating_sub(1));
    let symbol = match bytes.get(offset) {
        Some(b'\'') => "\\'".into(),
        Some(b'"') => "\"".into(),
        Some(byte @ (0..=0x1f | 0x7f)) => format!("\\x{byte:02x}"),
        Some(byte) => char::from(*byte).to_string(),
        None => " ".into(),
    };
    format!("invalid character '{symbol}' {context}")
}

/// Fills in `kind` and `apiVersion`, or says why those that are there are of another kind.
pub(crate) fn set_types(
    call: &Call,
    resource: &Resource,
    object: &mut Value,
) -> Result<(), WrongTypes> {
    let kind = resource.kind;
    let or = |given: &Value, else_: &str| match given.as_str().unwrap_or_default() {
        "" => else_.to_owned(),
        given => given.to_owned(),
    };
    let wanted_version = resource.api_version.as_str();
    let api_version = or(&object["apiVersion"], wanted_version);
    let named = or(&object["kind"], kind.kind());
    if named == kind.kind() && api_version == wanted_version {
        object["apiVersion"] = wanted_version.into();
        object["kind"] = kind.kind().into();
        return Ok(());
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let known = call.core.resource_of_kind(group, version, &named).is_some();
    let same_kind = named == kind.kind() && group == kind.group();
    let internal_group = match kind.group() {
        "" => "core",
        group => group.split('.').next().unwrap_or_default(),
    };
    let why = if !known {
        format!(
            "no kind {} is registered for version {} in scheme \"pkg/runtime/scheme.go:111\"",
            kinds::quote(&named),
            kinds::quote(&api_version)
        )
    } else if same_kind {
        format!(
            "the API version in the data ({api_version}) does not match the expected API version ({wanted_version})"
        )
    } else {
        format!(
            "converting ({version}.{named}) to ({internal_group}.{}): unknown conversion",
            kind.kind()
        )
    };
    Err(WrongTypes {
        version: version.to_owned(),
        named,
        why,
        plain: known && same_kind,
    })
}

/// An object says that it is of another kind than it should be.
#[derive(Debug)]
pub(crate) struct WrongTypes {
    named: String,
    version: String,
    pub(crate) why: String,
    /// Whether the reason stands for itself.
    plain: bool,
}

impl WrongTypes {
    /// The refusal of a body.
    fn refused(self, expected: &str) -> Failure {
        if self.plain {
            return Failure::bad_request(self.why);
        }
        Failure::bad_request(format!(
            "{} in version {} cannot be handled as a {expected}: {}",
            self.named,
            kinds::quote(&self.version),
            self.why
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_text_is_refused_in_gos_words() {
        let check = |text: &str, encoding: Encoding, expected: &str| {
            let failure = parse(text.as_bytes(), encoding, "Pod").expect_err(text);
            assert_eq!(failure.message(), expected, "{text}");
        };
        let must = "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: ";
        check(
            "{",
            Encoding::Json,
            &format!("{must}unexpected end of JSON input ({{)"),
        );
        check(
            "",
            Encoding::Json,
            &format!("{must}unexpected end of JSON input (<empty>)"),
        );
        check(
            "{\"a\":x}",
            Encoding::Json,
            &format!("{must}invalid character 'x' looking for beginning of value ({{\"a\":x}})"),
        );
        let go_struct = "into Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }";
        check(
            "[]",
            Encoding::Json,
            &format!("{must}json: cannot unmarshal array {go_struct} (5b5d)"),
        );
        check(
            "a",
            Encoding::Yaml,
            &format!("{must}json: cannot unmarshal string {go_struct} (61)"),
        );
        assert!(parse(b"a: [", Encoding::Yaml, "Pod").is_err());
    }
}
