//! Files that change all at once.
//!
//! ```text
//! volume/
//!   ..2026_11_21_10_00_27.2756614271/     one state of all files
//!       ca.crt  token
//!   ..data  -> ..2026_11_21_10_00_27.2756614271
//!   ca.crt  -> ..data/ca.crt
//!   token   -> ..data/token
//! ```
//!
//! A new state is written beside the old one, and one rename of `..data` makes it the state: a
//! reader sees all of the old files or all of the new ones. The layout is upstream's
//! (`AtomicWriter`), which programs rely on to notice changes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink,
};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::group::READ_ONLY;
use crate::{MachineError, failed, remove, set_group};

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";
const PATH_LENGTH_MAX: usize = 4096;

/// A file to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Permission bits.
    pub mode: u32,
    /// User that owns it, instead of root.
    pub owner: Option<u32>,
    /// What is in it.
    pub content: Vec<u8>,
}

/// Files by their path in the volume.
pub type Files = BTreeMap<String, File>;

/// Why files were not written. The volume shows what it showed before.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A path that cannot be in such a volume.
    #[error("invalid path \"{path}\": {why}")]
    Path {
        /// Which path.
        path: String,
        /// Why not.
        why: &'static str,
    },
    /// A step failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Makes a volume show exactly these files; says whether anything changed. The volume is a directory
/// that is there already. With a group, the files belong to it, and it may read them.
///
/// One writer at a time for one volume. A writer that was killed midway leaves nothing that the next
/// one does not take away.
pub fn write_files(
    volume: &Path,
    files: &Files,
    group: Option<u32>,
    now: Timestamp,
) -> Result<bool, FilesError> {
    for path in files.keys() {
        check_path(path)?;
    }
    let state = current_state(volume)?;
    let unchanged = match &state {
        Some(state) => shows(&volume.join(state), files, group)?,
        None => false,
    };
    if unchanged && is_complete(volume, files) {
        return Ok(false);
    }
    let state = match state {
        Some(state) if unchanged => state,
        _ => {
            let state = write_state(volume, files, group, now)?;
            switch(volume, &state)?;
            state
        }
    };
    link_names(volume, files, group)?;
    take_away_rest(volume, &state, files)?;
    Ok(true)
}

fn check_path(path: &str) -> Result<(), FilesError> {
    let why = if path.is_empty() {
        "must not be empty"
    } else if path.starts_with('/') {
        "must be relative"
    } else if path.len() > PATH_LENGTH_MAX {
        "is too long"
    } else if path.split('/').any(|part| part == "..") {
        "must not contain '..'"
    } else if path.starts_with("..") {
        "must not start with '..'"
    } else if path.contains('\0') || path.split('/').any(|part| matches!(part, "" | ".")) {
        "must be made of file names"
    } else {
        return Ok(());
    };
    Err(FilesError::Path {
        path: path.to_owned(),
        why,
    })
}

/// The name of the state's directory, if `..data` is as we write it.
fn current_state(volume: &Path) -> Result<Option<OsString>, MachineError> {
    let link = volume.join(DATA);
    match fs::read_link(&link) {
        Ok(target) => Ok(is_state(target.as_os_str()).then(|| target.into_os_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // It is no link: whatever it is, it is not ours, and the switch replaces it.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            remove(&link)?;
            Ok(None)
        }
        Err(error) => Err(failed("read", &link)(error)),
    }
}

fn is_state(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b"..")
        && name.len() > 2
        && !name.contains(&b'/')
        && name != DATA.as_bytes()
        && name != DATA_NEXT.as_bytes()
}

