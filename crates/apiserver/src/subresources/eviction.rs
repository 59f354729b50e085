//! Deleting a pod with regard to the disruption budgets that protect it.

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::Value;

use crate::Body;
use crate::handle::Call;
use crate::options::{DeleteOptions, WriteOptions};
use crate::status::{Failure, success};
use crate::verbs::delete::delete_object;
use crate::verbs::{answer, body, update};

/// Deletes the pod with the options of the eviction, unless a budget has nothing left.
pub(crate) async fn create(call: &Call, bytes: Bytes) -> Result<Response<Body>, Failure> {
    let write = WriteOptions::parse(&call.query, &call.headers, "CreateOptions", false)?;
    let kind = call.core.builtin_kind("policy", "v1", "Eviction");
    let mut eviction = body::object_of(call, kind, &bytes, write.validation)?;
    let given = crate::encode::metadata_str(&eviction, "name");
    if given != call.info.name {
        return Err(Failure::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    update::check_namespace(call, &mut eviction)?;
    let pod = call
        .core
        .read(&call.resource, &call.info.namespace, &call.info.name)
        .ok_or_else(|| call.not_found())?;
    let mut options = DeleteOptions::parse(&call.query, Some(&eviction["deleteOptions"]))?;
    options.dry_run |= write.dry_run;
    let ended = matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed" | "Pending")
    );
    let going = pod["metadata"]["deletionTimestamp"].is_string();
    if !ended && !going {
        check_budgets(call, &pod)?;
    }
    delete_object(call, &options).await?;
    Ok(answer::value(
        call,
        &success(None, Some(201)),
        StatusCode::CREATED,
    ))
}

/// A pod that a disruption budget selects may go only while the budget allows disruptions.
fn check_budgets(call: &Call, pod: &Value) -> Result<(), Failure> {
    let Some(budgets) = call.core.resource("policy", "v1", "poddisruptionbudgets") else {
        return Ok(());
    };
    let prefix = format!("{}/", call.info.namespace);
    let snapshot = call.core.store().snapshot();
    for entry in snapshot.range(&budgets.space, &prefix, None, usize::MAX) {
        let Ok(budget) = serde_json::from_slice::<Value>(&entry.bytes) else {
            continue;
        };
        let Ok(Some(selector)) = kinds::Selector::from_object(&budget["spec"]["selector"]) else {
            continue;
        };
        if !selector.matches(&pod["metadata"]["labels"]) {
            continue;
        }
        if budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0) <= 0 {
            let name = crate::encode::metadata_str(&budget, "name");
            return Err(Failure::too_many_requests(
                "Cannot evict pod as it would violate the pod's disruption budget.",
                0,
            )
            .with_cause(
                "DisruptionBudget",
                &format!(
                    "The disruption budget {name} needs {} healthy pods and has {} currently",
                    budget["status"]["desiredHealthy"].as_i64().unwrap_or(0),
                    budget["status"]["currentHealthy"].as_i64().unwrap_or(0)
                ),
                None,
            ));
        }
    }
    Ok(())
}
