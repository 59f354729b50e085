//! Checks of what a container or pod runs as.

use serde_json::Value;

use crate::fault::{Fault, Path};
use crate::names::between;
use crate::read::{flag, list, text};

/// The largest user or group id.
const ID_LIMIT: i64 = i32::MAX as i64;

fn id(holder: &Value, field: &str, path: Path<'_>, faults: &mut Vec<Fault>) {
    if let Some(id) = holder[field]
        .as_i64()
        .filter(|id| !(0..=ID_LIMIT).contains(id))
    {
        faults.push(Fault::invalid(path.child(field), id, between(0, ID_LIMIT)));
    }
}

/// `securityContext` of a container, in a pod that has `own_users` or those of the machine.
pub(super) fn container(context: &Value, own_users: bool, path: Path<'_>, faults: &mut Vec<Fault>) {
    if !context.is_object() {
        return;
    }
    id(context, "runAsUser", path, faults);
    id(context, "runAsGroup", path, faults);
    let proc_mount = text(context, "procMount");
    if !context["procMount"].is_null() && !["Default", "Unmasked"].contains(&proc_mount) {
        faults.push(Fault::not_supported(
            path.child("procMount"),
            proc_mount,
            &["Default", "Unmasked"],
        ));
    }
    // What is masked are doors to the whole machine; they may be opened only to who is nobody there.
    if proc_mount == "Unmasked" && !own_users {
        let text = "`hostUsers` must be false to use `Unmasked`";
        faults.push(Fault::invalid(path.child("procMount"), proc_mount, text));
    }
    seccomp(
        &context["seccompProfile"],
        path.child("seccompProfile"),
        faults,
    );
    if context["allowPrivilegeEscalation"] == false {
        if flag(context, "privileged") {
            let text = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            faults.push(Fault::invalid(path, context.clone(), text));
        }
        if list(&context["capabilities"], "add")
            .iter()
            .any(|name| name == "CAP_SYS_ADMIN")
        {
            let text = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            faults.push(Fault::invalid(path, context.clone(), text));
        }
    }
    windows(
        &context["windowsOptions"],
        path.child("windowsOptions"),
        faults,
    );
    app_armor(
        &context["appArmorProfile"],
        path.child("appArmorProfile"),
        faults,
    );
}

/// `securityContext` of a pod.
pub(super) fn pod(context: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(context, field, path, faults);
    }
    let groups = path.child("supplementalGroups");
    for (index, group) in list(context, "supplementalGroups").iter().enumerate() {
        let number = group.as_i64().unwrap_or(0);
        if !(0..=ID_LIMIT).contains(&number) {
            faults.push(Fault::invalid(
                groups.index(index),
                number,
                between(0, ID_LIMIT),
            ));
        }
    }
    sysctls(context, path, faults);
    let words = [
        ("fsGroupChangePolicy", ["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", ["Merge", "Strict"]),
        ("seLinuxChangePolicy", ["MountOption", "Recursive"]),
    ];
    for (field, known) in words {
        let word = text(context, field);
        if !context[field].is_null() && !known.contains(&word) {
            faults.push(Fault::not_supported(path.child(field), word, &known));
        }
    }
    seccomp(
        &context["seccompProfile"],
        path.child("seccompProfile"),
        faults,
    );
    windows(
        &context["windowsOptions"],
        path.child("windowsOptions"),
        faults,
    );
    app_armor(
        &context["appArmorProfile"],
        path.child("appArmorProfile"),
        faults,
    );
}

fn sysctls(context: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let list_path = path.child("sysctls");
    let mut seen = Vec::new();
    for (index, sysctl) in list(context, "sysctls").iter().enumerate() {
        let path = list_path.index(index);
        let name = text(sysctl, "name");
        let segment = |part: &str| {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            let edges = [part.bytes().next(), part.bytes().last()];
            edges.into_iter().all(|edge| edge.is_some_and(plain))
                && part
                    .bytes()
                    .all(|byte| plain(byte) || b"-_".contains(&byte))
        };
        if name.is_empty() {
            faults.push(Fault::required(path.child("name"), ""));
        } else if name.len() > 253 || !name.split(['.', '/']).all(segment) {
            let pattern = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            let text = format!("must have at most 253 characters and match regex {pattern}");
            faults.push(Fault::invalid(path.child("name"), name, text));
        } else if seen.contains(&name) {
            faults.push(Fault::duplicate(path.child("name"), name));
        }
        seen.push(name);
    }
}

fn seccomp(profile: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    if !profile.is_object() {
        return;
    }
    let local = &profile["localhostProfile"];
    match text(profile, "type") {
        "Localhost" => match local.as_str().unwrap_or_default() {
            "" => {
                let text = "must be set when seccomp type is Localhost";
                faults.push(Fault::required(path.child("localhostProfile"), text));
            }
            file => super::volume::descending(file, path.child("localhostProfile"), faults),
        },
        "RuntimeDefault" | "Unconfined" => {
            if !local.is_null() {
                misplaced(profile, path, faults);
            }
        }
        "" => {
            faults.push(Fault::required(
                path.child("type"),
                "type is required when seccompProfile is set",
            ));
            if !local.is_null() {
                misplaced(profile, path, faults);
            }
        }
        other => {
            let known = ["Localhost", "RuntimeDefault", "Unconfined"];
            faults.push(Fault::not_supported(path.child("type"), other, &known));
        }
    }
}

/// A profile of the node with a type that does not read one.
fn misplaced(profile: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let (kind, local) = (
        Value::from(text(profile, "type")),
        &profile["localhostProfile"],
    );
    let shown = format!("{{\"Type\":{kind},\"LocalhostProfile\":{local}}}");
    let text = "can only be set when seccomp type is Localhost";
    faults
        .push(Fault::invalid(path.child("localhostProfile"), profile.clone(), text).showing(shown));
}

fn app_armor(profile: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    if !profile.is_object() {
        return;
    }
    let local = &profile["localhostProfile"];
    match text(profile, "type") {
        "Localhost" => {
            let name = local.as_str().unwrap_or_default();
            if local.is_null() {
                let text = "must be set when AppArmor type is Localhost";
                faults.push(Fault::required(path.child("localhostProfile"), text));
            } else if name.trim() != name {
                let text = "must not be padded with whitespace";
                faults.push(Fault::invalid(path.child("localhostProfile"), name, text));
            } else if name.is_empty() {
                let text = "must be set when AppArmor type is Localhost";
                faults.push(Fault::required(path.child("localhostProfile"), text));
            } else if name.len() > 4095 {
                faults.push(Fault::too_long(path.child("localhostProfile"), 4095));
            }
        }
        "RuntimeDefault" | "Unconfined" => {
            if !local.is_null() {
                let text = "can only be set when AppArmor type is Localhost";
                faults.push(Fault::invalid(
                    path.child("localhostProfile"),
                    local.clone(),
                    text,
                ));
            }
        }
        "" => faults.push(Fault::required(
            path.child("type"),
            "type is required when appArmorProfile is set",
        )),
        other => {
            let known = ["Localhost", "RuntimeDefault", "Unconfined"];
            faults.push(Fault::not_supported(path.child("type"), other, &known));
        }
    }
}

fn windows(options: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    if options["runAsUserName"] == "" {
        faults.push(Fault::invalid(
            path.child("runAsUserName"),
            "",
            "runAsUserName cannot be an empty string",
        ));
    }
}
