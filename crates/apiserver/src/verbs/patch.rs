//! Changing parts of an object: JSON patch, merge patch, strategic merge patch, server-side apply.

use bytes::Bytes;
use http::{Response, StatusCode, header};
use patch::apply::ApplyError;
use patch::{JsonPatchError, StrategicError};
use serde_json::Value;

use super::managed::{Place, ignored};
use super::{body, change, update, yaml};
use crate::Body;
use crate::encode::{members, metadata_str};
use crate::handle::{Call, Resource};
use crate::options::{FieldValidation, WriteOptions};
use crate::status::{Failure, FaultReason, fault};

/// A patch that has been read.
pub(crate) enum Change {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// A merge that knows by what the items of lists are told apart.
    Strategic(Value),
    /// A configuration to be laid over the object.
    Apply(Value),
}

impl Change {
    /// Reads a patch of the type that the request says.
    pub(crate) fn read(call: &Call, bytes: &Bytes) -> Result<Change, Failure> {
        match media_type(call) {
            "application/json-patch+json" => Ok(Change::Json(json(bytes)?)),
            "application/merge-patch+json" => Ok(Change::Merge(json(bytes)?)),
            "application/strategic-merge-patch+json" => Ok(Change::Strategic(json(bytes)?)),
            "application/apply-patch+yaml" => yaml::value(bytes)
                .and_then(|config| match config {
                    Value::Object(_) => Ok(Change::Apply(config)),
                    other => Err(format!(
                        "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                        kinds::go_kind(&other)
                    )),
                })
                .map_err(|error| Failure::bad_request(format!("error decoding YAML: {error}"))),
            _ => Err(Failure::unsupported_patch()),
        }
    }

    /// Complaints of fields that stand twice in `bytes`, which this patch was read from: those of a
    /// configuration are made here, the others belong to the patched object.
    pub(crate) fn duplicates(
        &self,
        call: &Call,
        bytes: &[u8],
        validation: FieldValidation,
    ) -> Result<Vec<String>, Failure> {
        if validation == FieldValidation::Ignore {
            return Ok(Vec::new());
        }
        match self {
            Change::Json(_) => Ok(kinds::duplicate_fields(bytes)
                .into_iter()
                .map(|fault| format!("json patch {fault}"))
                .collect()),
            Change::Merge(_) | Change::Strategic(_) => Ok(kinds::duplicate_fields(bytes)),
            Change::Apply(_) => {
                let repeated = yaml::repeated_keys(bytes);
                if validation == FieldValidation::Strict && !repeated.is_empty() {
                    return Err(Failure::bad_request(format!(
                        "error strict decoding YAML: error converting YAML to JSON: {}",
                        yaml::in_one(&repeated)
                    )));
                }
                repeated.into_iter().for_each(|text| call.warn(text));
                Ok(Vec::new())
            }
        }
    }

    /// A small object without lists, such as a scale, with the patch applied.
    pub(crate) fn apply_plain(&self, current: &Value) -> Result<Value, Failure> {
        let mut new = current.clone();
        match self {
            Change::Json(operations) => json_patch(&mut new, operations)?,
            Change::Merge(patch) | Change::Strategic(patch) => merge_patch(&mut new, patch)?,
            // A configuration is laid over the object by `apply`.
            Change::Apply(_) => {}
        }
        Ok(new)
    }

    /// The object with the patch applied.
    fn apply(
        &self,
        call: &Call,
        old: &Value,
        options: &WriteOptions,
        sub: Option<&str>,
    ) -> Result<Value, Failure> {
        let mut new = match self {
            Change::Apply(config) => {
                return apply(call, &call.resource, Some(old), config, options, sub);
            }
            _ => old.clone(),
        };
        match self {
            Change::Json(operations) => json_patch(&mut new, operations)?,
            Change::Merge(patch) => merge_patch(&mut new, patch)?,
            Change::Strategic(patch) => {
                patch::strategic(&mut new, patch, &Place::root(&call.resource))
                    .map_err(strategic_failure)?;
            }
            Change::Apply(_) => {}
        }
        Ok(new)
    }
}

