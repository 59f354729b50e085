//! Event in its newer form. The objects are those of the core form; some fields have other names.

use serde_json::Value;

use crate::fault::{Fault, Path};
use crate::groups::core::event::{self, COLUMNS, validate_reporter};
use crate::metadata::IMMUTABLE;
use crate::read::text;
use crate::rules::Rules;

pub(crate) const RULES: Rules = Rules {
    validate,
    validate_update,
    columns: COLUMNS,
    fields: |event| event::fields(event, "regarding"),
    cells: |event, now| (event::RULES.cells)(&to_core(event), now),
    ..Rules::PLAIN
};

fn validate(event: &Value, faults: &mut Vec<Fault>) {
    if event["eventTime"].is_null() {
        faults.push(Fault::required(Path::new("eventTime"), ""));
    }
    validate_words(event, faults);
    let kind = text(event, "type");
    if !["Normal", "Warning"].contains(&kind) {
        let text = format!("has invalid value: {kind}");
        faults.push(Fault::invalid(Path::new("type"), "", text));
    }
}

/// Who tells of the event, and in how many words.
fn validate_words(event: &Value, faults: &mut Vec<Fault>) {
    validate_reporter(event, "reportingController", faults);
    if text(event, "note").len() > 1024 {
        let text = "can have at most 1024 characters";
        faults.push(Fault::invalid(Path::new("message"), "", text));
    }
}

/// Of an event in its newer form only the series goes on.
fn validate_update(new: &Value, old: &Value, _: Option<&str>, faults: &mut Vec<Fault>) {
    if !new["eventTime"].is_null() {
        validate_words(new, faults);
    }
    if new["series"]["count"]
        .as_i64()
        .is_some_and(|count| count < 2)
    {
        faults.push(Fault::invalid(
            Path::new("series.count"),
            "",
            "should be at least 2",
        ));
    }
    if old["eventTime"].is_null() {
        return;
    }
    // Faults speak of the fields by their names in the core form.
    const FIXED: [(&str, &str); 13] = [
        ("regarding", "involvedObject"),
        ("reason", "reason"),
        ("note", "message"),
        ("deprecatedSource", "source"),
        ("deprecatedFirstTimestamp", "firstTimestamp"),
        ("deprecatedLastTimestamp", "lastTimestamp"),
        ("deprecatedCount", "count"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("reportingInstance", "reportingInstance"),
        ("related", "related"),
        ("reportingController", "reportingController"),
    ];
    for (field, told) in FIXED
        .into_iter()
        .filter(|(field, _)| new[*field] != old[*field])
    {
        let fault = Fault::invalid(Path::new(told), new[field].clone(), IMMUTABLE);
        faults.push(match field {
            "regarding" | "related" => fault.showing(show_reference(&new[field])),
            _ => fault,
        });
    }
}

/// A reference as Go prints its internal form.
fn show_reference(reference: &Value) -> String {
    if reference.is_null() {
        return "null".to_owned();
    }
    let names = [
        "Kind",
        "Namespace",
        "Name",
        "UID",
        "APIVersion",
        "ResourceVersion",
        "FieldPath",
    ];
    let fields = [
        "kind",
        "namespace",
        "name",
        "uid",
        "apiVersion",
        "resourceVersion",
        "fieldPath",
    ];
    let parts: Vec<String> = names
        .iter()
        .zip(fields)
        .map(|(name, field)| format!("\"{name}\":{}", Value::from(text(reference, field))))
        .collect();
    format!("{{{}}}", parts.join(","))
}

/// The two names of each field, the newer one first.
const NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// The same event in its core form.
fn to_core(event: &Value) -> Value {
    let mut event = event.clone();
    if let Value::Object(fields) = &mut event {
        for (newer, core) in NAMES {
            if let Some(value) = fields.remove(newer) {
                fields.insert(core.to_owned(), value);
            }
        }
    }
    event
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_newer_event_has_the_row_of_its_core_form() {
        let event =
            json!({"regarding": {"kind": "Pod", "name": "p"}, "note": "m", "deprecatedCount": 3});
        let core = to_core(&event);
        assert_eq!(
            core,
            json!({"involvedObject": {"kind": "Pod", "name": "p"}, "message": "m", "count": 3})
        );
    }
}
