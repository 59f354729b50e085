//! Overlay mounts (Linux, filesystems/overlayfs.rst).
//!
//! The mount API of Linux 5.2 takes layers one by one (`lowerdir+`, Linux 6.7), so that their number
//! and their names do not matter. Where it is missing, `mount(2)` gets all in one page of options;
//! names are then given as open descriptors, which are short and need no escaping.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
};

/// The longest value that one option of the mount API takes (fs/fsopen.c).
const OPTION_LENGTH_MAX: usize = 255;
/// Mounts that may lie on one another before giving up.
const STACKED_MAX: usize = 64;

/// The directories of an overlay.
pub(crate) struct Overlay<'a> {
    /// Read only, the uppermost first; at least one.
    pub(crate) lower: &'a [&'a Path],
    /// Where writes go; without it the overlay is read-only, and wants two lower ones.
    pub(crate) upper: Option<Upper<'a>>,
}

/// What makes an overlay writable.
pub(crate) struct Upper<'a> {
    pub(crate) directory: &'a Path,
    /// Overlayfs's own, on the same file system.
    pub(crate) work: &'a Path,
}

/// Mounts an overlay on `target`. `source` is what stands in the list of mounts.
pub(crate) fn overlay(overlay: &Overlay<'_>, source: &str, target: &Path) -> io::Result<()> {
    match overlay_by_descriptors(overlay, source, target) {
        // No such call, no such option, or a sandbox that knows neither.
        Err(Errno::NOSYS | Errno::INVAL | Errno::PERM) => overlay_by_page(overlay, source, target),
        mounted => Ok(mounted?),
    }
}

