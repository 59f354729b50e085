//! `securityContext`: of the pod and of the container, in the engine's words.

use std::path::Path;

use engine::{Seccomp, Security};
use k8s_openapi::api::core::v1::{
    Container, ContainerUser, LinuxContainerUser, Pod, PodSpec, SeccompProfile, SecurityContext,
};

use crate::pod;

/// A container that must not run as root, but would.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error(
        "container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})"
    )]
    AsksForRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})"
    )]
    ImageIsRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod}\", container: {container})"
    )]
    ImageUserIsAName {
        user: String,
        pod: String,
        container: String,
    },
}

/// What a container may do.
pub(crate) fn of_container(
    spec: &PodSpec,
    container: &Container,
    seccomp_default: bool,
    profiles: &Path,
) -> Security {
    let context = container.security_context.clone().unwrap_or_default();
    let capabilities = context.capabilities.clone().unwrap_or_default();
    let without_prefix = |names: Option<Vec<String>>| -> Vec<String> {
        names
            .into_iter()
            .flatten()
            .map(|name| name.strip_prefix("CAP_").unwrap_or(&name).to_owned())
            .collect()
    };
    let privileged = context.privileged == Some(true);
    Security {
        privileged,
        read_only_root: context.read_only_root_filesystem == Some(true),
        capabilities_add: without_prefix(capabilities.add),
        capabilities_drop: without_prefix(capabilities.drop),
        no_new_privileges: context.allow_privilege_escalation == Some(false),
        seccomp: seccomp(spec, &context, privileged, seccomp_default, profiles),
        unmasked_proc: context.proc_mount.as_deref() == Some("Unmasked"),
    }
}

fn seccomp(
    spec: &PodSpec,
    context: &SecurityContext,
    privileged: bool,
    seccomp_default: bool,
    profiles: &Path,
) -> Seccomp {
    let of_pod = spec
        .security_context
        .as_ref()
        .and_then(|context| context.seccomp_profile.as_ref());
    let profile: Option<&SeccompProfile> = context.seccomp_profile.as_ref().or(of_pod);
    match profile.map(|profile| (profile.type_.as_str(), &profile.localhost_profile)) {
        _ if privileged => Seccomp::Unconfined,
        Some(("RuntimeDefault", _)) => Seccomp::Default,
        Some(("Localhost", Some(name))) => Seccomp::Profile(profiles.join(name)),
        None if seccomp_default => Seccomp::Default,
        // Kubernetes runs a container that says nothing without a filter.
        Some(_) | None => Seccomp::Unconfined,
    }
}

fn run_as(spec: &PodSpec, container: &Container) -> (Option<i64>, Option<i64>, bool) {
    let of_pod = spec.security_context.as_ref();
    let own = container.security_context.as_ref();
    (
        own.and_then(|c| c.run_as_user)
            .or_else(|| of_pod?.run_as_user),
        own.and_then(|c| c.run_as_group)
            .or_else(|| of_pod?.run_as_group),
        own.and_then(|c| c.run_as_non_root)
            .or_else(|| of_pod?.run_as_non_root)
            .unwrap_or(false),
    )
}

/// The user for the engine: absent for the image's own. `image_user` is the image's, as written in it.
///
/// # Errors
///
/// `runAsNonRoot` is set and the user is root, or may be.
pub(crate) fn user(
    pod: &Pod,
    spec: &PodSpec,
    container: &Container,
    image_user: &str,
) -> Result<Option<String>, RootError> {
    let (user, group, non_root) = run_as(spec, container);
    if non_root {
        let (pod, container) = (pod::formatted(pod), container.name.clone());
        let image_user = image_user.split(':').next().unwrap_or_default();
        match (user, image_user) {
            (Some(0), _) => return Err(RootError::AsksForRoot { pod, container }),
            (Some(_), _) => {}
            (None, "" | "0") => return Err(RootError::ImageIsRoot { pod, container }),
            (None, name) if name.parse::<u32>().is_err() => {
                return Err(RootError::ImageUserIsAName {
                    user: name.to_owned(),
                    pod,
                    container,
                });
            }
            (None, _) => {}
        }
    }
    Ok(match (user, group) {
        (None, None) => None,
        (Some(user), None) => Some(user.to_string()),
        (Some(user), Some(group)) => Some(format!("{user}:{group}")),
        (None, Some(group)) => {
            let user = image_user.split(':').next().filter(|user| !user.is_empty());
            Some(format!("{}:{group}", user.unwrap_or("0")))
        }
    })
}

/// Supplementary groups: the pod's, and the one that owns its volumes.
pub(crate) fn groups(spec: &PodSpec) -> Vec<u32> {
    let Some(context) = &spec.security_context else {
        return Vec::new();
    };
    let listed = context.supplemental_groups.iter().flatten();
    context
        .fs_group
        .iter()
        .chain(listed)
        .filter_map(|group| u32::try_from(*group).ok())
        .collect()
}

/// `status.containerStatuses[].user`, as far as the spec determines it.
pub(crate) fn user_shown(spec: &PodSpec, container: &Container) -> Option<ContainerUser> {
    let (user, group, _) = run_as(spec, container);
    let user = user.unwrap_or(0);
    let group = group.unwrap_or(0);
    let mut groups: Vec<i64> = groups(spec).into_iter().map(i64::from).collect();
    groups.push(group);
    groups.sort_unstable();
    groups.dedup();
    Some(ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user,
            gid: group,
            supplemental_groups: Some(groups),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check_user(of_pod: serde_json::Value, own: serde_json::Value, image: &str, expected: &str) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": of_pod, "containers": [{"name": "c", "securityContext": own}]},
        }))
        .expect("a pod");
        let spec = pod.spec.clone().expect("spec");
        let text = match user(&pod, &spec, &spec.containers[0], image) {
            Ok(user) => user.unwrap_or_default(),
            Err(error) => error.to_string(),
        };
        assert_eq!(text, expected);
    }

    #[test]
    fn users_by_container_pod_and_image() {
        check_user(json!({}), json!({}), "app", "");
        check_user(json!({"runAsUser": 7}), json!({}), "", "7");
        check_user(
            json!({"runAsUser": 7, "runAsGroup": 8}),
            json!({"runAsUser": 9}),
            "",
            "9:8",
        );
        check_user(json!({"runAsGroup": 8}), json!({}), "app:app", "app:8");
    }

    #[test]
    fn non_root_is_verified_in_upstreams_words() {
        let non_root = json!({"runAsNonRoot": true});
        check_user(
            non_root.clone(),
            json!({}),
            "",
            "container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)",
        );
        check_user(
            non_root.clone(),
            json!({"runAsUser": 0}),
            "",
            "container's runAsUser breaks non-root policy (pod: \"p_n(u)\", container: c)",
        );
        check_user(
            non_root.clone(),
            json!({}),
            "app",
            "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is non-root (pod: \"p_n(u)\", container: c)",
        );
        check_user(non_root, json!({}), "1000:1000", "");
    }
}
