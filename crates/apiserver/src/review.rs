//! Questions in the form of objects that are answered and not stored: who am I, may I, whose token
//! is this.

use bytes::Bytes;
use http::{Response, StatusCode};
use kinds::FieldSelector;
use serde_json::{Map, Value, json};

use crate::Body;
use crate::authorize::{Attributes, Decision};
use crate::caller::Caller;
use crate::handle::Call;
use crate::options::WriteOptions;
use crate::route::RequestInfo;
use crate::status::{Failure, FaultReason, fault};
use crate::verbs::{answer, body};

/// Answers the review in the body.
pub(crate) async fn create(call: &Call, bytes: Bytes) -> Result<Response<Body>, Failure> {
    let kind = call.resource.kind;
    if kind.kind() == "Binding" {
        return crate::subresources::binding::create(call, bytes).await;
    }
    let options = WriteOptions::parse(&call.query, &call.headers, "CreateOptions", false)?;
    let mut review = body::object(call, &bytes, options.validation)?;
    let status = match (kind.group(), kind.kind()) {
        ("authentication.k8s.io", "TokenReview") => token_review(call, &review)?,
        ("authentication.k8s.io", "SelfSubjectReview") => {
            json!({"userInfo": user_info(&call.caller)})
        }
        ("authorization.k8s.io", "SelfSubjectAccessReview") => {
            access_review(call, &call.caller, &review)?
        }
        ("authorization.k8s.io", "SubjectAccessReview") => {
            access_review(call, &subject(call, &review)?, &review)?
        }
        ("authorization.k8s.io", "LocalSubjectAccessReview") => {
            local_fault(call, &review)?;
            access_review(call, &subject(call, &review)?, &review)?
        }
        ("authorization.k8s.io", "SelfSubjectRulesReview") => rules_review(call, &review)?,
        _ => return Err(Failure::method_not_allowed()),
    };
    if kind.kind() == "SelfSubjectRulesReview" {
        // Upstream shows none of the question in this answer.
        review["spec"] = json!({});
    }
    review["status"] = status;
    if !review["metadata"].is_object() {
        review["metadata"] = json!({});
    }
    Ok(answer::value(call, &review, StatusCode::CREATED))
}

fn required(call: &Call, path: &str, reason: FaultReason, detail: &str) -> Failure {
    call.resource
        .invalid("", &[fault(path, reason, Value::Null, detail)])
}

/// An identity as reviews show it.
fn user_info(caller: &Caller) -> Value {
    let mut info = Map::new();
    info.insert("username".into(), caller.name.as_str().into());
    if !caller.uid.is_empty() {
        info.insert("uid".into(), caller.uid.as_str().into());
    }
    if !caller.groups.is_empty() {
        info.insert("groups".into(), json!(caller.groups));
    }
    if !caller.extra.is_empty() {
        info.insert("extra".into(), json!(caller.extra));
    }
    Value::Object(info)
}

fn token_review(call: &Call, review: &Value) -> Result<Value, Failure> {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(Failure::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let audiences: Vec<String> = review["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|audience| audience.as_str().map(str::to_owned))
        .collect();
    Ok(
        match call.core.tokens.authenticate(&call.core, token, &audiences) {
            Ok(verified) => json!({
                "authenticated": true,
                "user": user_info(&verified.caller),
                "audiences": verified.audiences,
            }),
            Err(error) => json!({
                "user": {},
                "error": format!("[invalid bearer token, {error}]"),
            }),
        },
    )
}

/// The identity that a review asks about.
fn subject(call: &Call, review: &Value) -> Result<Caller, Failure> {
    let spec = &review["spec"];
    let texts = |value: &Value| -> Vec<String> {
        value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|text| text.as_str().map(str::to_owned))
            .collect()
    };
    let name = spec["user"].as_str().unwrap_or_default();
    let groups = texts(&spec["groups"]);
    if name.is_empty() && groups.is_empty() {
        return Err(required(
            call,
            "spec.user",
            FaultReason::Invalid,
            "at least one of user or group must be specified",
        ));
    }
    let extra = spec["extra"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, values)| (key.clone(), texts(values)))
        .collect();
    Ok(Caller {
        name: name.to_owned(),
        groups,
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        extra,
    })
}

