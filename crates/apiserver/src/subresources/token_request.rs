//! Issuing a ServiceAccount token.

use bytes::Bytes;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Body;
use crate::authorize::node::items;
use crate::encode::metadata_str;
use crate::handle::Call;
use crate::options::WriteOptions;
use crate::status::{Failure, FaultReason, ResourceName, fault};
use crate::token::{Bound, Claims, Reference};
use crate::verbs::change::seconds;
use crate::verbs::{answer, body, update};

const GROUP: &str = "authentication.k8s.io";
const SECONDS_DEFAULT: i64 = 3600;
const SECONDS_LEAST: i64 = 600;
const SECONDS_MOST: i64 = 1 << 32;
/// What the tokens that the ServiceAccount admission mounts ask for. They are good for a year, so
/// that old clients that never read them again go on working, and say when they should have been
/// read again; upstream does the same.
const SECONDS_MOUNTED: i64 = 3607;
const SECONDS_MOUNTED_GOOD: i64 = 365 * 24 * 3600;

/// Answers a `TokenRequest` with a token.
pub(crate) async fn create(call: &Call, bytes: Bytes) -> Result<Response<Body>, Failure> {
    let options = WriteOptions::parse(&call.query, &call.headers, "CreateOptions", false)?;
    let kind = call.core.builtin_kind(GROUP, "v1", "TokenRequest");
    let mut request = body::object_of(call, kind, &bytes, options.validation)?;
    check_metadata(call, &mut request)?;
    if let Some(node) = call.caller.node_name() {
        check_node(call, node, &request["spec"])?;
    }
    let account = call
        .core
        .read(&call.resource, &call.info.namespace, &call.info.name)
        .ok_or_else(|| call.not_found())?;
    let wanted = request["spec"]["expirationSeconds"]
        .as_i64()
        .unwrap_or(SECONDS_DEFAULT);
    check_seconds(wanted)?;
    let audiences = audiences(call, &request);
    let mut bound = Bound {
        namespace: call.info.namespace.clone(),
        serviceaccount: Reference {
            name: call.info.name.clone(),
            uid: metadata_str(&account, "uid").to_owned(),
        },
        ..Bound::default()
    };
    bind(call, &request["spec"]["boundObjectRef"], &mut bound)?;
    let now = call.now.as_second();
    let mut good = wanted;
    if wanted == SECONDS_MOUNTED && bound.pod.is_some() && audiences == [call.core.tokens.issuer()]
    {
        bound.warnafter = Some(now + wanted);
        good = SECONDS_MOUNTED_GOOD;
    }
    let claims = Claims {
        aud: audiences.clone(),
        exp: now + good,
        iat: now,
        iss: call.core.tokens.issuer().to_owned(),
        jti: uuid::Uuid::new_v4().to_string(),
        nbf: now,
        sub: format!(
            "system:serviceaccount:{}:{}",
            call.info.namespace, call.info.name
        ),
        kubernetes: bound,
    };
    let token = call
        .core
        .tokens
        .issue(&claims)
        .map_err(|error| Failure::internal(format!("sign the token: {error}")))?;
    // The client is told the time by which it should ask again.
    let expires = Timestamp::from_second(now + wanted).unwrap_or(call.now);
    request["kind"] = "TokenRequest".into();
    request["apiVersion"] = format!("{GROUP}/v1").into();
    request["metadata"] = json!({
        "name": call.info.name,
        "namespace": call.info.namespace,
        "creationTimestamp": seconds(call.now),
    });
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = wanted.into();
    if request["spec"].get("boundObjectRef").is_none() {
        request["spec"]["boundObjectRef"] = Value::Null;
    }
    request["status"] = json!({"token": token, "expirationTimestamp": seconds(expires)});
    Ok(answer::value(call, &request, StatusCode::CREATED))
}

