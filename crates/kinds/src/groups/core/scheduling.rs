//! Checks of where a pod may run: node selection, affinity, tolerations, spreading.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::fault::{Fault, Path};
use crate::labels::validate_selector;
use crate::metadata::validate_labels;
use crate::names::{self, between};
use crate::read::{list, text};

/// Everything about where a pod may run.
pub(super) fn validate(spec: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    validate_labels(&spec["nodeSelector"], path.child("nodeSelector"), faults);
    let affinity_path = path.child("affinity");
    let affinity = &spec["affinity"];
    node_affinity(
        &affinity["nodeAffinity"],
        affinity_path.child("nodeAffinity"),
        faults,
    );
    for kind in ["podAffinity", "podAntiAffinity"] {
        pod_affinity(&affinity[kind], affinity_path.child(kind), faults);
    }
    tolerations(list(spec, "tolerations"), path.child("tolerations"), faults);
    spread(
        list(spec, "topologySpreadConstraints"),
        path.child("topologySpreadConstraints"),
        faults,
    );
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn node_affinity(affinity: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let required = &affinity[REQUIRED];
    if required.is_object() {
        let path = path.child(REQUIRED);
        let terms_path = path.child("nodeSelectorTerms");
        let terms = list(required, "nodeSelectorTerms");
        if terms.is_empty() {
            faults.push(Fault::required(
                terms_path,
                "must have at least one node selector term",
            ));
        }
        for (index, term) in terms.iter().enumerate() {
            node_term(term, terms_path.index(index), faults);
        }
    }
    let list_path = path.child(PREFERRED);
    for (index, preferred) in list(affinity, PREFERRED).iter().enumerate() {
        let path = list_path.index(index);
        weight(preferred, path, faults);
        node_term(&preferred["preference"], path.child("preference"), faults);
    }
}

fn weight(term: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let weight = term["weight"].as_i64().unwrap_or(0);
    if !(1..=100).contains(&weight) {
        faults.push(Fault::invalid(
            path.child("weight"),
            weight,
            "must be in the range 1-100",
        ));
    }
}

fn node_term(term: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let list_path = path.child("matchExpressions");
    for (index, requirement) in list(term, "matchExpressions").iter().enumerate() {
        node_requirement(requirement, list_path.index(index), faults);
    }
    let list_path = path.child("matchFields");
    for (index, requirement) in list(term, "matchFields").iter().enumerate() {
        field_requirement(requirement, list_path.index(index), faults);
    }
}

fn node_requirement(requirement: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let values = list(requirement, "values");
    let values_path = path.child("values");
    match text(requirement, "operator") {
        "In" | "NotIn" => {
            if values.is_empty() {
                faults.push(Fault::required(
                    values_path,
                    "must be specified when `operator` is 'In' or 'NotIn'",
                ));
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                let text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                faults.push(Fault::forbidden(values_path, text));
            }
        }
        "Gt" | "Lt" => {
            if values.len() != 1 {
                let text = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                faults.push(Fault::required(values_path, text));
            }
        }
        other => faults.push(Fault::invalid(
            path.child("operator"),
            other,
            "not a valid selector operator",
        )),
    }
    let key = text(requirement, "key");
    faults.extend(
        names::qualified_name(key)
            .into_iter()
            .map(|problem| Fault::invalid(path.child("key"), key, problem)),
    );
    for (index, value) in values.iter().enumerate() {
        let value = value.as_str().unwrap_or_default();
        let problems = names::label_value(value).into_iter();
        faults.extend(
            problems.map(|problem| Fault::invalid(values_path.index(index), value, problem)),
        );
    }
}

fn field_requirement(requirement: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    match text(requirement, "operator") {
        "In" | "NotIn" => {
            if list(requirement, "values").len() != 1 {
                let text = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                faults.push(Fault::required(path.child("values"), text));
            }
        }
        other => faults.push(Fault::invalid(
            path.child("operator"),
            other,
            "not a valid selector operator",
        )),
    }
    let key = text(requirement, "key");
    if key != "metadata.name" {
        faults.push(Fault::invalid(
            path.child("key"),
            key,
            "not a valid field selector key",
        ));
        return;
    }
    let values_path = path.child("values");
    for (index, value) in list(requirement, "values").iter().enumerate() {
        let value = value.as_str().unwrap_or_default();
        let problems = names::dns1123_subdomain(value).into_iter();
        faults.extend(
            problems.map(|problem| Fault::invalid(values_path.index(index), value, problem)),
        );
    }
}

fn pod_affinity(affinity: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let list_path = path.child(REQUIRED);
    for (index, term) in list(affinity, REQUIRED).iter().enumerate() {
        affinity_term(term, list_path.index(index), faults);
    }
    let list_path = path.child(PREFERRED);
    for (index, preferred) in list(affinity, PREFERRED).iter().enumerate() {
        let path = list_path.index(index);
        weight(preferred, path, faults);
        affinity_term(
            &preferred["podAffinityTerm"],
            path.child("podAffinityTerm"),
            faults,
        );
    }
}

fn affinity_term(term: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    validate_selector(&term["labelSelector"], path.child("labelSelector"), faults);
    validate_selector(
        &term["namespaceSelector"],
        path.child("namespaceSelector"),
        faults,
    );
    for name in list(term, "namespaces") {
        let name = name.as_str().unwrap_or_default();
        let problems = names::label_name(name, false).into_iter();
        faults
            .extend(problems.map(|problem| Fault::invalid(path.child("namespace"), name, problem)));
    }
    let key = text(term, "topologyKey");
    if key.is_empty() {
        faults.push(Fault::required(
            path.child("topologyKey"),
            "can not be empty",
        ));
    }
    let problems = names::qualified_name(key).into_iter();
    faults.extend(problems.map(|problem| Fault::invalid(path.child("topologyKey"), key, problem)));
}

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// The effect of a taint; also that of a toleration unless it is empty.
pub(super) fn taint_effect(
    effect: &str,
    may_be_empty: bool,
    path: Path<'_>,
    faults: &mut Vec<Fault>,
) {
    if EFFECTS.contains(&effect) || effect.is_empty() && may_be_empty {
        return;
    }
    match effect {
        "" => faults.push(Fault::required(path, "")),
        other => faults.push(Fault::not_supported(path, other, &EFFECTS)),
    }
}

fn tolerations(tolerations: &[Value], path: Path<'_>, faults: &mut Vec<Fault>) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = path.index(index);
        let key = text(toleration, "key");
        if !key.is_empty() {
            faults.extend(
                names::qualified_name(key)
                    .into_iter()
                    .map(|problem| Fault::invalid(path.child("key"), key, problem)),
            );
        }
        let operator = text(toleration, "operator");
        if key.is_empty() && operator != "Exists" {
            let text = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            faults.push(Fault::invalid(path.child("operator"), operator, text));
        }
        let effect = text(toleration, "effect");
        if !toleration["tolerationSeconds"].is_null() && effect != "NoExecute" {
            let text = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            faults.push(Fault::invalid(path.child("effect"), effect, text));
        }
        let value = text(toleration, "value");
        match operator {
            "Equal" | "" => {
                if let Some(problem) =
                    Some(names::label_value(value)).filter(|problems| !problems.is_empty())
                {
                    faults.push(Fault::invalid(
                        path.child("operator"),
                        value,
                        problem.join(";"),
                    ));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    let text = "value must be empty when `operator` is 'Exists'";
                    faults.push(Fault::invalid(path.child("operator"), value, text));
                }
            }
            other => faults.push(Fault::not_supported(
                path.child("operator"),
                other,
                &["Equal", "Exists"],
            )),
        }
        taint_effect(effect, true, path.child("effect"), faults);
    }
}

