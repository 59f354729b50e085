//! Whether a pod puts more on the disk than it said it would: `sizeLimit` of its empty directories, and
//! its containers' limits of `ephemeral-storage`.
//!
//! Nothing tells of growth, so a pod that has such a limit is measured from time to time, and the
//! more seldom the longer that takes. Others cost nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine::SandboxId;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::context::Context;
use crate::observed::{Attempt, Observed};
use crate::pod;
use crate::resources;
use crate::volumes;

/// Measuring takes at most this part of the time.
const SHARE: u32 = 50;
/// The resource that is limited: what is on the node's disk and goes with the pod.
const EPHEMERAL_STORAGE: &str = "ephemeral-storage";

/// `status.reason` of a pod that is ended for this.
pub(crate) const EVICTED: &str = "Evicted";
/// How long the containers of a pod that is ended for this may take at most, as upstream.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// As the pod says it, and in bytes.
#[derive(Debug, PartialEq)]
struct Limit {
    text: String,
    bytes: u64,
}

impl Limit {
    /// Zero is no limit.
    fn new(quantity: &Quantity) -> Option<Limit> {
        let bytes = u64::try_from(resources::whole(quantity)).ok();
        Some(Limit {
            text: quantity.0.clone(),
            bytes: bytes.filter(|bytes| *bytes > 0)?,
        })
    }
}

/// A volume that is on the disk.
struct Directory {
    name: String,
    path: PathBuf,
    limit: Option<Limit>,
}

/// All that limits a pod, and what is measured for it.
struct Limits {
    id: SandboxId,
    log_dir: PathBuf,
    directories: Vec<Directory>,
    containers: BTreeMap<String, Limit>,
    pod: Option<Limit>,
    /// The largest limit: what is beyond it need not be counted.
    most: u64,
}

/// Measures for as long as somebody listens; says what is too much, once. Ends at once if the pod
/// limits nothing.
pub(crate) async fn watch(
    context: Arc<Context>,
    pod: Arc<Pod>,
    excess: watch::Sender<Option<String>>,
) {
    let Some(limits) = Limits::of(&context, &pod) else {
        return;
    };
    let mut pause = context.config.heartbeat;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = excess.closed() => return,
        }
        let begun = Instant::now();
        if let Some(message) = limits.exceeded(&context).await {
            excess.send_replace(Some(message));
            return;
        }
        pause = context.config.heartbeat.max(begun.elapsed() * SHARE);
    }
}

impl Limits {
    fn of(context: &Context, pod: &Pod) -> Option<Limits> {
        let spec = pod.spec.as_ref()?;
        let of_pod = of_pod(spec);
        let directories: Vec<Directory> = spec
            .volumes
            .iter()
            .flatten()
            .filter(|volume| is_on_disk(volume))
            .filter_map(|volume| {
                let source = volume.empty_dir.as_ref();
                Some(Directory {
                    name: volume.name.clone(),
                    path: volumes::directory(context, pod, volume).ok()?,
                    limit: source.and_then(|source| Limit::new(source.size_limit.as_ref()?)),
                })
            })
            .filter(|directory| directory.limit.is_some() || of_pod.is_some())
            .collect();
        let containers: BTreeMap<String, Limit> = spec
            .containers
            .iter()
            .filter_map(|container| Some((container.name.clone(), Limit::new(limit(container)?)?)))
            .collect();
        let of_directories = directories.iter().filter_map(|found| found.limit.as_ref());
        let all = of_directories.chain(containers.values()).chain(&of_pod);
        Some(Limits {
            most: all.map(|limit| limit.bytes).max()?,
            id: SandboxId(pod::uid(pod).to_owned()),
            log_dir: context.log_dir(pod),
            directories,
            containers,
            pod: of_pod,
        })
    }