fn local_fault(call: &Call, review: &Value) -> Result<(), Failure> {
    let wanted = call.info.namespace.as_str();
    let given = review["spec"]["resourceAttributes"]["namespace"]
        .as_str()
        .unwrap_or_default();
    if given == wanted {
        return Ok(());
    }
    Err(required(
        call,
        "spec.resourceAttributes.namespace",
        FaultReason::Invalid,
        "must match metadata.namespace",
    ))
}

fn access_review(call: &Call, subject: &Caller, review: &Value) -> Result<Value, Failure> {
    let spec = &review["spec"];
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let request = match (resource.is_object(), path.is_object()) {
        (true, false) => resource_request(resource),
        (false, true) => RequestInfo {
            verb: path["verb"].as_str().unwrap_or_default().to_owned().into(),
            path: path["path"].as_str().unwrap_or_default().to_owned(),
            ..RequestInfo::default()
        },
        (true, true) => {
            return Err(required(
                call,
                "spec.nonResourceAttributes",
                FaultReason::Invalid,
                "cannot be specified in combination with resourceAttributes",
            ));
        }
        (false, false) => {
            return Err(required(
                call,
                "spec.resourceAttributes",
                FaultReason::Invalid,
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ));
        }
    };
    let decision = call.core.authorizer.authorize(&Attributes {
        caller: subject,
        request: &request,
    });
    Ok(match decision {
        Decision::Allow(reason) if reason.is_empty() => json!({"allowed": true}),
        Decision::Allow(reason) => json!({"allowed": true, "reason": reason}),
        Decision::Deny(reason) if reason.is_empty() => json!({"allowed": false}),
        Decision::Deny(reason) => json!({"allowed": false, "reason": reason}),
    })
}

fn resource_request(attributes: &Value) -> RequestInfo {
    let text = |name: &str| attributes[name].as_str().unwrap_or_default().to_owned();
    RequestInfo {
        is_resource: true,
        verb: text("verb").into(),
        group: text("group"),
        version: text("version"),
        namespace: text("namespace"),
        resource: text("resource"),
        subresource: text("subresource"),
        name: text("name"),
        field_selector: selector(&attributes["fieldSelector"]),
        ..RequestInfo::default()
    }
}

/// The selector that a question is restricted by, in either of its forms. What cannot be read
/// restricts nothing, and so allows less.
fn selector(given: &Value) -> Option<FieldSelector> {
    if let Some(raw) = given["rawSelector"].as_str().filter(|raw| !raw.is_empty()) {
        return FieldSelector::parse(raw).ok();
    }
    let mut single = given["requirements"].as_array()?.iter().filter_map(|term| {
        let [value] = term["values"].as_array()?.as_slice() else {
            return None;
        };
        let equals = term["operator"] == "In";
        let term = FieldSelector::exactly(term["key"].as_str()?, value.as_str()?);
        equals.then_some(term)
    });
    let first = single.next()?;
    Some(single.fold(first, FieldSelector::and))
}

fn rules_review(call: &Call, review: &Value) -> Result<Value, Failure> {
    let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(Failure::bad_request("no namespace on request"));
    }
    let rules = call.core.authorizer.rules(&call.caller, namespace);
    let mut status = json!({
        "resourceRules": rules.resource_rules,
        "nonResourceRules": rules.non_resource_rules,
        "incomplete": !rules.evaluation_error.is_empty(),
    });
    if !rules.evaluation_error.is_empty() {
        status["evaluationError"] = rules.evaluation_error.into();
    }
    Ok(status)
}
