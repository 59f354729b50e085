//! Directories that a daemon left which was killed between a pod's end and their removal.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Finds the directories of unknown pods below `pods` (by uid) and `logs`
/// (`<namespace>_<name>_<uid>`) at once, and removes them in the background.
pub(crate) fn sweep(pods: &Path, logs: &Path, known: &HashSet<String>) {
    let mut left = unknown(pods, |name| Some(name), known);
    left.extend(unknown(logs, uid_of_log, known));
    if left.is_empty() {
        return;
    }
    tokio::task::spawn_blocking(move || {
        for directory in left {
            tracing::info!(directory = %directory.display(), "what is left of a pod is removed");
            if let Err(error) = volume::remove(&directory) {
                tracing::warn!(%error, "it could not be removed completely");
            }
        }
    });
}

fn uid_of_log(name: &str) -> Option<&str> {
    let mut parts = name.split('_');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(_), Some(_), Some(uid), None) => Some(uid),
        _ => None,
    }
}

/// Directories in `directory` that belong to a pod which is not known.
fn unknown(
    directory: &Path,
    uid: impl Fn(&str) -> Option<&str>,
    known: &HashSet<String>,
) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let paths = directories.map(|entry| entry.path());
    let is_unknown = |path: &PathBuf| {
        let name = path.file_name().and_then(OsStr::to_str);
        name.and_then(&uid).is_some_and(|uid| !known.contains(uid))
    };
    paths.filter(is_unknown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_unknown_pods_are_found() {
        let place = tempfile::tempdir().expect("a directory");
        let known = HashSet::from(["u1".to_owned()]);
        for name in ["u1", "u2", "n_p_u1", "n_p_u2", "n_p", "a_b_c_d"] {
            fs::create_dir(place.path().join(name)).expect("a directory");
        }
        fs::write(place.path().join("n_p_u3"), "no directory").expect("a file");
        let names = |paths: Vec<PathBuf>| -> Vec<String> {
            let mut names: Vec<String> = paths
                .iter()
                .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
                .collect();
            names.sort();
            names
        };
        let logs = unknown(place.path(), uid_of_log, &known);
        assert_eq!(names(logs), ["n_p_u2"]);
        let is_uid = |name: &str| name.starts_with('u');
        let pods = unknown(
            place.path(),
            |name| Some(name).filter(|name| is_uid(name)),
            &known,
        );
        assert_eq!(names(pods), ["u2"]);
    }
}
