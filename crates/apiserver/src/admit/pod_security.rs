//! Pod Security admission: a namespace's labels say how much its pods may ask for.
//!
//! `enforce` refuses pods, `warn` tells the writer; of workloads, whose pods come later, the writer
//! is only told. Audit annotations have no place to go yet. Versions of levels from before 1.19, which
//! went by annotations, are taken for 1.19.
//! (Kubernetes, "Pod Security Standards" and "Pod Security Admission".)

mod baseline;
mod restricted;

use serde_json::Value;

use super::{Admission, Operation};
use crate::encode::metadata_str;
use crate::status::{Failure, Fault, FaultReason, fault};

const PREFIX: &str = "pod-security.kubernetes.io/";

/// How much a pod may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Level> {
        match text {
            "privileged" => Some(Level::Privileged),
            "baseline" => Some(Level::Baseline),
            "restricted" => Some(Level::Restricted),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        }
    }
}

/// The version of a level, by its minor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32);

impl Version {
    const OLDEST: Version = Version(19);
    const LATEST: Version = Version(u32::MAX);
    /// Since when pods with users of their own may be somebody else in there.
    const OWN_USERS: Version = Version(35);

    fn parse(text: &str) -> Version {
        let minor = text
            .strip_prefix("v1.")
            .and_then(|minor| minor.parse().ok());
        minor.map_or(Version::LATEST, |minor| Version(minor).max(Version::OLDEST))
    }

    /// Whether the pod has users of its own and this version makes something of that.
    fn relaxes(self, spec: &Value) -> bool {
        self >= Version::OWN_USERS && spec["hostUsers"] == false
    }
}

/// A level with the version that a namespace asks for.
struct Policy {
    level: Level,
    version: String,
}

impl Policy {
    /// What the labels of a namespace say for a mode (`enforce`, `warn`). What cannot be read
    /// counts as the strictest, as upstream has it.
    fn of(labels: &Value, mode: &str) -> Policy {
        let label = |suffix: &str| labels[format!("{PREFIX}{mode}{suffix}")].as_str();
        let level = match label("") {
            None => Level::Privileged,
            Some(text) => Level::parse(text).unwrap_or(Level::Restricted),
        };
        let version = label("-version").filter(|version| is_version(version));
        Policy {
            level,
            version: version.unwrap_or("latest").to_owned(),
        }
    }

    /// What in the pod is against the policy; `None` if nothing is.
    fn violations(&self, spec: &Value) -> Option<String> {
        let version = Version::parse(&self.version);
        let found = match self.level {
            Level::Privileged => return None,
            Level::Baseline => baseline::violations(spec, version, false),
            Level::Restricted => {
                let mut found = baseline::violations(spec, version, true);
                found.extend(restricted::violations(spec, version));
                found
            }
        };
        (!found.is_empty()).then(|| {
            format!(
                "violate PodSecurity \"{}:{}\": {}",
                self.level.name(),
                self.version,
                found.join(", ")
            )
        })
    }
}

/// Refuses pods, warns of workloads, and checks the labels of namespaces.
pub(super) fn check(admission: &mut Admission<'_>) -> Result<(), Failure> {
    let call = admission.call;
    if admission.operation == Operation::Delete {
        return Ok(());
    }
    if call.resource.is("", "Namespace") {
        return check_labels(admission);
    }
    let of_pod = call.resource.is("", "Pod");
    let Some(spec) = pod_spec(admission.object, of_pod) else {
        return Ok(());
    };
    let unchanged = admission
        .old
        .and_then(|old| pod_spec(old, of_pod))
        .is_some_and(|old| old == spec);
    let other_door = !matches!(admission.subresource, None | Some("ephemeralcontainers"));
    if unchanged || other_door {
        return Ok(());
    }
    let namespaces = call.core.builtin("", "v1", "namespaces");
    let Some(namespace) = call.core.read(namespaces, "", &call.info.namespace) else {
        return Ok(());
    };
    let labels = &namespace["metadata"]["labels"];
    if of_pod && let Some(why) = Policy::of(labels, "enforce").violations(spec) {
        let name = metadata_str(admission.object, "name");
        let why = why.replacen("violate", "violates", 1);
        return Err(Failure::forbidden(call.resource.name(), name, why));
    }
    if let Some(why) = Policy::of(labels, "warn").violations(spec) {
        call.warn(format!("would {why}"));
    }
    Ok(())
}

