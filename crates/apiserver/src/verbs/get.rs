//! Reading one object.

use http::{Response, StatusCode};

use super::answer;
use crate::Body;
use crate::handle::Call;
use crate::options::parse_revision;
use crate::status::Failure;

/// Answers with the newest state. A revision may be asked for, which must not lie in the future.
pub(crate) fn get(call: &Call) -> Result<Response<Body>, Failure> {
    if let Some(revision) = call
        .query
        .get("resourceVersion")
        .filter(|text| !text.is_empty())
    {
        let current = call.core.store().revision().0;
        let wanted = parse_revision(revision)?;
        if wanted > current {
            return Err(Failure::revision_too_large(wanted, current));
        }
    }
    let entry = call.stored()?;
    answer::stored(call, &entry, StatusCode::OK)
}
