//! A part of a volume, shown to a container as if it were the volume.
//!
//! Another container may change the volume while the part is looked up, so a path is not good
//! enough to hand on: the kernel looks it up below the volume's descriptor, and what it found is
//! bound to a place of ours, which stays what it is.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fchmod, fstat, mkdirat};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_bind, mount_change, move_mount,
    open_tree,
};

use crate::{MachineError, failed};

/// Why a part of a volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SubPathError {
    /// It is absolute or has `..` in it.
    #[error("subPath \"{0}\" must be a relative path without \"..\"")]
    Form(String),
    /// A link in the volume leads out of it.
    #[error("subPath \"{0}\" leads out of the volume")]
    Escapes(String),
    /// A step failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Name of what is bound, in the place of ours.
const PART: &str = "part";

/// Binds the part `sub_path` of a volume below `place`, a directory of our own that is made if it is
/// missing, and says where. A directory that is missing in the volume is made, with the volume's mode.
/// As upstream, what is mounted in the part is no part of it, and what is mounted there later is.
/// Taken away by [`crate::remove`] on `place` or a directory above it.
pub fn bind_sub_path(volume: &Path, sub_path: &str, place: &Path) -> Result<PathBuf, SubPathError> {
    let whole = volume.join(sub_path);
    let machine = |step| failed::<Errno>(step, &whole);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(volume, flags, Mode::empty()).map_err(failed("open", volume))?;
    let part = open_or_make(root, sub_path, &whole)?;
    let kind = fstat(&part)
        .map(|stat| FileType::from_raw_mode(stat.st_mode))
        .map_err(machine("look at"))?;
    fs::create_dir_all(place).map_err(failed("make directory", place))?;
    // What is bound goes on to be told of the machine's mounts and tells of its own, unmounts, too. In
    // a mount that is ours alone, all below it can be cut off at once, even what something else covers.
    mount_bind(place, place).map_err(failed("bind", place))?;
    mount_change(place, MountPropagationFlags::PRIVATE).map_err(failed("make private", place))?;
    let target = place.join(PART);
    make_target(&target, kind == FileType::Directory)?;
    let tree = open_tree(
        &part,
        "",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH,
    )
    .map_err(machine("bind"))?;
    move_mount(
        &tree,
        "",
        CWD,
        &target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(failed("mount on", &target))?;
    Ok(target)
}

fn open_or_make(root: OwnedFd, sub_path: &str, whole: &Path) -> Result<OwnedFd, SubPathError> {
    let form = || SubPathError::Form(sub_path.to_owned());
    if sub_path.starts_with('/') || sub_path.contains('\0') {
        return Err(form());
    }
    let mode = fstat(&root)
        .map(|stat| Mode::from_raw_mode(stat.st_mode & 0o7777))
        .map_err(failed("look at", whole))?;
    let mut here = None;
    let mut walked = String::new();
    for name in sub_path
        .split('/')
        .filter(|name| !matches!(*name, "" | "."))
    {
        if name == ".." {
            return Err(form());
        }
        let above = here.as_ref().unwrap_or(&root);
        if !walked.is_empty() {
            walked.push('/');
        }
        walked.push_str(name);
        // From the volume each time: a link may lead up, as long as it stays in the volume.
        let found = match open_beneath(root.as_fd(), &walked) {
            Err(Errno::NOENT) => {
                make_directory(above, name, mode).map_err(failed("make directory", whole))?;
                open_beneath(root.as_fd(), &walked)
            }
            found => found,
        };
        here = Some(match found {
            Ok(found) => found,
            Err(Errno::XDEV) => return Err(SubPathError::Escapes(sub_path.to_owned())),
            Err(error) => return Err(failed("open", whole)(error).into()),
        });
    }
    Ok(here.unwrap_or(root))
}

fn open_beneath(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    tree::open_within(root, path, OFlags::PATH, resolve)
}

fn make_directory(above: &OwnedFd, name: &str, mode: Mode) -> Result<(), Errno> {
    match mkdirat(above, name, mode) {
        Ok(()) => {}
        // Somebody else was faster, or a link that leads nowhere is in the way: opening it tells.
        Err(Errno::EXIST) => return Ok(()),
        Err(error) => return Err(error),
    }
    // What was made, unless somebody has put a link in its place already.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(above, name, flags, Mode::empty())?;
    // The setgid bit comes with the directory above; the umask of this process does not count.
    let inherited = Mode::from_raw_mode(fstat(&made)?.st_mode & 0o2000);
    fchmod(&made, mode | inherited)
}

fn make_target(target: &Path, directory: bool) -> Result<(), MachineError> {
    if directory {
        return fs::create_dir_all(target).map_err(failed("make directory", target));
    }
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(target)
        .map(drop)
        .map_err(failed("make file", target))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

    use super::*;
    use crate::{remove, unmount_all};

    struct Case {
        place: tempfile::TempDir,
    }

    impl Case {
        fn new() -> Case {
            let place = tempfile::tempdir().expect("a temporary directory");
            fs::create_dir_all(place.path().join("volume/a")).expect("a directory");
            fs::write(place.path().join("volume/a/file"), "inside").expect("a file");
            fs::write(place.path().join("secret"), "outside").expect("a file");
            Case { place }
        }

        fn volume(&self) -> PathBuf {
            self.place.path().join("volume")
        }

        fn bind(&self, sub_path: &str) -> Result<PathBuf, String> {
            let target = self.place.path().join("parts/0");
            bind_sub_path(&self.volume(), sub_path, &target).map_err(|error| error.to_string())
        }
    }

    impl Drop for Case {
        fn drop(&mut self) {
            remove(&self.place.path().join("parts")).expect("removed");
        }
    }

    #[test]
    fn directories_and_files_are_bound() {
        let case = Case::new();
        let target = case.bind("a").expect("a directory");
        assert_eq!(fs::read(target.join("file")).expect("the file"), b"inside");
        drop(case);
        let case = Case::new();
        let target = case.bind("./a//file").expect("a file");
        assert_eq!(fs::read(&target).expect("the file"), b"inside");
        // What is bound stays what it is, whatever takes its place.
        fs::remove_file(case.volume().join("a/file")).expect("removed");
        symlink("../../secret", case.volume().join("a/file")).expect("a link");
        assert_eq!(fs::read(&target).expect("the file"), b"inside");
    }

    #[test]
    fn links_within_the_volume_are_followed() {
        let case = Case::new();
        symlink("a", case.volume().join("..data")).expect("a link");
        symlink("..data/file", case.volume().join("key")).expect("a link");
        let target = case.bind("key").expect("a file");
        assert_eq!(fs::read(target).expect("the file"), b"inside");
    }

    #[test]
    fn what_is_missing_is_made_as_the_volume_is() {
        let case = Case::new();
        fs::set_permissions(case.volume(), fs::Permissions::from_mode(0o2775)).expect("a mode");
        std::os::unix::fs::chown(case.volume(), None, Some(99)).expect("a group");
        fs::set_permissions(case.volume(), fs::Permissions::from_mode(0o2775)).expect("a mode");
        case.bind("new/deep").expect("a directory");
        for path in ["new", "new/deep"] {
            let metadata = fs::metadata(case.volume().join(path)).expect("it was made");
            assert_eq!(
                (metadata.mode() & 0o7777, metadata.gid()),
                (0o2775, 99),
                "{path}"
            );
        }
    }

    #[test]
    fn nothing_leads_out_of_the_volume() {
        #[track_caller]
        fn check(sub_path: &str, expected: &str) {
            let case = Case::new();
            symlink("../secret", case.volume().join("up")).expect("a link");
            symlink("/", case.volume().join("root")).expect("a link");
            symlink("nowhere", case.volume().join("dangling")).expect("a link");
            symlink("../new", case.volume().join("out")).expect("a link");
            let error = case.bind(sub_path).expect_err(sub_path);
            assert!(error.contains(expected), "{sub_path}: {error}");
            assert!(!case.place.path().join("new").exists());
        }
        check("up", "leads out of the volume");
        check("root/etc", "leads out of the volume");
        check("out", "leads out of the volume");
        check("out/x", "leads out of the volume");
        check("dangling", "No such file");
        check("../secret", "without \"..\"");
        check("a/../../secret", "without \"..\"");
        check("/etc", "must be a relative path");
        check("a/file/x", "Not a directory");
    }

    /// A file system whose mounts are told to others, as on most machines.
    struct Machine {
        place: tempfile::TempDir,
    }

    impl Machine {
        fn new() -> Machine {
            let machine = Machine {
                place: tempfile::tempdir().expect("a temporary directory"),
            };
            mount_memory(machine.place.path());
            mount_change(machine.place.path(), MountPropagationFlags::SHARED).expect("shared");
            machine
        }

        fn directory(&self, path: &str) -> PathBuf {
            let path = self.place.path().join(path);
            fs::create_dir_all(&path).expect("a directory");
            path
        }

        /// Mounts a file system with a file on what is there already.
        fn mount(&self, path: &str) -> PathBuf {
            let path = self.directory(path);
            mount_memory(&path);
            fs::write(path.join("precious"), "x").expect("a file");
            path
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            unmount_all(self.place.path()).expect("unmounted");
        }
    }

    fn mount_memory(path: &Path) {
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).expect("a mount");
    }

    #[test]
    fn what_the_machine_has_mounted_in_a_part_stays_when_the_part_goes() {
        let machine = Machine::new();
        let volume = machine.directory("volume");
        let kept = [
            machine.mount("volume/part/before"),
            machine.mount("volume/part/before/deep"),
        ];
        let target = machine.directory("pods/0").join("0");
        let bound = bind_sub_path(&volume, "part", &target).expect("bound");
        assert!(bound.join("before").exists());
        remove(&target).expect("removed");
        let bound = bind_sub_path(&volume, "part", &target).expect("bound again");
        // Mounts of the machine come to the part, also right onto it.
        let late = [
            machine.mount("volume/part/late"),
            machine.mount("volume/part/late/deep"),
        ];
        assert!(bound.join("late/precious").exists());
        let onto = machine.mount("volume/part");
        assert!(bound.join("precious").exists());
        remove(&machine.place.path().join("pods")).expect("removed");
        assert!(onto.join("precious").exists(), "what lies on the part");
        unmount(&onto, UnmountFlags::empty()).expect("unmounted");
        for path in kept.iter().chain(&late) {
            assert!(path.join("precious").exists(), "{}", path.display());
        }
    }

    #[test]
    fn what_is_mounted_in_a_volume_is_no_part_of_it() {
        let machine = Machine::new();
        let volume = machine.directory("volume");
        machine.mount("volume/part/below");
        let bound = bind_sub_path(&volume, "part", &machine.directory("pods/0")).expect("bound");
        assert!(bound.join("below").exists());
        assert!(!bound.join("below/precious").exists());
    }
}
