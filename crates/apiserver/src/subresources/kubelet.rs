//! Logs, exec, attach and port-forward: handed on to the agent of the pod's node.
//!
//! The request goes on as it came, with the handle by which its connection can be upgraded: so the
//! agent speaks with the client itself, and nothing here looks at or copies what they say.

use http::{Request, Response, StatusCode, Uri, header};
use serde_json::Value;
use tower::ServiceExt as _;

use crate::Body;
use crate::authorize::{Attributes, Decision};
use crate::handle::Call;
use crate::options::integer;
use crate::route::RequestInfo;
use crate::status::{Failure, FaultReason, fault};
use crate::verbs::answer::with_type;
use crate::websocket;

/// The annotation by which a pod says which of its containers is meant.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Finds the node and the container, and lets the node answer.
pub(crate) async fn answer(
    call: &Call,
    mut request: Request<Body>,
) -> Result<Response<Body>, Failure> {
    let sub = call.info.subresource.as_str();
    if sub != "log" {
        require_create(call)?;
    }
    let pod = call
        .core
        .read(&call.resource, &call.info.namespace, &call.info.name)
        .ok_or_else(|| call.not_found())?;
    let node_name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let target = match sub {
        "log" => log_target(call, &pod)?,
        "portforward" => format!(
            "/portForward/{}/{}{}",
            call.info.namespace,
            call.info.name,
            query_of(call, &["ports"])
        ),
        _ => format!(
            "/{sub}/{}/{}/{}{}",
            call.info.namespace,
            call.info.name,
            container(call, &pod)?,
            stream_query(call, sub)
        ),
    };
    if node_name.is_empty() {
        return match sub {
            // What has not begun has said nothing.
            "log" => Ok(with_type(
                StatusCode::NO_CONTENT,
                Body::empty(),
                "text/plain",
            )),
            _ => Err(Failure::bad_request(format!(
                "pod {} does not have a host assigned",
                call.info.name
            ))),
        };
    }
    let node = call.core.config.nodes.node(node_name).ok_or_else(|| {
        Failure::unavailable(format!(
            "node \"{node_name}\" of pod \"{}\" cannot be reached",
            call.info.name
        ))
    })?;
    *request.uri_mut() = target
        .parse::<Uri>()
        .map_err(|error| Failure::bad_request(format!("address the node: {error}")))?;
    *request.headers_mut() = call.headers.clone();
    request.headers_mut().remove(header::AUTHORIZATION);
    if sub == "log" && websocket::is_wanted(&call.headers) {
        // The agent answers with plain bytes; the messages are made of them here.
        let mut plain = Request::new(Body::empty());
        *plain.uri_mut() = request.uri().clone();
        let response = node
            .oneshot(plain)
            .await
            .unwrap_or_else(|never| match never {});
        let (framing, drain) = (websocket::Framing::Pieces, call.drain.clone());
        return websocket::send(request, &call.headers, response, framing, drain).await;
    }
    match node.oneshot(request).await {
        Ok(response) => Ok(response),
        Err(never) => match never {},
    }
}

/// Where the node has the log of the container that is meant.
fn log_target(call: &Call, pod: &Value) -> Result<String, Failure> {
    const OPTIONS: &[&str] = &[
        "follow",
        "previous",
        "timestamps",
        "sinceSeconds",
        "sinceTime",
        "tailLines",
        "limitBytes",
        "stream",
    ];
    check_log_options(call)?;
    Ok(format!(
        "/containerLogs/{}/{}/{}{}",
        call.info.namespace,
        call.info.name,
        container(call, pod)?,
        query_of(call, OPTIONS)
    ))
}

/// Browsers can open a WebSocket by GET only, which asks for no more than the right to `get`; but
/// who acts in a pod must be allowed to `create`.
fn require_create(call: &Call) -> Result<(), Failure> {
    if call.info.verb == "create" {
        return Ok(());
    }
    let request = RequestInfo {
        verb: "create".into(),
        ..call.info.clone()
    };
    let attributes = Attributes {
        caller: &call.caller,
        request: &request,
    };
    match call.core.authorizer.authorize(&attributes) {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(reason) => Err(Failure::forbidden(
            call.resource.name(),
            &call.info.name,
            reason,
        )),
    }
}

/// Refuses amounts of log that make no sense.
fn check_log_options(call: &Call) -> Result<(), Failure> {
    let mut faults = Vec::new();
    for (name, least, detail) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        let Some(text) = call.query.get(name).filter(|text| !text.is_empty()) else {
            continue;
        };
        let amount = integer(text)?;
        if amount < least {
            faults.push(fault(name, FaultReason::Invalid, amount, detail));
        }
    }
    if call.query.get("sinceSeconds").is_some() && call.query.get("sinceTime").is_some() {
        let detail = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        faults.push(fault("[]", FaultReason::Forbidden, Value::Null, detail));
    }
    if faults.is_empty() {
        return Ok(());
    }
    Err(Failure::invalid(
        "",
        "PodLogOptions",
        &call.info.name,
        &faults,
    ))
}

/// The container that the request means.
fn container(call: &Call, pod: &Value) -> Result<String, Failure> {
    let name = &call.info.name;
    let names = |list: &str| -> Vec<&str> {
        pod["spec"][list]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|container| container["name"].as_str())
            .collect()
    };
    let (plain, init, ephemeral) = (
        names("containers"),
        names("initContainers"),
        names("ephemeralContainers"),
    );
    if let Some(wanted) = call
        .query
        .get("container")
        .filter(|wanted| !wanted.is_empty())
    {
        let known = plain
            .iter()
            .chain(&init)
            .chain(&ephemeral)
            .any(|known| *known == wanted);
        return if known {
            Ok(wanted.to_owned())
        } else {
            Err(Failure::bad_request(format!(
                "container {wanted} is not valid for pod {name}"
            )))
        };
    }
    let annotated = pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str();
    match plain.as_slice() {
        [only] => Ok((*only).to_owned()),
        [] => Err(Failure::bad_request(format!(
            "a container name must be specified for pod {name}"
        ))),
        _ => {
            if let Some(annotated) = annotated.filter(|annotated| plain.contains(annotated)) {
                return Ok(annotated.to_owned());
            }
            let mut text = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                plain.join(" ")
            );
            if !init.is_empty() {
                text.push_str(&format!(
                    " or one of the init containers: [{}]",
                    init.join(" ")
                ));
            }
            Err(Failure::bad_request(text))
        }
    }
}

/// The named parameters, as they came.
fn query_of(call: &Call, names: &[&str]) -> String {
    let mut pairs = Vec::new();
    for name in names {
        for value in call.query.all(name) {
            pairs.push(format!("{name}={}", encode(value)));
        }
    }
    joined(&pairs)
}

/// The parameters of exec and attach under the names that a kubelet knows them by.
fn stream_query(call: &Call, sub: &str) -> String {
    let mut pairs = Vec::new();
    if sub == "exec" {
        pairs.extend(
            call.query
                .all("command")
                .map(|word| format!("command={}", encode(word))),
        );
    }
    for (from, to) in [
        ("stdin", "input"),
        ("stdout", "output"),
        ("stderr", "error"),
        ("tty", "tty"),
    ] {
        if call.query.flag(from) {
            pairs.push(format!("{to}=1"));
        }
    }
    joined(&pairs)
}

fn joined(pairs: &[String]) -> String {
    if pairs.is_empty() {
        String::new()
    } else {
        format!("?{}", pairs.join("&"))
    }
}

/// Percent-encodes everything but what is unreserved (RFC 3986 section 2.3).
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
