//! PriorityClass.

use serde_json::Value;

use crate::fault::{Fault, Path};
use crate::metadata::{self, IMMUTABLE};
use crate::read::{flag, text};
use crate::rules::Rules;
use crate::table::{Heading, age_cell};

const TYPE: &str = "io.k8s.api.scheduling.v1.PriorityClass";
/// Above it are the classes of the system itself.
const USER_LIMIT: i64 = 1_000_000_000;
/// The classes of the system, with their values.
const SYSTEM: [(&str, i64); 2] = [
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];

pub(crate) const RULES: Rules = Rules {
    default: |class| {
        if class["preemptionPolicy"].is_null() {
            class["preemptionPolicy"] = "PreemptLowerPriority".into();
        }
    },
    prepare_create: |class| class["metadata"]["generation"] = 1.into(),
    prepare_update: |new, old, _| {
        new["metadata"]["generation"] = old["metadata"]["generation"].clone()
    },
    validate,
    validate_update,
    columns: &[
        Heading::NAME,
        Heading::of("Value", TYPE, "value").number(),
        Heading::of("Global-Default", TYPE, "globalDefault").boolean(),
        Heading::AGE,
        Heading::of("PreemptionPolicy", TYPE, "preemptionPolicy"),
    ],
    cells: |class, now| {
        vec![
            metadata::name(class).into(),
            class["value"].as_i64().unwrap_or(0).into(),
            flag(class, "globalDefault").into(),
            age_cell(class, now),
            class["preemptionPolicy"].clone(),
        ]
    },
    ..Rules::PLAIN
};

fn validate(class: &Value, faults: &mut Vec<Fault>) {
    let name = metadata::name(class);
    let value = class["value"].as_i64().unwrap_or(0);
    if name.starts_with("system-") {
        let known = SYSTEM.iter().find(|(system, _)| *system == name);
        let problem = match known {
            None => Some(format!("{name} is not a known system priority class")),
            Some((_, fixed)) if *fixed != value => {
                Some(format!("value of {name} PriorityClass must be {fixed}"))
            }
            Some(_) if flag(class, "globalDefault") => Some(format!(
                "globalDefault of {name} PriorityClass must be false"
            )),
            Some(_) => None,
        };
        if let Some(problem) = problem {
            let text = format!(
                "priority class names with 'system-' prefix are reserved for system use only. error: {problem}"
            );
            faults.push(Fault::forbidden(Path::new("metadata.name"), text));
        }
    } else if value > USER_LIMIT {
        let text = format!("maximum allowed value of a user defined priority is {USER_LIMIT}");
        faults.push(Fault::forbidden(Path::new("value"), text));
    }
    let path = Path::new("preemptionPolicy");
    match text(class, "preemptionPolicy") {
        "PreemptLowerPriority" | "Never" => {}
        "" => faults.push(Fault::required(path, "")),
        other => faults.push(Fault::not_supported(
            path,
            other,
            &["PreemptLowerPriority", "Never"],
        )),
    }
}

fn validate_update(new: &Value, old: &Value, _: Option<&str>, faults: &mut Vec<Fault>) {
    if new["value"] != old["value"] {
        faults.push(Fault::forbidden(
            Path::new("value"),
            "may not be changed in an update.",
        ));
    }
    if new["preemptionPolicy"] != old["preemptionPolicy"] {
        let policy = new["preemptionPolicy"].clone();
        faults.push(Fault::invalid(
            Path::new("preemptionPolicy"),
            policy,
            IMMUTABLE,
        ));
    }
}
