//! Overlay mounts (Linux, filesystems/overlayfs.rst).
//!
//! The mount API of Linux 5.2 takes layers one by one (`lowerdir+`, Linux 6.7), so that their number
//! and their names do not matter. Where it is missing, `mount(2)` gets all in one page of options;
//! names are then given as open descriptors, which are short and need no escaping.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount,
};

/// The longest value that one option of the mount API takes (fs/fsopen.c).
const OPTION_LENGTH_MAX: usize = 255;

/// The directories of an overlay.
#[derive(Clone, Copy, Debug)]
pub struct Overlay<'a> {
    /// Read only, the uppermost first; at least one.
    pub lower: &'a [&'a Path],
    /// Where writes go; without it the overlay is read-only, and wants two lower ones.
    pub upper: Option<Upper<'a>>,
}

/// What makes an overlay writable.
#[derive(Clone, Copy, Debug)]
pub struct Upper<'a> {
    /// Holds what is written.
    pub directory: &'a Path,
    /// Overlayfs's own, on the same file system.
    pub work: &'a Path,
    /// What is written need not outlive a crash of the machine. Otherwise every unmount syncs the
    /// whole file system below.
    pub volatile: bool,
}

/// Mounts an overlay on `target`. `source` is what stands in the list of mounts.
pub fn mount_overlay(overlay: &Overlay<'_>, source: &str, target: &Path) -> io::Result<()> {
    if let Some(upper) = overlay.upper.filter(|upper| upper.volatile) {
        // The mark of an earlier use, with which the kernel refuses another one.
        let _ = fs::remove_dir_all(upper.work.join("work/incompat"));
    }
    // Asked for in vain, the kernel would complain in its log at every mount.
    if !takes_layers(&rustix::system::uname().release().to_string_lossy()) {
        return mount_by_page(overlay, source, target);
    }
    match mount_by_layers(overlay, source, target) {
        // No such call, no such option, or a sandbox that knows neither.
        Err(Errno::NOSYS | Errno::INVAL | Errno::PERM) => mount_by_page(overlay, source, target),
        mounted => Ok(mounted?),
    }
}

/// Whether a kernel of this release (`6.1.0-56-amd64`) is Linux 6.7 or later.
fn takes_layers(release: &str) -> bool {
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(7))
}

fn mount_by_layers(overlay: &Overlay<'_>, source: &str, target: &Path) -> Result<(), Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", source)?;
    let mut held = Vec::new();
    for lower in overlay.lower {
        fsconfig_set_string(&context, "lowerdir+", name_of(lower, &mut held)?)?;
    }
    if let Some(upper) = &overlay.upper {
        fsconfig_set_string(&context, "upperdir", name_of(upper.directory, &mut held)?)?;
        fsconfig_set_string(&context, "workdir", name_of(upper.work, &mut held)?)?;
        if upper.volatile {
            fsconfig_set_flag(&context, "volatile")?;
        }
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

fn mount_by_page(overlay: &Overlay<'_>, source: &str, target: &Path) -> io::Result<()> {
    let mut held = Vec::new();
    let mut options = String::from("index=off,lowerdir=");
    for (at, lower) in overlay.lower.iter().enumerate() {
        let separator = if at == 0 { "" } else { ":" };
        let descriptor = descriptor_of(lower, &mut held)?;
        // Writing to a string cannot fail.
        let _ = write!(options, "{separator}{descriptor}");
    }
    if let Some(upper) = &overlay.upper {
        let directory = descriptor_of(upper.directory, &mut held)?;
        let work = descriptor_of(upper.work, &mut held)?;
        let volatile = if upper.volatile { ",volatile" } else { "" };
        let _ = write!(options, ",upperdir={directory},workdir={work}{volatile}");
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

/// The path itself, or something shorter and plainer that leads there as long as `held` lives: a
/// backslash escapes in some of the options and in others not.
fn name_of(path: &Path, held: &mut Vec<OwnedFd>) -> Result<String, Errno> {
    let is_plain = |text: &&str| text.len() <= OPTION_LENGTH_MAX && !text.contains('\\');
    match path.to_str().filter(is_plain) {
        Some(text) => Ok(text.to_owned()),
        None => descriptor_of(path, held),
    }
}

fn descriptor_of(path: &Path, held: &mut Vec<OwnedFd>) -> Result<String, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    let name = format!("/proc/self/fd/{}", directory.as_raw_fd());
    held.push(directory);
    Ok(name)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::{below, detach, is_mounted};

    #[test]
    fn releases_are_compared_as_numbers() {
        let check = |release: &str, expected: bool| {
            assert_eq!(takes_layers(release), expected, "{release}");
        };
        check("6.1.0-56-amd64", false);
        check("6.7", true);
        check("6.12.48+deb13-amd64", true);
        check("10.0.0", true);
        check("5.15.0-91-generic", false);
        check("", false);
    }

    type Mount = fn(&Overlay<'_>, &str, &Path) -> io::Result<()>;

    /// Mounts so many layers, each with a file of its own and one that the uppermost wins.
    fn check(mount: Mount, layers: usize, above: &str, volatile: bool) {
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
                volatile,
            }),
        };
        assert!(!is_mounted(&target).expect("a directory"));
        mount(&layers_of, "test", &target).expect("a mount");
        assert!(is_mounted(&target).expect("a mount point"));
        assert_eq!(below(&base).expect("a list"), [target.as_path()]);
        let names = fs::read_dir(&target).expect("a directory").count();
        let shared = fs::read_to_string(target.join("shared")).expect("a file");
        fs::write(target.join("new"), "").expect("a file");
        detach(&target).expect("unmounted");
        detach(&target).expect("nothing to do");
        assert!(!is_mounted(&target).expect("a directory"));
        assert_eq!((names, shared.as_str()), (layers + 1, "0"));
        assert!(upper.join("new").exists());
    }

    fn by_layers(layers: &Overlay<'_>, source: &str, target: &Path) -> io::Result<()> {
        Ok(mount_by_layers(layers, source, target)?)
    }

    #[test]
    fn both_ways_mount_the_same() {
        for mount in [by_layers as Mount, mount_by_page] {
            check(mount, 1, "a", false);
            check(mount, 128, "a:b,c d\\e", true);
        }
    }

    #[test]
    fn a_volatile_one_can_be_mounted_again_after_a_crash() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let directory = |name: &str| {
            let path = place.path().join(name);
            fs::create_dir_all(&path).expect("a directory");
            path
        };
        let (layer, upper, work) = (directory("layer"), directory("upper"), directory("work"));
        let (target, copy) = (directory("target"), directory("copy"));
        let overlay = Overlay {
            lower: &[&layer],
            upper: Some(Upper {
                directory: &upper,
                work: &work,
                volatile: true,
            }),
        };
        mount_overlay(&overlay, "test", &target).expect("a mount");
        let mark = work.join("work/incompat/volatile");
        assert!(mark.exists());
        detach(&target).expect("unmounted");
        assert!(mark.exists(), "nobody says that what was written is safe");
        mount_overlay(&overlay, "test", &copy).expect("a mount");
        detach(&copy).expect("unmounted");
    }

    #[test]
    fn without_an_upper_nothing_can_be_written() {
        for mount in [by_layers as Mount, mount_by_page] {
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
        for mount in [by_layers as Mount, mount_by_page, mount_overlay] {
            check(mount, 3, &long, true);
        }
    }
}