fn spread(constraints: &[Value], path: Path<'_>, faults: &mut Vec<Fault>) {
    let mut told = BTreeSet::new();
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.index(index);
        let skew = constraint["maxSkew"].as_i64().unwrap_or(0);
        if skew <= 0 {
            faults.push(Fault::invalid(
                path.child("maxSkew"),
                skew,
                "must be greater than 0",
            ));
        }
        let key = text(constraint, "topologyKey");
        if key.is_empty() {
            faults.push(Fault::required(
                path.child("topologyKey"),
                "can not be empty",
            ));
        }
        let unsatisfiable = text(constraint, "whenUnsatisfiable");
        if !["DoNotSchedule", "ScheduleAnyway"].contains(&unsatisfiable) {
            let known = ["DoNotSchedule", "ScheduleAnyway"];
            faults.push(Fault::not_supported(
                path.child("whenUnsatisfiable"),
                unsatisfiable,
                &known,
            ));
        }
        let again = constraints[index + 1..].iter().any(|later| {
            text(later, "topologyKey") == key && text(later, "whenUnsatisfiable") == unsatisfiable
        });
        if again && told.insert((key, unsatisfiable)) {
            let pair = format!("{{{key}, {unsatisfiable}}}");
            faults.push(Fault::duplicate(
                path.child("{topologyKey, whenUnsatisfiable}"),
                pair,
            ));
        }
        if let Some(domains) = constraint["minDomains"].as_i64() {
            if domains <= 0 {
                faults.push(Fault::invalid(
                    path.child("minDomains"),
                    domains,
                    "must be greater than 0",
                ));
            }
            if unsatisfiable != "DoNotSchedule" {
                let text = format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {unsatisfiable}"
                );
                faults.push(Fault::invalid(path.child("minDomains"), domains, text));
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            let policy = text(constraint, field);
            if !constraint[field].is_null() && !["Honor", "Ignore"].contains(&policy) {
                faults.push(Fault::not_supported(
                    path.child(field),
                    policy,
                    &["Honor", "Ignore"],
                ));
            }
        }
        validate_selector(
            &constraint["labelSelector"],
            path.child("labelSelector"),
            faults,
        );
    }
}

/// Numbers that must be within a range.
pub(super) fn within(
    holder: &Value,
    field: &str,
    low: i64,
    high: i64,
    path: Path<'_>,
    faults: &mut Vec<Fault>,
) {
    if let Some(number) = holder[field]
        .as_i64()
        .filter(|number| !(low..=high).contains(number))
    {
        faults.push(Fault::invalid(
            path.child(field),
            number,
            between(low, high),
        ));
    }
}
