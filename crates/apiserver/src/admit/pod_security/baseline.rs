//! The baseline level: nothing that reaches out of the pod into the host.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{containers, names_where, quoted, said_of, setters};

/// What a container has anyway.
const CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// What is namespaced, and harmless to other pods.
const SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// What is against the level in a pod, or nothing.
type Check = fn(&Value) -> Option<String>;

const SELINUX_TYPES: &[&str] = &[
    "",
    "container_t",
    "container_init_t",
    "container_kvm_t",
    "container_engine_t",
];

/// Everything that is against the level, in upstream's order and words. Checks that the restricted
/// level has stricter forms of are left to it if it is the one that is asked for.
pub(super) fn violations(spec: &Value, for_restricted: bool) -> Vec<String> {
    let checks: &[(bool, Check)] = &[
        (false, app_armor),
        (true, capabilities),
        (false, host_namespaces),
        (true, host_path_volumes),
        (false, host_ports),
        (false, probe_hosts),
        (false, privileged),
        (false, proc_mount),
        (false, selinux),
        (true, seccomp),
        (false, sysctls),
        (false, windows_host_process),
    ];
    checks
        .iter()
        .filter(|(replaced, _)| !(*replaced && for_restricted))
        .filter_map(|(_, check)| check(spec))
        .collect()
}

fn app_armor(spec: &Value) -> Option<String> {
    let bad = |context: &Value| {
        let profile = context["appArmorProfile"]["type"]
            .as_str()
            .unwrap_or_default();
        !matches!(profile, "" | "RuntimeDefault" | "Localhost")
    };
    let who = setters(bad(&spec["securityContext"]), &names_where(spec, bad))?;
    Some(format!(
        "forbidden AppArmor profile ({who} must not set AppArmor profile type to \"Unconfined\")"
    ))
}

