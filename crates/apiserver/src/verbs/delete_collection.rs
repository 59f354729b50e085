//! Removing all objects that a selector takes.

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::answer;
use super::delete::{delete_object, read_options};
use super::list::read;
use crate::Body;
use crate::handle::Call;
use crate::options::ListOptions;
use crate::status::Failure;

/// Deletes each object as if it were deleted alone. Those that others delete in between do not
/// matter; the first other failure ends the work.
pub(crate) async fn delete_collection(
    call: &Call,
    bytes: Bytes,
) -> Result<Response<Body>, Failure> {
    let options = read_options(call, &bytes)?;
    let list_options = ListOptions::parse(&call.query, false)?;
    let page = read(call, &list_options)?;
    let mut items: Vec<Value> = Vec::new();
    for entry in &page.entries {
        let (namespace, name) = entry
            .key
            .name
            .split_once('/')
            .unwrap_or(("", &entry.key.name));
        let one = call.on(&call.resource, namespace, name);
        match delete_object(&one, &options).await {
            Ok(deleted) => {
                let mut object = deleted.object.into_object(&one)?;
                if let Some(members) = object.as_object_mut() {
                    members.remove("kind");
                    members.remove("apiVersion");
                }
                items.push(object);
            }
            Err(failure) if failure.code() == 404 => {}
            Err(failure) => return Err(failure),
        }
    }
    let list = json!({
        "kind": call.resource.kind.list_kind(),
        "apiVersion": call.resource.api_version,
        "metadata": {"resourceVersion": page.revision.to_string()},
        "items": items,
    });
    Ok(answer::value(call, &list, StatusCode::OK))
}
