//! Parts of a resource that are read and written on their own.

pub(crate) mod binding;
mod eviction;
mod forward;
mod kubelet;
mod links;
mod proxy;
mod scale;
mod scale_owners;
mod token_request;

use http::{Method, Request, Response};

use crate::Body;
use crate::handle::{Call, read_body};
use crate::status::Failure;
use crate::verbs;

/// Answers a request on a subresource.
pub(crate) async fn answer(call: &Call, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let kind = call.resource.kind;
    let sub = call.info.subresource.as_str();
    if sub == "proxy" && proxy::is_for(&call.resource) {
        return proxy::answer(call, request).await;
    }
    let known = kind.subresources().iter().find(|known| known.name == sub);
    let Some(known) = known else {
        return Err(Failure::no_such_resource());
    };
    if call.info.name.is_empty() || (kind.namespaced() && call.info.namespace.is_empty()) {
        return Err(Failure::no_such_resource());
    }
    if !known.verbs.iter().any(|verb| **verb == *call.info.verb) {
        return Err(Failure::method_not_allowed());
    }
    match (kind.kind(), sub) {
        ("Pod", "log" | "exec" | "attach" | "portforward") => kubelet::answer(call, request).await,
        ("Pod", "binding") => binding::create(call, read_body(request).await?).await,
        ("Pod", "eviction") => eviction::create(call, read_body(request).await?).await,
        ("ServiceAccount", "token") => token_request::create(call, read_body(request).await?).await,
        (_, "scale") => scale::answer(call, request).await,
        _ if known.kind == kind.kind() => own_kind(call, request, sub).await,
        _ => Err(Failure::method_not_allowed()),
    }
}

/// `status`, `finalize`, `ephemeralcontainers`, `resize`: the resource itself, of which only a
/// part is written.
async fn own_kind(
    call: &Call,
    request: Request<Body>,
    sub: &str,
) -> Result<Response<Body>, Failure> {
    match *request.method() {
        Method::PUT => verbs::update::through(call, read_body(request).await?, Some(sub)).await,
        Method::PATCH => verbs::patch::through(call, read_body(request).await?, Some(sub)).await,
        Method::GET | Method::HEAD => verbs::get::get(call),
        _ => Err(Failure::method_not_allowed()),
    }
}
