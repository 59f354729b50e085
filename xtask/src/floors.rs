//! A crate imports only from floors below its own: nothing beside it, nothing above.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde_json::Value;

/// The floors, from the ground up. A new crate gets its place here.
pub(crate) const FLOORS: &[(&str, &[&str])] = &[
    (
        "words",
        &[
            "kinds",
            "patch",
            "oci",
            "lifecycle",
            "streams",
            "access",
            "objects",
            "tree",
            "mounts",
            "protobuf",
        ],
    ),
    (
        "ground",
        &[
            "store", "pki", "image", "runtime", "network", "volume", "dns",
        ],
    ),
    ("services", &["apiserver", "engine", "informer"]),
    ("workers", &["controllers", "scheduler", "node", "gateway"]),
    ("fronts", &["cli"]),
    ("roof", &["wharf"]),
];

/// Beside the house: they may use everything, and nothing of the house may use them but in tests.
const BESIDE: &[&str] = &["testkit", "xtask", "bench"];

/// Every dependency that points sideways or up.
pub(crate) fn check(metadata: &Value) -> anyhow::Result<()> {
    let floor_of: BTreeMap<&str, usize> = FLOORS
        .iter()
        .enumerate()
        .flat_map(|(floor, (_, crates))| crates.iter().map(move |name| (*name, floor)))
        .collect();
    let mut faults = Vec::new();
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    for package in packages
        .iter()
        .filter(|package| package["source"].is_null())
    {
        let name = package["name"]
            .as_str()
            .context("a package without a name")?;
        if BESIDE.contains(&name) {
            continue;
        }
        let Some(floor) = floor_of.get(name) else {
            faults.push(format!(
                "{name} has no floor; give it one in xtask/src/floors.rs and ARCHITECTURE.md"
            ));
            continue;
        };
        let dependencies = package["dependencies"]
            .as_array()
            .context("a package without dependencies")?;
        // Tests may look from anywhere.
        for dependency in dependencies
            .iter()
            .filter(|dependency| dependency["kind"] != "dev")
        {
            let used = dependency["name"].as_str().unwrap_or_default();
            let inside = dependency["path"].is_string();
            if inside && floor_of.get(used).is_none_or(|below| below >= floor) {
                faults.push(format!("{name} ({}) may not use {used}", FLOORS[*floor].0));
            }
        }
    }
    if !faults.is_empty() {
        bail!("floors:\n  {}", faults.join("\n  "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn house(name: &str, uses: &str, kind: Value) -> Value {
        json!({"packages": [{"name": name, "source": null, "dependencies": [
            {"name": uses, "path": "somewhere", "kind": kind}]}]})
    }

    #[test]
    fn only_downwards() {
        assert!(check(&house("engine", "image", Value::Null)).is_ok());
        assert!(check(&house("image", "engine", Value::Null)).is_err());
        assert!(check(&house("node", "gateway", Value::Null)).is_err());
        assert!(check(&house("node", "gateway", json!("dev"))).is_ok());
        assert!(check(&house("newcomer", "image", Value::Null)).is_err());
    }
}
