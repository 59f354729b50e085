//! What a container leaves behind for its status: the termination message.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Container;

use crate::logs;

/// The most that is taken from the file.
const FILE_BYTES_MAX: usize = 4096;
/// The most that is taken from the log instead: lines, and bytes.
const LOG_LINES_MAX: usize = 80;
const LOG_BYTES_MAX: usize = 2048;

/// The file on the machine that one attempt of a container sees at its `terminationMessagePath`.
pub(crate) fn file(pod_dir: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_dir
        .join("containers")
        .join(container)
        .join(attempt.to_string())
}

/// Reads the message of an attempt that ended with `code`.
pub(crate) fn message(container: &Container, file: &Path, log: &Path, code: i32) -> Option<String> {
    let written = read_head(file, FILE_BYTES_MAX);
    if !written.is_empty() {
        return Some(String::from_utf8_lossy(&written).into_owned());
    }
    let falls_back =
        container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if !falls_back || code == 0 {
        return None;
    }
    let tail = logs::tail_text(log, LOG_LINES_MAX, LOG_BYTES_MAX);
    Some(tail).filter(|text| !text.is_empty())
}

fn read_head(file: &Path, limit: usize) -> Vec<u8> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(file) {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        // What could be read before an error is still what the container said.
        let _ = file.take(limit).read_to_end(&mut bytes);
    }
    bytes
}
