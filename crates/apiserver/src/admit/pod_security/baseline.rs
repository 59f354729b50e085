//! The baseline level: nothing that reaches out of the pod into the host.

use std::collections::BTreeSet;

use objects::SAFE_SYSCTLS;
use serde_json::Value;

use super::{Version, containers, names_where, quoted, restricted, said_of, setters};

/// Since when hosts that probes name count.
const PROBE_HOSTS_SINCE: Version = Version(34);

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

/// Those of the safe sysctls that came to be so, and with which version.
const SYSCTLS_SINCE: &[(u32, &[&str])] = &[
    (27, &["net.ipv4.ip_local_reserved_ports"]),
    (
        29,
        &[
            "net.ipv4.tcp_fin_timeout",
            "net.ipv4.tcp_keepalive_intvl",
            "net.ipv4.tcp_keepalive_probes",
            "net.ipv4.tcp_keepalive_time",
        ],
    ),
    (32, &["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"]),
];

/// Which SELinux types there may be, and since which version.
const SELINUX_TYPES: &[(u32, &str)] = &[
    (0, ""),
    (0, "container_t"),
    (0, "container_init_t"),
    (0, "container_kvm_t"),
    (31, "container_engine_t"),
];

/// Everything that is against the level, in upstream's order and words. Checks that the restricted
/// level has stricter forms of are left to it if it is the one that is asked for.
pub(super) fn violations(spec: &Value, version: Version, for_restricted: bool) -> Vec<String> {
    let unless = |replaced: bool, check: fn(&Value) -> Option<String>| {
        if replaced { None } else { check(spec) }
    };
    let replaces_capabilities = for_restricted && version >= restricted::CAPABILITIES_SINCE;
    // In a user namespace of its own, what is unmasked belongs to the pod.
    let unmasks = !for_restricted && version.relaxes(spec);
    [
        app_armor(spec),
        unless(replaces_capabilities, capabilities),
        host_namespaces(spec),
        unless(for_restricted, host_path_volumes),
        host_ports(spec),
        unless(version < PROBE_HOSTS_SINCE, probe_hosts),
        privileged(spec),
        unless(unmasks, proc_mount),
        selinux(spec, version),
        unless(for_restricted, seccomp),
        sysctls(spec, version),
        windows_host_process(spec),
    ]
    .into_iter()
    .flatten()
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
    let using = using(spec, |container| {
        container["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|port| port["hostPort"].as_i64())
            .filter(|port| *port != 0)
            .map(|port| port.to_string())
            .collect()
    })?;
    let ports: Vec<String> = using.values.into_iter().collect();
    let (said, uses, s) = (using.said, using.verb, using.plural);
    Some(format!(
        "hostPort ({said} {uses} hostPort{s} {})",
        ports.join(", ")
    ))
}

fn probe_hosts(spec: &Value) -> Option<String> {
    let using = using(spec, |container| {
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
    })?;
    let hosts = quoted(using.values.iter().map(String::as_str));
    let (said, uses, s) = (using.said, using.verb, using.plural);
    Some(format!(
        "probe or lifecycle host ({said} {uses} probe or lifecycle host{s} {hosts})"
    ))
}

/// Containers that have what they may not have.
struct Using {
    /// The containers, as they are told.
    said: String,
    /// What they do.
    verb: &'static str,
    /// All that they have, each once.
    values: BTreeSet<String>,
    /// The ending of what these are called.
    plural: &'static str,
}

fn using(spec: &Value, of: impl Fn(&Value) -> Vec<String>) -> Option<Using> {
    let mut names = Vec::new();
    let mut values = BTreeSet::new();
    for container in containers(spec) {
        let used = of(container);
        if !used.is_empty() {
            names.extend(container["name"].as_str());
            values.extend(used);
        }
    }
    (!names.is_empty()).then(|| Using {
        said: said_of("container", &names),
        verb: if names.len() == 1 { "uses" } else { "use" },
        plural: if values.len() == 1 { "" } else { "s" },
        values,
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

fn selinux(spec: &Value, version: Version) -> Option<String> {
    let is_allowed = |name: &str| {
        let mut types = SELINUX_TYPES.iter();
        types.any(|(since, allowed)| *allowed == name && version >= Version(*since))
    };
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
        !is_allowed(&type_of(context)) || sets(context, "user") || sets(context, "role")
    };
    let who = setters(bad(&spec["securityContext"]), &names_where(spec, bad))?;
    let contexts: Vec<&Value> = std::iter::once(&spec["securityContext"])
        .chain(containers(spec).map(|container| &container["securityContext"]))
        .collect();
    let types: BTreeSet<String> = contexts
        .iter()
        .map(|context| type_of(context))
        .filter(|name| !is_allowed(name))
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

fn sysctls(spec: &Value, version: Version) -> Option<String> {
    let is_new = |name: &&str| {
        let mut later = SYSCTLS_SINCE.iter();
        later.any(|(since, names)| names.contains(name) && version < Version(*since))
    };
    let names: Vec<&str> = spec["securityContext"]["sysctls"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|sysctl| sysctl["name"].as_str())
        .filter(|name| !SAFE_SYSCTLS.contains(name) || is_new(name))
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
