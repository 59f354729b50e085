//! Making and starting one container: image, environment, mounts, create, start, postStart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::{ContainerId, ContainerSpec, ImageInfo, Labels, Mount, Propagation, SandboxId};
use informer::EventType;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::context::Context;
use crate::downward::Addresses;
use crate::env::{self, Surroundings};
use crate::expand::expand;
use crate::failure;
use crate::hooks;
use crate::mounts::mounts;
use crate::observed::label;
use crate::pod::{self, Member};
use crate::record;
use crate::resources;
use crate::security;
use crate::sources::SourceKey;
use crate::status::Waiting;
use crate::termination;
use crate::volumes::Places;

/// A container to be started.
pub(crate) struct Order {
    pub(crate) context: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) member: Member,
    /// 0 for the first run.
    pub(crate) attempt: u32,
    pub(crate) address: Option<String>,
    pub(crate) places: Arc<Places>,
    /// Made but never started by an earlier daemon: to be removed first.
    pub(crate) leftover: Option<ContainerId>,
    /// Runs that need not be kept once this one is made.
    pub(crate) outdated: Vec<ContainerId>,
}

/// Why a container was not started.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) waiting: Waiting,
    pub(crate) cause: Cause,
}

/// What may help.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The image is absent: it may be loaded.
    Image,
    /// An object may be made (it is absent) or changed.
    Source { key: SourceKey, absent: bool },
    /// The command could not be started: the container counts as one that exited.
    Ran,
    /// Nothing known: try again.
    Other,
}

/// A container was started.
#[derive(Debug)]
pub(crate) struct Started {
    /// Its postStart hook failed: it is to be stopped.
    pub(crate) hook_failed: bool,
}

/// Carries out an order.
pub(crate) async fn start(order: Order) -> Result<Started, Refusal> {
    let order = Arc::new(order);
    let context = &order.context;
    let spec = order.pod.spec.clone().unwrap_or_default();
    let container = &order.member.container;
    if let Some(id) = &order.leftover
        && let Err(error) = context.engine.remove_container(id).await
    {
        return Err(other("CreateContainerError", error.to_string()));
    }
    let image = image(&order).await?;
    let created = order.container_spec(&spec, &image).await?;
    let sandbox = SandboxId(pod::uid(&order.pod).to_owned());
    let id = match context.engine.create_container(&sandbox, created).await {
        Ok(id) => id,
        Err(error) => {
            let message = error.to_string();
            order.warn("Failed", format!("Error: {message}"));
            return Err(other("CreateContainerError", message));
        }
    };
    order.say("Created", "Container created".to_owned());
    // Goes on when this job is given up: a process that ends at once may end its pod and so this
    // job, before it was said how it started.
    let launch = tokio::spawn(order.clone().launch(id.clone()));
    launch
        .await
        .unwrap_or_else(|error| Err(other("RunContainerError", error.to_string())))?;
    let hook = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.post_start.as_ref());
    let mut hook_failed = false;
    if let Some(hook) = hook {
        let address = order.address.clone().unwrap_or_default();
        let run = hooks::run(&*context.engine, &id, container, &address, hook);
        if let Err(error) = run.await {
            tracing::info!(%error, pod = pod::formatted(&order.pod), container = container.name, "postStart hook failed");
            order.warn("FailedPostStartHook", "PostStartHook failed".to_owned());
            hook_failed = true;
        }
    }
    Ok(Started { hook_failed })
}

fn other(reason: &str, message: String) -> Refusal {
    Refusal {
        waiting: Waiting {
            reason: reason.to_owned(),
            message: Some(message),
        },
        cause: Cause::Other,
    }
}

fn why_not_started(error: &engine::Error) -> String {
    match error {
        engine::Error::Command(cause) => failure::of_start(cause),
        other => other.to_string(),
    }
}