/// Whether a state has these files and no others.
fn shows(state: &Path, files: &Files, group: Option<u32>) -> Result<bool, MachineError> {
    let mut seen = 0;
    for entry in walkdir::WalkDir::new(state).min_depth(1) {
        let Ok(entry) = entry else {
            return Ok(false);
        };
        if entry.file_type().is_dir() {
            continue;
        }
        let path = entry.path();
        let name = path.strip_prefix(state).ok().and_then(Path::to_str);
        let Some(file) = name.and_then(|name| files.get(name)) else {
            return Ok(false);
        };
        let metadata = fs::symlink_metadata(path).map_err(failed("look at", path))?;
        let given = if group.is_some() { READ_ONLY } else { 0 };
        let same = metadata.is_file()
            && metadata.mode() & 0o7777 == file.mode & 0o7777 | given
            && group.is_none_or(|group| metadata.gid() == group)
            && metadata.uid() == file.owner.unwrap_or(0)
            && metadata.len() == file.content.len() as u64
            && fs::read(path).map_err(failed("read", path))? == file.content;
        if !same {
            return Ok(false);
        }
        seen += 1;
    }
    Ok(seen == files.len())
}

/// Whether nothing but what belongs there is in the volume's own directory.
fn is_complete(volume: &Path, files: &Files) -> bool {
    let names = top_names(files);
    let mut found = 0;
    let mut states = 0;
    for entry in fs::read_dir(volume).into_iter().flatten().flatten() {
        let name = entry.file_name();
        match name.to_str() {
            Some(DATA) => {}
            Some(top) if names.contains(top) && is_link_of_ours(volume, &name) => found += 1,
            _ if is_state(&name) => states += 1,
            _ => return false,
        }
    }
    found == names.len() && states == 1
}

fn write_state(
    volume: &Path,
    files: &Files,
    group: Option<u32>,
    now: Timestamp,
) -> Result<OsString, MachineError> {
    let (name, state) = make_state(volume, now)?;
    let written = write_all(&state, files).and_then(|()| match group {
        Some(group) => set_group(&state, group, true),
        None => Ok(()),
    });
    if let Err(error) = written {
        // What failed tells more than that it could not be cleaned up.
        let _ = remove(&state);
        return Err(error);
    }
    if let Some(group) = group {
        lchown(volume, None, Some(group)).map_err(failed("set the group of", volume))?;
    }
    Ok(name)
}

fn make_state(volume: &Path, now: Timestamp) -> Result<(OsString, PathBuf), MachineError> {
    let stamp = now.strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let mut number = u64::from(now.subsec_nanosecond().unsigned_abs());
    loop {
        let name = format!("{stamp}.{number}");
        let state = volume.join(&name);
        match fs::DirBuilder::new().mode(0o755).create(&state) {
            Ok(()) => {
                let mode = fs::Permissions::from_mode(0o755);
                fs::set_permissions(&state, mode).map_err(failed("set the mode of", &state))?;
                return Ok((name.into(), state));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(failed("make directory", &state)(error)),
        }
    }
}

fn write_all(state: &Path, files: &Files) -> Result<(), MachineError> {
    for (name, file) in files {
        let path = state.join(name);
        if let Some(above) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(above)
                .map_err(failed("make directory", above))?;
        }
        // Nobody else's before it has its mode: a container sees the directory already.
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut new| new.write_all(&file.content))
            .map_err(failed("write", &path))?;
        if file.owner.is_some() {
            lchown(&path, file.owner, None).map_err(failed("set the owner of", &path))?;
        }
        let mode = fs::Permissions::from_mode(file.mode & 0o7777);
        fs::set_permissions(&path, mode).map_err(failed("set the mode of", &path))?;
    }
    Ok(())
}

fn switch(volume: &Path, state: &OsStr) -> Result<(), MachineError> {
    let next = volume.join(DATA_NEXT);
    remove(&next)?;
    symlink(state, &next).map_err(failed("make link", &next))?;
    let data = volume.join(DATA);
    fs::rename(&next, &data).map_err(failed("replace", &data))
}

fn top_names(files: &Files) -> BTreeSet<&str> {
    files
        .keys()
        .map(|path| path.split('/').next().unwrap_or(path))
        .collect()
}