fn overlay_by_descriptors(overlay: &Overlay<'_>, source: &str, target: &Path) -> Result<(), Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", source)?;
    let mut held = Vec::new();
    for lower in overlay.lower {
        fsconfig_set_string(&context, "lowerdir+", name_of(lower, &mut held)?)?;
    }
    if let Some(upper) = &overlay.upper {
        fsconfig_set_string(&context, "upperdir", name_of(upper.directory, &mut held)?)?;
        fsconfig_set_string(&context, "workdir", name_of(upper.work, &mut held)?)?;
    }
    // Layers are shared by many containers; the index would bind an upper to one stack of them.
    fsconfig_set_string(&context, "index", "off")?;
    fsconfig_create(&context)?;
    let mounted = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    move_mount(
        &mounted,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

fn overlay_by_page(overlay: &Overlay<'_>, source: &str, target: &Path) -> io::Result<()> {
    let mut held = Vec::new();
    let mut options = String::from("index=off,lowerdir=");
    for (at, lower) in overlay.lower.iter().enumerate() {
        let separator = if at == 0 { "" } else { ":" };
        let descriptor = descriptor_of(lower, &mut held)?;
        let _ = write!(options, "{separator}{descriptor}");
    }
    if let Some(upper) = &overlay.upper {
        let directory = descriptor_of(upper.directory, &mut held)?;
        let work = descriptor_of(upper.work, &mut held)?;
        let _ = write!(options, ",upperdir={directory},workdir={work}");
    }
    let options = std::ffi::CString::new(options).expect("digits and slashes have no NUL");
    mount(
        source,
        target,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )?;
    Ok(())
}

/// The path itself, or something shorter that leads there as long as `held` lives.
fn name_of(path: &Path, held: &mut Vec<OwnedFd>) -> Result<String, Errno> {
    match path.to_str() {
        Some(text) if text.len() <= OPTION_LENGTH_MAX => Ok(text.to_owned()),
        _ => descriptor_of(path, held),
    }
}

fn descriptor_of(path: &Path, held: &mut Vec<OwnedFd>) -> Result<String, Errno> {
    let directory =
        tree::open(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let name = format!("/proc/self/fd/{}", directory.as_raw_fd());
    held.push(directory);
    Ok(name)
}

/// Whether something is mounted on `path`.
pub(crate) fn is_mounted(path: &Path) -> io::Result<bool> {
    let stat = |path: &Path| match rustix::fs::lstat(path) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    };
    let (Some(here), Some(parent)) = (stat(path)?, path.parent()) else {
        return Ok(false);
    };
    Ok(stat(parent)?.is_some_and(|above| above.st_dev != here.st_dev))
}

/// Takes away everything that is mounted on `path`, at once for new lookups, and for those who are
/// in there when they leave. Nothing mounted, or nothing there, is fine.
pub(crate) fn detach(path: &Path) -> io::Result<()> {
    for _ in 0..STACKED_MAX {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::BUSY.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    type Mount = fn(&Overlay<'_>, &str, &Path) -> io::Result<()>;

    /// Mounts so many layers, each with a file of its own and one that the uppermost wins.
    fn check(mount: Mount, layers: usize, above: &str) {
        let place = tempfile::tempdir().expect("a temporary directory");
        let base = place.path().join(above);
        let directory = |name: &str| {
            let path = base.join(name);
            fs::create_dir_all(&path).expect("a directory");
            path
        };
        let lower: Vec<PathBuf> = (0..layers)
            .map(|layer| {
                let path = directory(&format!("layer: {layer}, of many"));
                fs::write(path.join(format!("own-{layer}")), "").expect("a file");
                fs::write(path.join("shared"), layer.to_string()).expect("a file");
                path
            })
            .collect();
        let lower: Vec<&Path> = lower.iter().map(PathBuf::as_path).collect();
        let (upper, work, target) = (directory("upper"), directory("work"), directory("target"));
        let layers_of = Overlay {
            lower: &lower,
            upper: Some(Upper {
                directory: &upper,
                work: &work,
            }),
        };
        assert!(!is_mounted(&target).expect("a directory"));
        mount(&layers_of, "test", &target).expect("a mount");
        assert!(is_mounted(&target).expect("a mount point"));
        let names = fs::read_dir(&target).expect("a directory").count();
        let shared = fs::read_to_string(target.join("shared")).expect("a file");
        fs::write(target.join("new"), "").expect("a file");
        detach(&target).expect("unmounted");
        detach(&target).expect("nothing to do");
        assert!(!is_mounted(&target).expect("a directory"));
        assert_eq!((names, shared.as_str()), (layers + 1, "0"));
        assert!(upper.join("new").exists());
    }

    fn by_descriptors(layers: &Overlay<'_>, source: &str, target: &Path) -> io::Result<()> {
        Ok(overlay_by_descriptors(layers, source, target)?)
    }

    #[test]
    fn both_ways_mount_the_same() {
        for mount in [by_descriptors as Mount, overlay_by_page] {
            check(mount, 1, "a");
            check(mount, 128, "a:b,c d");
        }
    }

    #[test]
    fn without_an_upper_nothing_can_be_written() {
        for mount in [by_descriptors as Mount, overlay_by_page] {
            let place = tempfile::tempdir().expect("a temporary directory");
            let directory = |name: &str| {
                let path = place.path().join(name);
                fs::create_dir(&path).expect("a directory");
                path
            };
            let (layer, empty, target) = (directory("a"), directory("b"), directory("c"));
            fs::write(layer.join("file"), "x").expect("a file");
            let overlay = Overlay {
                lower: &[&layer, &empty],
                upper: None,
            };
            mount(&overlay, "test", &target).expect("a mount");
            let read = fs::read_to_string(target.join("file"));
            let refused = fs::write(target.join("file"), "y").expect_err("it is read-only");
            detach(&target).expect("unmounted");
            assert_eq!(read.expect("a file"), "x");
            assert_eq!(refused.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
        }
    }

    #[test]
    fn long_paths_are_no_obstacle() {
        let long = ["x".repeat(200), "y".repeat(200)].join("/");
        for mount in [by_descriptors as Mount, overlay_by_page, overlay] {
            check(mount, 3, &long);
        }
    }
}