fn added(context: &Value) -> impl Iterator<Item = &str> {
    context["capabilities"]["add"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

/// Containers that add capabilities out of an allowed list, and which.
pub(super) fn forbidden_capabilities(spec: &Value, allowed: &[&str]) -> Option<String> {
    let forbidden = |context: &Value| added(context).any(|name| !allowed.contains(&name));
    let names = names_where(spec, forbidden);
    let which: BTreeSet<&str> = containers(spec)
        .flat_map(|container| added(&container["securityContext"]))
        .filter(|name| !allowed.contains(name))
        .collect();
    (!names.is_empty()).then(|| {
        format!(
            "{} must not include {} in securityContext.capabilities.add",
            said_of("container", &names),
            quoted(which)
        )
    })
}

fn capabilities(spec: &Value) -> Option<String> {
    forbidden_capabilities(spec, CAPABILITIES)
        .map(|why| format!("non-default capabilities ({why})"))
}

fn host_namespaces(spec: &Value) -> Option<String> {
    let used: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|name| spec[**name] == true)
        .map(|name| format!("{name}=true"))
        .collect();
    (!used.is_empty()).then(|| format!("host namespaces ({})", used.join(", ")))
}

fn host_path_volumes(spec: &Value) -> Option<String> {
    let names: Vec<&str> = spec["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|volume| volume["hostPath"].is_object())
        .filter_map(|volume| volume["name"].as_str())
        .collect();
    (!names.is_empty()).then(|| format!("hostPath volumes ({})", said_of("volume", &names)))
}

fn host_ports(spec: &Value) -> Option<String> {
    let of = |container: &Value| -> Vec<i64> {
        container["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|port| port["hostPort"].as_i64())
            .filter(|port| *port != 0)
            .collect()
    };
    let using: Vec<&Value> = containers(spec)
        .filter(|container| !of(container).is_empty())
        .collect();
    let names: Vec<&str> = using
        .iter()
        .filter_map(|container| container["name"].as_str())
        .collect();
    let ports: BTreeSet<String> = using
        .iter()
        .flat_map(|container| of(container))
        .map(|port| port.to_string())
        .collect();
    (!names.is_empty()).then(|| {
        format!(
            "hostPort ({} {} hostPort{} {})",
            said_of("container", &names),
            if names.len() == 1 { "uses" } else { "use" },
            if ports.len() == 1 { "" } else { "s" },
            ports.into_iter().collect::<Vec<_>>().join(", ")
        )
    })
}

fn probe_hosts(spec: &Value) -> Option<String> {
    let of = |container: &Value| -> Vec<String> {
        let handlers = [
            &container["livenessProbe"],
            &container["readinessProbe"],
            &container["startupProbe"],
            &container["lifecycle"]["postStart"],
            &container["lifecycle"]["preStop"],
        ];
        handlers
            .iter()
            .flat_map(|handler| [&handler["httpGet"]["host"], &handler["tcpSocket"]["host"]])
            .filter_map(|host| host.as_str().map(str::to_owned))
            .filter(|host| !matches!(host.as_str(), "" | "127.0.0.1" | "::1" | "localhost"))
            .collect()
    };
    let using: Vec<&Value> = containers(spec)
        .filter(|container| !of(container).is_empty())
        .collect();
    let names: Vec<&str> = using
        .iter()
        .filter_map(|container| container["name"].as_str())
        .collect();
    let hosts: BTreeSet<String> = using.iter().flat_map(|container| of(container)).collect();
    (!names.is_empty()).then(|| {
        format!(
            "probe or lifecycle host ({} {} probe or lifecycle host{} {})",
            said_of("container", &names),
            if names.len() == 1 { "uses" } else { "use" },
            if hosts.len() == 1 { "" } else { "s" },
            quoted(hosts.iter().map(String::as_str))
        )
    })
}

fn privileged(spec: &Value) -> Option<String> {
    let names = names_where(spec, |context| context["privileged"] == true);
    (!names.is_empty()).then(|| {
        format!(
            "privileged ({} must not set securityContext.privileged=true)",
            said_of("container", &names)
        )
    })
}

fn proc_mount(spec: &Value) -> Option<String> {
    // In a user namespace of its own, what is unmasked belongs to the pod.
    if spec["hostUsers"] == false {
        return None;
    }
    let bad = |context: &Value| {
        let mount = context["procMount"].as_str().unwrap_or_default();
        !matches!(mount, "" | "Default")
    };
    let names = names_where(spec, bad);
    (!names.is_empty()).then(|| {
        format!(
            "procMount ({} must not set securityContext.procMount to \"Unmasked\")",
            said_of("container", &names)
        )
    })
}

fn selinux(spec: &Value) -> Option<String> {
    let type_of = |context: &Value| {
        context["seLinuxOptions"]["type"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let sets = |context: &Value, field: &str| {
        !context["seLinuxOptions"][field]
            .as_str()
            .unwrap_or_default()
            .is_empty()
    };
    let bad = |context: &Value| {
        !SELINUX_TYPES.contains(&type_of(context).as_str())
            || sets(context, "user")
            || sets(context, "role")
    };
    let who = setters(bad(&spec["securityContext"]), &names_where(spec, bad))?;
    let contexts: Vec<&Value> = std::iter::once(&spec["securityContext"])
        .chain(containers(spec).map(|container| &container["securityContext"]))
        .collect();
    let types: BTreeSet<String> = contexts
        .iter()
        .map(|context| type_of(context))
        .filter(|name| !SELINUX_TYPES.contains(&name.as_str()))
        .collect();
    let mut parts = Vec::new();
    if !types.is_empty() {
        let plural = if types.len() == 1 { "" } else { "s" };
        parts.push(format!(
            "type{plural} {}",
            quoted(types.iter().map(String::as_str))
        ));
    }
    for field in ["user", "role"] {
        if contexts.iter().any(|context| sets(context, field)) {
            parts.push(format!("{field} may not be set"));
        }
    }
    Some(format!(
        "seLinuxOptions ({who} set forbidden securityContext.seLinuxOptions: {})",
        parts.join("; ")
    ))
}

/// Whether a context asks for a seccomp profile that no level allows.
pub(super) fn bad_seccomp(context: &Value) -> bool {
    let profile = context["seccompProfile"]["type"]
        .as_str()
        .unwrap_or_default();
    !matches!(profile, "" | "RuntimeDefault" | "Localhost")
}

fn seccomp(spec: &Value) -> Option<String> {
    let who = setters(
        bad_seccomp(&spec["securityContext"]),
        &names_where(spec, bad_seccomp),
    )?;
    Some(format!(
        "seccompProfile ({who} must not set securityContext.seccompProfile.type to \"Unconfined\")"
    ))
}

fn sysctls(spec: &Value) -> Option<String> {
    let names: Vec<&str> = spec["securityContext"]["sysctls"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|sysctl| sysctl["name"].as_str())
        .filter(|name| !SYSCTLS.contains(name))
        .collect();
    (!names.is_empty()).then(|| format!("forbidden sysctls ({})", names.join(", ")))
}

fn windows_host_process(spec: &Value) -> Option<String> {
    let bad = |context: &Value| context["windowsOptions"]["hostProcess"] == true;
    let who = setters(bad(&spec["securityContext"]), &names_where(spec, bad))?;
    Some(format!(
        "hostProcess ({who} must not set securityContext.windowsOptions.hostProcess=true)"
    ))
}
