//! The executable as keepers run it: on a mount of its own where nobody can write.
//!
//! A container can get hold of the file that its keeper executes: commands that are executed in it are
//! forks of the keeper for a moment, and `/proc/self/exe` as a container's command is that file. As
//! long as anybody executes it, the kernel lets nobody write to it; but a descriptor can be kept until
//! nobody does, and then a container's root would write to the machine's program (CVE-2019-5736).
//!
//! A descriptor that came by a read-only mount can never be opened again for writing. The mount is
//! attached nowhere, so nobody can change it, and lasts as long as somebody executes from it. The file
//! is the same one: its pages are shared, which a sealed copy's would not be with a server that was
//! started anew.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::mount::{OpenTreeFlags, open_tree};

/// Opens the program on such a mount. It is executed as `/proc/self/fd/N`.
pub(crate) fn open_read_only(program: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let file = open_tree(rustix::fs::CWD, program, flags)?;
    forbid_writing(&file)?;
    Ok(file)
}

fn forbid_writing(mount: impl AsFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    #[expect(unsafe_code, reason = "mount_setattr(2) has no safe wrapper")]
    // SAFETY: the path is a constant, and the structure lives during the call and has the size that is
    // told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
