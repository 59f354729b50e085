//! What there is: the documents that clients read before they ask for anything else.

use http::{HeaderMap, Response, StatusCode, header};
use serde_json::Value;

use crate::Body;
use crate::status::Failure;
use crate::verbs::answer::with_type;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Whether the group is served in any version. The core group always is.
pub(crate) fn has_group(group: &str) -> bool {
    kinds::builtin()
        .group_versions()
        .iter()
        .any(|(known, _)| *known == group)
}

/// Answers `/api`, `/apis`, `/apis/GROUP` and the resource lists; `None` for other paths.
pub(crate) fn answer(path: &str, headers: &HeaderMap) -> Option<Result<Response<Body>, Failure>> {
    let registry = kinds::builtin();
    let segments: Vec<&str> = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .collect();
    let address = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    let document = match segments.as_slice() {
        ["api"] if wants_aggregated(headers) => {
            return Some(Ok(aggregated(registry.aggregated(true))));
        }
        ["apis"] if wants_aggregated(headers) => {
            return Some(Ok(aggregated(registry.aggregated(false))));
        }
        [] => Some(paths()),
        ["api"] => Some(registry.api_versions(address)),
        ["apis"] => Some(registry.group_list()),
        ["api", version] => registry.resource_list("", version),
        ["apis", group] if has_group(group) => registry.group(group),
        ["apis", group, version] if has_group(group) => registry.resource_list(group, version),
        _ => return None,
    };
    Some(document.map(plain).ok_or_else(Failure::no_such_resource))
}

/// `GET /`: where something can be found.
fn paths() -> Value {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/apis",
        "/healthz",
        "/livez",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ]
    .map(str::to_owned)
    .to_vec();
    for (group, versions) in kinds::builtin().group_versions() {
        if group.is_empty() {
            paths.extend(versions.iter().map(|version| format!("/api/{version}")));
        } else {
            paths.push(format!("/apis/{group}"));
            paths.extend(
                versions
                    .iter()
                    .map(|version| format!("/apis/{group}/{version}")),
            );
        }
    }
    paths.sort();
    serde_json::json!({"paths": paths})
}

fn wants_aggregated(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| {
            let has = |wanted: &str| part.split(';').any(|parameter| parameter.trim() == wanted);
            has("as=APIGroupDiscoveryList") && has("g=apidiscovery.k8s.io") && has("v=v2")
        })
}

fn plain(document: Value) -> Response<Body> {
    with_type(
        StatusCode::OK,
        document.to_string().into(),
        "application/json",
    )
}

fn aggregated(document: Value) -> Response<Body> {
    with_type(StatusCode::OK, document.to_string().into(), AGGREGATED)
}
