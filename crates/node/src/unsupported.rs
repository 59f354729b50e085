//! What pods may ask for and this node does not have.
//!
//! A field that nobody reads is a promise that is not kept, and most of these are about confinement:
//! so each is in the table here and refused, in the words of upstream's node agent where it has no
//! user namespaces, no AppArmor, no device drivers. A test walks all fields of a pod and fails on one
//! that is neither read somewhere in this agent, nor here, nor known to be others' business.

use k8s_openapi::api::core::v1::{AppArmorProfile, Pod, PodSpec, Sysctl};
use objects::SAFE_SYSCTLS;

use crate::admission::Rejection;
use crate::pod::members;

/// One thing that a pod may ask for.
struct Row {
    /// Where, as a path from the pod's spec; `containers` stands for all kinds of containers.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for those who read, and the test")
    )]
    fields: &'static [&'static str],
    /// `status.reason` of the pod, or the reason of the event.
    reason: &'static str,
    /// Says why not, if the pod asks for it.
    refusal: fn(&PodSpec) -> Option<String>,
}

/// For these, the pod fails for good.
const REJECTED: [Row; 4] = [
    Row {
        fields: &["os"],
        reason: "PodOSNotSupported",
        refusal: |spec| {
            let os = spec.os.as_ref()?;
            (os.name != "linux")
                .then(|| "Failed to admit pod as the OS field doesn't match node OS".to_owned())
        },
    },
    Row {
        fields: &["securityContext.sysctls"],
        reason: "SysctlForbidden",
        refusal: forbidden_sysctl,
    },
    Row {
        fields: &[
            "securityContext.appArmorProfile",
            "containers.securityContext.appArmorProfile",
        ],
        reason: "AppArmor",
        refusal: |spec| {
            app_armor(spec)
                .any(|profile| profile.type_ != "Unconfined")
                .then(|| "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned())
        },
    },
    Row {
        fields: &["securityContext.supplementalGroupsPolicy"],
        reason: "SupplementalGroupsPolicyNotSupported",
        refusal: |spec| {
            let policy = spec
                .security_context
                .as_ref()?
                .supplemental_groups_policy
                .as_deref()?;
            (policy == "Strict")
                .then(|| format!("SupplementalGroupsPolicy={policy} is not supported in this node"))
        },
    },
];

/// For these, the pod waits, and it is said why.
const WAITING: [Row; 2] = [
    Row {
        fields: &["hostUsers"],
        reason: "FailedCreatePodSandBox",
        refusal: |spec| {
            (spec.host_users == Some(false)).then(|| {
                "Failed to create pod sandbox: can't set `spec.hostUsers: false`, runtime does not support user namespaces".to_owned()
            })
        },
    },
    Row {
        fields: &["resourceClaims", "containers.resources.claims"],
        reason: "FailedPrepareDynamicResources",
        refusal: |spec| {
            let claim = spec.resource_claims.iter().flatten().next()?;
            let name = &claim.name;
            Some(format!(
                "Failed to prepare dynamic resources: prepare dynamic resources: claim \"{name}\": this node has no resource drivers"
            ))
        },
    },
];

/// Why a pod cannot be run on this node, ever.
pub(crate) fn rejection(spec: &PodSpec) -> Option<Rejection> {
    REJECTED.iter().find_map(|row| {
        Some(Rejection {
            message: (row.refusal)(spec)?,
            reason: row.reason.to_owned(),
        })
    })
}

/// What keeps a pod from being begun.
pub(crate) struct Obstacle {
    /// Of the event.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Why a pod cannot be begun on this node as it is now.
pub(crate) fn obstacle(pod: &Pod) -> Option<Obstacle> {
    let spec = pod.spec.as_ref()?;
    WAITING.iter().find_map(|row| {
        Some(Obstacle {
            message: (row.refusal)(spec)?,
            reason: row.reason,
        })
    })
}

fn forbidden_sysctl(spec: &PodSpec) -> Option<String> {
    let sysctls = spec.security_context.as_ref()?.sysctls.as_ref()?;
    let why = |sysctl: &Sysctl| {
        let name = normalized(&sysctl.name);
        if !SAFE_SYSCTLS.contains(&name.as_str()) {
            return Some("not allowlisted");
        }
        if name.starts_with("net.") && spec.host_network == Some(true) {
            return Some("not allowed with host net enabled");
        }
        if name.starts_with("kernel.") && spec.host_ipc == Some(true) {
            return Some("not allowed with host ipc enabled");
        }
        None
    };
    let mut refused = sysctls.iter().filter_map(|sysctl| {
        let why = why(sysctl)?;
        Some(format!(
            "forbidden sysctl: {:?} {why}",
            normalized(&sysctl.name)
        ))
    });
    refused.next()
}

/// With dots between the parts; who separates by slashes may have dots in the parts.
fn normalized(name: &str) -> String {
    let first = name.find(['.', '/']).map(|at| name.as_bytes()[at]);
    if first != Some(b'/') {
        return name.to_owned();
    }
    let swap = |character| match character {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(swap).collect()
}

fn app_armor(spec: &PodSpec) -> impl Iterator<Item = AppArmorProfile> {
    let of_pod = spec.security_context.clone();
    let of_pod = of_pod.and_then(|context| context.app_armor_profile);
    let own = members(spec).into_iter().filter_map(|member| {
        let context = member.container.security_context?;
        context.app_armor_profile
    });
    of_pod.into_iter().chain(own)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kinds::SchemaRef;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(spec: serde_json::Value, expected: &str) {
        let mut spec = spec;
        if spec["containers"].is_null() {
            spec["containers"] = json!([{"name": "c"}]);
        }
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).expect("a pod");
        let rejected = rejection(pod.spec.as_ref().expect("a spec"));
        let rejected = rejected.map(|why| format!("{}: {}", why.reason, why.message));
        let waits = obstacle(&pod).map(|why| format!("{}: {}", why.reason, why.message));
        assert_eq!(rejected.or(waits).unwrap_or_default(), expected);
    }

    fn sysctl(name: &str) -> serde_json::Value {
        json!({"sysctls": [{"name": name, "value": "1"}]})
    }

    /// The texts are those of a genuine node.
    #[test]
    fn what_is_refused_and_what_is_not() {
        check(json!({}), "");
        check(json!({"os": {"name": "linux"}, "hostUsers": true}), "");
        check(
            json!({"os": {"name": "windows"}}),
            "PodOSNotSupported: Failed to admit pod as the OS field doesn't match node OS",
        );
        check(
            json!({"hostUsers": false}),
            "FailedCreatePodSandBox: Failed to create pod sandbox: can't set `spec.hostUsers: false`, runtime does not support user namespaces",
        );
        check(
            json!({"securityContext": {"supplementalGroupsPolicy": "Strict"}}),
            "SupplementalGroupsPolicyNotSupported: SupplementalGroupsPolicy=Strict is not supported in this node",
        );
        check(
            json!({"securityContext": {"supplementalGroupsPolicy": "Merge"}}),
            "",
        );
        check(
            json!({"resourceClaims": [{"name": "gpu", "resourceClaimName": "x"}]}),
            "FailedPrepareDynamicResources: Failed to prepare dynamic resources: prepare dynamic resources: claim \"gpu\": this node has no resource drivers",
        );
    }

    #[test]
    fn profiles_that_nobody_would_enforce() {
        const REFUSED: &str =
            "AppArmor: Cannot enforce AppArmor: AppArmor is not enabled on the host";
        let context = |kind| json!({"appArmorProfile": {"type": kind, "localhostProfile": null}});
        for (kind, expected) in [
            ("Unconfined", ""),
            ("RuntimeDefault", REFUSED),
            ("Localhost", REFUSED),
        ] {
            let container = json!([{"name": "c", "securityContext": context(kind)}]);
            check(json!({"securityContext": context(kind)}), expected);
            check(json!({"containers": container}), expected);
            check(
                json!({"containers": [{"name": "d"}], "initContainers": container}),
                expected,
            );
        }
    }

    #[test]
    fn sysctls_that_harm_only_the_pod() {
        for name in SAFE_SYSCTLS {
            check(json!({"securityContext": sysctl(name)}), "");
            check(
                json!({"securityContext": sysctl(&name.replace('.', "/"))}),
                "",
            );
        }
        for name in ["kernel.msgmax", "net.ipv4.ip_forward", "vm.swappiness"] {
            let refused = format!("SysctlForbidden: forbidden sysctl: \"{name}\" not allowlisted");
            check(json!({"securityContext": sysctl(name)}), &refused);
            let slashes = name.replace('.', "/");
            check(json!({"securityContext": sysctl(&slashes)}), &refused);
        }
        check(
            json!({"hostNetwork": true, "securityContext": sysctl("net.ipv4.tcp_syncookies")}),
            "SysctlForbidden: forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled",
        );
        check(
            json!({"hostIPC": true, "securityContext": sysctl("kernel.shm_rmid_forced")}),
            "SysctlForbidden: forbidden sysctl: \"kernel.shm_rmid_forced\" not allowed with host ipc enabled",
        );
    }

    /// Fields that are read by others before a pod comes here, or that mean nothing on a node like this.
    const OTHERS: [&str; 19] = [
        // The scheduler's.
        "affinity",
        "preemptionPolicy",
        "priorityClassName",
        "schedulerName",
        "schedulingGates",
        "schedulingGroup",
        "tolerations",
        "topologySpreadConstraints",
        // Admission has made other fields of them.
        "automountServiceAccountToken",
        "overhead",
        "runtimeClassName",
        "serviceAccount",
        // Nothing is pulled from registries.
        "imagePullSecrets",
        "volumes.image.pullPolicy",
        // No volume outlives its pod, so each is given away when it is made.
        "securityContext.fsGroupChangePolicy",
        // Containers are not resized in place.
        "containers.resizePolicy",
        // Upstream ignores them where SELinux is off, and on Linux.
        "securityContext.seLinuxChangePolicy",
        "seLinuxOptions",
        "windowsOptions",
    ];

    /// Kinds of things that are refused as a whole, where they are looked for: what is inside of them
    /// need not be read.
    const ABSENT: [&str; 27] = [
        "env.valueFrom.fileKeyRef.volumeName",
        "containers.volumeDevices.devicePath",
        "projected.sources.clusterTrustBundle",
        "projected.sources.podCertificate",
        "volumes.awsElasticBlockStore",
        "volumes.azureDisk",
        "volumes.azureFile",
        "volumes.cephfs",
        "volumes.cinder",
        "volumes.csi",
        "volumes.ephemeral",
        "volumes.fc",
        "volumes.flexVolume",
        "volumes.flocker",
        "volumes.gcePersistentDisk",
        "volumes.gitRepo",
        "volumes.glusterfs",
        "volumes.iscsi",
        "volumes.nfs",
        "volumes.persistentVolumeClaim",
        "volumes.photonPersistentDisk",
        "volumes.portworxVolume",
        "volumes.quobyte",
        "volumes.rbd",
        "volumes.scaleIO",
        "volumes.storageos",
        "volumes.vsphereVolume",
    ];

    /// Every field of a pod's spec, but for what is inside of those in `known`.
    fn fields(
        at: &SchemaRef,
        path: &str,
        seen: &mut BTreeSet<String>,
        known: &dyn Fn(&str) -> bool,
    ) {
        let inner = at.items().or_else(|| at.additional());
        if let Some(inner) = inner {
            return fields(&inner, path, seen, known);
        }
        for (name, below) in at.fields() {
            let name = match name {
                "initContainers" | "ephemeralContainers" if path.is_empty() => "containers",
                name => name,
            };
            let path = match path {
                "" => name.to_owned(),
                above => format!("{above}.{name}"),
            };
            if !known(&path) && seen.insert(path.clone()) {
                fields(&below, &path, seen, known);
            }
        }
    }

    /// As the typed objects name it: `hostIPC` → `host_ipc`.
    fn snake(name: &str) -> String {
        let letters: Vec<char> = name.chars().collect();
        let mut snake = String::new();
        for (at, letter) in letters.iter().enumerate() {
            let after_lower = at > 0 && letters[at - 1].is_lowercase();
            let before_lower = letters.get(at + 1).is_some_and(|next| next.is_lowercase());
            if letter.is_uppercase() && at > 0 && (after_lower || before_lower) {
                snake.push('_');
            }
            snake.extend(letter.to_lowercase());
        }
        snake
    }

    /// All that this agent is made of, without tests.
    fn source() -> String {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut text = String::new();
        for directory in [directory.clone(), directory.join("api")] {
            for file in std::fs::read_dir(directory).expect("a directory") {
                let path = file.expect("an entry").path();
                if path.is_file() {
                    let whole = std::fs::read_to_string(path).expect("a source");
                    text += whole
                        .split("#[cfg(test)]\nmod tests")
                        .next()
                        .unwrap_or_default();
                }
            }
        }
        text
    }

    #[test]
    fn no_field_of_a_pod_is_dropped_in_silence() {
        let source = source();
        let words: BTreeSet<&str> = source
            .split(|letter: char| !letter.is_alphanumeric() && letter != '_')
            .collect();
        let rows = REJECTED.iter().chain(&WAITING);
        let mut listed: Vec<&str> = rows.flat_map(|row| row.fields).copied().collect();
        listed.extend(OTHERS);
        listed.extend(ABSENT);
        let known = |path: &str| {
            let ends = |field: &&str| path == *field || path.ends_with(&format!(".{field}"));
            listed.iter().any(ends)
        };
        let pod = kinds::builtin().by_kind("", "v1", "Pod").expect("a kind");
        let spec = pod.schema().field("spec").expect("a field");
        let mut seen = BTreeSet::new();
        fields(&spec, "", &mut seen, &known);
        assert!(seen.len() > 150, "the schema is walked: {}", seen.len());
        let dropped: Vec<&String> = seen
            .iter()
            .filter(|path| {
                let name = snake(path.rsplit('.').next().unwrap_or_default());
                !words.contains(name.as_str()) && !words.contains(format!("{name}_").as_str())
            })
            .collect();
        assert_eq!(dropped, Vec::<&String>::new());
    }
}