/// The agent of a node asks for tokens only for pods that run there, and with audiences that these
/// have asked for.
fn check_node(call: &Call, node: &str, spec: &Value) -> Result<(), Failure> {
    let refuse = |why: String| {
        let name = call.resource.name();
        Err(Failure::forbidden(name, &call.info.name, why))
    };
    let bound = &spec["boundObjectRef"];
    let text = |name: &str| bound[name].as_str().unwrap_or_default();
    if text("kind") != "Pod" || text("apiVersion") != "v1" || text("name").is_empty() {
        return refuse("node requested token not bound to a pod".into());
    }
    let uid = text("uid");
    if uid.is_empty() {
        return refuse("node requested token with a pod binding without a uid".into());
    }
    let pods = call.core.builtin("", "v1", "pods");
    let pod = call.core.read(pods, &call.info.namespace, text("name"));
    let pod = pod.ok_or_else(|| Failure::not_found(pods.name(), text("name")))?;
    if metadata_str(&pod, "uid") != uid {
        return refuse(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        ));
    }
    if pod["spec"]["nodeName"] != node {
        return refuse("node requested token bound to a pod scheduled on a different node".into());
    }
    let issuer = call.core.tokens.issuer();
    let mounted: Vec<&str> = items(&pod["spec"], "volumes")
        .flat_map(|volume| items(&volume["projected"], "sources"))
        .filter_map(|source| source["serviceAccountToken"].as_object())
        .map(|token| token.get("audience").and_then(Value::as_str))
        .map(|audience| audience.filter(|given| !given.is_empty()).unwrap_or(issuer))
        .collect();
    let foreign = items(spec, "audiences")
        .filter_map(Value::as_str)
        .find(|audience| *audience != issuer && !mounted.contains(audience));
    match foreign {
        None => Ok(()),
        Some(audience) => refuse(format!(
            "audience {} not found in pod spec volume, {} is not authorized to request tokens for this audience",
            kinds::quote(audience),
            call.caller.name
        )),
    }
}

/// The request may say whose token it is about.
fn check_metadata(call: &Call, request: &mut Value) -> Result<(), Failure> {
    update::check_namespace(call, request)?;
    let (wanted, given) = (&call.info.name, metadata_str(request, "name"));
    if given.is_empty() || given == wanted {
        return Ok(());
    }
    let fault = fault(
        "metadata.name",
        FaultReason::Invalid,
        given,
        "must match the service account name if specified",
    );
    Err(Failure::invalid(GROUP, "TokenRequest", wanted, &[fault]))
}

fn audiences(call: &Call, request: &Value) -> Vec<String> {
    let asked: Vec<String> = request["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|audience| audience.as_str().map(str::to_owned))
        .collect();
    if asked.is_empty() {
        vec![call.core.tokens.issuer().to_owned()]
    } else {
        asked
    }
}

fn check_seconds(seconds: i64) -> Result<(), Failure> {
    let detail = if seconds < SECONDS_LEAST {
        "may not specify a duration less than 10 minutes"
    } else if seconds > SECONDS_MOST {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let fault = fault(
        "spec.expirationSeconds",
        FaultReason::Invalid,
        seconds,
        detail,
    );
    Err(Failure::invalid(GROUP, "TokenRequest", "", &[fault]))
}

/// Binds the token to the pod, secret or node that was asked for.
fn bind(call: &Call, wanted: &Value, bound: &mut Bound) -> Result<(), Failure> {
    if !wanted.is_object() {
        return Ok(());
    }
    let text = |name: &str| wanted[name].as_str().unwrap_or_default();
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    let plural = match (kind, text("apiVersion")) {
        ("Pod", "v1") => "pods",
        ("Secret", "v1") => "secrets",
        ("Node", "v1") => "nodes",
        _ => {
            return Err(Failure::bad_request(format!(
                "cannot bind token to object of type {}, Kind={kind}",
                match text("apiVersion") {
                    grouped if grouped.contains('/') => grouped.to_owned(),
                    version => format!("/{version}"),
                }
            )));
        }
    };
    let resource = call.core.builtin("", "v1", plural);
    let namespace = if plural == "nodes" {
        ""
    } else {
        call.info.namespace.as_str()
    };
    let object = call
        .core
        .read(resource, namespace, name)
        .ok_or_else(|| Failure::not_found(resource.name(), name))?;
    let actual = metadata_str(&object, "uid").to_owned();
    if !uid.is_empty() && uid != actual {
        return Err(Failure::conflict(
            ResourceName { group: "", plural },
            name,
            format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            ),
        ));
    }
    let reference = Reference {
        name: name.to_owned(),
        uid: actual,
    };
    match plural {
        "pods" => {
            let account = object["spec"]["serviceAccountName"]
                .as_str()
                .unwrap_or_default();
            if account != call.info.name {
                return Err(Failure::bad_request(format!(
                    "cannot bind token for serviceaccount {} to pod running with different serviceaccount name.",
                    kinds::quote(&call.info.name)
                )));
            }
            let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
            if !node.is_empty() {
                let nodes = call.core.builtin("", "v1", "nodes");
                let uid = call.core.read(nodes, "", node);
                let uid = uid
                    .map(|node| metadata_str(&node, "uid").to_owned())
                    .unwrap_or_default();
                bound.node = Some(Reference {
                    name: node.to_owned(),
                    uid,
                });
            }
            bound.pod = Some(reference);
        }
        "secrets" => bound.secret = Some(reference),
        _ => bound.node = Some(reference),
    }
    Ok(())
}