fn link_names(volume: &Path, files: &Files, group: Option<u32>) -> Result<(), MachineError> {
    for name in top_names(files) {
        let link = volume.join(name);
        if is_link_of_ours(volume, OsStr::new(name)) {
            continue;
        }
        remove(&link)?;
        symlink(Path::new(DATA).join(name), &link).map_err(failed("make link", &link))?;
        if group.is_some() {
            lchown(&link, None, group).map_err(failed("set the group of", &link))?;
        }
    }
    Ok(())
}

fn is_link_of_ours(volume: &Path, name: &OsStr) -> bool {
    fs::read_link(volume.join(name)).is_ok_and(|target| target == Path::new(DATA).join(name))
}

/// Old states, links to files that are no more, and what a killed writer left.
fn take_away_rest(volume: &Path, state: &OsStr, files: &Files) -> Result<(), MachineError> {
    let names = top_names(files);
    for entry in fs::read_dir(volume).map_err(failed("read", volume))? {
        let name = entry.map_err(failed("read", volume))?.file_name();
        let belongs =
            name == state || name == DATA || name.to_str().is_some_and(|name| names.contains(name));
        if !belongs {
            remove(&volume.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, u32, &str)]) -> Files {
        list.iter()
            .map(|(path, mode, content)| {
                let file = File {
                    mode: *mode,
                    owner: None,
                    content: content.as_bytes().to_vec(),
                };
                ((*path).to_owned(), file)
            })
            .collect()
    }

    fn now() -> Timestamp {
        "2026-11-21T10:00:27.275661427Z".parse().expect("a time")
    }

    fn names(volume: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(volume)
            .expect("a directory")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .into_string()
                    .expect("a plain name")
            })
            .collect();
        names.sort();
        names
    }

    fn write(volume: &Path, list: &[(&str, u32, &str)]) -> bool {
        write_files(volume, &files(list), None, now()).expect("written")
    }

    #[test]
    fn the_layout_is_upstreams() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let volume = place.path();
        assert!(write(
            volume,
            &[
                ("a", 0o644, "1"),
                ("d/e", 0o400, "2"),
                ("d/f/g", 0o755, "3")
            ]
        ));
        let state = "..2026_11_21_10_00_27.275661427";
        assert_eq!(names(volume), [state, "..data", "a", "d"]);
        assert_eq!(
            fs::read_link(volume.join("..data")).expect("a link"),
            Path::new(state)
        );
        assert_eq!(
            fs::read_link(volume.join("d")).expect("a link"),
            Path::new("..data/d")
        );
        for (path, mode, content) in [
            ("a", 0o644, "1"),
            ("d/e", 0o400, "2"),
            ("d/f/g", 0o755, "3"),
        ] {
            assert_eq!(
                fs::read_to_string(volume.join(path)).expect("a file"),
                content
            );
            assert_eq!(
                fs::metadata(volume.join(path)).expect("a file").mode() & 0o7777,
                mode
            );
        }
    }

    #[test]
    fn only_what_changed_is_written() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let volume = place.path();
        assert!(write(volume, &[("a", 0o644, "1"), ("b", 0o644, "2")]));
        let state = fs::read_link(volume.join(DATA)).expect("a link");
        assert!(!write(volume, &[("a", 0o644, "1"), ("b", 0o644, "2")]));
        assert_eq!(fs::read_link(volume.join(DATA)).expect("a link"), state);
        for list in [
            &[("a", 0o644, "1"), ("b", 0o644, "3")][..],
            &[("a", 0o644, "1"), ("b", 0o755, "3")],
            &[("a", 0o644, "1"), ("b", 0o600, "3")],
            &[("a", 0o644, "1")],
            &[("a", 0o644, "1"), ("c", 0o644, "2")],
            &[],
        ] {
            let before = fs::read_link(volume.join(DATA)).expect("a link");
            assert!(write(volume, list), "{list:?}");
            assert_ne!(fs::read_link(volume.join(DATA)).expect("a link"), before);
            let mut expected: Vec<&str> = list.iter().map(|(path, ..)| *path).collect();
            expected.sort_unstable();
            assert_eq!(names(volume)[2..], expected[..], "{list:?}");
            assert!(!write(volume, list), "{list:?}");
        }
    }

    #[test]
    fn an_open_state_outlives_the_switch() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let volume = place.path();
        write(volume, &[("a", 0o644, "old")]);
        let mut open = fs::File::open(volume.join("a")).expect("a file");
        write(volume, &[("a", 0o644, "new")]);
        let mut content = String::new();
        io::Read::read_to_string(&mut open, &mut content).expect("the old file");
        assert_eq!(content, "old");
        assert_eq!(
            fs::read_to_string(volume.join("a")).expect("the new file"),
            "new"
        );
    }

    #[test]
    fn what_a_killed_writer_left_is_taken_away() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let volume = place.path();
        write(volume, &[("a", 0o644, "1")]);
        fs::create_dir(volume.join("..2020_01_01_00_00_00.1")).expect("a directory");
        symlink("..2020_01_01_00_00_00.1", volume.join(DATA_NEXT)).expect("a link");
        symlink("..data/gone", volume.join("gone")).expect("a link");
        fs::remove_file(volume.join("a")).expect("a link");
        assert!(write(volume, &[("a", 0o644, "1")]));
        assert_eq!(names(volume).len(), 3, "{:?}", names(volume));
        assert_eq!(fs::read_to_string(volume.join("a")).expect("a file"), "1");
    }

    #[test]
    fn what_stands_in_the_way_is_replaced_and_not_followed() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let (volume, outside) = (place.path().join("volume"), place.path().join("outside"));
        fs::create_dir_all(&volume).expect("a directory");
        fs::create_dir_all(outside.join("x")).expect("a directory");
        symlink(&outside, volume.join(DATA)).expect("a link");
        symlink(&outside, volume.join("a")).expect("a link");
        assert!(write(&volume, &[("a", 0o644, "1")]));
        assert_eq!(fs::read_to_string(volume.join("a")).expect("a file"), "1");
        assert!(outside.join("x").exists());
        assert_eq!(fs::read_dir(&outside).expect("a directory").count(), 1);
        let fresh = place.path().join("fresh");
        fs::create_dir_all(fresh.join("..data/x")).expect("a directory");
        assert!(write(&fresh, &[("a", 0o644, "1")]));
        assert_eq!(fs::read_to_string(fresh.join("a")).expect("a file"), "1");
    }

    #[test]
    fn owners_and_groups_are_set_and_found_unchanged() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let volume = place.path();
        let mut list = files(&[("token", 0o600, "t"), ("d/x", 0o400, "x")]);
        list.get_mut("token").expect("it is there").owner = Some(1000);
        assert!(write_files(volume, &list, Some(2000), now()).expect("written"));
        assert!(!write_files(volume, &list, Some(2000), now()).expect("nothing to write"));
        let stat = |path: &str| {
            let metadata = fs::metadata(volume.join(path)).expect("it is there");
            (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
        };
        assert_eq!(stat("token"), (0o640, 1000, 2000));
        assert_eq!(stat("d/x"), (0o440, 0, 2000));
        assert_eq!(stat("d"), (0o2755, 0, 2000));
    }

    #[test]
    fn paths_that_cannot_be_are_refused() {
        let place = tempfile::tempdir().expect("a temporary directory");
        for path in ["", "/a", "a/../b", "..", "..a", "a//b", "./a", "a/", "a\0b"] {
            let error = write_files(place.path(), &files(&[(path, 0o644, "")]), None, now());
            assert!(matches!(error, Err(FilesError::Path { .. })), "{path}");
        }
        assert_eq!(names(place.path()), Vec::<String>::new());
    }
}