fn media_type(call: &Call) -> &str {
    call.headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .unwrap_or_default()
        .trim()
}

/// Whether the patch is a configuration to be applied.
pub(crate) fn applies(call: &Call) -> bool {
    media_type(call) == "application/apply-patch+yaml"
}

fn json(bytes: &Bytes) -> Result<Value, Failure> {
    serde_json::from_slice(bytes).map_err(|error| {
        Failure::bad_request(format!(
            "error decoding patch: {}",
            body::go_syntax_error(bytes, &error)
        ))
    })
}

fn json_patch(object: &mut Value, operations: &Value) -> Result<(), Failure> {
    patch::json_patch(object, operations).map_err(|error| match error {
        JsonPatchError::Decode { .. } => Failure::bad_request(error.to_string()),
        JsonPatchError::TooMany { .. } | JsonPatchError::TooMuchWork { .. } => {
            Failure::too_large_because(format!("Request entity too large: {error}"))
        }
        JsonPatchError::Apply { .. } => {
            tracing::debug!(%error, "JSON patch refused");
            Failure::rejected()
        }
    })?;
    if object.is_object() || object.is_array() {
        return Ok(());
    }
    Err(Failure::rejected())
}

fn merge_patch(object: &mut Value, patch: &Value) -> Result<(), Failure> {
    patch::merge_patch(object, patch).map_err(|error| Failure::bad_request(error.to_string()))
}

fn strategic_failure(error: StrategicError) -> Failure {
    match error {
        StrategicError::NotAnObject { .. } | StrategicError::RetainKeys => {
            Failure::bad_request(error.to_string())
        }
        _ => Failure::plain_internal(error.to_string()),
    }
}

/// Applies the patch in the body.
pub(crate) async fn patch(call: &Call, bytes: Bytes) -> Result<Response<Body>, Failure> {
    through(call, bytes, None).await
}

/// The same through a subresource with the resource's own kind.
pub(crate) async fn through(
    call: &Call,
    bytes: Bytes,
    sub: Option<&str>,
) -> Result<Response<Body>, Failure> {
    let applies = applies(call);
    let options = WriteOptions::parse(&call.query, &call.headers, "PatchOptions", applies)?;
    let patch = Change::read(call, &bytes)?;
    let duplicates = patch.duplicates(call, &bytes, options.validation)?;
    drop(bytes);
    if let Change::Apply(config) = &patch {
        check_config(call, &call.resource, config)?;
        // Somebody may delete the object, or make it, between the look and the write.
        while sub.is_none() && call.core.store().get(&call.key()).is_none() {
            match create(call, config, &options).await {
                Err(failure) if failure.reason() == "AlreadyExists" => {}
                result => return result,
            }
        }
    }
    change::update(call, &options, sub, |old| {
        let mut new = patch.apply(call, old, &options, sub)?;
        let done = complete(call, &call.resource, &mut new, &duplicates, &options);
        match done {
            Ok(()) => {}
            Err(why) if applies => return Err(not_converted(call, &why)),
            // Patched again, because what is shown is the object before it was completed.
            Err(why) => return Err(misfit(&patch.apply(call, old, &options, sub)?, why)),
        }
        update::check_name(call, &new)?;
        update::check_namespace(call, &mut new)?;
        Ok(new)
    })
    .await?
    .answer(call, StatusCode::OK)
}

/// Brings a patched object into the shape of its type, or says why it has none.
pub(crate) fn complete(
    call: &Call,
    resource: &Resource,
    object: &mut Value,
    duplicates: &[String],
    options: &WriteOptions,
) -> Result<(), String> {
    if !object.is_object() {
        return Err(body::not_an_object(object));
    }
    body::set_types(call, resource, object).map_err(|wrong| wrong.why)?;
    body::complete_patched(call, resource, object, duplicates, options.validation)
}

