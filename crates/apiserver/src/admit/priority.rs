//! Pods get their priority as a number from the class that they name, or from the default class.

use serde_json::{Value, json};

use super::{Admission, Operation};
use crate::encode::metadata_str;
use crate::status::Failure;

const GROUP: &str = "scheduling.k8s.io";

/// Fills in `priority` and `preemptionPolicy`.
pub(super) fn admit(admission: &mut Admission<'_>) -> Result<(), Failure> {
    if admission.operation == Operation::Update {
        keep(admission);
        return Ok(());
    }
    if !admission.creates("", "Pod") {
        return Ok(());
    }
    let core = &admission.call.core;
    let named = admission.object["spec"]["priorityClassName"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let classes = core.resource(GROUP, "v1", "priorityclasses");
    let class = if named.is_empty() {
        classes.and_then(|classes| {
            core.store()
                .snapshot()
                .range(&classes.space, "", None, usize::MAX)
                .filter_map(|entry| serde_json::from_slice::<Value>(&entry.bytes).ok())
                .filter(|class| class["globalDefault"] == true)
                .min_by_key(|class| class["value"].as_i64())
        })
    } else {
        let class = classes.and_then(|classes| core.read(classes, "", &named));
        let pods = admission.call.resource.name();
        let name = metadata_str(admission.object, "name");
        Some(class.ok_or_else(|| {
            Failure::forbidden(
                pods,
                name,
                format!("no PriorityClass with name {named} was found"),
            )
        })?)
    };
    let value = class
        .as_ref()
        .map_or(0, |class| class["value"].as_i64().unwrap_or(0));
    let policy = class
        .as_ref()
        .and_then(|class| class["preemptionPolicy"].as_str())
        .unwrap_or("PreemptLowerPriority");
    let given = admission.object["spec"]["priority"].as_i64();
    if let Some(given) = given.filter(|given| *given != value) {
        let name = metadata_str(admission.object, "name");
        return Err(Failure::forbidden(
            admission.call.resource.name(),
            name,
            format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
            ),
        ));
    }
    if let Some(spec) = admission
        .object
        .get_mut("spec")
        .and_then(Value::as_object_mut)
    {
        spec.insert("priority".into(), value.into());
        spec.entry("preemptionPolicy")
            .or_insert_with(|| json!(policy));
        if named.is_empty()
            && let Some(class) = &class
        {
            spec.insert(
                "priorityClassName".into(),
                metadata_str(class, "name").into(),
            );
        }
    }
    Ok(())
}

/// A client that does not know of priorities may leave out those that its pod was given.
fn keep(admission: &mut Admission<'_>) {
    if admission.subresource.is_some() || !admission.call.resource.is("", "Pod") {
        return;
    }
    let (Some(old), Some(spec)) = (
        admission.old,
        admission
            .object
            .get_mut("spec")
            .and_then(Value::as_object_mut),
    ) else {
        return;
    };
    for name in ["priority", "preemptionPolicy"] {
        let kept = &old["spec"][name];
        if !kept.is_null() && spec.get(name).is_none_or(Value::is_null) {
            spec.insert(name.into(), kept.clone());
        }
    }
}
