//! Deployment.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::replica_set::selector_faults;
use crate::fault::{Fault, Path};
use crate::groups::core::{default_pod_spec, validate_workload, workload_warnings};
use crate::metadata::{self, IMMUTABLE, NOT_NEGATIVE, count_generation};
use crate::names;
use crate::read::{fill, text};
use crate::rules::Rules;
use crate::table::{Heading, age_cell, containers, selector};

const STATUS: &str = "io.k8s.api.apps.v1.DeploymentStatus";
/// Since when a Deployment can be made to wait for its pods without end.
const NO_DEADLINE: i64 = i32::MAX as i64;

pub(crate) const RULES: Rules = Rules {
    default,
    prepare_create: |deployment| {
        deployment["metadata"]["generation"] = 1.into();
        deployment["status"] = json!({});
    },
    prepare_update: |new, old, sub| {
        match sub {
            Some("status") => {
                new["spec"] = old["spec"].clone();
                new["metadata"]["labels"] = old["metadata"]["labels"].clone();
            }
            _ => new["status"] = old["status"].clone(),
        }
        let annotated =
            new["metadata"]["annotations"] != old["metadata"]["annotations"] && sub.is_none();
        count_generation(new, old);
        if annotated && new["spec"] == old["spec"] {
            // Upstream counts changes of a Deployment's annotations too.
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
            new["metadata"]["generation"] = (generation + 1).into();
        }
    },
    validate,
    validate_update: |new, old, sub, faults| {
        if sub == Some("status") {
            return;
        }
        validate(new, faults);
        selector_stays(new, old, faults);
    },
    warnings: workload_warnings,
    columns: &[
        Heading::NAME,
        Heading::text("Ready", "Number of the pod with ready state"),
        Heading::of("Up-to-date", STATUS, "updatedReplicas"),
        Heading::of("Available", STATUS, "availableReplicas"),
        Heading::AGE,
        Heading::text("Containers", "Names of each container in the template.").wide(),
        Heading::text(
            "Images",
            "Images referenced by each container in the template.",
        )
        .wide(),
        Heading::of("Selector", "io.k8s.api.apps.v1.DeploymentSpec", "selector").wide(),
    ],
    cells,
    ..Rules::PLAIN
};

const SPEC: Path<'static> = Path::new("spec");

fn default(deployment: &mut Value) {
    let spec = &mut deployment["spec"];
    if spec["replicas"].is_null() {
        spec["replicas"] = 1.into();
    }
    fill(&mut spec["strategy"], "type", "RollingUpdate");
    if text(&spec["strategy"], "type") == "RollingUpdate" {
        let strategy = &mut spec["strategy"];
        for field in ["maxUnavailable", "maxSurge"] {
            if strategy["rollingUpdate"][field].is_null() {
                strategy["rollingUpdate"][field] = "25%".into();
            }
        }
    }
    for (field, value) in [
        ("revisionHistoryLimit", 10),
        ("progressDeadlineSeconds", 600),
    ] {
        if spec[field].is_null() {
            spec[field] = value.into();
        }
    }
    default_pod_spec(&mut spec["template"]["spec"]);
}

/// The selector of a workload is part of what it is.
pub(super) fn selector_stays(new: &Value, old: &Value, faults: &mut Vec<Fault>) {
    let selector = &new["spec"]["selector"];
    if *selector != old["spec"]["selector"] {
        let shown = crate::labels::show_selector(selector);
        faults.push(
            Fault::invalid(SPEC.child("selector"), selector.clone(), IMMUTABLE).showing(shown),
        );
    }
}

fn validate(deployment: &Value, faults: &mut Vec<Fault>) {
    let spec = &deployment["spec"];
    not_negative(spec, "replicas", faults);
    selector_faults(spec, "deployment", faults);
    validate_workload(spec, SPEC, "Deployment", faults);
    strategy(&spec["strategy"], faults);
    not_negative(spec, "minReadySeconds", faults);
    not_negative(spec, "revisionHistoryLimit", faults);
    not_negative(spec, "progressDeadlineSeconds", faults);
    let deadline = spec["progressDeadlineSeconds"]
        .as_i64()
        .unwrap_or(NO_DEADLINE);
    if deadline <= spec["minReadySeconds"].as_i64().unwrap_or(0) {
        let path = SPEC.child("progressDeadlineSeconds");
        faults.push(Fault::invalid(
            path,
            deadline,
            "must be greater than minReadySeconds",
        ));
    }
}

