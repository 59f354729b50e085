//! The restricted level: what a pod may do, it has to say.

use std::collections::BTreeSet;

use serde_json::Value;

use super::baseline::{bad_seccomp, forbidden_capabilities};
use super::{Version, names_where, quoted, said_of, setters};

/// Since when capabilities have to be dropped.
pub(super) const CAPABILITIES_SINCE: Version = Version(22);
/// Since when the number of the user counts.
const USER_SINCE: Version = Version(23);
/// Since when pods for Windows need not say what has no meaning there.
const WINDOWS_SINCE: Version = Version(25);

const VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// Everything that is against what this level has beyond the baseline, in upstream's order and
/// words.
pub(super) fn violations(spec: &Value, version: Version) -> Vec<String> {
    let when = |holds: bool, check: fn(&Value) -> Option<String>| {
        if holds { check(spec) } else { None }
    };
    // These mean nothing there.
    let confines = spec["os"]["name"] != "windows" || version < WINDOWS_SINCE;
    // Who is root in a user namespace of its own is nobody outside.
    let has_users = version.relaxes(spec);
    [
        when(confines, privilege_escalation),
        when(confines && version >= CAPABILITIES_SINCE, capabilities),
        volumes(spec),
        when(!has_users, run_as_non_root),
        when(!has_users && version >= USER_SINCE, run_as_user),
        when(confines, seccomp),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn privilege_escalation(spec: &Value) -> Option<String> {
    let names = names_where(spec, |context| context["allowPrivilegeEscalation"] != false);
    (!names.is_empty()).then(|| {
        format!(
            "allowPrivilegeEscalation != false ({} must set securityContext.allowPrivilegeEscalation=false)",
            said_of("container", &names)
        )
    })
}

fn capabilities(spec: &Value) -> Option<String> {
    let keeps = |context: &Value| {
        let dropped = context["capabilities"]["drop"].as_array();
        !dropped.into_iter().flatten().any(|name| name == "ALL")
    };
    let names = names_where(spec, keeps);
    let mut parts = Vec::new();
    if !names.is_empty() {
        parts.push(format!(
            "{} must set securityContext.capabilities.drop=[\"ALL\"]",
            said_of("container", &names)
        ));
    }
    parts.extend(forbidden_capabilities(spec, &["NET_BIND_SERVICE"]));
    (!parts.is_empty()).then(|| format!("unrestricted capabilities ({})", parts.join("; ")))
}

fn volumes(spec: &Value) -> Option<String> {
    let mut names = Vec::new();
    let mut types = BTreeSet::new();
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        let kind = volume
            .as_object()
            .into_iter()
            .flatten()
            .map(|(field, _)| field.as_str())
            .find(|field| *field != "name");
        if let Some(kind) = kind.filter(|kind| !VOLUMES.contains(kind)) {
            types.insert(kind);
            names.extend(volume["name"].as_str());
        }
    }
    (!names.is_empty()).then(|| {
        format!(
            "restricted volume types ({} {} restricted volume type{} {})",
            said_of("volume", &names),
            if names.len() == 1 { "uses" } else { "use" },
            if types.len() == 1 { "" } else { "s" },
            quoted(types)
        )
    })
}

/// The containers that neither say something themselves nor inherit it from the pod.
fn silent(spec: &Value, says: impl Fn(&Value) -> bool) -> Vec<&str> {
    if says(&spec["securityContext"]) {
        return Vec::new();
    }
    names_where(spec, |context| !says(context))
}

fn run_as_non_root(spec: &Value) -> Option<String> {
    let refuses = |context: &Value| context["runAsNonRoot"] == false;
    let said_no = setters(
        refuses(&spec["securityContext"]),
        &names_where(spec, refuses),
    );
    if let Some(who) = said_no {
        return Some(format!(
            "runAsNonRoot != true ({who} must not set securityContext.runAsNonRoot=false)"
        ));
    }
    let names = silent(spec, |context| context["runAsNonRoot"] == true);
    (!names.is_empty()).then(|| {
        format!(
            "runAsNonRoot != true (pod or {} must set securityContext.runAsNonRoot=true)",
            said_of("container", &names)
        )
    })
}

fn run_as_user(spec: &Value) -> Option<String> {
    let root = |context: &Value| context["runAsUser"] == 0;
    let who = setters(root(&spec["securityContext"]), &names_where(spec, root))?;
    Some(format!("runAsUser=0 ({who} must not set runAsUser=0)"))
}

fn seccomp(spec: &Value) -> Option<String> {
    let said_bad = setters(
        bad_seccomp(&spec["securityContext"]),
        &names_where(spec, bad_seccomp),
    );
    if let Some(who) = said_bad {
        return Some(format!(
            "seccompProfile ({who} must not set securityContext.seccompProfile.type to \"Unconfined\")"
        ));
    }
    let names = silent(spec, |context| {
        matches!(
            context["seccompProfile"]["type"].as_str(),
            Some("RuntimeDefault" | "Localhost")
        )
    });
    (!names.is_empty()).then(|| {
        format!(
            "seccompProfile (pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
            said_of("container", &names)
        )
    })
}
