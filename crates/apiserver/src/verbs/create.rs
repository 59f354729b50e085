//! Making an object.

use bytes::Bytes;
use http::{Response, StatusCode};

use super::{body, change};
use crate::Body;
use crate::authorize::require;
use crate::handle::Call;
use crate::options::WriteOptions;
use crate::route::RequestInfo;
use crate::status::Failure;

/// Reads the body and stores it as a new object.
pub(crate) async fn create(call: &Call, bytes: Bytes) -> Result<Response<Body>, Failure> {
    let options = WriteOptions::parse(&call.query, &call.headers, "CreateOptions", false)?;
    let object = body::object(call, &bytes, options.validation)?;
    drop(bytes);
    change::create(call, object, &options)
        .await?
        .answer(call, StatusCode::CREATED)
}

/// Who makes an object through another verb, because there is none to be changed, needs the right
/// to create one as well.
pub(super) fn require_right(call: &Call) -> Result<(), Failure> {
    let create = RequestInfo {
        verb: "create".into(),
        ..call.info.clone()
    };
    require(&call.core.authorizer, &call.caller, &create)
}