pub(super) fn not_negative(spec: &Value, field: &str, faults: &mut Vec<Fault>) {
    if let Some(number) = spec[field].as_i64().filter(|number| *number < 0) {
        faults.push(Fault::invalid(SPEC.child(field), number, NOT_NEGATIVE));
    }
}

fn strategy(strategy: &Value, faults: &mut Vec<Fault>) {
    let path = SPEC.child("strategy");
    match text(strategy, "type") {
        "Recreate" => {
            if !strategy["rollingUpdate"].is_null() {
                let text = "may not be specified when strategy `type` is 'Recreate'";
                faults.push(Fault::forbidden(path.child("rollingUpdate"), text));
            }
        }
        "RollingUpdate" if strategy["rollingUpdate"].is_null() => {
            let text = "this should be defaulted and never be nil";
            faults.push(Fault::required(path.child("rollingUpdate"), text));
        }
        "RollingUpdate" => rolling_update(
            &strategy["rollingUpdate"],
            path.child("rollingUpdate"),
            faults,
        ),
        other => {
            let update = match &strategy["rollingUpdate"] {
                Value::Null => "null".to_owned(),
                update => format!(
                    "{{\"MaxUnavailable\":{},\"MaxSurge\":{}}}",
                    update["maxUnavailable"], update["maxSurge"]
                ),
            };
            let shown = format!(
                "{{\"Type\":{},\"RollingUpdate\":{update}}}",
                Value::from(other)
            );
            faults.push(
                Fault::not_supported(path, strategy.clone(), &["Recreate", "RollingUpdate"])
                    .showing(shown),
            );
        }
    }
}

/// A number or percentage, and what of it is wrong.
fn amount(value: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    match value.as_str() {
        Some(text) => faults
            .extend(names::percentage(text).map(|problem| Fault::invalid(path, text, problem))),
        None => {
            if let Some(number) = value.as_i64().filter(|number| *number < 0) {
                faults.push(Fault::invalid(path, number, NOT_NEGATIVE));
            }
        }
    }
}

/// The percentage of a well-formed one.
fn percent(value: &Value) -> Option<i64> {
    value.as_str()?.strip_suffix('%')?.parse().ok()
}

/// Whether the amount comes to nothing; a text that is neither percentage nor number does.
fn is_none(value: &Value) -> bool {
    let number = || value.as_i64().or_else(|| value.as_str()?.parse().ok());
    percent(value).or_else(number).unwrap_or(0) == 0
}

fn rolling_update(update: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let (unavailable, surge) = (&update["maxUnavailable"], &update["maxSurge"]);
    amount(unavailable, path.child("maxUnavailable"), faults);
    amount(surge, path.child("maxSurge"), faults);
    if is_none(unavailable) && is_none(surge) {
        let text = "may not be 0 when `maxSurge` is 0";
        faults.push(Fault::invalid(
            path.child("maxUnavailable"),
            unavailable.clone(),
            text,
        ));
    }
    if percent(unavailable).is_some_and(|percent| percent > 100) {
        let text = "must not be greater than 100%";
        faults.push(Fault::invalid(
            path.child("maxUnavailable"),
            unavailable.clone(),
            text,
        ));
    }
}

fn cells(deployment: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&deployment["spec"], &deployment["status"]);
    let count = |field: &str| status[field].as_i64().unwrap_or(0);
    let [names, images] = containers(&spec["template"]);
    vec![
        metadata::name(deployment).into(),
        format!(
            "{}/{}",
            count("readyReplicas"),
            spec["replicas"].as_i64().unwrap_or(0)
        )
        .into(),
        count("updatedReplicas").into(),
        count("availableReplicas").into(),
        age_cell(deployment, now),
        names,
        images,
        selector(&spec["selector"]),
    ]
}
