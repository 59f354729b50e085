//! Checks of probes and lifecycle hooks.

use serde_json::Value;

use super::container;
use crate::fault::{Fault, Path};
use crate::metadata::NOT_NEGATIVE;
use crate::names;
use crate::read::{list, text};

/// A liveness or startup probe.
pub(super) fn liveness(probe: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    validate(probe, path, faults);
    if let Some(threshold) = probe["successThreshold"]
        .as_i64()
        .filter(|threshold| *threshold != 1)
    {
        faults.push(Fault::invalid(
            path.child("successThreshold"),
            threshold,
            "must be 1",
        ));
    }
}

/// A readiness probe.
pub(super) fn readiness(probe: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    validate(probe, path, faults);
    let grace = &probe["terminationGracePeriodSeconds"];
    if !grace.is_null() {
        let path = path.child("terminationGracePeriodSeconds");
        faults.push(Fault::invalid(
            path,
            grace.clone(),
            "must not be set for readinessProbes",
        ));
    }
}

fn validate(probe: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    if !probe.is_object() {
        return;
    }
    handler(
        probe,
        &["exec", "httpGet", "tcpSocket", "grpc"],
        path,
        faults,
    );
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        if let Some(number) = probe[field].as_i64().filter(|number| *number < 0) {
            faults.push(Fault::invalid(path.child(field), number, NOT_NEGATIVE));
        }
    }
    if let Some(grace) = probe["terminationGracePeriodSeconds"]
        .as_i64()
        .filter(|grace| *grace <= 0)
    {
        faults.push(Fault::invalid(
            path.child("terminationGracePeriodSeconds"),
            grace,
            "must be greater than 0",
        ));
    }
}

/// What runs after a container's start and before its stop.
pub(super) fn lifecycle(lifecycle: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    for hook in ["postStart", "preStop"] {
        if lifecycle[hook].is_object() {
            handler(
                &lifecycle[hook],
                &["exec", "httpGet", "tcpSocket", "sleep"],
                path.child(hook),
                faults,
            );
        }
    }
    if !lifecycle["stopSignal"].is_null() {
        let text = "may not be set for containers with empty `spec.os.name`";
        faults.push(Fault::forbidden(path.child("stopSignal"), text));
    }
}

fn handler(holder: &Value, known: &[&str], path: Path<'_>, faults: &mut Vec<Fault>) {
    let mut handlers = 0;
    for name in known.iter().filter(|name| holder[**name].is_object()) {
        if handlers > 0 {
            faults.push(Fault::forbidden(
                path.child(name),
                "may not specify more than 1 handler type",
            ));
            continue;
        }
        handlers += 1;
        let (handler, path) = (&holder[*name], path.child(name));
        match *name {
            "exec" if list(handler, "command").is_empty() => {
                faults.push(Fault::required(path.child("command"), ""))
            }
            "httpGet" => http_get(handler, path, faults),
            "tcpSocket" => container::port(&handler["port"], path.child("port"), faults),
            "grpc" => container::port(&handler["port"], path.child("port"), faults),
            "sleep" => sleep(handler, path, faults),
            _ => {}
        }
    }
    if handlers == 0 {
        faults.push(Fault::required(path, "must specify a handler type"));
    }
}

fn sleep(handler: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let seconds = handler["seconds"].as_i64().unwrap_or(0);
    if seconds < 0 {
        let text = "must be non-negative and less than terminationGracePeriodSeconds (30)";
        faults.push(Fault::invalid(path.child("seconds"), seconds, text));
    }
}

fn http_get(handler: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    if text(handler, "path").is_empty() {
        faults.push(Fault::required(path.child("path"), ""));
    }
    container::port(&handler["port"], path.child("port"), faults);
    let scheme = text(handler, "scheme");
    if !["HTTP", "HTTPS"].contains(&scheme) {
        faults.push(Fault::not_supported(
            path.child("scheme"),
            scheme,
            &["HTTP", "HTTPS"],
        ));
    }
    for header in list(handler, "httpHeaders") {
        let name = text(header, "name");
        let problems = names::http_header(name).into_iter();
        faults.extend(
            problems.map(|problem| Fault::invalid(path.child("httpHeaders"), name, problem)),
        );
    }
}