/// Finds the image on this machine; nothing is pulled.
async fn image(order: &Order) -> Result<ImageInfo, Refusal> {
    let container = &order.member.container;
    let name = container.image.as_deref().unwrap_or_default();
    let refuse = |reason: &str, message: String, cause| Refusal {
        waiting: Waiting {
            reason: reason.to_owned(),
            message: Some(message),
        },
        cause,
    };
    if let Err(error) = oci::Reference::parse(name)
        && order.context.engine.image(name).await.is_none()
    {
        let message = format!(
            "Failed to apply default image tag \"{name}\": couldn't parse image name \"{name}\": {error}"
        );
        order.warn("InspectFailed", message.clone());
        order.warn("Failed", "Error: InvalidImageName".to_owned());
        return Err(refuse("InvalidImageName", message, Cause::Image));
    }
    if let Some(image) = order.context.engine.image(name).await {
        // With `Always` as well: there is no registry to be asked whether there is a newer one.
        order.say(
            "Pulled",
            format!(
                "Container image \"{name}\" already present on machine and can be accessed by the pod"
            ),
        );
        return Ok(image);
    }
    if container.image_pull_policy.as_deref() == Some("Never") {
        let message =
            format!("Container image \"{name}\" is not present with pull policy of Never");
        order.warn("ErrImageNeverPull", message.clone());
        order.warn("Failed", "Error: ErrImageNeverPull".to_owned());
        return Err(refuse("ErrImageNeverPull", message, Cause::Image));
    }
    let message = format!(
        "image \"{name}\" is not on this machine, and nothing is pulled from registries yet: load it with `wharf image load ARCHIVE`"
    );
    order.warn(
        "Failed",
        format!("Failed to pull image \"{name}\": {message}"),
    );
    order.warn("Failed", "Error: ErrImagePull".to_owned());
    Err(refuse("ErrImagePull", message, Cause::Image))
}

impl Order {
    /// Starts the process, and says so.
    async fn launch(self: Arc<Self>, id: ContainerId) -> Result<(), Refusal> {
        let result = self.context.engine.start_container(&id).await;
        match &result {
            Ok(()) => self.say("Started", "Container started".to_owned()),
            Err(error) => self.warn("Failed", format!("Error: {}", why_not_started(error))),
        }
        self.clean().await;
        result.map_err(|error| Refusal {
            waiting: Waiting {
                reason: "RunContainerError".to_owned(),
                message: Some(why_not_started(&error)),
            },
            cause: Cause::Ran,
        })
    }

    fn say(&self, reason: &str, message: String) {
        self.context.event(
            &self.pod,
            Some(&self.member),
            EventType::Normal,
            reason,
            message,
        );
    }

    fn warn(&self, reason: &str, message: String) {
        self.context.event(
            &self.pod,
            Some(&self.member),
            EventType::Warning,
            reason,
            message,
        );
    }

    /// Everything that the engine must know.
    async fn container_spec(
        &self,
        spec: &PodSpec,
        image: &ImageInfo,
    ) -> Result<ContainerSpec, Refusal> {
        let context = &self.context;
        let container = &self.member.container;
        let user = security::user(&self.pod, spec, container, &image.user)
            .map_err(|error| self.refuse(error.to_string(), Cause::Other))?;
        let environment = self.environment(spec).await?;
        let value_of = |name: &str| {
            let found = environment.iter().find(|(known, _)| known == name);
            found.map(|(_, value)| value.clone())
        };
        let log_path = context.log_file(&self.pod, &container.name, self.attempt);
        let mounts = self
            .mounts(spec, &log_path, value_of)
            .map_err(|message| self.refuse(message, Cause::Other))?;
        let expanded = |list: &Option<Vec<String>>| {
            list.as_ref()
                .filter(|list| !list.is_empty())
                .map(|list| list.iter().map(|text| expand(text, value_of)).collect())
        };
        let profiles = context.config.data_dir.join("seccomp");
        let created = ContainerSpec {
            name: container.name.clone(),
            image: full_name(container, image),
            command: expanded(&container.command),
            args: expanded(&container.args),
            working_dir: container.working_dir.clone().filter(|dir| !dir.is_empty()),
            user,
            groups: security::groups(spec),
            mounts,
            resources: resources::of_container(container),
            security: security::of_container(
                spec,
                container,
                context.config.seccomp_default,
                &profiles,
            ),
            tty: container.tty == Some(true),
            stdin: container.stdin == Some(true),
            stdin_once: container.stdin_once == Some(true),
            log_path,
            oom_score_adj: Some(resources::oom_score_adj(
                spec,
                container,
                context.machine_memory,
            )),
            stop_signal: container
                .lifecycle
                .as_ref()
                .and_then(|lifecycle| lifecycle.stop_signal.clone()),
            labels: self.labels(),
            env: environment,
        };
        Ok(created)
    }

