//! Event in its core form.

use jiff::Timestamp;
use serde_json::Value;

use crate::fault::{Fault, Path};
use crate::metadata;
use crate::names;
use crate::read::text;
use crate::rules::Rules;
use crate::table::{Heading, age};

pub(crate) const RULES: Rules = Rules {
    name: |_, _| Vec::new(),
    validate,
    validate_update: |new, _, _, faults| validate(new, faults),
    columns: COLUMNS,
    cells,
    fields: |event| fields(event, "involvedObject"),
    ..Rules::PLAIN
};

const EVENT: &str = "io.k8s.api.core.v1.Event";

pub(crate) const COLUMNS: &[Heading] = &[
    Heading::text(
        "Last Seen",
        "The time at which the most recent occurrence of this event was recorded.",
    ),
    Heading::of("Type", EVENT, "type"),
    Heading::of("Reason", EVENT, "reason"),
    Heading::of("Object", EVENT, "involvedObject"),
    Heading::of(
        "Subobject",
        "io.k8s.api.core.v1.ObjectReference",
        "fieldPath",
    )
    .wide(),
    Heading::of("Source", EVENT, "source").wide(),
    Heading::of("Message", EVENT, "message"),
    Heading::of("First Seen", EVENT, "firstTimestamp").wide(),
    Heading::of("Count", EVENT, "count").wide(),
    Heading::NAME.wide(),
];

fn validate(event: &Value, faults: &mut Vec<Fault>) {
    if !event["eventTime"].is_null() {
        validate_reporter(event, "reportingComponent", faults);
        return;
    }
    let about = text(&event["involvedObject"], "namespace");
    let own = metadata::namespace(event);
    let cluster_wide = about.is_empty() && (own == "default" || own == "kube-system");
    let path = Path::new("involvedObject");
    if about != own && !cluster_wide {
        faults.push(Fault::invalid(
            path.child("namespace"),
            about,
            "does not match event.namespace",
        ));
    }
}

pub(crate) fn fields(event: &Value, object: &str) -> Vec<(&'static str, String)> {
    let about = &event[object];
    let source = match text(&event["source"], "component") {
        "" => text(event, "reportingComponent"),
        component => component,
    };
    vec![
        ("involvedObject.kind", text(about, "kind").to_owned()),
        (
            "involvedObject.namespace",
            text(about, "namespace").to_owned(),
        ),
        ("involvedObject.name", text(about, "name").to_owned()),
        ("involvedObject.uid", text(about, "uid").to_owned()),
        (
            "involvedObject.apiVersion",
            text(about, "apiVersion").to_owned(),
        ),
        (
            "involvedObject.resourceVersion",
            text(about, "resourceVersion").to_owned(),
        ),
        (
            "involvedObject.fieldPath",
            text(about, "fieldPath").to_owned(),
        ),
        ("reason", text(event, "reason").to_owned()),
        (
            "reportingComponent",
            text(event, "reportingComponent").to_owned(),
        ),
        ("source", source.to_owned()),
        ("type", text(event, "type").to_owned()),
    ]
}

fn cells(event: &Value, now: Timestamp) -> Vec<Value> {
    let about = &event["involvedObject"];
    let series = &event["series"];
    let first = if event["firstTimestamp"].is_null() {
        &event["eventTime"]
    } else {
        &event["firstTimestamp"]
    };
    let last = match (series.is_object(), event["lastTimestamp"].is_null()) {
        (true, _) => &series["lastObservedTime"],
        (false, true) => first,
        (false, false) => &event["lastTimestamp"],
    };
    let count = match (
        series["count"].as_i64(),
        event["count"].as_i64().unwrap_or(0),
    ) {
        (Some(count), _) => count,
        (None, 0) => 1,
        (None, count) => count,
    };
    let object = match text(about, "name") {
        "" => text(about, "kind").to_lowercase(),
        name => format!("{}/{name}", text(about, "kind").to_lowercase()),
    };
    vec![
        age(last, now).into(),
        event["type"].clone(),
        event["reason"].clone(),
        object.into(),
        text(about, "fieldPath").into(),
        source(event).into(),
        text(event, "message").trim().into(),
        age(first, now).into(),
        count.into(),
        metadata::name(event).into(),
    ]
}

fn source(event: &Value) -> String {
    let (component, host) = match text(&event["source"], "component") {
        "" => (
            text(event, "reportingComponent"),
            text(event, "reportingInstance"),
        ),
        component => (component, text(&event["source"], "host")),
    };
    let words: Vec<&str> = [component, host]
        .into_iter()
        .filter(|word| !word.is_empty())
        .collect();
    words.join(", ")
}

/// Checks that only events with an `eventTime` of their own must pass.
pub(crate) fn validate_reporter(event: &Value, controller: &'static str, faults: &mut Vec<Fault>) {
    let path = Path::new(controller);
    let name = text(event, controller);
    if name.is_empty() {
        faults.push(Fault::required(path, ""));
    }
    faults.extend(
        names::qualified_name(name)
            .into_iter()
            .map(|problem| Fault::invalid(path, name, problem)),
    );
    let instance = text(event, "reportingInstance");
    match instance.len() {
        0 => faults.push(Fault::required(Path::new("reportingInstance"), "")),
        1..=128 => {}
        _ => {
            let text = "can have at most 128 characters";
            faults.push(Fault::invalid(Path::new("reportingInstance"), "", text));
        }
    }
    for (field, limit) in [("action", 128), ("reason", 128)] {
        let word = text(event, field);
        match word.len() {
            0 => faults.push(Fault::required(Path::new(field), "")),
            length if length > limit => {
                faults.push(Fault::invalid(
                    Path::new(field),
                    "",
                    format!("can have at most {limit} characters"),
                ));
            }
            _ => {}
        }
    }
}
