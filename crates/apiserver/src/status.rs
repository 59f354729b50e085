//! Every way a request can end other than well, as the `Status` object that clients expect.
//!
//! The texts are those of Kubernetes 1.36; clients and people match on them.

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

/// A request that is answered with a `Status` of failure.
///
/// Boxed, because it travels through many `Result`s and is rare.
#[derive(Clone, Debug)]
pub struct Failure(Box<Content>);

#[derive(Clone, Debug)]
struct Content {
    code: u16,
    reason: &'static str,
    message: String,
    details: Option<Value>,
    retry_after: Option<u32>,
    continue_token: Option<String>,
}

/// The plural and group of a resource as error texts name it.
#[derive(Clone, Copy, Debug)]
pub struct ResourceName<'a> {
    /// API group; empty for the core group.
    pub group: &'a str,
    /// Plural, e.g. `deployments`.
    pub plural: &'a str,
}

impl std::fmt::Display for ResourceName<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.plural)?;
        if !self.group.is_empty() {
            write!(formatter, ".{}", self.group)?;
        }
        Ok(())
    }
}

impl Failure {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Failure {
        Failure(Box::new(Content {
            code: code.as_u16(),
            reason,
            message: message.into(),
            details: None,
            retry_after: None,
            continue_token: None,
        }))
    }

    fn details(mut self, details: Value) -> Failure {
        self.0.details = Some(details);
        self
    }

    /// The HTTP status code.
    pub fn code(&self) -> u16 {
        self.0.code
    }

