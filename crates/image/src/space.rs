//! Room on the disk: what is unpacked must not take the last of it from everybody else.
//!
//! What an archive says of its size need not be true, and what is compressed may be a thousand times as
//! large as it looks. So the disk is looked at while it is being filled, and a part of it is left.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::fstatvfs;

/// So many bytes are written between two looks at the disk.
const LOOK_AFTER: u64 = 16 << 20;
/// What is left of the disk: a twentieth, but no more than this.
const KEPT_MAX: u64 = 1 << 30;
const KEPT_SHARE: u64 = 20;

/// Looks after the room on a disk while something is written to it.
#[derive(Default)]
pub(crate) struct Room {
    since_look: u64,
}

/// There is no room for what is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom {
    /// Bytes that may still be written.
    pub(crate) free: u64,
}

impl Room {
    /// Asks for room for so many more bytes on the disk of a file or directory. Now and then the disk
    /// is looked at: for much at once, and for little often enough.
    pub(crate) fn ask(&mut self, disk: impl AsFd, bytes: u64) -> io::Result<Result<(), NoRoom>> {
        self.since_look = self.since_look.saturating_add(bytes);
        if self.since_look < LOOK_AFTER {
            return Ok(Ok(()));
        }
        self.since_look = 0;
        let disk = fstatvfs(disk)?;
        let size = disk.f_blocks.saturating_mul(disk.f_frsize);
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        Ok(grant(size, free, bytes))
    }
}

fn grant(size: u64, free: u64, bytes: u64) -> Result<(), NoRoom> {
    let free = free.saturating_sub((size / KEPT_SHARE).min(KEPT_MAX));
    // Until the next look this much may be written without asking.
    match bytes.max(LOOK_AFTER) <= free {
        true => Ok(()),
        false => Err(NoRoom { free }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twentieth_of_the_disk_is_left_but_no_more_than_a_gigabyte() {
        let (mega, giga) = (1 << 20, 1 << 30);
        assert_eq!(grant(200 * mega, 100 * mega, 90 * mega), Ok(()));
        let none = NoRoom { free: 90 * mega };
        assert_eq!(grant(200 * mega, 100 * mega, 90 * mega + 1), Err(none));
        assert_eq!(grant(1000 * giga, 3 * giga, 2 * giga), Ok(()));
        assert_eq!(grant(1000 * giga, giga / 2, 1), Err(NoRoom { free: 0 }));
        let little = NoRoom { free: 8 * mega };
        assert_eq!(grant(40 * mega, 10 * mega, mega), Err(little));
    }

    #[test]
    fn little_is_asked_after_often_enough_and_much_at_once() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let disk = std::fs::File::open(directory.path()).expect("a directory");
        let mut room = Room::default();
        let mut ask = |bytes| room.ask(&disk, bytes).expect("a disk").is_ok();
        assert!(ask(1), "it is not looked at for this");
        assert!(!ask(u64::MAX / 2), "there is no such disk");
        assert!(ask(LOOK_AFTER - 1));
        assert_eq!(room.since_look, LOOK_AFTER - 1);
        let _ = room.ask(&disk, 1).expect("a disk");
        assert_eq!(room.since_look, 0);
    }
}