    /// What is too much, in upstream's words and order: empty directories, the pod, a container.
    async fn exceeded(&self, context: &Context) -> Option<String> {
        let mut total = 0_u64;
        for directory in &self.directories {
            let used = self.measured(directory.path.clone()).await;
            if let Some(limit) = directory.limit.as_ref().filter(|limit| used > limit.bytes) {
                return Some(format!(
                    "Usage of EmptyDir volume \"{}\" exceeds the limit \"{}\". ",
                    directory.name, limit.text
                ));
            }
            total = total.saturating_add(used);
        }
        // A container that is limited limits the pod as well.
        let of_pod = self.pod.as_ref()?;
        let sandbox = context.engine.sandbox(&self.id).await.ok()?;
        let mut over = None;
        for (name, attempts) in Observed::new(sandbox).containers {
            let Some(attempt) = attempts.current else {
                continue;
            };
            let used = self.used(context, &name, &attempt).await;
            total = total.saturating_add(used);
            let limit = self.containers.get(&name);
            if let Some(limit) = limit.filter(|limit| used > limit.bytes) {
                over.get_or_insert(format!(
                    "Container {name} exceeded its local ephemeral storage limit \"{}\". ",
                    limit.text
                ));
            }
        }
        match total > of_pod.bytes {
            true => Some(format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
                of_pod.text
            )),
            false => over,
        }
    }

    /// What a container wrote to its root, and its logs.
    async fn used(&self, context: &Context, name: &str, attempt: &Attempt) -> u64 {
        let root = match context.engine.written(&attempt.id, self.most).await {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::debug!(%error, "a container was not measured");
                0
            }
        };
        root.saturating_add(self.measured(self.log_dir.join(name)).await)
    }

    async fn measured(&self, directory: PathBuf) -> u64 {
        let most = self.most;
        let measuring = tokio::task::spawn_blocking(move || {
            tree::usage(&directory, most).inspect_err(|error| {
                tracing::debug!(%error, directory = %directory.display(), "it was not measured");
            })
        });
        // What cannot be measured now is not held against the pod.
        measuring.await.ok().and_then(Result::ok).unwrap_or(0)
    }
}

/// Which volumes count, as upstream.
fn is_on_disk(volume: &Volume) -> bool {
    let medium = |medium: &Option<String>| medium.as_deref().unwrap_or_default().is_empty();
    let empty_dir = volume.empty_dir.as_ref();
    empty_dir.is_some_and(|source| medium(&source.medium)) || volume.config_map.is_some()
}

fn limit(container: &Container) -> Option<&Quantity> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    limits.get(EPHEMERAL_STORAGE)
}

/// The limit of all containers together, as upstream counts it: the sum over those that run side by
/// side, or the most that there can be while an init container runs. Who has no limit adds nothing.
fn of_pod(spec: &PodSpec) -> Option<Limit> {
    let mut sidecars: Vec<&Quantity> = Vec::new();
    let mut sums = Vec::new();
    for container in spec.init_containers.iter().flatten() {
        let own = limit(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.extend(own);
        } else if own.is_some() {
            sums.extend(resources::sum(sidecars.iter().copied().chain(own)));
        }
    }
    let main = spec.containers.iter().filter_map(limit);
    sums.extend(resources::sum(sidecars.into_iter().chain(main)));
    let most = sums.iter().max_by_key(|sum| resources::whole(sum))?;
    Limit::new(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn limits_of_containers_add_up_to_the_pods() {
        let check = |init: &[Value], main: &[Value], expected: Option<&str>| {
            let spec = json!({"initContainers": init, "containers": main});
            let spec: PodSpec = serde_json::from_value(spec).expect("a spec");
            let seen = of_pod(&spec).map(|limit| limit.text);
            assert_eq!(seen.as_deref(), expected, "{init:?} {main:?}");
        };
        let of = |limit: &str| {
            let limits = json!({"ephemeral-storage": limit});
            json!({"name": "c", "resources": {"limits": limits}})
        };
        let sidecar = |limit: &str| {
            let mut container = of(limit);
            container["restartPolicy"] = json!("Always");
            container
        };
        let none = json!({"name": "c"});
        check(&[], std::slice::from_ref(&none), None);
        check(&[], &[of("0"), none.clone()], None);
        check(&[], &[of("1Gi"), of("512Mi"), none.clone()], Some("1536Mi"));
        check(&[of("2Gi")], &[of("1Gi")], Some("2Gi"));
        check(&[of("2Gi")], &[of("3Gi")], Some("3Gi"));
        check(&[sidecar("1Gi"), of("2Gi")], &[of("1Gi")], Some("3Gi"));
        check(&[of("2Gi"), sidecar("1Gi")], &[of("1Gi")], Some("2Gi"));
        check(&[sidecar("1Gi")], &[none], Some("1Gi"));
    }
}
