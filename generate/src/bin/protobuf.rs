//! Writes the field table of the crate `protobuf` from the published protocol definitions.
//!
//! usage: protobuf SCHEMA.json OUT.tsv PROTO…
//!
//! SCHEMA.json is the one of the crate `kinds`: its definitions are the messages that are wanted, and
//! it tells which fields are embedded (a message's field that JSON does not have by that name).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail};
use serde_json::Value;

/// Messages that only requests carry, and that therefore no schema describes.
const ALSO: &[&str] = &[
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "io.k8s.apimachinery.pkg.runtime.Unknown",
];

struct Field {
    number: u32,
    name: String,
    label: &'static str,
    kind: String,
}

type Messages = BTreeMap<String, Vec<Field>>;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let schema = arguments
        .next()
        .context("usage: protobuf SCHEMA.json OUT.tsv PROTO…")?;
    let out = arguments.next().context("no output file")?;
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(&schema)?)?;
    let definitions = schema.as_object().context("the schema is no object")?;
    let mut messages = Messages::new();
    for path in arguments {
        read(
            &std::fs::read_to_string(&path).with_context(|| path.clone())?,
            &mut messages,
        )
        .with_context(|| path.clone())?;
    }
    let mut wanted: Vec<String> = definitions
        .keys()
        .cloned()
        .chain(ALSO.iter().map(|name| name.to_string()))
        .collect();
    let mut written = BTreeSet::new();
    let mut lines = Vec::new();
    while let Some(name) = wanted.pop() {
        let Some(fields) = messages.get(&name) else {
            continue;
        };
        if !written.insert(name.clone()) {
            continue;
        }
        for field in fields {
            let in_json = definitions
                .get(&name)
                .is_none_or(|definition| definition["fields"].get(&field.name).is_some());
            let embedded = !in_json && messages.contains_key(&field.kind) && field.label == "one";
            let label = if embedded { "embedded" } else { field.label };
            lines.push(format!(
                "{name}\t{}\t{}\t{label}\t{}",
                field.number, field.name, field.kind
            ));
            wanted.push(field.kind.clone());
        }
        if fields.is_empty() {
            lines.push(format!("{name}\t0\t\t\t"));
        }
    }
    lines.sort();
    std::fs::write(&out, lines.join("\n") + "\n").with_context(|| out.clone())
}

/// The messages of one file. The files are generated and flat: no nested messages, no enums, no oneofs.
fn read(text: &str, messages: &mut Messages) -> anyhow::Result<()> {
    let mut package = String::new();
    let mut message: Option<String> = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("package ") {
            package = definition(name.trim_end_matches(';'));
        } else if let Some(name) = line
            .strip_prefix("message ")
            .and_then(|rest| rest.strip_suffix(" {"))
        {
            let name = format!("{package}.{name}");
            messages.insert(name.clone(), Vec::new());
            message = Some(name);
        } else if line == "}" {
            message = None;
        } else if let Some(current) = &message
            && let Some(declaration) = line.strip_suffix(';')
            && !line.starts_with("//")
        {
            let field = field(declaration, &package).with_context(|| line.to_string())?;
            messages
                .get_mut(current)
                .context("a message that was begun")?
                .push(field);
        }
    }
    Ok(())
}

fn field(declaration: &str, package: &str) -> anyhow::Result<Field> {
    let (left, number) = declaration.rsplit_once(" = ").context("no number")?;
    let number = number.split(' ').next().unwrap_or_default().parse()?;
    if let Some(rest) = left.strip_prefix("map<string, ") {
        let (kind, name) = rest.split_once("> ").context("no map")?;
        return Ok(Field {
            number,
            name: name.into(),
            label: "map",
            kind: resolve(kind, package),
        });
    }
    let words: Vec<&str> = left.split(' ').collect();
    let (label, kind, name) = match words[..] {
        ["optional", kind, name] => ("one", kind, name),
        ["repeated", kind, name] => ("many", kind, name),
        _ => bail!("not understood"),
    };
    Ok(Field {
        number,
        name: name.into(),
        label,
        kind: resolve(kind, package),
    })
}

/// A scalar as it is; a message by the name of its definition.
fn resolve(kind: &str, package: &str) -> String {
    match kind {
        "string" | "bytes" | "bool" | "int32" | "int64" | "uint32" | "uint64" | "double"
        | "float" => kind.into(),
        _ => match kind.strip_prefix('.') {
            Some(absolute) => definition(absolute),
            None => format!("{package}.{kind}"),
        },
    }
}

/// `k8s.io.api.core.v1.Pod` is `io.k8s.api.core.v1.Pod` in OpenAPI.
fn definition(name: &str) -> String {
    match name.strip_prefix("k8s.io.") {
        Some(rest) => format!("io.k8s.{rest}"),
        None => name.into(),
    }
}
