//! Objects as answers, in the form that the caller asked for.

use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use store::Entry;

use crate::encode;
use crate::handle::Call;
use crate::meta::Meta;
use crate::options::{Notation, Shown};
use crate::status::Failure;
use crate::{Body, table};

/// A stored object. The usual form is the stored bytes themselves.
pub(crate) fn stored(
    call: &Call,
    entry: &Entry<Meta>,
    code: StatusCode,
) -> Result<Response<Body>, Failure> {
    let accept = call.accept;
    let as_stored = accept.shown == Shown::Object
        && accept.notation == Notation::Json
        && !accept.pretty
        && call.resource.head.is_head_of(&entry.bytes);
    if as_stored {
        return Ok(with_type(
            code,
            Body::from(entry.bytes.clone()),
            "application/json",
        ));
    }
    let object = parse(call, entry)?;
    object_value(call, &object, code)
}

/// The stored object as a value of the kind that the request is about.
pub(crate) fn parse(call: &Call, entry: &Entry<Meta>) -> Result<Value, Failure> {
    let object: Value = serde_json::from_slice(&entry.bytes).map_err(|error| {
        Failure::internal(format!("{} is damaged in the store: {error}", entry.key))
    })?;
    Ok(call.resource.view(object))
}

/// An object in hand.
pub(crate) fn object_value(
    call: &Call,
    object: &Value,
    code: StatusCode,
) -> Result<Response<Body>, Failure> {
    match call.accept.shown {
        Shown::Object => Ok(value(call, object, code)),
        Shown::Table => {
            let revision = encode::metadata_str(object, "resourceVersion").to_owned();
            let table = table::of_objects(call, [object], json!({ "resourceVersion": revision }))?;
            Ok(value(call, &table, code))
        }
        Shown::Partial => Ok(value(call, &partial(object), code)),
    }
}

/// Any JSON value, in the notation that was asked for.
pub(crate) fn value(call: &Call, value: &Value, code: StatusCode) -> Response<Body> {
    match call.accept.notation {
        Notation::Yaml => match serde_saphyr::to_string(value) {
            Ok(text) => with_type(code, Body::from(text), "application/yaml"),
            Err(error) => Failure::internal(format!("write YAML: {error}")).into_response(),
        },
        Notation::Json if call.accept.pretty => {
            let mut bytes = encode::pretty(value);
            bytes.push(b'\n');
            with_type(code, Body::from(bytes), "application/json")
        }
        Notation::Json => {
            let mut bytes = encode::unstored(value);
            bytes.push(b'\n');
            with_type(code, Body::from(bytes), "application/json")
        }
    }
}

/// The metadata of an object, as `PartialObjectMetadata`.
pub(crate) fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object["metadata"],
    })
}

/// An answer with the headers that all answers of objects have.
pub(crate) fn with_type(code: StatusCode, body: Body, media_type: &'static str) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    response
}
