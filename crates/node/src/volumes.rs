//! The volumes of one pod: set up side by side, kept up to date while the pod lives.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::select_all;
use informer::EventType;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, Volume};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use volume::{
    Files, FilesError, HostPathError, HostPathKind, MachineError, Medium, check_host_path,
    make_directory, write_files,
};

use crate::context::Context;
use crate::downward::Addresses;
use crate::excess;
use crate::payload::{Maker, PayloadError};
use crate::pod;
use crate::resources;
use crate::sources::Subscription;

/// First and longest wait before a volume that failed is tried again, if nothing it waits for changes.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(122);

/// A volume could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error(transparent)]
    Payload(#[from] PayloadError),
    #[error(transparent)]
    HostPath(#[from] HostPathError),
    #[error("{0} is an invalid volume type")]
    HostPathType(String),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A bug in what sets up.
    #[error("set up: {0}")]
    Panic(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Image(#[from] engine::Error),
    #[error("volumes of this kind are not available on this node")]
    Unsupported,
    #[error("medium \"{0}\" is not available on this node")]
    Medium(String),
}

/// Where a pod's volumes are on this machine, by name.
pub(crate) type Places = BTreeMap<String, PathBuf>;

/// How far the volumes are.
#[derive(Clone, Debug, Default)]
pub(crate) enum Progress {
    /// Not all stand yet.
    #[default]
    Pending,
    Ready(Arc<Places>),
}

/// Sets up the volumes of a pod and keeps them up to date, until it is dropped.
pub(crate) struct VolumeKeeper {
    progress: watch::Receiver<Progress>,
    excess: watch::Receiver<Option<String>>,
    pod: watch::Sender<Arc<Pod>>,
    task: AbortHandle,
}

impl Drop for VolumeKeeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl VolumeKeeper {
    /// Begins.
    pub(crate) fn start(context: Arc<Context>, pod: Arc<Pod>) -> VolumeKeeper {
        let (sender, progress) = watch::channel(Progress::Pending);
        let (too_much, excess) = watch::channel(None);
        tokio::spawn(excess::watch(context.clone(), pod.clone(), too_much));
        let (pod, pods) = watch::channel(pod);
        let task = tokio::spawn(async move {
            Keeper {
                images_changed: context.images_changed.subscribe(),
                context,
                pods,
                written: BTreeMap::new(),
                subscriptions: Vec::new(),
                retry: RETRY_MIN,
            }
            .run(sender)
            .await;
        });
        VolumeKeeper {
            progress,
            excess,
            pod,
            task: task.abort_handle(),
        }
    }

    /// Tells of a change of the pod: labels and annotations may be projected, and an ephemeral
    /// container may use another volume. The rest does not matter.
    pub(crate) fn update(&self, pod: &Arc<Pod>) {
        self.pod.send_if_modified(|known| {
            let (old, new) = (&known.metadata, &pod.metadata);
            let differs = old.labels != new.labels
                || old.annotations != new.annotations
                || used(known) != used(pod);
            if differs {
                *known = pod.clone();
            }
            differs
        });
    }

    /// The places, once all volumes stand.
    pub(crate) fn places(&self) -> Option<Arc<Places>> {
        match &*self.progress.borrow() {
            Progress::Ready(places) => Some(places.clone()),
            Progress::Pending => None,
        }
    }

    /// What the pod has more of than it may, if it has.
    pub(crate) fn excess(&self) -> Option<String> {
        self.excess.borrow().clone()
    }

    /// Resolves when there is progress, or too much.
    pub(crate) async fn changed(&mut self) {
        tokio::select! {
            // These tasks end with the program, or have nothing to say any more.
            Ok(()) = self.progress.changed() => {}
            Ok(()) = self.excess.changed() => {}
            else => std::future::pending().await,
        }
    }
}

struct Keeper {
    context: Arc<Context>,
    pods: watch::Receiver<Arc<Pod>>,
    images_changed: watch::Receiver<u64>,
    /// What was written last: a volume is not written again when nothing changed.
    written: BTreeMap<String, Files>,
    /// Held from one round to the next, so that watches go on.
    subscriptions: Vec<Subscription>,
    retry: Duration,
}

/// What one round of setting up came to.
struct Round {
    places: Places,
    complete: bool,
    subscriptions: Vec<Subscription>,
    renew_at: Option<Timestamp>,
}

impl Keeper {
    async fn run(mut self, progress: watch::Sender<Progress>) {
        loop {
            let pod = self.pods.borrow_and_update().clone();
            let round = self.round(&pod).await;
            if round.complete {
                self.retry = RETRY_MIN;
                progress.send_if_modified(|known| match known {
                    Progress::Ready(places) if **places == round.places => false,
                    Progress::Ready(_) | Progress::Pending => {
                        *known = Progress::Ready(Arc::new(round.places));
                        true
                    }
                });
            }
            self.subscriptions = round.subscriptions;
            self.wait(round.complete, round.renew_at).await;
        }
    }

    async fn wait(&mut self, complete: bool, renew_at: Option<Timestamp>) {
        let subscriptions = &mut self.subscriptions;
        let now = self.context.now();
        let until_renewal =
            renew_at.map(|at| at.duration_since(now).try_into().unwrap_or_default());
        let until_retry = (!complete).then_some(self.retry);
        if !complete {
            self.retry = (self.retry * 2).min(RETRY_MAX);
        }
        let pause: Option<Duration> = match (until_renewal, until_retry) {
            (Some(left), Some(right)) => Some(right.min(left)),
            (left, right) => left.or(right),
        };
        let timer = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        let news = async {
            match subscriptions.is_empty() {
                true => std::future::pending().await,
                false => {
                    let changes = subscriptions
                        .iter_mut()
                        .map(|subscription| Box::pin(subscription.changed()));
                    select_all(changes).await;
                }
            }
        };
        tokio::select! {
            () = timer => {}
            () = news => {}
            // A volume may wait for its image.
            Ok(()) = self.images_changed.changed(), if !complete => {}
            changed = self.pods.changed() => if changed.is_err() {
                // The worker is gone and this task with it.
                std::future::pending::<()>().await;
            },
        }
    }

    /// Sets up what does not stand and writes again what has changed.
    async fn round(&mut self, pod: &Arc<Pod>) -> Round {
        let addresses = Addresses {
            host: self.context.host_ip().to_string(),
            pod: None,
        };
        let context = self.context.clone();
        let mut round = Round {
            places: Places::new(),
            complete: true,
            subscriptions: Vec::new(),
            renew_at: None,
        };
        let used = used(pod);
        let mut volumes = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.volumes.clone())
            .unwrap_or_default();
        // As upstream: what no container mounts is not set up, and may be missing.
        volumes.retain(|volume| used.contains(&volume.name));
        let written = &self.written;
        let each = volumes.iter().map(|volume| {
            let (context, addresses) = (context.clone(), &addresses);
            async move {
                let mut maker = Maker {
                    pod,
                    addresses,
                    allocatable: &context.allocatable,
                    sources: &context.sources,
                    tokens: &context.tokens,
                    now: context.now(),
                    subscriptions: Vec::new(),
                    renew_at: None,
                };
                let known = written.get(&volume.name);
                let result = set_up(&context, &mut maker, volume, known).await;
                (volume, result, maker.subscriptions, maker.renew_at)
            }
        });
        for (volume, result, subscriptions, renew_at) in futures::future::join_all(each).await {
            round.subscriptions.extend(subscriptions);
            round.renew_at = match (round.renew_at, renew_at) {
                (Some(left), Some(right)) => Some(left.min(right)),
                (left, right) => left.or(right),
            };
            match result {
                Ok((place, payload)) => {
                    round.places.insert(volume.name.clone(), place);
                    if let Some(payload) = payload {
                        self.written.insert(volume.name.clone(), payload);
                    }
                }
                Err(error) => {
                    round.complete = false;
                    let message = format!(
                        "MountVolume.SetUp failed for volume \"{}\" : {error}",
                        volume.name
                    );
                    self.context
                        .event(pod, None, EventType::Warning, "FailedMount", message);
                }
            }
        }
        round
    }
}

/// The names of the volumes that containers mount, or have as devices.
fn used(pod: &Pod) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for member in pod.spec.as_ref().map(pod::members).unwrap_or_default() {
        let mounts = member.container.volume_mounts.into_iter().flatten();
        names.extend(mounts.map(|mount| mount.name));
        let devices = member.container.volume_devices.into_iter().flatten();
        names.extend(devices.map(|device| device.name));
    }
    names
}

/// Where a volume lies; with what was written, if it is made of objects.
async fn set_up(
    context: &Context,
    maker: &mut Maker<'_>,
    volume: &Volume,
    known: Option<&Files>,
) -> Result<(PathBuf, Option<Files>), VolumeError> {
    if let Some(host_path) = &volume.host_path {
        let word = host_path.type_.as_deref().unwrap_or_default();
        let kind = HostPathKind::from_word(word)
            .ok_or_else(|| VolumeError::HostPathType(word.to_owned()))?;
        let path = PathBuf::from(&host_path.path);
        let checked = path.clone();
        blocking(move || Ok(check_host_path(&checked, kind)?)).await?;
        return Ok((path, None));
    }
    let group = group(maker.pod);
    let directory = directory(context, maker.pod, volume)?;
    if let Some(image) = &volume.image {
        let path = directory.clone();
        blocking(move || Ok(make_directory(&path, Medium::Disk, None)?)).await?;
        let sandbox = engine::SandboxId(pod::uid(maker.pod).to_owned());
        let reference = image.reference.as_deref().unwrap_or_default();
        context
            .engine
            .mount_image(&sandbox, &volume.name, reference, &directory)
            .await?;
        return Ok((directory, None));
    }
    if let Some(empty_dir) = &volume.empty_dir {
        let medium = medium(empty_dir)?;
        let path = directory.clone();
        blocking(move || Ok(make_directory(&path, medium, group)?)).await?;
        return Ok((directory, None));
    }
    let files = maker
        .payload(volume)
        .await?
        .ok_or(VolumeError::Unsupported)?;
    if known == Some(&files) {
        return Ok((directory, Some(files)));
    }
    // What may be secret does not go to the disk.
    let medium = match volume.config_map {
        Some(_) => Medium::Disk,
        None => Medium::Memory { size: None },
    };
    let (path, written, now) = (directory.clone(), files.clone(), maker.now);
    blocking(move || {
        make_directory(&path, medium, None)?;
        Ok(write_files(&path, &written, group, now)?)
    })
    .await?;
    Ok((directory, Some(files)))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    tokio::task::spawn_blocking(work).await?
}

fn medium(source: &EmptyDirVolumeSource) -> Result<Medium, VolumeError> {
    match source.medium.as_deref() {
        None | Some("") => Ok(Medium::Disk),
        Some("Memory") => Ok(Medium::Memory {
            size: source
                .size_limit
                .as_ref()
                .and_then(|limit| u64::try_from(resources::whole(limit)).ok())
                .filter(|bytes| *bytes > 0),
        }),
        Some(other) => Err(VolumeError::Medium(other.to_owned())),
    }
}

fn group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    u32::try_from(context.fs_group?).ok()
}

/// `pods/<uid>/volumes/kubernetes.io~<kind>/<name>`, as upstream lays them out.
pub(crate) fn directory(
    context: &Context,
    pod: &Pod,
    volume: &Volume,
) -> Result<PathBuf, VolumeError> {
    let kind = if volume.empty_dir.is_some() {
        "empty-dir"
    } else if volume.config_map.is_some() {
        "configmap"
    } else if volume.secret.is_some() {
        "secret"
    } else if volume.downward_api.is_some() {
        "downward-api"
    } else if volume.projected.is_some() {
        "projected"
    } else if volume.image.is_some() {
        "image"
    } else {
        return Err(VolumeError::Unsupported);
    };
    Ok(context
        .pod_dir(pod::uid(pod))
        .join("volumes")
        .join(format!("kubernetes.io~{kind}"))
        .join(&volume.name))
}
