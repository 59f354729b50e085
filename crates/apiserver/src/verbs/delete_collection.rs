//! Removing all objects that a selector takes.

use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::stream::FuturesOrdered;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::answer;
use super::delete::{delete_object, read_options};
use super::list::read;
use crate::Body;
use crate::handle::Call;
use crate::options::{DeleteOptions, ListOptions};
use crate::status::Failure;

/// Objects that are being deleted at the same time, so that their writes share a sync of the disk.
const AT_ONCE: usize = 64;

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
    let mut deleting = FuturesOrdered::new();
    for entry in &page.entries {
        if deleting.len() == AT_ONCE {
            items.extend(deleting.try_next().await?.flatten());
        }
        let (namespace, name) = entry
            .key
            .name
            .split_once('/')
            .unwrap_or(("", &entry.key.name));
        let one = call.on(&call.resource, namespace, name);
        deleting.push_back(delete_one(one, &options));
    }
    while let Some(deleted) = deleting.try_next().await? {
        items.extend(deleted);
    }
    let list = json!({
        "kind": call.resource.kind.list_kind(),
        "apiVersion": call.resource.api_version,
        "metadata": {"resourceVersion": page.revision.to_string()},
        "items": items,
    });
    Ok(answer::value(call, &list, StatusCode::OK))
}

/// The object as an item of the list of those that were deleted; `None` if it was gone already.
async fn delete_one(call: Call, options: &DeleteOptions) -> Result<Option<Value>, Failure> {
    let deleted = match delete_object(&call, options).await {
        Err(failure) if failure.code() == 404 => return Ok(None),
        deleted => deleted?,
    };
    let mut object = deleted.object.into_object(&call)?;
    if let Some(members) = object.as_object_mut() {
        members.remove("kind");
        members.remove("apiVersion");
    }
    Ok(Some(object))
}
