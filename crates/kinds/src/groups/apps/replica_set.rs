//! ReplicaSet.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::deployment::{not_negative, selector_stays};
use crate::Selector;
use crate::fault::{Fault, Path};
use crate::groups::core::{default_pod_spec, validate_workload, workload_warnings};
use crate::labels::{show_selector, validate_selector};
use crate::metadata::{self, count_generation};
use crate::read::list;
use crate::rules::Rules;
use crate::table::{Heading, age_cell, containers, selector};

const STATUS: &str = "io.k8s.api.apps.v1.ReplicaSetStatus";
const SPEC_TYPE: &str = "io.k8s.api.apps.v1.ReplicaSetSpec";

pub(crate) const RULES: Rules = Rules {
    default: |set| {
        let spec = &mut set["spec"];
        if spec["replicas"].is_null() {
            spec["replicas"] = 1.into();
        }
        default_pod_spec(&mut spec["template"]["spec"]);
    },
    prepare_create: |set| {
        set["metadata"]["generation"] = 1.into();
        set["status"] = json!({});
    },
    prepare_update: |new, old, sub| {
        match sub {
            Some("status") => new["spec"] = old["spec"].clone(),
            _ => new["status"] = old["status"].clone(),
        }
        count_generation(new, old);
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
        Heading::of("Desired", SPEC_TYPE, "replicas").number(),
        Heading::of("Current", STATUS, "replicas").number(),
        Heading::of("Ready", STATUS, "readyReplicas").number(),
        Heading::AGE,
        Heading::text("Containers", "Names of each container in the template.").wide(),
        Heading::text(
            "Images",
            "Images referenced by each container in the template.",
        )
        .wide(),
        Heading::of("Selector", SPEC_TYPE, "selector").wide(),
    ],
    cells,
    fields: |set| {
        let replicas = set["status"]["replicas"].as_i64().unwrap_or(0);
        vec![("status.replicas", replicas.to_string())]
    },
    ..Rules::PLAIN
};

const SPEC: Path<'static> = Path::new("spec");

fn validate(set: &Value, faults: &mut Vec<Fault>) {
    let spec = &set["spec"];
    not_negative(spec, "replicas", faults);
    not_negative(spec, "minReadySeconds", faults);
    selector_faults(spec, "replicaset", faults);
    validate_workload(spec, SPEC, "ReplicaSet", faults);
}

/// What is wrong with the selector of a workload by itself.
pub(super) fn selector_faults(spec: &Value, kind: &str, faults: &mut Vec<Fault>) {
    let path = SPEC.child("selector");
    let selector = &spec["selector"];
    if selector.is_null() {
        faults.push(Fault::required(path, ""));
        return;
    }
    let before = faults.len();
    validate_selector(selector, path, faults);
    let empty = list(selector, "matchExpressions").is_empty()
        && selector["matchLabels"]
            .as_object()
            .is_none_or(|labels| labels.is_empty());
    if empty {
        let text = format!("empty selector is invalid for {kind}");
        faults.push(Fault::invalid(path, selector.clone(), text).showing(show_selector(selector)));
    } else if faults.len() > before || Selector::from_object(selector).is_err() {
        faults.push(
            Fault::invalid(path, selector.clone(), "invalid label selector")
                .showing(show_selector(selector)),
        );
    }
}

fn cells(set: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&set["spec"], &set["status"]);
    let count = |field: &str| status[field].as_i64().unwrap_or(0);
    let [names, images] = containers(&spec["template"]);
    vec![
        metadata::name(set).into(),
        spec["replicas"].as_i64().unwrap_or(0).into(),
        count("replicas").into(),
        count("readyReplicas").into(),
        age_cell(set, now),
        names,
        images,
        selector(&spec["selector"]),
    ]
}
