//! Namespace.

use serde_json::{Value, json};

use crate::fault::{Fault, Path};
use crate::metadata;
use crate::names;
use crate::read::{entries, list, text};
use crate::rules::Rules;
use crate::table::{Heading, age_cell};

pub(crate) const RULES: Rules = Rules {
    name: names::label_name,
    default,
    prepare_create,
    prepare_update,
    validate,
    validate_update: |new, _, sub, faults| {
        if sub.is_none() {
            validate(new, faults);
        }
    },
    columns: &[
        Heading::NAME,
        Heading::text("Status", "The status of the namespace"),
        Heading::AGE,
    ],
    cells: |namespace, now| {
        vec![
            metadata::name(namespace).into(),
            namespace["status"]["phase"].clone(),
            age_cell(namespace, now),
        ]
    },
    fields: |namespace| {
        vec![(
            "status.phase",
            text(&namespace["status"], "phase").to_owned(),
        )]
    },
    ..Rules::PLAIN
};

/// The label by which selectors find a namespace by its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

fn default(namespace: &mut Value) {
    let name = metadata::name(namespace).to_owned();
    if !name.is_empty() {
        namespace["metadata"]["labels"][NAME_LABEL] = name.into();
    }
}

fn prepare_create(namespace: &mut Value) {
    default(namespace);
    namespace["status"] = json!({"phase": "Active"});
    let finalizers = list(&namespace["spec"], "finalizers");
    if !finalizers.iter().any(|finalizer| finalizer == "kubernetes") {
        let mut finalizers = finalizers.to_vec();
        finalizers.push("kubernetes".into());
        namespace["spec"]["finalizers"] = finalizers.into();
    }
}

fn prepare_update(new: &mut Value, old: &Value, sub: Option<&str>) {
    match sub {
        Some("finalize") => new["status"] = old["status"].clone(),
        Some(_) => new["spec"] = old["spec"].clone(),
        None => {
            new["spec"]["finalizers"] = old["spec"]["finalizers"].clone();
            new["status"] = old["status"].clone();
        }
    }
}

fn validate(namespace: &Value, faults: &mut Vec<Fault>) {
    const FINALIZERS: Path<'static> = Path::new("spec.finalizers");
    for finalizer in list(&namespace["spec"], "finalizers") {
        let name = finalizer.as_str().unwrap_or_default();
        let problems = names::qualified_name(name).into_iter();
        faults.extend(problems.map(|problem| Fault::invalid(FINALIZERS, name, problem)));
        if !name.contains('/') && name != "kubernetes" {
            let text = "name is neither a standard finalizer name nor is it fully qualified";
            faults.push(Fault::invalid(FINALIZERS, name, text));
        }
    }
    // The levels of pod security are read from labels; upstream looks at them once the labels are well-formed.
    const LABELS: Path<'static> = Path::new("metadata.labels");
    const LEVELS: [&str; 3] = ["privileged", "baseline", "restricted"];
    if !faults.is_empty() {
        return;
    }
    for mode in ["enforce", "audit", "warn"] {
        let key = format!("pod-security.kubernetes.io/{mode}");
        let level = entries(&namespace["metadata"]["labels"])
            .find(|(label, _)| **label == key)
            .and_then(|(_, level)| level.as_str());
        if let Some(level) = level.filter(|level| !LEVELS.contains(level)) {
            faults.push(Fault::invalid(
                LABELS.key(&key),
                level,
                format!("must be one of {}", LEVELS.join(", ")),
            ));
        }
    }
}
