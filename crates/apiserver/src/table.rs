//! Objects as rows for people: the server-side columns of `kubectl get`.

use std::borrow::Borrow;

use jiff::Timestamp;
use kinds::Kind;
use serde_json::{Value, json};

use crate::handle::Call;
use crate::route::Query;
use crate::status::Failure;

/// What of the object goes with its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// Reads `includeObject`.
    pub(crate) fn parse(query: &Query) -> Result<Include, Failure> {
        match query.get("includeObject").unwrap_or_default() {
            "" | "Metadata" => Ok(Include::Metadata),
            "None" => Ok(Include::None),
            "Object" => Ok(Include::Object),
            other => Err(Failure::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {}: must be 'Metadata', 'Object', 'None', or empty",
                kinds::quote(other)
            ))),
        }
    }
}

/// A table of the objects of a request.
pub(crate) fn of_objects<'a>(
    call: &Call,
    objects: impl IntoIterator<Item = impl Borrow<Value> + 'a>,
    metadata: Value,
) -> Result<Value, Failure> {
    let include = Include::parse(&call.query)?;
    Ok(of(call.resource.kind, objects, metadata, include, call.now))
}

/// A table of objects of a kind.
pub(crate) fn of<'a>(
    kind: &Kind,
    objects: impl IntoIterator<Item = impl Borrow<Value> + 'a>,
    metadata: Value,
    include: Include,
    now: Timestamp,
) -> Value {
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let object: &Value = object.borrow();
            let shown = match include {
                Include::None => Value::Null,
                Include::Object => object.clone(),
                Include::Metadata => crate::verbs::answer::partial(object),
            };
            json!({"cells": kind.cells(object, now), "object": shown})
        })
        .collect();
    let columns: Vec<Value> = kind
        .columns()
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.kind,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            })
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    })
}