/// 422 of a patch that makes no object of the type.
pub(crate) fn misfit(patched: &Value, why: String) -> Failure {
    let fault = fault("patch", FaultReason::Invalid, patched.to_string(), why);
    Failure::invalid("", "", "", &[fault])
}

/// 500 of an applied configuration whose values have other types than the kind says.
fn not_converted(call: &Call, why: &str) -> Failure {
    let resource = &call.resource;
    let (namespace, name) = (&call.info.namespace, &call.info.name);
    let (kind, api_version) = (resource.kind.kind(), &resource.api_version);
    let group_version = if resource.kind.group().is_empty() {
        format!("/{api_version}")
    } else {
        api_version.clone()
    };
    Failure::plain_internal(format!(
        "failed to convert new object ({namespace}/{name}; {group_version}, Kind={kind}) to proper version: unable to convert unstructured object to {group_version}, Kind={kind}: {why}"
    ))
}

/// A configuration must say what it configures, an object of `resource`.
pub(crate) fn check_config(
    call: &Call,
    resource: &Resource,
    config: &Value,
) -> Result<(), Failure> {
    let kind = config["kind"].as_str().unwrap_or_default();
    let api_version = config["apiVersion"].as_str().unwrap_or_default();
    if kind != resource.kind.kind() || api_version != resource.api_version {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        return Err(Failure::bad_request(format!(
            "invalid object type: {group}/{version}, Kind={kind}"
        )));
    }
    let name = metadata_str(config, "name");
    if !name.is_empty() && name != call.info.name {
        return Err(Failure::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.info.name
        )));
    }
    let namespace = metadata_str(config, "namespace");
    let namespaced = call.resource.kind.namespaced();
    if namespaced && !namespace.is_empty() && namespace != call.info.namespace {
        return Err(Failure::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// Makes the object that a configuration describes.
async fn create(
    call: &Call,
    config: &Value,
    options: &WriteOptions,
) -> Result<Response<Body>, Failure> {
    if metadata_str(config, "name").is_empty() {
        return Err(Failure::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            call.info.name
        )));
    }
    let uid = metadata_str(config, "uid");
    if !uid.is_empty() {
        return Err(Failure::conflict(
            call.resource.name(),
            &call.info.name,
            format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            ),
        ));
    }
    super::create::require_right(call)?;
    let mut object = apply(call, &call.resource, None, config, options, None)?;
    // There is no state yet that a revision could mean.
    members(&mut object, "metadata").remove("resourceVersion");
    body::complete(call, &call.resource, &mut object, options.validation)
        .map_err(|why| not_converted(call, &why))?;
    change::create(call, object, options)
        .await?
        .answer(call, StatusCode::CREATED)
}

/// Lays a configuration over an object of `resource`, or over none.
pub(crate) fn apply(
    call: &Call,
    resource: &Resource,
    live: Option<&Value>,
    config: &Value,
    options: &WriteOptions,
    sub: Option<&str>,
) -> Result<Value, Failure> {
    let request = patch::apply::Request {
        manager: &options.manager,
        api_version: &resource.api_version,
        subresource: sub.unwrap_or_default(),
        now: &change::seconds(call.now),
        ignored: ignored(resource, sub),
        force: options.force,
    };
    patch::apply::apply(live, config, &request, &Place::root(resource)).map_err(|error| {
        let text = error.to_string();
        match error {
            ApplyError::ManagedFields => Failure::bad_request(text),
            ApplyError::Typed { .. } => Failure::plain_internal(text),
            ApplyError::Conflicts(conflicts) => Failure::apply_conflicts(
                text,
                conflicts
                    .into_iter()
                    .map(|conflict| (conflict.message(), conflict.path)),
            ),
        }
    })
}
