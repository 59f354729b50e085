//! Where mounts go: by the links inside of the container's root, and not into `/proc`, whose files a
//! container's confinement is made of.
//!
//! What is mounted there later is masked and made read-only in its place, and programs believe what
//! they read there. The exceptions are runc's: files that say how much of something there is, which
//! people replace to show a container its own share, and another `/proc` as a whole.
//!
//! The decision: links are followed here, one name after the other, in the root and in the volumes that
//! will cover parts of it, as if all was mounted already; what is missing stays as it is asked for. No
//! step goes up, so that no rename or mount elsewhere on the machine disturbs it (openat2(2), EAGAIN).
//! But another container may change a volume between this and the mounting. So when all is mounted, and
//! before anything of the container runs, it is looked at where the mounts have gone: [`look`].

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use mounts::unescape;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::bundle::MASKED;
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

/// What libcontainer mounts first: of what the image has there nothing is seen, no link either.
const STANDARD: [&str; 3] = ["proc", "dev", "sys"];

/// As many links on one way as the kernel follows (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// A container's root with the volumes that will be mounted in it.
pub(super) struct Layout {
    /// With targets that have no link in them any more; in the order in which they were asked for.
    pub(super) mounts: Vec<Mount>,
    grounds: Vec<Ground>,
}

/// What is found from some path on.
struct Ground {
    /// Without links, relative to the root.
    target: PathBuf,
    /// Where that is on the machine; `None` for what is not there before it is mounted.
    base: Option<PathBuf>,
    read_only: bool,
}

impl Layout {
    /// Refuses a mount that would come to lie in `/proc` of the container whose root is `root`.
    pub(super) fn new(root: &Path, mut mounts: Vec<Mount>) -> Result<Layout, Refusal> {
        let fresh = |target: &str| Ground {
            target: target.into(),
            base: None,
            read_only: true,
        };
        let image = Ground {
            target: PathBuf::new(),
            base: Some(root.to_owned()),
            read_only: false,
        };
        let grounds = std::iter::once(image).chain(STANDARD.map(fresh));
        let mut layout = Layout {
            mounts: Vec::new(),
            grounds: grounds.collect(),
        };
        // What lies above is there when what lies below is mounted.
        let mut order: Vec<&mut Mount> = mounts.iter_mut().collect();
        order.sort_by_key(|mount| mount.target.components().count());
        for mount in order {
            let target = layout.follow(&mount.target).map_err(|error| {
                let message = format!("find mount target \"{}\": {error}", mount.target.display());
                Refusal::new(RefusalKind::Invalid, message)
            })?;
            check(mount, &target)?;
            mount.target = Path::new("/").join(&target);
            layout.grounds.push(Ground {
                target,
                base: Some(mount.source.clone()),
                read_only: mount.read_only,
            });
        }
        layout.mounts = mounts;
        Ok(layout)
    }

    /// Where `path` leads in the container, relative to its root, without links.
    fn follow(&self, path: &Path) -> io::Result<PathBuf> {
        let names = |path: &Path| -> Vec<OsString> {
            let parts = path.components().filter(|part| *part != Component::RootDir);
            parts.map(|part| part.as_os_str().to_owned()).collect()
        };
        let mut rest = VecDeque::from(names(path));
        let (mut here, mut links) = (PathBuf::new(), 0);
        while let Some(name) = rest.pop_front() {
            if name == "." {
                continue;
            }
            if name == ".." {
                here.pop();
                continue;
            }
            let next = here.join(&name);
            let Some(to) = self.link(&next)? else {
                here = next;
                continue;
            };
            links += 1;
            if links > LINKS_MAX {
                return Err(Errno::LOOP.into());
            }
            if to.is_absolute() {
                here = PathBuf::new();
            }
            for name in names(&to).into_iter().rev() {
                rest.push_front(name);
            }
        }
        match here.to_str() {
            Some(_) => Ok(here),
            None => Err(io::Error::other("a link leads to a name that is not UTF-8")),
        }
    }

