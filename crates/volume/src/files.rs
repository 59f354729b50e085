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
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use jiff::Timestamp;

use crate::MachineError;
use crate::folder::{Access, Folder};

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";
const PATH_LENGTH_MAX: usize = 4096;
/// What directories are, and what a group gets that may only read.
const DIRECTORY_MODE: u32 = 0o755;
const DIRECTORY_MODE_OF_GROUP: u32 = 0o2755;
const READ_ONLY: u32 = 0o440;

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
    let volume = Folder::open(volume)?;
    let state = current_state(&volume)?;
    let unchanged = match &state {
        Some(state) => match volume.directory(state)? {
            Some(state) => shows(&state, files, group)?,
            None => false,
        },
        None => false,
    };
    if unchanged && is_complete(&volume, files)? {
        return Ok(false);
    }
    let state = match state {
        Some(state) if unchanged => state,
        _ => {
            let state = write_state(&volume, files, group, now)?;
            switch(&volume, &state)?;
            state
        }
    };
    link_names(&volume, files, group)?;
    take_away_rest(&volume, &state, files)?;
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
fn current_state(volume: &Folder) -> Result<Option<OsString>, MachineError> {
    let target = volume.link(OsStr::new(DATA))?;
    Ok(target.filter(|target| is_state(target)))
}

fn is_state(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b"..")
        && name.len() > 2
        && !name.contains(&b'/')
        && name != DATA.as_bytes()
        && name != DATA_NEXT.as_bytes()
}

fn access(file: &File, group: Option<u32>) -> Access {
    let given = if group.is_some() { READ_ONLY } else { 0 };
    Access {
        mode: file.mode | given,
        owner: file.owner,
        group,
    }
}

/// Whether a state has these files and no others.
fn shows(state: &Folder, files: &Files, group: Option<u32>) -> Result<bool, MachineError> {
    let mut directories = BTreeSet::from([""]);
    for path in files.keys() {
        directories.extend(path.match_indices('/').map(|(at, _)| &path[..at]));
    }
    for directory in &directories {
        let Some(names) = state.names_in(directory)? else {
            return Ok(false);
        };
        let belongs = |name: &OsString| {
            let name = name.to_str()?;
            let path = match *directory {
                "" => name.to_owned(),
                above => format!("{above}/{name}"),
            };
            Some(files.contains_key(&path) || directories.contains(path.as_str()))
        };
        if !names.iter().all(|name| belongs(name).unwrap_or(false)) {
            return Ok(false);
        }
    }
    let mut each = files.iter();
    Ok(each.all(|(path, file)| state.has_file(path, &file.content, access(file, group))))
}

/// Whether nothing but what belongs there is in the volume's own directory.
fn is_complete(volume: &Folder, files: &Files) -> Result<bool, MachineError> {
    let names = top_names(files);
    let mut found = 0;
    let mut states = 0;
    for name in volume.names()? {
        match name.to_str() {
            Some(DATA) => {}
            Some(top) if names.contains(top) && is_link_of_ours(volume, top)? => found += 1,
            _ if is_state(&name) => states += 1,
            _ => return Ok(false),
        }
    }
    Ok(found == names.len() && states == 1)
}

fn write_state(
    volume: &Folder,
    files: &Files,
    group: Option<u32>,
    now: Timestamp,
) -> Result<OsString, MachineError> {
    let directories = Access {
        mode: match group {
            Some(_) => DIRECTORY_MODE_OF_GROUP,
            None => DIRECTORY_MODE,
        },
        owner: None,
        group,
    };
    let (name, state) = make_state(volume, directories, now)?;
    let written = files
        .iter()
        .try_for_each(|(path, file)| write_file(&state, path, file, directories));
    if let Err(error) = written {
        // What failed tells more than that it could not be cleaned up.
        let _ = volume.remove(&name);
        return Err(error);
    }
    if let Some(group) = group {
        volume.set_group(group)?;
    }
    Ok(name)
}

fn make_state(
    volume: &Folder,
    access: Access,
    now: Timestamp,
) -> Result<(OsString, Folder), MachineError> {
    let stamp = now.strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let mut number = u64::from(now.subsec_nanosecond().unsigned_abs());
    loop {
        let name = OsString::from(format!("{stamp}.{number}"));
        match volume.make_directory(&name, access)? {
            Some(state) => return Ok((name, state)),
            None => number += 1,
        }
    }
}

fn write_file(
    state: &Folder,
    path: &str,
    file: &File,
    directories: Access,
) -> Result<(), MachineError> {
    let mut parts: Vec<&OsStr> = path.split('/').map(OsStr::new).collect();
    let name = parts.pop().unwrap_or_default();
    let mut below: Option<Folder> = None;
    for part in parts {
        let here = below.as_ref().unwrap_or(state);
        let next = match here.make_directory(part, directories)? {
            Some(made) => made,
            None => here.existing(part)?,
        };
        below = Some(next);
    }
    let here = below.as_ref().unwrap_or(state);
    here.make_file(name, &file.content, access(file, directories.group))
}

