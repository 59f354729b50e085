//! Pod.

use serde_json::{Value, json};

use super::{pod_defaults, pod_spec, pod_table, pod_warnings};
use crate::fault::{Fault, Path};
use crate::metadata::count_generation;
use crate::read::{entries, list, remove, text};
use crate::rules::Rules;
use crate::{Quantity, names};

pub(crate) const RULES: Rules = Rules {
    name: names::subdomain_name,
    default: pod_defaults::pod,
    prepare_create,
    prepare_update,
    validate: |pod, faults| pod_spec::validate(&pod["spec"], SPEC, faults),
    validate_update,
    warnings: pod_warnings::pod,
    columns: pod_table::COLUMNS,
    cells: pod_table::cells,
    fields,
    ..Rules::PLAIN
};

const SPEC: Path<'static> = Path::new("spec");

fn prepare_create(pod: &mut Value) {
    pod["metadata"]["generation"] = 1.into();
    let grace = &mut pod["spec"]["terminationGracePeriodSeconds"];
    if grace.as_i64().is_some_and(|seconds| seconds < 0) {
        *grace = 1.into();
    }
    pod["status"] = json!({"phase": "Pending", "qosClass": qos_class(&pod["spec"])});
    if !list(&pod["spec"], "schedulingGates").is_empty() {
        pod["status"]["conditions"] = json!([{
            "type": "PodScheduled",
            "status": "False",
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
    }
}

fn prepare_update(new: &mut Value, old: &Value, sub: Option<&str>) {
    match sub {
        None | Some("ephemeralcontainers" | "resize") => new["status"] = old["status"].clone(),
        Some(_) => {
            new["spec"] = old["spec"].clone();
            for field in ["ownerReferences", "deletionTimestamp"] {
                match &old["metadata"][field] {
                    Value::Null => remove(&mut new["metadata"], field),
                    value => new["metadata"][field] = value.clone(),
                }
            }
            // The class is fixed when the pod is made.
            if let Some(class) = old["status"].get("qosClass") {
                new["status"]["qosClass"] = class.clone();
            }
        }
    }
    count_generation(new, old);
}

/// What may change in a spec once the pod exists; everything else was promised to the scheduler and the node.
const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

fn validate_update(new: &Value, old: &Value, sub: Option<&str>, faults: &mut Vec<Fault>) {
    if sub.is_some() {
        return;
    }
    pod_spec::validate(&new["spec"], SPEC, faults);
    let (new, old) = (&new["spec"], &old["spec"]);
    for kind in ["containers", "initContainers"] {
        if list(new, kind).len() != list(old, kind).len() {
            faults.push(Fault::forbidden(
                SPEC.child(kind),
                "pod updates may not add or remove containers",
            ));
            return;
        }
    }
    deadline(new, old, faults);
    tolerations(new, old, faults);
    for (index, gate) in list(new, "schedulingGates").iter().enumerate() {
        if !list(old, "schedulingGates").contains(gate) {
            let text = format!(
                "only deletion is allowed, but found new scheduling gate '{}'",
                text(gate, "name")
            );
            let path = SPEC.child("schedulingGates");
            faults.push(Fault::forbidden(path.index(index).child("name"), text));
        }
    }
    if with_mutable_fields_of(new, old) != *old {
        faults.push(Fault::forbidden(SPEC, MUTABLE));
    }
}

/// The new spec with the old values of all that may change.
fn with_mutable_fields_of(new: &Value, old: &Value) -> Value {
    let mut spec = new.clone();
    for kind in ["containers", "initContainers"] {
        for (index, old) in list(old, kind).iter().enumerate() {
            spec[kind][index]["image"] = old["image"].clone();
        }
    }
    let mut mutable = vec!["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    let grace = "terminationGracePeriodSeconds";
    if old[grace].as_i64().is_some_and(|grace| grace < 0) && new[grace] == 1 {
        mutable.push(grace);
    }
    // As long as nobody looks for a node, the choice may be narrowed.
    if !list(old, "schedulingGates").is_empty() {
        if entries(&old["nodeSelector"]).all(|(key, value)| new["nodeSelector"][key] == *value) {
            mutable.push("nodeSelector");
        }
        if narrows(&new["affinity"], &old["affinity"]) {
            mutable.push("affinity");
        }
    }
    for field in mutable {
        match &old[field] {
            Value::Null => remove(&mut spec, field),
            value => spec[field] = value.clone(),
        }
    }
    for kind in ["containers", "initContainers"] {
        if spec[kind].is_null() {
            remove(&mut spec, kind);
        }
    }
    spec
}

/// Whether `new` chooses no node that `old` does not choose: a required term may be added where there was none, and
/// each term may demand more.
fn narrows(new: &Value, old: &Value) -> bool {
    let terms = |affinity: &Value| {
        let required = &affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        list(required, "nodeSelectorTerms").to_vec()
    };
    let others =
        |affinity: &Value| ["podAffinity", "podAntiAffinity"].map(|kind| affinity[kind].clone());
    let demands_more = |(new, old): (&Value, &Value)| {
        ["matchExpressions", "matchFields"].iter().all(|kind| {
            list(old, kind)
                .iter()
                .all(|item| list(new, kind).contains(item))
        })
    };
    let (new_terms, old_terms) = (terms(new), terms(old));
    let narrower = old_terms.is_empty()
        || new_terms.len() == old_terms.len() && new_terms.iter().zip(&old_terms).all(demands_more);
    narrower && others(new) == others(old)
}

/// Tolerations may be added, and those there are may be given other seconds.
fn tolerations(new: &Value, old: &Value, faults: &mut Vec<Fault>) {
    let timeless = |toleration: &Value| {
        let mut toleration = toleration.clone();
        remove(&mut toleration, "tolerationSeconds");
        toleration
    };
    let there: Vec<Value> = list(new, "tolerations").iter().map(timeless).collect();
    if !list(old, "tolerations")
        .iter()
        .all(|toleration| there.contains(&timeless(toleration)))
    {
        let text = "existing toleration can not be modified except its tolerationSeconds";
        faults.push(Fault::forbidden(SPEC.child("tolerations"), text));
    }
}

fn deadline(new: &Value, old: &Value, faults: &mut Vec<Fault>) {
    let path = SPEC.child("activeDeadlineSeconds");
    let (new, old) = (&new["activeDeadlineSeconds"], &old["activeDeadlineSeconds"]);
    match (new.as_i64(), old.as_i64()) {
        (Some(new), Some(old)) if new > old => {
            faults.push(Fault::invalid(
                path,
                new,
                format!("must be less than or equal to previous value of {old}"),
            ));
        }
        (None, Some(_)) => faults.push(Fault::invalid(
            path,
            Value::Null,
            "must not update from a positive integer to nil value",
        )),
        _ => {}
    }
}

/// `Guaranteed` if all containers are promised all they may use, `BestEffort` if nothing is promised, else `Burstable`.
fn qos_class(spec: &Value) -> &'static str {
    let amounts = |resources: &Value, kind: &str| -> Vec<(String, Quantity)> {
        entries(&resources[kind])
            .filter(|(name, _)| ["cpu", "memory"].contains(&name.as_str()))
            .filter_map(|(name, amount)| {
                Some((name.clone(), amount.as_str()?.parse::<Quantity>().ok()?))
            })
            .filter(|(_, amount)| amount.nanos() > 0)
            .collect()
    };
    let whole = &spec["resources"];
    let containers: Vec<&Value> = match whole.is_object() {
        true => vec![whole],
        false => {
            let all = list(spec, "initContainers")
                .iter()
                .chain(list(spec, "containers"));
            all.map(|container| &container["resources"]).collect()
        }
    };
    let promised = |resources: &&Value| {
        !amounts(resources, "requests").is_empty() || !amounts(resources, "limits").is_empty()
    };
    if !containers.iter().any(promised) {
        return "BestEffort";
    }
    let guaranteed = |resources: &&Value| {
        let limits = amounts(resources, "limits");
        limits.len() == 2 && limits == amounts(resources, "requests")
    };
    if containers.iter().all(guaranteed) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

fn fields(pod: &Value) -> Vec<(&'static str, String)> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let host_network = spec["hostNetwork"] == true;
    vec![
        ("spec.nodeName", text(spec, "nodeName").to_owned()),
        ("spec.restartPolicy", text(spec, "restartPolicy").to_owned()),
        ("spec.schedulerName", text(spec, "schedulerName").to_owned()),
        (
            "spec.serviceAccountName",
            text(spec, "serviceAccountName").to_owned(),
        ),
        ("spec.hostNetwork", host_network.to_string()),
        ("status.phase", text(status, "phase").to_owned()),
        ("status.podIP", text(status, "podIP").to_owned()),
        (
            "status.podIPs",
            list(status, "podIPs")
                .first()
                .map(|address| text(address, "ip").to_owned())
                .unwrap_or_default(),
        ),
        (
            "status.nominatedNodeName",
            text(status, "nominatedNodeName").to_owned(),
        ),
    ]
}
