//! Replacing an object.

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::Value;

use super::{body, change};
use crate::Body;
use crate::encode::{members, metadata_str};
use crate::handle::Call;
use crate::options::WriteOptions;
use crate::status::Failure;

/// Reads the body and stores it in place of the object of that name.
pub(crate) async fn update(call: &Call, bytes: Bytes) -> Result<Response<Body>, Failure> {
    through(call, bytes, None).await
}

/// The same through a subresource with the resource's own kind, e.g. `status`.
pub(crate) async fn through(
    call: &Call,
    bytes: Bytes,
    sub: Option<&str>,
) -> Result<Response<Body>, Failure> {
    let options = WriteOptions::parse(&call.query, &call.headers, "UpdateOptions", false)?;
    let mut object = body::object(call, &bytes, options.validation)?;
    drop(bytes);
    check_name(call, &object)?;
    check_namespace(call, &mut object)?;
    // Somebody may delete the object, or make it, between the look and the write.
    while sub.is_none() && is_made(call) && call.core.store().get(&call.key()).is_none() {
        match create(call, object.clone(), &options).await {
            Err(failure) if failure.reason() == "AlreadyExists" => {}
            result => return result,
        }
    }
    change::update(call, &options, sub, |_old| Ok(object.clone()))
        .await?
        .answer(call, StatusCode::OK)
}

/// Kinds whose objects are made when they are to be replaced and are not there, as upstream's: what
/// tools and writers that race keep in place by its name.
fn is_made(call: &Call) -> bool {
    let kind = call.resource.kind;
    matches!(
        (kind.group(), kind.kind()),
        ("", "Endpoints" | "Event" | "Service")
            | ("coordination.k8s.io", "Lease")
            | ("events.k8s.io", "Event")
            | (
                "rbac.authorization.k8s.io",
                "ClusterRole" | "ClusterRoleBinding" | "Role" | "RoleBinding"
            )
    )
}

/// Makes the object that is to be replaced.
async fn create(
    call: &Call,
    mut object: Value,
    options: &WriteOptions,
) -> Result<Response<Body>, Failure> {
    super::create::require_right(call)?;
    change::check_identity(call, &object, &Value::Null, options)?;
    // There is no state yet that a revision could mean.
    members(&mut object, "metadata").remove("resourceVersion");
    change::create(call, object, options)
        .await?
        .answer(call, StatusCode::CREATED)
}

/// The name in an object must be that of its path.
pub(crate) fn check_name(call: &Call, object: &Value) -> Result<(), Failure> {
    let wanted = &call.info.name;
    match metadata_str(object, "name") {
        "" => Err(Failure::bad_request(format!(
            "the name of the object ({wanted} based on URL) was undeterminable: name must be provided"
        ))),
        name if name == wanted => Ok(()),
        name => Err(Failure::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({wanted})"
        ))),
    }
}

/// The namespace in an object must be that of its path; left out, it becomes that.
pub(crate) fn check_namespace(call: &Call, object: &mut Value) -> Result<(), Failure> {
    if !call.resource.kind.namespaced() {
        members(object, "metadata").remove("namespace");
        return Ok(());
    }
    let wanted = &call.info.namespace;
    let given = metadata_str(object, "namespace");
    if given == wanted {
        return Ok(());
    }
    if given.is_empty() {
        members(object, "metadata").insert("namespace".into(), wanted.as_str().into());
        return Ok(());
    }
    Err(Failure::bad_request(
        "the namespace of the provided object does not match the namespace sent on the request",
    ))
}
