//! Giving a pod a node: what a scheduler writes.

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::Body;
use crate::encode::{members, metadata_str};
use crate::handle::Call;
use crate::options::WriteOptions;
use crate::status::{Failure, FaultReason, fault, success};
use crate::verbs::change::seconds;
use crate::verbs::{answer, body, change, update};

/// Binds the pod named by the path, or for `POST bindings` by the body.
pub(crate) async fn create(call: &Call, bytes: Bytes) -> Result<Response<Body>, Failure> {
    let options = WriteOptions::parse(&call.query, &call.headers, "CreateOptions", false)?;
    let kind = call.core.builtin_kind("", "v1", "Binding");
    let mut binding = body::object_of(call, kind, &bytes, options.validation)?;
    let name = match (call.info.name.as_str(), metadata_str(&binding, "name")) {
        ("", name) => name.to_owned(),
        (name, given) if name == given => name.to_owned(),
        _ => {
            return Err(Failure::bad_request(
                "name in URL does not match name in Binding object",
            ));
        }
    };
    update::check_namespace(call, &mut binding)?;
    check_target(&binding)?;
    let node = binding["target"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let pods = call.core.builtin("", "v1", "pods").clone();
    let mut pod_call = call.on(&pods, &call.info.namespace, &name);
    pod_call.info.verb = "create".into();
    let now = seconds(call.now);
    change::update(&pod_call, &options, Some("binding"), |pod| {
        bind(&pod_call, pod, &binding, &node, &now)
    })
    .await?;
    Ok(answer::value(
        call,
        &success(None, Some(201)),
        StatusCode::CREATED,
    ))
}

fn check_target(binding: &Value) -> Result<(), Failure> {
    let target = &binding["target"];
    let mut faults = Vec::new();
    let kind = target["kind"].as_str().unwrap_or_default();
    if !matches!(kind, "" | "Node") {
        faults.push(fault(
            "target.kind",
            FaultReason::NotSupported,
            kind,
            "supported values: \"Node\", \"<empty>\"",
        ));
    }
    if target["name"].as_str().unwrap_or_default().is_empty() {
        faults.push(fault(
            "target.name",
            FaultReason::Required,
            Value::Null,
            String::new(),
        ));
    }
    if faults.is_empty() {
        return Ok(());
    }
    let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    Err(Failure::plain_internal(match texts.as_slice() {
        [single] => single.clone(),
        _ => format!("[{}]", texts.join(", ")),
    }))
}

/// The pod with its node, as upstream's binding writes it.
fn bind(
    call: &Call,
    pod: &Value,
    binding: &Value,
    node: &str,
    now: &str,
) -> Result<Value, Failure> {
    let refuse = |why: String| {
        let resource = crate::ResourceName {
            group: "",
            plural: "pods/binding",
        };
        Failure::conflict(resource, &call.info.name, why)
    };
    if pod["metadata"]["deletionTimestamp"].is_string() {
        return Err(refuse(format!(
            "pod {} is being deleted, cannot be assigned to a host",
            call.info.name
        )));
    }
    if let Some(assigned) = pod["spec"]["nodeName"]
        .as_str()
        .filter(|assigned| !assigned.is_empty())
    {
        return Err(refuse(format!(
            "pod {} is already assigned to node \"{assigned}\"",
            call.info.name
        )));
    }
    if let Some(gates) = pod["spec"]["schedulingGates"]
        .as_array()
        .filter(|gates| !gates.is_empty())
    {
        let names: Vec<&str> = gates
            .iter()
            .filter_map(|gate| gate["name"].as_str())
            .collect();
        return Err(refuse(format!(
            "pod {} has non-empty .spec.schedulingGates [{}]",
            call.info.name,
            names.join(" ")
        )));
    }
    let uid = metadata_str(binding, "uid");
    if !uid.is_empty() && uid != metadata_str(pod, "uid") {
        return Err(Failure::conflict(
            call.resource.name(),
            &call.info.name,
            format!(
                "StorageError: invalid object, Code: 4, Key: /registry/pods/{}/{}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                call.info.namespace,
                call.info.name,
                metadata_str(pod, "uid")
            ),
        ));
    }
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = node.into();
    for kind in ["annotations", "labels"] {
        if let Some(given) = binding["metadata"][kind]
            .as_object()
            .filter(|given| !given.is_empty())
        {
            let metadata = members(&mut pod, "metadata");
            let target = metadata.entry(kind).or_insert_with(|| json!({}));
            if let Some(target) = target.as_object_mut() {
                target.extend(given.clone());
            }
        }
    }
    set_scheduled(&mut pod, now);
    Ok(pod)
}

fn set_scheduled(pod: &mut Value, now: &str) {
    let condition = json!({
        "type": "PodScheduled",
        "status": "True",
        "lastProbeTime": null,
        "lastTransitionTime": now,
    });
    let status = members(pod, "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(conditions) = conditions.as_array_mut() else {
        return;
    };
    match conditions
        .iter_mut()
        .find(|known| known["type"] == "PodScheduled")
    {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
}
