//! Deleting a pod as the one who drains its node asks for it. There are no disruption budgets here
//! that could stand against it.

use bytes::Bytes;
use http::{Response, StatusCode};

use crate::Body;
use crate::handle::Call;
use crate::options::{DeleteOptions, WriteOptions};
use crate::status::{Failure, success};
use crate::verbs::delete::delete_object;
use crate::verbs::{answer, body, update};

/// Deletes the pod with the options of the eviction.
pub(crate) async fn create(call: &Call, bytes: Bytes) -> Result<Response<Body>, Failure> {
    let write = WriteOptions::parse(&call.query, &call.headers, "CreateOptions", false)?;
    let kind = call.core.builtin_kind("policy", "v1", "Eviction");
    let mut eviction = body::object_of(call, kind, &bytes, write.validation)?;
    let given = crate::encode::metadata_str(&eviction, "name");
    if given != call.info.name {
        return Err(Failure::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    update::check_namespace(call, &mut eviction)?;
    let mut options = DeleteOptions::parse(&call.query, Some(&eviction["deleteOptions"]))?;
    options.dry_run |= write.dry_run;
    delete_object(call, &options).await?;
    Ok(answer::value(
        call,
        &success(None, Some(201)),
        StatusCode::CREATED,
    ))
}
