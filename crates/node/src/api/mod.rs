//! The kubelet's API: what the API server asks a node about its pods.
//!
//! Answers that are no streams are errors as the API server's own: a JSON `Status`, passed through
//! to the client as it is.

mod command;
mod log;
mod port_forward;
mod spdy;
mod stats;
mod websocket;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use engine::ContainerState;
use http::{Request, StatusCode, header};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tower::util::BoxCloneSyncService;

use crate::context::Context;
use crate::observed::{Attempts, Observed};
use crate::pod;

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    code: StatusCode,
    reason: &'static str,
    message: String,
}

impl Failure {
    pub(crate) fn bad_request(message: impl Into<String>) -> Failure {
        Failure {
            code: StatusCode::BAD_REQUEST,
            reason: "BadRequest",
            message: message.into(),
        }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Failure {
        Failure {
            code: StatusCode::NOT_FOUND,
            reason: "NotFound",
            message: message.into(),
        }
    }

    pub(crate) fn internal(message: impl std::fmt::Display) -> Failure {
        Failure {
            code: StatusCode::INTERNAL_SERVER_ERROR,
            reason: "InternalError",
            message: format!("Internal error occurred: {message}"),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code.as_u16(),
        });
        let kind = [(header::CONTENT_TYPE, "application/json")];
        (self.code, kind, status.to_string()).into_response()
    }
}

/// The service of one node.
pub(crate) fn service(
    context: Arc<Context>,
) -> BoxCloneSyncService<Request<Body>, Response<Body>, Infallible> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route(
            "/containerLogs/{namespace}/{pod}/{container}",
            get(log::answer),
        )
        .route("/exec/{namespace}/{pod}/{container}", any(command::exec))
        .route(
            "/exec/{namespace}/{pod}/{uid}/{container}",
            any(command::exec_uid),
        )
        .route(
            "/attach/{namespace}/{pod}/{container}",
            any(command::attach),
        )
        .route(
            "/attach/{namespace}/{pod}/{uid}/{container}",
            any(command::attach_uid),
        )
        .route("/portForward/{namespace}/{pod}", any(port_forward::answer))
        .route(
            "/portForward/{namespace}/{pod}/{uid}",
            any(port_forward::answer_uid),
        )
        .route("/stats/summary", get(stats::summary))
        .route("/pods", get(pods))
        .fallback(|| async { Failure::not_found("404 page not found") })
        .with_state(context);
    BoxCloneSyncService::new(router)
}

/// The pods of this node, as its agent knows them.
async fn pods(State(context): State<Arc<Context>>) -> Response {
    let items: Vec<Arc<Pod>> = context.pods.list();
    let items: Vec<&Pod> = items.iter().map(AsRef::as_ref).collect();
    let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
    json_answer(&list)
}

pub(crate) fn json_answer(value: &serde_json::Value) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, value.to_string()).into_response()
}

/// A pod of this node. With a uid, only the one that has it: another may have its name by now.
pub(crate) fn find_pod(
    context: &Context,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
) -> Result<Arc<Pod>, Failure> {
    let found = context.pods.get(Some(namespace), name);
    found
        .filter(|found| uid.is_none_or(|uid| pod::uid(found) == uid))
        .ok_or_else(|| Failure::not_found(format!("pod \"{name}\" not found")))
}

/// What the engine has of a pod.
pub(crate) async fn observe(context: &Context, pod: &Pod) -> Result<Observed, Failure> {
    let id = engine::SandboxId(pod::uid(pod).to_owned());
    match context.engine.sandbox(&id).await {
        Ok(sandbox) => Ok(Observed::new(sandbox)),
        Err(engine::Error::SandboxNotFound(_)) => Ok(Observed::default()),
        Err(error) => Err(Failure::internal(error)),
    }
}

/// The id of a container that runs.
pub(crate) async fn running(
    context: &Context,
    pod: &Pod,
    container: &str,
) -> Result<engine::ContainerId, Failure> {
    let observed = observe(context, pod).await?;
    let found = observed.containers.get(container);
    let current = found.and_then(|Attempts { current, .. }| current.as_ref());
    match current {
        Some(attempt) if matches!(attempt.state, ContainerState::Running { .. }) => {
            Ok(attempt.id.clone())
        }
        // The text on which clients rely.
        _ => Err(Failure {
            code: StatusCode::INTERNAL_SERVER_ERROR,
            reason: "InternalError",
            message: format!("container not found (\"{container}\")"),
        }),
    }
}

/// Parameters of a query, decoded.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn of<B>(request: &Request<B>) -> Query {
        let query = request.uri().query().unwrap_or_default();
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Query(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decoded(name), decoded(value))
                })
                .collect(),
        )
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        let found = self.0.iter().filter(|(known, _)| known == name);
        found.map(|(_, value)| value.clone()).collect()
    }

    /// `1` and `true`, as Go reads booleans in queries.
    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(
            self.get(name),
            Some("1" | "true" | "True" | "TRUE" | "t" | "T")
        )
    }
}

/// Percent and plus decoding; what is no valid escape stays.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut output = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = bytes.get(at + 1..at + 3).filter(|_| byte == b'%');
        let value = escaped
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (value, byte) {
            (Some(value), _) => {
                output.push(value);
                at += 3;
                continue;
            }
            (None, b'+') => output.push(b' '),
            (None, plain) => output.push(plain),
        }
        at += 1;
    }
    String::from_utf8_lossy(&output).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let request = Request::builder()
            .uri("/exec?command=sh&command=-c&command=echo+%22a%26b%22%20%C3%A9&tty=1&input=true&bad=%zz&empty=")
            .body(())
            .expect("a request");
        let query = Query::of(&request);
        assert_eq!(query.all("command"), ["sh", "-c", "echo \"a&b\" é"]);
        assert!(query.flag("tty") && query.flag("input") && !query.flag("error"));
        assert_eq!(query.get("bad"), Some("%zz"));
        assert_eq!(query.get("empty"), None);
    }
}
