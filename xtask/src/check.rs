//! `cargo xtask check`: what a machine can see of the code, offline.

use std::collections::BTreeSet;

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
    "MPL-2.0+",
    "BSL-1.0",
    "OpenSSL",
    "CDLA-Permissive-2.0",
    "MIT-0",
];

/// Crates whose manifest names no licence, read by a person: the licence in their file.
const LICENCES_READ: &[(&str, &str)] = &[("rust-criu", "MIT")];

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
    supply()?;
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

/// Licences, bans, and features, over everything that the product is linked from. `cargo tree` knows
/// which optional dependencies are really on, which `cargo metadata` does not.
fn supply() -> anyhow::Result<()> {
    let host = crate::build::host()?;
    let tree = cargo()
        .args([
            "tree",
            "--locked",
            "--package",
            "wharf",
            "--edges",
            "normal",
            "--target",
            &host,
        ])
        .args(["--prefix", "none", "--no-dedupe", "--format", "{p}|{l}|{f}"])
        .read()?;
    let crates: BTreeSet<&str> = tree.lines().collect();
    let mut faults = Vec::new();
    for line in crates {
        let mut columns = line.split('|');
        let package = columns.next().unwrap_or_default();
        let (licence, features) = (
            columns.next().unwrap_or_default(),
            columns.next().unwrap_or_default(),
        );
        let name = package.split(' ').next().unwrap_or_default();
        if let Some((_, reason)) = BANNED.iter().find(|(banned, _)| *banned == name) {
            faults.push(format!("{name} is banned: {reason}"));
        }
        let read = LICENCES_READ.iter().find(|(read, _)| *read == name);
        let licence = read.map_or(licence, |(_, licence)| licence);
        if !allowed(licence) {
            faults.push(format!("{name}: licence {licence:?}"));
        }
        if package.contains("://") {
            faults.push(format!("{package} does not come from the crates registry"));
        }
        if name == "serde_json" {
            let banned = features
                .split(',')
                .find(|feature| JSON_FEATURES_BANNED.contains(feature));
            faults.extend(banned.map(|feature| format!("serde_json: feature {feature} is banned")));
        }
    }
    if !faults.is_empty() {
        bail!("supply:\n  {}", faults.join("\n  "));
    }
    Ok(())
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
