//! `cargo xtask check`: what a machine can see of the code, offline.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::floors;
use crate::shell::{Run, cargo};

/// Licences that may be linked into the product.
const LICENCES: &[&str] = &[
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "CC0-1.0",
    "Unlicense",
    "Unicode-3.0",
    "MPL-2.0",
    "BSL-1.0",
    "OpenSSL",
    "CDLA-Permissive-2.0",
    "MIT-0",
];

/// Crates that must not come in, each with its reason.
const BANNED: &[(&str, &str)] = &[
    ("ring", "one TLS provider: aws-lc-rs"),
    ("openssl", "one TLS provider: aws-lc-rs"),
    ("native-tls", "one TLS provider: aws-lc-rs"),
    ("reqwest", "one HTTP stack: hyper"),
    ("rustables", "GPL-3.0"),
    ("sozu-lib", "AGPL-3.0"),
    (
        "serde_yaml",
        "writes yes, on and 1_000 unquoted; serde-saphyr does not",
    ),
    (
        "serde_norway",
        "writes yes, on and 1_000 unquoted; serde-saphyr does not",
    ),
    ("cel", "aborts on long input and has no cost limit"),
];

/// serde_json features that change the meaning of every object in the binary.
const JSON_FEATURES_BANNED: &[&str] = &["preserve_order", "arbitrary_precision"];

pub(crate) fn run() -> anyhow::Result<()> {
    crate::packages::install(crate::packages::BUILD)?;
    step("formatting");
    cargo().args(["fmt", "--all", "--check"]).run()?;
    step("floors");
    let metadata = cargo()
        .args(["metadata", "--format-version", "1", "--locked"])
        .read()?;
    let metadata: Value = serde_json::from_str(&metadata).context("read cargo metadata")?;
    floors::check(&metadata)?;
    step("licences and banned crates");
    supply(&metadata)?;
    step("lints");
    cargo()
        .args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ])
        .run()
}

fn step(name: &str) {
    eprintln!("check: {name}");
}

/// Licences, bans, and features, over everything that the lock file names and this platform uses.
fn supply(metadata: &Value) -> anyhow::Result<()> {
    let used = used_packages(metadata)?;
    let mut faults = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let (Some(id), Some(name)) = (package["id"].as_str(), package["name"].as_str()) else {
            continue;
        };
        if !used.contains(id) || package["source"].is_null() {
            continue;
        }
        if let Some((_, reason)) = BANNED.iter().find(|(banned, _)| *banned == name) {
            faults.push(format!("{name} is banned: {reason}"));
        }
        let licence = package["license"].as_str().unwrap_or("none named");
        if !allowed(licence) {
            faults.push(format!("{name}: licence {licence}"));
        }
        if package["source"]
            .as_str()
            .is_some_and(|source| !source.starts_with("registry+"))
        {
            faults.push(format!("{name} does not come from the crates registry"));
        }
    }
    let nodes = metadata["resolve"]["nodes"]
        .as_array()
        .context("cargo metadata has no resolution")?;
    for node in nodes.iter().filter(|node| {
        node["id"]
            .as_str()
            .is_some_and(|id| id.contains("#serde_json@"))
    }) {
        for feature in node["features"].as_array().into_iter().flatten() {
            if JSON_FEATURES_BANNED.iter().any(|banned| feature == banned) {
                faults.push(format!("serde_json: feature {feature} is banned"));
            }
        }
    }
    if !faults.is_empty() {
        bail!("supply:\n  {}", faults.join("\n  "));
    }
    Ok(())
}

/// What the product is linked from: everything below `wharf` but build tools and tests.
fn used_packages(metadata: &Value) -> anyhow::Result<BTreeSet<String>> {
    let nodes = metadata["resolve"]["nodes"]
        .as_array()
        .context("cargo metadata has no resolution")?;
    let by_id: BTreeMap<&str, &Value> = nodes
        .iter()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let start = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "wharf")
        .and_then(|package| package["id"].as_str())
        .context("there is no package wharf")?;
    let mut used = BTreeSet::new();
    let mut open = vec![start];
    while let Some(id) = open.pop() {
        if !used.insert(id.to_string()) {
            continue;
        }
        let dependencies = by_id.get(id).and_then(|node| node["deps"].as_array());
        for dependency in dependencies.into_iter().flatten() {
            let linked = dependency["dep_kinds"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|kind| {
                    kind["kind"].is_null()
                        && kind["target"].as_str().is_none_or(|target| {
                            !target.contains("windows")
                                && !target.contains("wasm")
                                && !target.contains("macos")
                                && !target.contains("apple")
                        })
                });
            if let (true, Some(package)) = (linked, dependency["pkg"].as_str()) {
                open.push(package);
            }
        }
    }
    Ok(used)
}

/// An SPDX expression without parentheses' depth: every AND part has an allowed OR part.
fn allowed(expression: &str) -> bool {
    let flat = expression.replace(['(', ')'], "").replace('/', " OR ");
    flat.split(" AND ").all(|part| {
        part.split(" OR ")
            .any(|licence| LICENCES.contains(&licence.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_read_as_expressions() {
        for expression in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "ISC AND (Apache-2.0 OR ISC)",
            "LGPL-3.0 OR MPL-2.0",
        ] {
            assert!(allowed(expression), "{expression}");
        }
        for expression in ["GPL-3.0", "MIT AND GPL-3.0", "none named"] {
            assert!(!allowed(expression), "{expression}");
        }
    }
}
