//! Whether a pod puts more on the disk than it said it would: `sizeLimit` of its empty directories.
//!
//! Nothing tells of growth, so a pod that has such a limit is measured from time to time, and the
//! more seldom the longer that takes. Others cost nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::context::Context;
use crate::resources;
use crate::volumes;

/// Measuring takes at most this part of the time.
const SHARE: u32 = 50;

/// `status.reason` of a pod that is ended for this.
pub(crate) const EVICTED: &str = "Evicted";
/// How long the containers of a pod that is ended for this may take at most, as upstream.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// An empty directory with a limit.
struct Limited {
    name: String,
    /// As the pod says it.
    limit: String,
    bytes: u64,
    directory: PathBuf,
}

/// Measures for as long as somebody listens; says what is too much, once. Ends at once if the pod
/// limits nothing.
pub(crate) async fn watch(
    context: Arc<Context>,
    pod: Arc<Pod>,
    excess: watch::Sender<Option<String>>,
) {
    let limited: Arc<[Limited]> = limited(&context, &pod).into();
    if limited.is_empty() {
        return;
    }
    let mut pause = context.config.heartbeat;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = excess.closed() => return,
        }
        let (begun, limited) = (Instant::now(), limited.clone());
        let measured = tokio::task::spawn_blocking(move || limited.iter().find_map(too_much));
        if let Ok(Some(message)) = measured.await {
            excess.send_replace(Some(message));
            return;
        }
        pause = context.config.heartbeat.max(begun.elapsed() * SHARE);
    }
}

fn limited(context: &Context, pod: &Pod) -> Vec<Limited> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    let limited = volumes.filter_map(|volume| {
        let source = volume.empty_dir.as_ref()?;
        let is_disk = source.medium.as_deref().unwrap_or_default().is_empty();
        let limit = source.size_limit.as_ref().filter(|_| is_disk)?;
        Some(Limited {
            name: volume.name.clone(),
            limit: limit.0.clone(),
            bytes: u64::try_from(resources::whole(limit))
                .ok()
                .filter(|bytes| *bytes > 0)?,
            directory: volumes::directory(context, pod, volume).ok()?,
        })
    });
    limited.collect()
}

/// In upstream's words.
fn too_much(volume: &Limited) -> Option<String> {
    match tree::usage(&volume.directory, volume.bytes) {
        Ok(used) if used > volume.bytes => Some(format!(
            "Usage of EmptyDir volume \"{}\" exceeds the limit \"{}\". ",
            volume.name, volume.limit
        )),
        Ok(_) => None,
        Err(error) => {
            tracing::debug!(%error, "a volume was not measured");
            None
        }
    }
}