    /// The machine-readable reason, e.g. `NotFound`.
    pub fn reason(&self) -> &'static str {
        self.0.reason
    }

    /// The text for people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// 400 with the text as it is.
    pub fn bad_request(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 401: no identity could be established.
    pub fn unauthorized() -> Failure {
        Failure::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// 403 for an action on a resource; `why` stands after the colon.
    pub fn forbidden(
        resource: ResourceName<'_>,
        name: &str,
        why: impl std::fmt::Display,
    ) -> Failure {
        let message = if name.is_empty() {
            format!("{resource} is forbidden: {why}")
        } else {
            format!("{resource} \"{name}\" is forbidden: {why}")
        };
        Failure::new(StatusCode::FORBIDDEN, "Forbidden", message).details(named(resource, name))
    }

    /// 403 for a path that is no resource.
    pub fn forbidden_path(why: impl std::fmt::Display) -> Failure {
        Failure::new(
            StatusCode::FORBIDDEN,
            "Forbidden",
            format!("forbidden: {why}"),
        )
        .details(json!({}))
    }

    /// 403 with a cause that clients can find, e.g. `NamespaceTerminating`.
    pub fn with_cause(mut self, reason: &str, message: &str, field: Option<&str>) -> Failure {
        let mut cause = json!({"reason": reason, "message": message});
        if let Some(field) = field {
            cause["field"] = field.into();
        }
        let details = self.0.details.get_or_insert_with(|| json!({}));
        match details.get_mut("causes").and_then(Value::as_array_mut) {
            Some(causes) => causes.push(cause),
            None => details["causes"] = json!([cause]),
        }
        self
    }

    /// 404: no such object.
    pub fn not_found(resource: ResourceName<'_>, name: &str) -> Failure {
        Failure::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            format!("{resource} \"{name}\" not found"),
        )
        .details(named(resource, name))
    }

    /// 404: no such path below a known API group.
    pub fn no_such_resource() -> Failure {
        Failure::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource",
        )
        .details(json!({}))
    }

    /// 405: the resource is there, the verb is not.
    pub fn method_not_allowed() -> Failure {
        Failure::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
        .details(json!({}))
    }

    /// 405 with the text of a storage that has no such verb.
    pub fn method_not_supported(resource: ResourceName<'_>, verb: &str) -> Failure {
        let mut details = named(resource, "");
        details["kind"] = resource.plural.into();
        Failure::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            format!("{verb} is not supported on resources of kind \"{resource}\""),
        )
        .details(details)
    }

    /// 406: none of the accepted representations can be made; `streams` if those of a watch are among
    /// them.
    pub fn not_acceptable(streams: bool) -> Failure {
        let mut message = String::from(
            "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, application/vnd.kubernetes.protobuf",
        );
        if streams {
            message.push_str(
                ", application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch",
            );
        }
        Failure::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message).details(json!({}))
    }

    /// 406 for what has one representation only, which is not an accepted one.
    pub fn no_accepted_type() -> Failure {
        let message = "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf";
        Failure::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    /// 415 for a body of an object.
    pub fn unsupported_body() -> Failure {
        Failure::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml",
        )
    }

    /// 415 for a patch type that is not known.
    pub fn unsupported_patch() -> Failure {
        Failure::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            "415: Unsupported Media Type",
        )
        .details(json!({}))
    }

    /// 409: an object of that name is there already.
    pub fn already_exists(resource: ResourceName<'_>, name: &str) -> Failure {
        Failure::new(
            StatusCode::CONFLICT,
            "AlreadyExists",
            format!("{resource} \"{name}\" already exists"),
        )
        .details(named(resource, name))
    }

    /// 409 with the reason it gives.
    pub fn conflict(
        resource: ResourceName<'_>,
        name: &str,
        why: impl std::fmt::Display,
    ) -> Failure {
        Failure::new(
            StatusCode::CONFLICT,
            "Conflict",
            format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}"),
        )
        .details(named(resource, name))
    }

    /// 409: somebody else wrote in between.
    pub fn modified(resource: ResourceName<'_>, name: &str) -> Failure {
        Failure::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409 of server-side apply: a cause (message, field) for each field that another manager owns.
    pub fn apply_conflicts(
        message: String,
        conflicts: impl Iterator<Item = (String, String)>,
    ) -> Failure {
        let causes: Vec<Value> = conflicts
            .map(|(message, field)| {
                json!({"reason": "FieldManagerConflict", "message": message, "field": field})
            })
            .collect();
        Failure::new(StatusCode::CONFLICT, "Conflict", message).details(json!({"causes": causes}))
    }

    /// 410: the revision that was asked for is gone.
    pub fn expired(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::GONE, "Expired", message)
    }

    /// Adds the token with which a list can go on.
    pub(crate) fn with_continue(mut self, token: String) -> Failure {
        self.0.continue_token = Some(token);
        self
    }

    /// 413: the body is over the limit.
    pub fn too_large() -> Failure {
        Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            "Request entity too large: limit is 3145728",
        )
    }

    /// 413 with a text of its own.
    pub fn too_large_because(message: impl Into<String>) -> Failure {
        Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            message,
        )
    }

    /// 422 with every fault of the object.
    pub fn invalid(group: &str, kind: &str, name: &str, faults: &[Fault]) -> Failure {
        let texts: Vec<String> = faults.iter().map(Fault::to_string).collect();
        let joined = match texts.as_slice() {
            [single] => single.clone(),
            _ => format!("[{}]", texts.join(", ")),
        };
        let qualified = if group.is_empty() {
            kind.to_owned()
        } else {
            format!("{kind}.{group}")
        };
        let mut details = json!({
            "kind": kind,
            "causes": faults.iter().map(cause).collect::<Vec<_>>(),
        });
        if !group.is_empty() {
            details["group"] = group.into();
        }
        if !name.is_empty() {
            details["name"] = name.into();
        }
        Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("{qualified} \"{name}\" is invalid: {joined}"),
        )
        .details(details)
    }

    /// 422 of a JSON patch that does not apply.
    pub fn rejected() -> Failure {
        Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            "the server rejected our request due to an error in our request",
        )
        .details(json!({}))
    }

    /// 429: try again after so many seconds.
    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Failure {
        let mut failure = Failure::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message)
            .details(json!({}));
        if retry_after > 0 {
            failure.0.details = Some(json!({"retryAfterSeconds": retry_after}));
            failure.0.retry_after = Some(retry_after);
        }
        failure
    }

    /// 500. The text is shown to the client; what only operators should see goes to the log.
    pub fn internal(message: impl std::fmt::Display) -> Failure {
        let message = format!("Internal error occurred: {message}");
        let causes =
            json!([{ "message": message.trim_start_matches("Internal error occurred: ") }]);
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
            .details(json!({ "causes": causes }))
    }

    /// 500 with a text that upstream does not dress up, and no reason.
    pub fn plain_internal(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "", message)
    }

    /// 503: a part that the request needs is not there now.
    pub fn unavailable(message: impl Into<String>) -> Failure {
        Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            message,
        )
    }

    /// 504: it did not finish in time.
    pub fn timeout(message: impl Into<String>) -> Failure {
        Failure::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message)
    }

    /// 504: the revision that was asked for lies in the future.
    pub fn revision_too_large(wanted: u64, current: u64) -> Failure {
        let mut failure = Failure::timeout(format!(
            "Timeout: Too large resource version: {wanted}, current: {current}"
        ))
        .details(json!({
            "causes": [{
                "reason": "ResourceVersionTooLarge",
                "message": "Too large resource version",
            }],
            "retryAfterSeconds": 1,
        }));
        failure.0.retry_after = Some(1);
        failure
    }

    /// The `Status` object.
    pub fn to_value(&self) -> Value {
        let content = &*self.0;
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": content.message,
            "code": content.code,
        });
        if !content.reason.is_empty() {
            status["reason"] = content.reason.into();
        }
        if let Some(details) = &content.details {
            status["details"] = details.clone();
        }
        if let Some(token) = &content.continue_token {
            status["metadata"]["continue"] = token.as_str().into();
        }
        status
    }

    /// The whole answer.
    pub fn into_response(self) -> Response<Body> {
        let mut body = serde_json::to_vec(&self.to_value())
            .expect("a Value with string keys always serialises");
        body.push(b'\n');
        let mut response = Response::new(Body::from(body));
        *response.status_mut() =
            StatusCode::from_u16(self.0.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache, private"),
        );
        if let Some(seconds) = self.0.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

pub(crate) use kinds::{Fault, FaultReason};

/// A fault of a field that is known by its whole path.
pub(crate) fn fault(
    path: &str,
    reason: FaultReason,
    bad_value: impl Into<Value>,
    detail: impl Into<String>,
) -> Fault {
    let mut fault = Fault::invalid(kinds::Path::new(path), bad_value, detail);
    fault.reason = reason;
    fault
}

fn cause(fault: &Fault) -> Value {
    let cause = fault.cause();
    json!({"reason": cause.reason, "message": cause.message, "field": cause.field})
}

fn named(resource: ResourceName<'_>, name: &str) -> Value {
    let mut details = json!({"kind": resource.plural});
    if !resource.group.is_empty() {
        details["group"] = resource.group.into();
    }
    if !name.is_empty() {
        details["name"] = name.into();
    }
    details
}

/// A `Status` of success, as deletes and bindings answer it.
pub(crate) fn success(
    resource: Option<(ResourceName<'_>, &str, &str)>,
    code: Option<u16>,
) -> Value {
    let mut status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
    });
    if let Some((resource, name, uid)) = resource {
        let mut details = named(resource, name);
        if !uid.is_empty() {
            details["uid"] = uid.into();
        }
        status["details"] = details;
    }
    if let Some(code) = code {
        status["code"] = code.into();
    }
    status
}
