//! The number of replicas of a workload, in one form for all kinds that have replicas.

use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::scale_owners;
use crate::Body;
use crate::encode::members;
use crate::handle::{Call, Resource, read_body};
use crate::options::WriteOptions;
use crate::status::{Failure, FaultReason, fault};
use crate::verbs::{answer, body, change, patch, update};

/// Reads or writes the scale of an object.
pub(crate) async fn answer(call: &Call, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let method = request.method().clone();
    let object = match method {
        Method::GET | Method::HEAD => {
            let entry = call.stored()?;
            answer::parse(call, &entry)?
        }
        Method::PUT => {
            let options = WriteOptions::parse(&call.query, &call.headers, "UpdateOptions", false)?;
            let bytes = read_body(request).await?;
            let scale = body::object_of(call, kind(call), &bytes, options.validation)?;
            write(call, &options, |_current| Ok(scale.clone())).await?
        }
        Method::PATCH => {
            let applies = patch::applies(call);
            let options = WriteOptions::parse(&call.query, &call.headers, "PatchOptions", applies)?;
            let bytes = read_body(request).await?;
            let change = patch::Change::read(call, &bytes)?;
            let duplicates = change.duplicates(call, &bytes, options.validation)?;
            if let patch::Change::Apply(config) = &change {
                patch::check_config(call, kind(call), config)?;
            }
            write(call, &options, |current| {
                let patched = match &change {
                    patch::Change::Apply(config) => {
                        let sub = Some("scale");
                        patch::apply(call, kind(call), Some(current), config, &options, sub)?
                    }
                    change => change.apply_plain(current)?,
                };
                let mut scale = patched.clone();
                patch::complete(call, kind(call), &mut scale, &duplicates, &options)
                    .map_err(|why| patch::misfit(&patched, why))?;
                Ok(scale)
            })
            .await?
        }
        _ => return Err(Failure::method_not_allowed()),
    };
    Ok(answer::value(call, &scale_of(&object), StatusCode::OK))
}

fn kind(call: &Call) -> &Resource {
    call.core.builtin_kind("autoscaling", "v1", "Scale")
}

async fn write(
    call: &Call,
    options: &WriteOptions,
    mut make: impl FnMut(&Value) -> Result<Value, Failure>,
) -> Result<Value, Failure> {
    let done = change::update(call, options, Some("scale"), |old| {
        let mut current = scale_of(old);
        if options.applied {
            let managed = scale_owners::of_scale(&old["metadata"]["managedFields"]);
            current["metadata"]["managedFields"] = managed.into();
        }
        let mut scale = make(&current)?;
        update::check_name(call, &scale)?;
        update::check_namespace(call, &mut scale)?;
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let fault = fault(
                "spec.replicas",
                FaultReason::Invalid,
                replicas,
                "must be greater than or equal to 0",
            );
            return Err(Failure::invalid(
                "autoscaling",
                "Scale",
                &call.info.name,
                &[fault],
            ));
        }
        let mut new = old.clone();
        new["spec"]["replicas"] = replicas.into();
        let metadata = members(&mut new, "metadata");
        for said in ["resourceVersion", "uid"] {
            match scale["metadata"].get(said) {
                Some(value) => metadata.insert(said.into(), value.clone()),
                None => metadata.remove(said),
            };
        }
        if options.applied {
            let managed = scale_owners::of_object(
                &old["metadata"]["managedFields"],
                &scale["metadata"]["managedFields"],
                &call.resource.api_version,
            );
            metadata.insert("managedFields".into(), managed.into());
        }
        Ok(new)
    })
    .await?;
    done.into_object(call)
}

/// The scale of an object.
fn scale_of(object: &Value) -> Value {
    let mut metadata = json!({});
    for name in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = object["metadata"].get(name) {
            metadata[name] = value.clone();
        }
    }
    let selector = &object["spec"]["selector"];
    let text = match kinds::Selector::from_object(selector) {
        // Replication controllers select by plain labels.
        _ if object["kind"] == "ReplicationController" => {
            Some(kinds::Selector::from_labels(selector).to_string())
        }
        Ok(Some(selector)) => Some(selector.to_string()),
        _ => None,
    };
    let replicas = object["spec"]["replicas"].as_i64().unwrap_or(0);
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {},
        "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)},
    });
    if replicas != 0 {
        scale["spec"]["replicas"] = replicas.into();
    }
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        scale["status"]["selector"] = text.into();
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_of_a_deployment() {
        let deployment = json!({
            "kind": "Deployment",
            "metadata": {"name": "a", "namespace": "b", "uid": "u", "labels": {"x": "y"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "a"}}},
            "status": {"replicas": 2},
        });
        assert_eq!(
            scale_of(&deployment),
            json!({
                "kind": "Scale",
                "apiVersion": "autoscaling/v1",
                "metadata": {"name": "a", "namespace": "b", "uid": "u"},
                "spec": {"replicas": 3},
                "status": {"replicas": 2, "selector": "app=a"},
            })
        );
    }
}
