//! Reading a pod: who its containers are, what they are called, how long they may take to end.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

/// The part that a container has in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: runs beside the main containers.
    Sidecar,
    /// One of `spec.containers`.
    Main,
    /// Added to a running pod (`kubectl debug`); never restarted.
    Ephemeral,
}

/// A container of a pod.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) role: Role,
    pub(crate) container: Container,
}

impl Member {
    /// As events name it: `spec.containers{web}`.
    pub(crate) fn field_path(&self) -> String {
        let list = match self.role {
            Role::Init | Role::Sidecar => "initContainers",
            Role::Main => "containers",
            Role::Ephemeral => "ephemeralContainers",
        };
        format!("spec.{list}{{{}}}", self.container.name)
    }
}

/// All containers of a pod, in the order in which they start.
pub(crate) fn members(spec: &PodSpec) -> Vec<Member> {
    let init = spec
        .init_containers
        .iter()
        .flatten()
        .map(|container| Member {
            role: match container.restart_policy.as_deref() {
                Some("Always") => Role::Sidecar,
                _ => Role::Init,
            },
            container: container.clone(),
        });
    let main = spec.containers.iter().map(|container| Member {
        role: Role::Main,
        container: container.clone(),
    });
    let ephemeral = spec
        .ephemeral_containers
        .iter()
        .flatten()
        .filter_map(|container| {
            // The same fields, but for `targetContainerName`.
            let value = serde_json::to_value(container).ok()?;
            Some(Member {
                role: Role::Ephemeral,
                container: serde_json::from_value(value).ok()?,
            })
        });
    init.chain(main).chain(ephemeral).collect()
}

/// `name_namespace(uid)`, as upstream's messages name a pod.
pub(crate) fn formatted(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

pub(crate) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `resourceVersion` as a number, for telling the newer of two states.
pub(crate) fn resource_version(pod: &Pod) -> u64 {
    pod.metadata
        .resource_version
        .as_deref()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

pub(crate) fn is_deleted(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// `Succeeded` or `Failed`: nothing of it will run again.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// How long its containers may take to end: what the deletion asked for, else what the spec says.
pub(crate) fn grace(pod: &Pod) -> Duration {
    let seconds = pod
        .metadata
        .deletion_grace_period_seconds
        .filter(|_| is_deleted(pod))
        .or_else(|| pod.spec.as_ref()?.termination_grace_period_seconds)
        .unwrap_or(30);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// The pod's hostname: `spec.hostnameOverride`, `spec.hostname` or the name, at most 63 bytes, without a dot or dash at its end.
pub(crate) fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    if let Some(name) = spec.and_then(|spec| spec.hostname_override.as_deref()) {
        return name.to_owned();
    }
    let wanted = spec
        .and_then(|spec| spec.hostname.as_deref())
        .filter(|hostname| !hostname.is_empty())
        .unwrap_or_else(|| name(pod));
    let end = wanted.len().min(63);
    wanted
        .get(..end)
        .unwrap_or(wanted)
        .trim_end_matches(['-', '.'])
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).expect("a pod")
    }

    #[test]
    fn members_in_starting_order_with_their_roles() {
        let pod = pod(json!({"spec": {
            "ephemeralContainers": [{"name": "debug", "image": "x", "targetContainerName": "web"}],
            "containers": [{"name": "web"}],
            "initContainers": [{"name": "first"}, {"name": "proxy", "restartPolicy": "Always"}],
        }}));
        let members = members(pod.spec.as_ref().expect("spec"));
        let seen: Vec<_> = members
            .iter()
            .map(|member| (member.field_path(), member.role))
            .collect();
        assert_eq!(
            seen,
            [
                ("spec.initContainers{first}".to_owned(), Role::Init),
                ("spec.initContainers{proxy}".to_owned(), Role::Sidecar),
                ("spec.containers{web}".to_owned(), Role::Main),
                (
                    "spec.ephemeralContainers{debug}".to_owned(),
                    Role::Ephemeral
                ),
            ]
        );
    }

    #[test]
    fn grace_is_the_deletions_before_the_specs() {
        let spec = json!({"containers": [], "terminationGracePeriodSeconds": 5});
        let check = |metadata, expected| {
            let pod = pod(json!({"metadata": metadata, "spec": spec}));
            assert_eq!(grace(&pod).as_secs(), expected);
        };
        check(json!({}), 5);
        check(
            json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 2}),
            2,
        );
    }

    #[test]
    fn hostnames_are_cut_to_what_a_kernel_takes() {
        let long = format!("{}-xyz", "a".repeat(62));
        let check = |name: &str, hostname_in_spec: Option<&str>, expected: &str| {
            let pod = pod(json!({
                "metadata": {"name": name},
                "spec": {"containers": [], "hostname": hostname_in_spec},
            }));
            assert_eq!(hostname(&pod), expected);
        };
        check("web-0", None, "web-0");
        check("web-0", Some("db"), "db");
        check(&long, None, &"a".repeat(62));
    }
}