fn switch(volume: &Folder, state: &OsStr) -> Result<(), MachineError> {
    let (next, data) = (OsStr::new(DATA_NEXT), OsStr::new(DATA));
    volume.remove(next)?;
    volume.make_link(next, Path::new(state), None)?;
    if volume.link(data)?.is_none() {
        // Whatever it is, it is not ours, and a link does not replace a directory.
        volume.remove(data)?;
    }
    volume.rename(next, data)
}

fn top_names(files: &Files) -> BTreeSet<&str> {
    files
        .keys()
        .map(|path| path.split('/').next().unwrap_or(path))
        .collect()
}

fn link_names(volume: &Folder, files: &Files, group: Option<u32>) -> Result<(), MachineError> {
    for name in top_names(files) {
        if is_link_of_ours(volume, name)? {
            continue;
        }
        let link = OsStr::new(name);
        volume.remove(link)?;
        volume.make_link(link, &Path::new(DATA).join(name), group)?;
    }
    Ok(())
}

fn is_link_of_ours(volume: &Folder, name: &str) -> Result<bool, MachineError> {
    let target = volume.link(OsStr::new(name))?;
    Ok(target.is_some_and(|target| Path::new(&target) == Path::new(DATA).join(name)))
}

/// Old states, links to files that are no more, and what a killed writer left.
fn take_away_rest(volume: &Folder, state: &OsStr, files: &Files) -> Result<(), MachineError> {
    let names = top_names(files);
    for name in volume.names()? {
        let belongs =
            name == state || name == DATA || name.to_str().is_some_and(|name| names.contains(name));
        if !belongs {
            volume.remove(&name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

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
        std::io::Read::read_to_string(&mut open, &mut content).expect("the old file");
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

    /// A container that may write to the volume puts links where the writer makes directories and
    /// files, as fast as it can. Nothing outside may change, and nothing be made there.
    #[test]
    fn a_container_that_swaps_directories_for_links_leads_nobody_out() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let (volume, outside) = (place.path().join("volume"), place.path().join("outside"));
        fs::create_dir_all(&volume).expect("a directory");
        fs::create_dir_all(&outside).expect("a directory");
        let mode = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&outside, mode).expect("a mode");
        fs::write(outside.join("key-000"), "precious").expect("a file");
        let before = fs::metadata(&outside).expect("a directory");
        let done = std::sync::atomic::AtomicBool::new(false);
        let mut swaps = 0;
        std::thread::scope(|scope| {
            let container = scope.spawn(|| swap_for_links(&volume, &outside, &done));
            for round in 0..30 {
                let keys = (0..100).map(|number| (format!("key-{number:03}"), round.to_string()));
                let list = keys.map(|(key, content)| {
                    let file = File {
                        mode: 0o666,
                        owner: Some(1000),
                        content: content.into_bytes(),
                    };
                    (
                        if round % 2 == 0 {
                            key
                        } else {
                            format!("d/{key}")
                        },
                        file,
                    )
                });
                // It may fail: the volume is not what it was a moment ago.
                let _ = write_files(&volume, &list.collect(), Some(2000), now());
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            swaps = container.join().expect("the container ends");
        });
        assert!(swaps > 0, "nothing was tried");
        let after = fs::metadata(&outside).expect("a directory");
        assert_eq!(
            (after.mode(), after.gid(), names(&outside)),
            (before.mode(), before.gid(), vec!["key-000".to_owned()])
        );
        let precious = fs::metadata(outside.join("key-000")).expect("a file");
        assert_eq!((precious.uid(), precious.len()), (0, 8));
    }

    /// Until it is done; how often it worked.
    fn swap_for_links(volume: &Path, outside: &Path, done: &std::sync::atomic::AtomicBool) -> u32 {
        let mut swaps = 0;
        let mut number = 0;
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let list = fs::read_dir(volume).into_iter().flatten().flatten();
            for found in list.filter(|found| found.file_type().is_ok_and(|kind| kind.is_dir())) {
                number += 1;
                let inner = found.path().join("d");
                for path in [inner, found.path()] {
                    let aside = volume.join(format!("aside-{number}"));
                    if fs::rename(&path, aside).is_ok() && symlink(outside, &path).is_ok() {
                        swaps += 1;
                    }
                }
            }
        }
        swaps
    }

    #[test]
    fn a_pipe_in_the_way_is_not_waited_for() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let volume = place.path();
        let list = [("a", 0o644, "1"), ("d/b", 0o644, "2")];
        assert!(write(volume, &list));
        let state = volume.join(fs::read_link(volume.join(DATA)).expect("a link"));
        fs::remove_file(state.join("a")).expect("removed");
        let kind = rustix::fs::FileType::Fifo;
        let (name, mode) = (state.join("a"), rustix::fs::Mode::from_raw_mode(0o644));
        rustix::fs::mknodat(rustix::fs::CWD, &name, kind, mode, 0).expect("a pipe");
        assert!(write(volume, &list));
        assert_eq!(fs::read_to_string(volume.join("a")).expect("a file"), "1");
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