/// The pod that an object is, or makes.
fn pod_spec(object: &Value, of_pod: bool) -> Option<&Value> {
    let spec = if of_pod {
        &object["spec"]
    } else if object["spec"]["jobTemplate"].is_object() {
        &object["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    } else if object["template"].is_object() {
        &object["template"]["spec"]
    } else {
        &object["spec"]["template"]["spec"]
    };
    spec["containers"].is_array().then_some(spec)
}

fn check_labels(admission: &Admission<'_>) -> Result<(), Failure> {
    let labels = &admission.object["metadata"]["labels"];
    if admission
        .old
        .is_some_and(|old| old["metadata"]["labels"] == *labels)
    {
        return Ok(());
    }
    let mut faults: Vec<Fault> = Vec::new();
    for mode in ["enforce", "audit", "warn"] {
        for (suffix, is_good, detail) in [
            (
                "",
                is_level as fn(&str) -> bool,
                "must be one of privileged, baseline, restricted",
            ),
            ("-version", is_version, "must be \"latest\" or \"v1.x\""),
        ] {
            let label = format!("{PREFIX}{mode}{suffix}");
            if let Some(value) = labels[&label].as_str().filter(|value| !is_good(value)) {
                let path = format!("metadata.labels[{label}]");
                faults.push(fault(&path, FaultReason::Invalid, value, detail));
            }
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    let name = metadata_str(admission.object, "name");
    // Levels before versions, as upstream reads them.
    faults.sort_by_key(|fault| fault.path.ends_with("-version]"));
    Err(admission.call.resource.invalid(name, &faults))
}

fn is_level(text: &str) -> bool {
    Level::parse(text).is_some()
}

fn is_version(text: &str) -> bool {
    let minor = text.strip_prefix("v1.");
    text == "latest"
        || minor.is_some_and(|minor| {
            minor == "0"
                || (!minor.starts_with('0')
                    && (1..=9).contains(&minor.len())
                    && minor.bytes().all(|digit| digit.is_ascii_digit()))
        })
}

/// The containers of a pod of all three kinds, in upstream's order.
fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|list| spec[list].as_array().into_iter().flatten())
}

/// The names of the containers for which something holds.
fn names_where(spec: &Value, holds: impl Fn(&Value) -> bool) -> Vec<&str> {
    containers(spec)
        .filter(|container| holds(&container["securityContext"]))
        .filter_map(|container| container["name"].as_str())
        .collect()
}

/// `container "a"`, `containers "a", "b"`.
fn said_of(what: &str, names: &[&str]) -> String {
    let plural = if names.len() == 1 { "" } else { "s" };
    format!("{what}{plural} {}", quoted(names.iter().copied()))
}

/// `pod`, `container "a"`, `pod and containers "a", "b"`; `None` for nobody.
fn setters(pod: bool, names: &[&str]) -> Option<String> {
    match (pod, names.is_empty()) {
        (true, true) => Some("pod".into()),
        (true, false) => Some(format!("pod and {}", said_of("container", names))),
        (false, false) => Some(said_of("container", names)),
        (false, true) => None,
    }
}

fn quoted<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.into_iter().map(kinds::quote).collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check_level(level: Level, spec: Value, expected: &str) {
        check_version(level, "latest", spec, expected);
    }

    #[track_caller]
    fn check_version(level: Level, version: &str, spec: Value, expected: &str) {
        let policy = Policy {
            level,
            version: version.into(),
        };
        let found = policy.violations(&spec).unwrap_or_default();
        let found = found.split_once(": ").map_or("", |(_, found)| found);
        assert_eq!(found, expected, "{spec}");
    }

    #[test]
    fn baseline_refuses_what_reaches_the_host() {
        let check = |spec, expected| check_level(Level::Baseline, spec, expected);
        let two = |context: Value| json!([{"name": "a", "securityContext": context}, {"name": "b", "securityContext": context}]);
        let one = |context: Value| json!([{"name": "a", "securityContext": context}]);
        check(json!({"containers": one(json!({}))}), "");
        check(
            json!({"containers": [], "hostNetwork": true, "hostPID": true, "hostIPC": true}),
            "host namespaces (hostNetwork=true, hostPID=true, hostIPC=true)",
        );
        check(
            json!({"containers": two(json!({"privileged": true}))}),
            "privileged (containers \"a\", \"b\" must not set securityContext.privileged=true)",
        );
        check(
            json!({"containers": one(json!({"capabilities": {"add": ["NET_ADMIN", "SYS_TIME", "CHOWN"]}}))}),
            "non-default capabilities (container \"a\" must not include \"NET_ADMIN\", \"SYS_TIME\" in securityContext.capabilities.add)",
        );
        check(
            json!({"containers": [], "volumes": [{"name": "v", "hostPath": {}}, {"name": "w", "hostPath": {}}]}),
            "hostPath volumes (volumes \"v\", \"w\")",
        );
        check(
            json!({"containers": [{"name": "a", "ports": [{"hostPort": 81}, {"hostPort": 82}]}]}),
            "hostPort (container \"a\" uses hostPorts 81, 82)",
        );
        check(
            json!({"containers": [], "securityContext": {"appArmorProfile": {"type": "Unconfined"}, "seccompProfile": {"type": "Unconfined"}}}),
            "forbidden AppArmor profile (pod must not set AppArmor profile type to \"Unconfined\"), seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
        );
        check(
            json!({"containers": one(json!({"seLinuxOptions": {"type": "foo", "user": "u", "role": "r"}})), "securityContext": {"seLinuxOptions": {"type": "bar"}}}),
            "seLinuxOptions (pod and container \"a\" set forbidden securityContext.seLinuxOptions: types \"bar\", \"foo\"; user may not be set; role may not be set)",
        );
        check(
            json!({"containers": [], "securityContext": {"sysctls": [{"name": "kernel.foo"}, {"name": "kernel.msgmax"}, {"name": "net.ipv4.ip_unprivileged_port_start"}]}}),
            "forbidden sysctls (kernel.foo, kernel.msgmax)",
        );
        check(
            json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "1.2.3.4"}}, "lifecycle": {"postStart": {"tcpSocket": {"host": "a"}}}}]}),
            "probe or lifecycle host (container \"a\" uses probe or lifecycle hosts \"1.2.3.4\", \"a\")",
        );
    }

    /// As the genuine server answers for each version.
    #[test]
    fn a_level_is_that_of_its_version() {
        let good = json!({"allowPrivilegeEscalation": false, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}});
        let with = |field: &str, value: Value| {
            let mut context = good.clone();
            context[field] = value;
            json!({"containers": [{"name": "a", "securityContext": context}]})
        };
        let check = |spec: &Value, since: u32, until: &str, then: &str| {
            for level in [Level::Baseline, Level::Restricted] {
                let before = format!("v1.{}", since - 1);
                check_version(level, &before, spec.clone(), until);
                for version in [&format!("v1.{since}"), "v1.99", "latest"] {
                    check_version(level, version, spec.clone(), then);
                }
            }
        };
        let mut spec = with("seLinuxOptions", json!({"type": "container_engine_t"}));
        let refused = "seLinuxOptions (container \"a\" set forbidden securityContext.seLinuxOptions: type \"container_engine_t\")";
        check(&spec, 31, refused, "");
        for (since, name) in [
            (27, "net.ipv4.ip_local_reserved_ports"),
            (29, "net.ipv4.tcp_keepalive_time"),
            (32, "net.ipv4.tcp_rmem"),
        ] {
            spec = with("runAsNonRoot", json!(true));
            spec["securityContext"] = json!({"sysctls": [{"name": name}]});
            check(&spec, since, &format!("forbidden sysctls ({name})"), "");
        }
        spec = with("runAsNonRoot", json!(true));
        spec["containers"][0]["livenessProbe"] = json!({"httpGet": {"host": "1.2.3.4"}});
        let refused =
            "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"1.2.3.4\")";
        check(&spec, 34, "", refused);

        let check = |version: &str, spec: &Value, expected: &str| {
            check_version(Level::Restricted, version, spec.clone(), expected);
        };
        let refused = "runAsUser=0 (container \"a\" must not set runAsUser=0)";
        let root = with("runAsUser", json!(0));
        check("v1.22", &root, "");
        check("v1.23", &root, refused);
        let mut own_users = root;
        own_users["hostUsers"] = json!(false);
        check("v1.34", &own_users, refused);
        check("v1.35", &own_users, "");
        own_users["containers"][0]["securityContext"]["runAsNonRoot"] = json!(false);
        check("latest", &own_users, "");
        let unmasked =
            "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")";
        let mut open = with("procMount", json!("Unmasked"));
        open["hostUsers"] = json!(false);
        check("latest", &open, unmasked);
        check_version(Level::Baseline, "v1.34", open.clone(), unmasked);
        check_version(Level::Baseline, "v1.35", open, "");
        let windows = json!({"os": {"name": "windows"}, "containers": [{"name": "a", "securityContext": {"runAsNonRoot": true}}]});
        check("v1.25", &windows, "");
        check(
            "v1.24",
            &windows,
            "allowPrivilegeEscalation != false (container \"a\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"a\" must set securityContext.capabilities.drop=[\"ALL\"]), seccompProfile (pod or container \"a\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
        );
        let adds = with("capabilities", json!({"add": ["NET_ADMIN"]}));
        check(
            "v1.21",
            &adds,
            "non-default capabilities (container \"a\" must not include \"NET_ADMIN\" in securityContext.capabilities.add)",
        );
    }

    #[test]
    fn restricted_wants_to_be_told() {
        let check = |spec, expected| check_level(Level::Restricted, spec, expected);
        check(
            json!({"containers": [{"name": "a"}]}),
            "allowPrivilegeEscalation != false (container \"a\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"a\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"a\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"a\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
        );
        check(
            json!({
                "containers": [{"name": "a", "securityContext": {
                    "runAsNonRoot": false, "runAsUser": 0, "allowPrivilegeEscalation": true,
                    "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE", "CHOWN"]},
                    "seccompProfile": {"type": "Unconfined"},
                }}],
                "volumes": [{"name": "v", "hostPath": {}}, {"name": "w", "nfs": {}}],
                "securityContext": {"runAsUser": 0},
            }),
            "allowPrivilegeEscalation != false (container \"a\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"a\" must not include \"CHOWN\" in securityContext.capabilities.add), restricted volume types (volumes \"v\", \"w\" use restricted volume types \"hostPath\", \"nfs\"), runAsNonRoot != true (container \"a\" must not set securityContext.runAsNonRoot=false), runAsUser=0 (pod and container \"a\" must not set runAsUser=0), seccompProfile (container \"a\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
        );
        check(
            json!({
                "initContainers": [{"name": "i"}],
                "containers": [{"name": "a", "securityContext": {"privileged": true}}],
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "hostNetwork": true,
            }),
            "host namespaces (hostNetwork=true), privileged (container \"a\" must not set securityContext.privileged=true), allowPrivilegeEscalation != false (containers \"i\", \"a\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (containers \"i\", \"a\" must set securityContext.capabilities.drop=[\"ALL\"])",
        );
        check(
            json!({
                "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
                "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
                "volumes": [{"name": "v", "emptyDir": {}}],
            }),
            "",
        );
    }
}
