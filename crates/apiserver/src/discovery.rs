//! What there is: the documents that clients read before they ask for anything else.

use http::{HeaderMap, Response, StatusCode, header};
use serde_json::Value;

use crate::Body;
use crate::options::accepted;
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
    let whole = matches!(segments.as_slice(), ["api"] | ["apis"]);
    let form = Form::wanted(headers, whole);
    let document = match segments.as_slice() {
        [only] if form == Some(Form::Aggregated) => {
            return Some(Ok(aggregated(registry.aggregated(*only == "api"))));
        }
        [] => Some(paths()),
        ["api"] => Some(registry.api_versions(address)),
        ["apis"] => Some(registry.group_list()),
        ["api", version] => registry.resource_list("", version),
        ["apis", group] if has_group(group) => registry.group(group),
        ["apis", group, version] if has_group(group) => registry.resource_list(group, version),
        _ => return None,
    };
    Some(match (document, form) {
        (None, _) => Err(Failure::no_such_resource()),
        (Some(_), None) => Err(Failure::no_accepted_type()),
        (Some(document), Some(_)) => Ok(plain(document)),
    })
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

/// The forms of a discovery document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    /// Groups, versions and resources in one (`apidiscovery.k8s.io/v2`).
    Aggregated,
}

impl Form {
    /// The first acceptable form that the document has; `whole` are those that can be aggregated.
    fn wanted(headers: &HeaderMap, whole: bool) -> Option<Form> {
        let mut asked = accepted(headers).peekable();
        if asked.peek().is_none() {
            return Some(Form::Plain);
        }
        asked.find_map(|part| {
            let mut parameters = part.split(';').map(str::trim);
            let media = parameters.next().unwrap_or_default();
            if !matches!(media, "*/*" | "application/*" | "application/json") {
                return None;
            }
            let has = |wanted: &str| part.split(';').any(|parameter| parameter.trim() == wanted);
            if !parameters.any(|parameter| parameter.starts_with("as=")) {
                return Some(Form::Plain);
            }
            let is_aggregated =
                has("as=APIGroupDiscoveryList") && has("g=apidiscovery.k8s.io") && has("v=v2");
            (whole && is_aggregated).then_some(Form::Aggregated)
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_acceptable_form_is_taken() {
        let check = |accept: &'static str, expected: Option<Form>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, http::HeaderValue::from_static(accept));
            assert_eq!(Form::wanted(&headers, true), expected, "{accept}");
        };
        let old = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
        check("", Some(Form::Plain));
        check("*/*", Some(Form::Plain));
        check(AGGREGATED, Some(Form::Aggregated));
        check(
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json;as=APIGroupDiscoveryList;v=v2;g=apidiscovery.k8s.io,application/json",
            Some(Form::Aggregated),
        );
        check(
            "application/json, application/json;as=Table",
            Some(Form::Plain),
        );
        check(old, None);
        check("text/html", None);
    }
}
