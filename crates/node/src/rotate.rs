//! Keeps logs small: 10 MB a file, five files a run of a container.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::{ContainerState, ContainerStatus, SandboxStatus};
use futures::StreamExt;
use jiff::Timestamp;

use crate::context::Context;
use crate::logs;

/// A log that has grown beyond this is moved away, and a new one begun.
const BYTES_MAX: u64 = 10 << 20;
/// Files of one run, with the one that is being written.
const FILES_MAX: usize = 5;

/// For a keeper to begin a new log. Its container goes on writing to the one that was moved away, and
/// the next rotation asks again.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Logs that are looked after at a time, so that one keeper that hangs holds nobody up.
const AT_A_TIME: usize = 16;

/// Moves long logs of the running ones of these containers away, and removes the oldest.
pub(crate) async fn rotate_logs(context: Arc<Context>, sandboxes: Vec<SandboxStatus>) {
    let containers = sandboxes
        .into_iter()
        .flat_map(|sandbox| sandbox.containers)
        .filter(|container| {
            matches!(container.state, ContainerState::Running { .. })
                && container.log_path.starts_with(&context.config.log_dir)
        });
    futures::stream::iter(containers)
        .for_each_concurrent(AT_A_TIME, |container| rotate(&context, container))
        .await;
}

async fn rotate(context: &Context, container: ContainerStatus) {
    let log = &container.log_path;
    match std::fs::metadata(log) {
        Ok(found) if found.len() > BYTES_MAX => {
            if let Err(error) = std::fs::rename(log, moved(log, context.now())) {
                tracing::warn!(%error, log = %log.display(), "a log was not rotated");
                return;
            }
        }
        // It was moved away, and nobody came to begin it anew: that is still to be done.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Ok(_) | Err(_) => return,
    }
    let error = match tokio::time::timeout(TIMEOUT, context.engine.reopen_log(&container.id)).await
    {
        Ok(begun) => begun.err().map(|error| error.to_string()),
        Err(late) => Some(late.to_string()),
    };
    if let Some(error) = error {
        tracing::warn!(error, log = %log.display(), "a log was not begun anew");
    }
    for old in outdated(log) {
        if let Err(error) = std::fs::remove_file(&old) {
            tracing::warn!(%error, log = %old.display(), "an old log was not removed");
        }
    }
}

/// `0.log.20261121-094803.123`, as upstream names them, with what keeps two in a second apart.
fn moved(log: &Path, now: Timestamp) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{}", now.strftime("%Y%m%d-%H%M%S.%3f")));
    PathBuf::from(name)
}

fn outdated(log: &Path) -> Vec<PathBuf> {
    let mut rotated = logs::rotated(log);
    let kept = FILES_MAX - 1;
    rotated.truncate(rotated.len().saturating_sub(kept));
    rotated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("0.log");
        std::fs::write(&log, "now").expect("written");
        std::fs::write(directory.path().join("10.log"), "another run").expect("written");
        let start = Timestamp::from_second(1_700_000_000).expect("in range");
        for age in 0..6 {
            let later = start + jiff::SignedDuration::from_millis(age * 400);
            std::fs::write(moved(&log, later), age.to_string()).expect("written");
        }
        let ages: Vec<String> = outdated(&log)
            .iter()
            .map(|old| std::fs::read_to_string(old).expect("read"))
            .collect();
        assert_eq!(ages, ["0", "1"]);
        assert_eq!(logs::files(&log).len(), 7);
    }
}