    /// What will be at `path`, which has no link in it but for its last name: the ground, and where in it.
    fn ground<'a>(&self, path: &'a Path) -> Option<(&Ground, &'a Path)> {
        let depth = |ground: &Ground| ground.target.components().count();
        self.grounds
            .iter()
            .filter_map(|ground| Some((ground, path.strip_prefix(&ground.target).ok()?)))
            .max_by_key(|(ground, _)| depth(ground))
    }

    /// Where the link at `path` leads, if it is one.
    fn link(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let Some((ground, below)) = self.ground(path) else {
            return Ok(None);
        };
        let Some(base) = &ground.base else {
            return Ok(None);
        };
        // A mount covers whatever is there.
        if below.as_os_str().is_empty() {
            return Ok(None);
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let found = match rustix::fs::openat2(open(base)?, below, flags, Mode::empty(), inside) {
            Ok(found) => found,
            // Missing; or below a file, which the mount itself complains about.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
        if kind != FileType::Symlink {
            return Ok(None);
        }
        let to = rustix::fs::readlinkat(&found, "", Vec::new())?;
        Ok(Some(OsString::from_vec(to.into_bytes()).into()))
    }

    /// Makes a directory of the container and all above it, if its place can be written to.
    pub(super) fn make_directory(&self, path: &Path) -> io::Result<()> {
        let path = self.follow(path)?;
        match self.ground(&path) {
            Some((ground, below)) if !ground.read_only => match &ground.base {
                Some(base) => make_directories(base, below),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

fn open(base: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(base, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Makes `path` and all above it below `base`, through no link.
fn make_directories(base: &Path, path: &Path) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let enter = |above: &OwnedFd, name: &OsStr| {
        rustix::fs::openat(above, Path::new(name), flags, Mode::empty())
    };
    let mut above = open(base)?;
    for part in path.components() {
        let name = part.as_os_str();
        above = match enter(&above, name) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&above, Path::new(name), Mode::from(0o755))?;
                enter(&above, name)?
            }
            found => found?,
        };
    }
    Ok(())
}

fn check(mount: &Mount, target: &Path) -> Result<(), Refusal> {
    let refuse = |why| Err(refusal(&mount.target, why));
    match target.strip_prefix("proc") {
        Err(_) => Ok(()),
        Ok(below) if below.as_os_str().is_empty() => match is_proc(&mount.source) {
            true => Ok(()),
            false => refuse("not of type proc"),
        },
        Ok(below) if is_replaceable(below) => Ok(()),
        Ok(_) => refuse("inside /proc"),
    }
}

fn refusal(target: &Path, why: &str) -> Refusal {
    let message = format!(
        "\"{}\" cannot be mounted because it is {why}",
        target.display()
    );
    Refusal::new(RefusalKind::Invalid, message)
}

fn is_replaceable(below_proc: &Path) -> bool {
    REPLACEABLE.iter().any(|path| below_proc == *path)
}

fn is_proc(source: &Path) -> bool {
    rustix::fs::statfs(source).is_ok_and(|found| found.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

/// Refuses a container, all of whose mounts are made and which has not begun to run, if something has
/// come to lie in its `/proc` that does not belong there. `process` is its first one.
pub(super) fn look(process: i32, layout: &Layout, is_masked: bool) -> Result<(), Refusal> {
    // With what the machine has mounted in its own.
    let has_another = layout
        .mounts
        .iter()
        .any(|one| one.target == Path::new("/proc"));
    if has_another {
        return Ok(());
    }
    let path = format!("/proc/{process}/mountinfo");
    let failed = |error: io::Error| {
        let message = format!("look at the mounts of process {process}: {error}");
        Refusal::new(RefusalKind::Machine, message)
    };
    let list = match std::fs::File::open(path) {
        Ok(list) => list,
        // It has been killed meanwhile, and its keeper hears of it (proc(5): no namespace, no list).
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for line in BufReader::new(list).split(b'\n') {
        if let Some(stranger) = stranger(&line.map_err(failed)?, is_masked) {
            return Err(refusal(&stranger, "inside /proc"));
        }
    }
    Ok(())
}

/// The mount point in a line of the kernel's list (proc_pid_mountinfo(5)), if it lies in `/proc` and
/// should not.
fn stranger(line: &[u8], is_masked: bool) -> Option<PathBuf> {
    let mut fields = line.split(|&byte| byte == b' ').skip(4);
    let point = unescape(fields.next()?);
    let below = point.strip_prefix("/proc").ok()?;
    // After a hyphen, which optional fields come before.
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    // The kernel's own, of which parts are bound to themselves to be read-only.
    let is_kernels = kind == b"proc";
    let is_mask = is_masked && MASKED.iter().any(|path| point == Path::new(path));
    (!is_kernels && !is_mask && !is_replaceable(below)).then_some(point)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

    use super::*;
    use crate::spec::Propagation;

    fn volume(source: impl Into<PathBuf>, target: &str) -> Mount {
        Mount {
            source: source.into(),
            target: target.into(),
            read_only: false,
            propagation: Propagation::Private,
        }
    }

    fn made(root: &Path, directories: &[&str], links: &[(&str, &str)]) {
        for path in directories {
            std::fs::create_dir_all(root.join(path)).expect("made");
        }
        for (to, path) in links {
            symlink(to, root.join(path)).expect("made");
        }
    }

    #[test]
    fn targets_are_found_by_the_links_inside() {
        let place = tempfile::tempdir().expect("a temporary directory can be made");
        let (root, inner) = (place.path().join("root"), place.path().join("inner"));
        let links = [
            ("../run", "var/run"),
            ("../run/systemd/resolve/stub-resolv.conf", "etc/resolv.conf"),
            ("/../../..", "up"),
            ("loop", "loop"),
            ("/proc/sys", "dev/in-the-image"),
        ];
        made(&root, &["var", "run", "etc", "dev"], &links);
        let links = [("/proc/sys/kernel", "k"), ("../far", "out"), ("a/b", "in")];
        made(&inner, &[], &[]);
        std::fs::create_dir_all(&inner).expect("made");
        made(&inner, &["a"], &links);
        let check = |target: &str, expected: Result<&str, &str>| {
            // The deeper one is asked for first.
            let mounts = vec![volume("/tmp", target), volume(&inner, "/v")];
            let found = Layout::new(&root, mounts)
                .map(|layout| layout.mounts[0].target.display().to_string())
                .map_err(|refusal| refusal.message);
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(found, expected, "{target}");
        };
        check("/var/run/secrets/x", Ok("/run/secrets/x"));
        check(
            "/etc/resolv.conf",
            Ok("/run/systemd/resolve/stub-resolv.conf"),
        );
        check("/none/at/../all/./", Ok("/none/all"));
        check("/up/x", Ok("/x"));
        check("/dev/in-the-image", Ok("/dev/in-the-image"));
        check("/v/out/x", Ok("/far/x"));
        check("/v/in/c", Ok("/v/a/b/c"));
        check(
            "/v/k",
            Err("\"/v/k\" cannot be mounted because it is inside /proc"),
        );
        check(
            "/loop/x",
            Err("find mount target \"/loop/x\": Too many levels of symbolic links (os error 40)"),
        );
    }

    #[test]
    fn nothing_is_mounted_into_proc() {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        let links = [
            ("/proc", "a/link"),
            ("../../../../proc/sys", "a/up"),
            ("/proc/sys/kernel", "later"),
        ];
        made(root.path(), &["proc", "a/b"], &links);
        let check = |source: &str, target: &str, expected: Result<(), &str>| {
            let found = Layout::new(root.path(), vec![volume(source, target)])
                .map(drop)
                .map_err(|refusal| refusal.message);
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
            "/later",
            "/none/../proc/sys",
        ] {
            check("/tmp", target, Err(&format!("\"{target}\" {inside}")));
        }
    }

    #[test]
    fn strangers_in_proc_are_seen() {
        let check = |line: &str, is_masked, expected: Option<&str>| {
            let found = stranger(line.as_bytes(), is_masked);
            assert_eq!(found, expected.map(PathBuf::from), "{line}");
        };
        let proc = "26 24 0:23 / /proc rw,nosuid shared:13 - proc proc rw";
        check(proc, true, None);
        let bound = "93 92 0:23 /sys /proc/sys ro,nosuid - proc proc rw";
        check(bound, true, None);
        let mask = "94 92 0:5 /null /proc/kcore rw - devtmpfs udev rw,size=4k";
        check(mask, true, None);
        check(mask, false, Some("/proc/kcore"));
        let own = "95 92 8:1 /v/uptime /proc/uptime ro - ext4 /dev/sda1 rw";
        check(own, true, None);
        let strange = "96 92 8:1 /v/w /proc/sys/kernel rw master:4 propagate_from:2 - ext4 d rw";
        check(strange, true, Some("/proc/sys/kernel"));
        check("96 92 0:9 / /proc rw - tmpfs none rw", true, Some("/proc"));
        check("96 92 0:9 / /process rw - tmpfs none rw", true, None);
        check("", true, None);
    }

    /// Needs root.
    #[test]
    fn mounts_elsewhere_disturb_nothing() {
        let place = tempfile::tempdir().expect("a temporary directory can be made");
        let (root, busy) = (place.path().join("root"), place.path().join("busy"));
        made(&root, &["var", "run/secrets"], &[("../run", "var/run")]);
        std::fs::create_dir(&busy).expect("made");
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                use nix::sched::{CloneFlags, unshare};
                unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace of its own");
                let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                rustix::mount::mount_change("/", alone).expect("changed");
                while !is_over.load(Ordering::Relaxed) {
                    rustix::mount::mount("tmpfs", &busy, "tmpfs", MountFlags::empty(), None)
                        .expect("mounted");
                    rustix::mount::unmount(&busy, UnmountFlags::DETACH).expect("unmounted");
                }
            });
            let found = (0..20_000).find_map(|_| {
                let mounts = vec![volume("/tmp", "/var/run/secrets/x")];
                Layout::new(&root, mounts).err()
            });
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(found.map(|refusal| refusal.message), None);
        });
    }

    #[test]
    fn directories_are_made_where_they_will_be_seen() {
        let place = tempfile::tempdir().expect("a temporary directory can be made");
        let (root, data) = (place.path().join("root"), place.path().join("data"));
        made(
            &root,
            &["real"],
            &[("/real", "link"), ("/data/x", "to-data")],
        );
        std::fs::create_dir(&data).expect("made");
        std::fs::write(root.join("file"), b"").expect("written");
        let mounts = vec![
            volume(&data, "/data"),
            Mount {
                read_only: true,
                ..volume(&data, "/fixed")
            },
        ];
        let layout = Layout::new(&root, mounts).expect("a layout");
        let make = |path: &str| layout.make_directory(Path::new(path));
        for path in ["/link/a/b", "/", "/to-data/y", "/fixed/z", "/dev/shm/w"] {
            make(path).expect(path);
        }
        assert!(root.join("real/a/b").is_dir() && data.join("x/y").is_dir());
        assert!(!data.join("z").exists() && !root.join("dev").exists());
        assert!(make("/file/x").is_err());
    }
}
