//! Checks of `LabelSelector` objects.

use serde_json::Value;

use crate::fault::{Fault, Path};
use crate::metadata::validate_labels;
use crate::names;
use crate::read::{list, text};

/// A selector of labels; nothing is wrong with an absent one.
pub(crate) fn validate_selector(selector: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    validate_labels(&selector["matchLabels"], path.child("matchLabels"), faults);
    let list_path = path.child("matchExpressions");
    for (index, requirement) in list(selector, "matchExpressions").iter().enumerate() {
        let path = list_path.index(index);
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
            other => faults.push(Fault::invalid(
                path.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = text(requirement, "key");
        let problems = names::qualified_name(key).into_iter();
        faults.extend(problems.map(|problem| Fault::invalid(path.child("key"), key, problem)));
        for (index, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            let problems = names::label_value(value).into_iter();
            faults.extend(
                problems.map(|problem| Fault::invalid(values_path.index(index), value, problem)),
            );
        }
    }
}

/// A selector as Go prints it: labels before expressions.
pub(crate) fn show_selector(selector: &Value) -> String {
    let fields = ["matchLabels", "matchExpressions"]
        .into_iter()
        .filter(|field| !selector[*field].is_null());
    let parts: Vec<String> = fields
        .map(|field| format!("\"{field}\":{}", selector[field]))
        .collect();
    format!("{{{}}}", parts.join(","))
}
