//! The published schemas, for `kubectl explain`, `apply` and `diff`.

use http::{HeaderMap, Response};

use crate::Body;
use crate::route::Query;
use crate::status::Failure;

/// The documents, made when they are first asked for.
#[derive(Default)]
pub(crate) struct Documents {}

impl Documents {
    /// Answers `/openapi/v3` and what is below it; `None` for other paths.
    pub(crate) fn answer(
        &self,
        _path: &str,
        _query: &Query,
        _headers: &HeaderMap,
    ) -> Option<Result<Response<Body>, Failure>> {
        None
    }
}
