//! Where mounts may go: not into `/proc`, whose files a container's confinement is made of.
//!
//! What is mounted there later is masked and made read-only in its place, and programs believe what
//! they read there. The exceptions are runc's: files that say how much of something there is, which
//! people replace to show a container its own share, and another `/proc` as a whole.

use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::protocol::{Refusal, RefusalKind};
use crate::spec::Mount;

/// Below `/proc`.
const REPLACEABLE: [&str; 11] = [
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "net/dev",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
];

/// Refuses a mount that would come to lie in `/proc` of the container whose root is `root`, also by
/// the image's symbolic links.
pub(super) fn check(mount: &Mount, root: &Path) -> Result<(), Refusal> {
    let shown = mount.target.display();
    let refuse = |why: &str| {
        let message = format!("\"{shown}\" cannot be mounted because it is {why}");
        Err(Refusal::new(RefusalKind::Invalid, message))
    };
    let resolved = resolve(root, &mount.target).map_err(|error| {
        let message = format!("find mount target \"{shown}\": {error}");
        Refusal::new(RefusalKind::Invalid, message)
    })?;
    match resolved.strip_prefix("proc") {
        Err(_) => Ok(()),
        Ok(below) if below.as_os_str().is_empty() => match is_proc(&mount.source) {
            true => Ok(()),
            false => refuse("not of type proc"),
        },
        Ok(below) if REPLACEABLE.iter().any(|path| below == *path) => Ok(()),
        Ok(_) => refuse("inside /proc"),
    }
}

fn is_proc(source: &Path) -> bool {
    rustix::fs::statfs(source).is_ok_and(|found| found.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// Where `target` leads inside of `root`, relative to it; what does not exist yet stays as it is.
fn resolve(root: &Path, target: &Path) -> io::Result<PathBuf> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let directory = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty())?;
    let name = |descriptor: &std::os::fd::OwnedFd| {
        use std::os::fd::AsRawFd as _;
        std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
    };
    let base = name(&directory)?;
    let parts: Vec<_> = target
        .components()
        .filter(|part| !matches!(part, Component::RootDir | Component::CurDir))
        .collect();
    for there in (0..=parts.len()).rev() {
        let (path, missing) = (
            Path::new("/").join(parts[..there].iter().collect::<PathBuf>()),
            &parts[there..],
        );
        let opened = rustix::fs::openat2(
            &directory,
            &path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        );
        match opened {
            Ok(found) => {
                if missing.contains(&Component::ParentDir) {
                    return Err(io::Error::other("it climbs out of what does not exist"));
                }
                let found = name(&found)?;
                let inside = found.strip_prefix(&base).map_err(io::Error::other)?;
                return Ok(inside.join(missing.iter().collect::<PathBuf>()));
            }
            // Or a link that leads nowhere, which is refused when it is mounted on.
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::spec::Propagation;

    #[test]
    fn nothing_is_mounted_into_proc() {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        for path in ["proc", "a/b"] {
            std::fs::create_dir_all(root.path().join(path)).expect("made");
        }
        symlink("/proc", root.path().join("a/link")).expect("made");
        symlink("../../../../proc/sys", root.path().join("a/up")).expect("made");
        let check = |source: &str, target: &str, expected: Result<(), &str>| {
            let mount = Mount {
                source: source.into(),
                target: target.into(),
                read_only: false,
                propagation: Propagation::Private,
            };
            let found = check(&mount, root.path()).map_err(|refusal| refusal.message);
            assert_eq!(found, expected.map_err(str::to_owned), "{target}");
        };
        check("/tmp", "/a/b/c/d", Ok(()));
        check("/tmp", "/process", Ok(()));
        check("/tmp", "/proc/uptime", Ok(()));
        check("/proc", "/proc", Ok(()));
        check(
            "/tmp",
            "/proc/",
            Err("\"/proc/\" cannot be mounted because it is not of type proc"),
        );
        let inside = "cannot be mounted because it is inside /proc";
        for target in [
            "/proc/sys",
            "/./proc//1",
            "/a/link/sys/kernel",
            "/a/../proc/x",
        ] {
            check("/tmp", target, Err(&format!("\"{target}\" {inside}")));
        }
        check(
            "/tmp",
            "/none/../proc",
            Err("find mount target \"/none/../proc\": it climbs out of what does not exist"),
        );
    }
}
