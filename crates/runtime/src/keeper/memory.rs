//! The `/dev/shm` that the containers of a sandbox share.
//!
//! It is a tmpfs that shows nowhere on the machine and is gone with the last who has it. A keeper
//! holds it for containers to come; how depends on the kernel:
//!
//! ```text
//! Linux 6.15 on   a mount that is attached nowhere can be copied: the keeper has its descriptor
//! before          only a mount in one's own mount namespace can be: the keeper has a descriptor of
//!                 a mount namespace with it, which a launcher enters to make its copy
//! ```

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::mount as kernel;

/// Where it is mounted in a namespace of its own: some directory that is there on every machine.
const PLACE: &str = "/dev";

/// What a keeper holds.
#[derive(Debug)]
pub(super) enum SharedMemory {
    /// A mount that is attached nowhere.
    Detached(OwnedFd),
    /// A mount namespace in which it lies on [`PLACE`], and its device number.
    Namespace { namespace: OwnedFd, device: u64 },
}

impl SharedMemory {
    /// Makes one of `size` bytes, in whichever way this kernel can hand it on.
    pub(super) fn new(size: u64) -> io::Result<SharedMemory> {
        let detached = SharedMemory::detached(size)?;
        match detached.copy() {
            Ok(_) => Ok(detached),
            Err(_) => SharedMemory::in_namespace(size),
        }
    }

    fn detached(size: u64) -> io::Result<SharedMemory> {
        Ok(SharedMemory::Detached(file_system(size)?))
    }

    fn in_namespace(size: u64) -> io::Result<SharedMemory> {
        elsewhere(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let device = lay_down(size)?;
            let namespace = own_namespace()?;
            Ok(SharedMemory::Namespace { namespace, device })
        })
    }

    /// A copy to be attached wherever the caller likes. The calling process has one thread.
    pub(super) fn copy(&self) -> io::Result<OwnedFd> {
        match self {
            SharedMemory::Detached(memory) => copy(memory, ""),
            SharedMemory::Namespace { namespace, device } => elsewhere(|| {
                setns(namespace, CloneFlags::CLONE_NEWNS)?;
                let copied = copy(rustix::fs::CWD, PLACE)?;
                // Whatever else may lie there must never be shown to a container.
                match rustix::fs::fstat(&copied)?.st_dev == *device {
                    true => Ok(copied),
                    false => Err(io::Error::other("it is not where it was put")),
                }
            }),
        }
    }
}

/// Does something that goes to another mount namespace, and comes back to this one and to the
/// working directory, which is lost on the way.
fn elsewhere<T>(visit: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let home = own_namespace()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(".", flags, Mode::empty())?;
    let result = visit();
    setns(&home, CloneFlags::CLONE_NEWNS)?;
    rustix::process::fchdir(&directory)?;
    result
}

/// The calling thread's, which in a keeper is the process's.
fn own_namespace() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(
        "/proc/thread-self/ns/mnt",
        flags,
        Mode::empty(),
    )?)
}

/// In a mount namespace of its own: mounts the file system, to be seen there only.
fn lay_down(size: u64) -> io::Result<u64> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NONE)?;
    let memory = file_system(size)?;
    kernel::move_mount(
        memory.as_fd(),
        "",
        rustix::fs::CWD,
        PLACE,
        kernel::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(rustix::fs::fstat(&memory)?.st_dev)
}

fn copy(from: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    Ok(kernel::open_tree(
        from,
        path,
        kernel::OpenTreeFlags::OPEN_TREE_CLONE
            | kernel::OpenTreeFlags::OPEN_TREE_CLOEXEC
            | kernel::OpenTreeFlags::AT_EMPTY_PATH,
    )?)
}

fn file_system(size: u64) -> io::Result<OwnedFd> {
    let context = kernel::fsopen("tmpfs", kernel::FsOpenFlags::FSOPEN_CLOEXEC)?;
    kernel::fsconfig_set_string(context.as_fd(), "source", "shm")?;
    kernel::fsconfig_set_string(context.as_fd(), "mode", "1777")?;
    kernel::fsconfig_set_string(context.as_fd(), "size", size.to_string())?;
    kernel::fsconfig_create(context.as_fd())?;
    Ok(kernel::fsmount(
        context.as_fd(),
        kernel::FsMountFlags::FSMOUNT_CLOEXEC,
        kernel::MountAttrFlags::MOUNT_ATTR_NOSUID
            | kernel::MountAttrFlags::MOUNT_ATTR_NODEV
            | kernel::MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a test in a thread that has a working directory, a root and a mount namespace of its
    /// own: whatever it mounts is gone with it and is never seen outside.
    fn aside(test: fn() -> io::Result<()>) {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let thread = std::thread::spawn(move || {
            const NONE: Option<&str> = None;
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
            mount(NONE, "/", NONE, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NONE)?;
            // On something that is its own, too: nothing below belongs to the machine.
            mount(Some("aside"), "/mnt", Some("tmpfs"), MsFlags::empty(), NONE)?;
            test()
        });
        thread
            .join()
            .expect("no panic")
            .expect("root may do all this");
    }

    fn place(memory: &SharedMemory, at: &str) -> io::Result<()> {
        std::fs::create_dir(at)?;
        Ok(kernel::move_mount(
            memory.copy()?.as_fd(),
            "",
            rustix::fs::CWD,
            at,
            kernel::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?)
    }

    /// What is written through one copy is read through another.
    fn check_sharing(memory: &SharedMemory) -> io::Result<()> {
        std::env::set_current_dir("/mnt")?;
        place(memory, "one")?;
        std::fs::write("one/file", "from the first")?;
        place(memory, "/mnt/two")?;
        assert_eq!(std::fs::read_to_string("two/file")?, "from the first");
        assert_eq!(std::env::current_dir()?, std::path::Path::new("/mnt"));
        Ok(())
    }

    #[test]
    fn copies_share_what_is_in_them() {
        aside(|| check_sharing(&SharedMemory::new(1 << 20)?));
    }

    #[test]
    fn copies_share_it_on_older_kernels_too() {
        aside(|| check_sharing(&SharedMemory::in_namespace(1 << 20)?));
    }
}
