//! The overlay that is a container's root (Documentation/filesystems/overlayfs.rst).
//!
//! Layers are given one by one where the kernel takes them so (Linux 6.7); before, all of them must
//! fit in one page, so they are named by open descriptors, which are short and need no escaping.
//! A container's root does not outlive a crash of the machine, hence `volatile`: without it every
//! unmount would sync the whole file system below.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount as mounts;

/// Mounts `lower`, uppermost first, with `upper` for what is written, on `target`.
pub(super) fn mount(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    // The mark of an earlier use of a volatile overlay.
    let _ = fs::remove_dir_all(work.join("work/incompat"));
    // Asked for in vain, the kernel would complain in its log at every start.
    if !takes_layers(&rustix::system::uname().release().to_string_lossy()) {
        return mount_by_page(lower, upper, work, target);
    }
    match mount_by_layers(lower, upper, work, target) {
        Err(Errno::INVAL) => mount_by_page(lower, upper, work, target),
        result => Ok(result?),
    }
}

/// Whether a kernel of this release (`6.1.0-56-amd64`) is Linux 6.7 or later.
fn takes_layers(release: &str) -> bool {
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(7))
}

fn mount_by_layers(
    lower: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
) -> rustix::io::Result<()> {
    let context = mounts::fsopen("overlay", mounts::FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in lower {
        mounts::fsconfig_set_string(context.as_fd(), "lowerdir+", layer)?;
    }
    mounts::fsconfig_set_string(context.as_fd(), "upperdir", upper)?;
    mounts::fsconfig_set_string(context.as_fd(), "workdir", work)?;
    mounts::fsconfig_set_flag(context.as_fd(), "volatile")?;
    mounts::fsconfig_create(context.as_fd())?;
    let overlay = mounts::fsmount(
        context.as_fd(),
        mounts::FsMountFlags::FSMOUNT_CLOEXEC,
        mounts::MountAttrFlags::empty(),
    )?;
    mounts::move_mount(
        overlay.as_fd(),
        "",
        rustix::fs::CWD,
        target,
        mounts::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

fn mount_by_page(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    let mut held = Vec::new();
    let mut options = String::from("volatile,lowerdir=");
    for (index, layer) in lower.iter().enumerate() {
        let separator = if index == 0 { "" } else { ":" };
        let name = descriptor(layer, &mut held)?;
        // Writing to a string cannot fail.
        let _ = write!(options, "{separator}{name}");
    }
    let (upper, work) = (descriptor(upper, &mut held)?, descriptor(work, &mut held)?);
    let _ = write!(options, ",upperdir={upper},workdir={work}");
    nix::mount::mount(
        Some("overlay"),
        target,
        Some("overlay"),
        nix::mount::MsFlags::empty(),
        Some(options.as_str()),
    )
    .map_err(io::Error::from)
}

/// A short name for a directory, as long as `held` lives.
fn descriptor(path: &Path, held: &mut Vec<OwnedFd>) -> io::Result<String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())?;
    let name = format!("/proc/self/fd/{}", directory.as_raw_fd());
    held.push(directory);
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    type Mount = fn(&[PathBuf], &Path, &Path, &Path) -> io::Result<()>;

    #[test]
    fn both_ways_of_naming_layers_give_the_same() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let by_layers: Mount =
            |lower, upper, work, target| Ok(mount_by_layers(lower, upper, work, target)?);
        for (name, mount) in [("layers", by_layers), ("page", mount_by_page as Mount)] {
            let base = tempfile::tempdir().expect("a temporary directory can be made");
            let part = |name: &str| {
                let path = base.path().join(name);
                fs::create_dir(&path).expect("made");
                path
            };
            // Characters that mean something in a list of options.
            let lower = [part("up,per:x"), part("low\\er")];
            let (upper, work, target) = (part("upper"), part("work"), part("target"));
            fs::write(lower[1].join("file"), "below").expect("written");
            fs::write(lower[0].join("file"), "above").expect("written");
            match mount(&lower, &upper, &work, &target) {
                // Before Linux 6.7.
                Err(error) if name == "layers" && error.raw_os_error() == Some(libc::EINVAL) => {
                    continue;
                }
                result => result.expect("mounted"),
            }
            let found = fs::read_to_string(target.join("file"));
            let written = fs::write(target.join("new"), "x");
            mounts::unmount(&target, mounts::UnmountFlags::DETACH).expect("unmounted");
            assert_eq!(found.expect("readable"), "above", "{name}");
            written.expect("writable");
            assert!(upper.join("new").exists(), "{name}");
        }
    }
}
