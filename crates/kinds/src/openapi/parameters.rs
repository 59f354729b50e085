//! The parameters of paths and operations.

use serde_json::{Value, json};

use super::DELETE_OPTIONS;
use crate::descriptions;

fn query(name: &str, kind: &str, description: &str) -> Value {
    json!({
        "name": name, "in": "query", "description": description,
        "schema": {"type": kind, "uniqueItems": true},
    })
}

fn in_path(name: &str, description: &str) -> Value {
    json!({
        "name": name, "in": "path", "description": description, "required": true,
        "schema": {"type": "string", "uniqueItems": true},
    })
}

fn dry_run() -> Value {
    query(
        "dryRun",
        "string",
        &descriptions::of_field(DELETE_OPTIONS, "dryRun"),
    )
}

/// Those of the path itself; `named` is the kind of the object that the path names.
pub(super) fn of_path(namespaced: bool, named: Option<&str>) -> Value {
    let mut parameters = Vec::new();
    if let Some(kind) = named {
        parameters.push(in_path("name", &format!("name of the {kind}")));
    }
    if namespaced {
        parameters.push(in_path(
            "namespace",
            "object name and auth scope, such as for teams and projects",
        ));
    }
    parameters.push(pretty());
    parameters.into()
}

fn pretty() -> Value {
    query(
        "pretty",
        "string",
        "If 'true', then the output is pretty printed.",
    )
}

/// Those of a create.
pub(super) fn of_create() -> Value {
    of_write(false)
}

/// Those of a replacement, or of a patch.
pub(super) fn of_write(patch: bool) -> Value {
    let manager = "The name of the actor that makes these changes, of at most 128 printable characters. Required for apply.";
    let validation = "What to do with unknown or duplicate fields in the body: Ignore drops them, Warn drops them and answers with warnings, Strict refuses the request.";
    let mut parameters = vec![
        dry_run(),
        query("fieldManager", "string", manager),
        query("fieldValidation", "string", validation),
    ];
    if patch {
        let force = "Whether apply takes over fields that another manager owns. Must be unset for patches that are not apply.";
        parameters.push(query("force", "boolean", force));
    }
    parameters.into()
}

fn delete_options() -> Vec<Value> {
    let words = |field: &str| descriptions::of_field(DELETE_OPTIONS, field);
    vec![
        dry_run(),
        query(
            "gracePeriodSeconds",
            "integer",
            &words("gracePeriodSeconds"),
        ),
        query("orphanDependents", "boolean", &words("orphanDependents")),
        query("propagationPolicy", "string", &words("propagationPolicy")),
    ]
}

/// Those of the deletion of one object.
pub(super) fn of_delete() -> Value {
    delete_options().into()
}

fn selection() -> Vec<Value> {
    vec![
        query(
            "continue",
            "string",
            "Where the next page of a list begins: the token that the page before it came with.",
        ),
        query(
            "fieldSelector",
            "string",
            "A selector to restrict the list of returned objects by their fields. Defaults to everything.",
        ),
        query(
            "labelSelector",
            "string",
            "A selector to restrict the list of returned objects by their labels. Defaults to everything.",
        ),
        query(
            "limit",
            "integer",
            "The largest number of objects that a list returns at once; the answer has a token for the rest.",
        ),
        query(
            "resourceVersion",
            "string",
            "Which versions of the objects may be served. Defaults to unset.",
        ),
        query(
            "resourceVersionMatch",
            "string",
            "How resourceVersion is applied to lists: Exact or NotOlderThan. Defaults to unset.",
        ),
        query(
            "sendInitialEvents",
            "boolean",
            "Whether a watch begins with events for the objects that exist, followed by a bookmark.",
        ),
        query(
            "timeoutSeconds",
            "integer",
            "After how many seconds a list or watch ends, whatever its activity.",
        ),
    ]
}

/// Those of a list or watch.
pub(super) fn of_list(with_pretty: bool) -> Value {
    let mut parameters = vec![query(
        "allowWatchBookmarks",
        "boolean",
        "Whether a watch sends events of type BOOKMARK.",
    )];
    parameters.extend(selection());
    if with_pretty {
        parameters.push(pretty());
    }
    parameters.push(query(
        "watch",
        "boolean",
        "Whether to watch for changes instead of returning a list.",
    ));
    parameters.into()
}

/// Those of the deletion of many objects.
pub(super) fn of_delete_collection() -> Value {
    selection()
        .into_iter()
        .chain(delete_options())
        .collect::<Vec<_>>()
        .into()
}

/// Those that only a part of a pod takes.
pub(super) fn of_part(part: &str) -> Vec<Value> {
    let container = query(
        "container",
        "string",
        "The container. Defaults to the only one of the pod.",
    );
    let streams = || {
        ["stdin", "stdout", "stderr"]
            .map(|stream| {
                query(
                    stream,
                    "boolean",
                    &format!("Whether to carry the stream {stream}."),
                )
            })
            .into_iter()
            .chain([query(
                "tty",
                "boolean",
                "Whether the command gets a terminal.",
            )])
    };
    match part {
        "exec" => {
            let command = query(
                "command",
                "string",
                "The command to execute: an array of words, not run in a shell.",
            );
            [command, container].into_iter().chain(streams()).collect()
        }
        "attach" => [container].into_iter().chain(streams()).collect(),
        "portforward" => vec![query(
            "ports",
            "integer",
            "The ports to forward; required with WebSockets.",
        )],
        "log" => vec![
            container,
            query(
                "follow",
                "boolean",
                "Whether to go on as the container writes.",
            ),
            query("limitBytes", "integer", "After how many bytes to stop."),
            query(
                "previous",
                "boolean",
                "Whether to show the container before its last restart.",
            ),
            query("sinceSeconds", "integer", "How many seconds back to begin."),
            query(
                "sinceTime",
                "string",
                "The time at which to begin, as RFC 3339.",
            ),
            query(
                "stream",
                "string",
                "Which stream to show: All, Stdout or Stderr.",
            ),
            query(
                "tailLines",
                "integer",
                "How many lines from the end to begin.",
            ),
            query(
                "timestamps",
                "boolean",
                "Whether to begin each line with its time.",
            ),
        ],
        _ => Vec::new(),
    }
}