    async fn environment(&self, spec: &PodSpec) -> Result<Vec<(String, String)>, Refusal> {
        let context = &self.context;
        let addresses = Addresses {
            host: context.host_ip().to_string(),
            pod: self.address.clone(),
        };
        let services = context.services.list();
        let around = Surroundings {
            pod: &self.pod,
            spec,
            addresses: &addresses,
            allocatable: &context.allocatable,
            services: &services,
            sources: &context.sources,
        };
        let environment = env::environment(&around, &self.member.container).await;
        environment.map_err(|error| {
            let cause = error
                .waits_for()
                .map_or(Cause::Other, |(key, absent)| Cause::Source { key, absent });
            self.refuse(error.to_string(), cause)
        })
    }

    fn refuse(&self, message: String, cause: Cause) -> Refusal {
        self.warn("Failed", format!("Error: {message}"));
        Refusal {
            waiting: Waiting {
                reason: "CreateContainerConfigError".to_owned(),
                message: Some(message),
            },
            cause,
        }
    }

    /// Volumes, and the file of the container's last words.
    fn mounts(
        &self,
        spec: &PodSpec,
        log_path: &Path,
        value_of: impl Fn(&str) -> Option<String>,
    ) -> Result<Vec<Mount>, String> {
        let container = &self.member.container;
        let pod_dir = self.context.pod_dir(pod::uid(&self.pod));
        let mut mounts = mounts(spec, &self.places, container, &pod_dir, value_of)?;
        let message_file = termination::file(&pod_dir, &container.name, self.attempt);
        prepare_files(log_path, &message_file)?;
        let path = container.termination_message_path.as_deref();
        if let Some(target) = path.filter(|path| !path.is_empty()) {
            mounts.push(Mount {
                source: message_file,
                target: PathBuf::from(target),
                read_only: false,
                propagation: Propagation::Private,
            });
        }
        Ok(mounts)
    }

    fn labels(&self) -> Labels {
        let container = &self.member.container;
        let mut labels = pod_labels(&self.pod);
        let image = container.image.clone().unwrap_or_default();
        labels.insert(label::CONTAINER_NAME.to_owned(), container.name.clone());
        labels.insert(label::RESTART_COUNT.to_owned(), self.attempt.to_string());
        labels.insert(label::IMAGE.to_owned(), image);
        labels.extend(record::labels(&self.pod, &self.member));
        labels
    }

    /// Removes runs and logs before the last one: `kubectl logs --previous` shows one back.
    async fn clean(&self) {
        for id in &self.outdated {
            if let Err(error) = self.context.engine.remove_container(id).await {
                tracing::warn!(%error, container = id.0, "an old run was not removed");
            }
        }
        let Some(outdated) = self.attempt.checked_sub(2) else {
            return;
        };
        let name = &self.member.container.name;
        let log = self.context.log_file(&self.pod, name, outdated);
        let pod_dir = self.context.pod_dir(pod::uid(&self.pod));
        let message = termination::file(&pod_dir, name, outdated);
        for file in crate::logs::files(&log).into_iter().chain([message]) {
            if let Err(error) = std::fs::remove_file(&file)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%error, file = %file.display(), "an old file was not removed");
            }
        }
    }
}

/// The labels by which a pod's sandbox and containers are known again.
pub(crate) fn pod_labels(pod: &Pod) -> Labels {
    Labels::from([
        (label::POD_UID.to_owned(), pod::uid(pod).to_owned()),
        (label::POD_NAME.to_owned(), pod::name(pod).to_owned()),
        (
            label::POD_NAMESPACE.to_owned(),
            pod::namespace(pod).to_owned(),
        ),
    ])
}

/// The stored name that the spec's name stands for; an id stays as it is.
fn full_name(container: &Container, image: &ImageInfo) -> String {
    let wanted = container.image.as_deref().unwrap_or_default();
    let full = oci::Reference::parse(wanted)
        .map(|reference| reference.to_string())
        .unwrap_or_default();
    if image.references.contains(&full) {
        full
    } else {
        wanted.to_owned()
    }
}

fn prepare_files(log: &Path, message: &Path) -> Result<(), String> {
    for file in [log, message] {
        let directory = file.parent().unwrap_or(file);
        std::fs::create_dir_all(directory)
            .map_err(|error| format!("make directory {}: {error}", directory.display()))?;
    }
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(message)
        .map_err(|error| format!("make file {}: {error}", message.display()))?;
    // Whatever user the container runs as must be able to write it.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(message, mode)
        .map_err(|error| format!("set mode of {}: {error}", message.display()))
}
