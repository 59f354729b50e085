//! Where a container's volumes come from, and who hears of what is mounted in them.
//!
//! The decision: volumes are taken from the machine before anything is changed in the launcher's mount
//! namespace. To keep a container's own mounts to itself, the mount below its directory is made private;
//! on many machines that is the one that everything is in, and a volume taken from it later would hear of
//! no mount of the machine, nor the machine of the volume's. libcontainer knows the propagation of a whole
//! container only, so that one volume that is to be heard of would take all others along. So each gets its
//! own here, at a place of its own, from which libcontainer binds it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::FileType;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree,
};

use super::process::reason;
use crate::protocol::{Refusal, RefusalKind};
use crate::spec::{Mount, Propagation};

/// Volumes that have been taken and are mounted nowhere yet, with all that is mounted in them.
pub(super) struct Sources(Vec<OwnedFd>);

impl Sources {
    pub(super) fn take(mounts: &[Mount]) -> Result<Sources, Refusal> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let take = |mount: &Mount| {
            open_tree(rustix::fs::CWD, &mount.source, flags).map_err(|error| {
                let (path, why) = (mount.source.display(), reason(&error.into()));
                Refusal::new(
                    RefusalKind::Machine,
                    format!("find mount source \"{path}\": {why}"),
                )
            })
        };
        Ok(Sources(mounts.iter().map(take).collect::<Result<_, _>>()?))
    }

    /// Mounts them in `directory`, which is of this mount namespace alone, and lets `mounts`, those that
    /// they were taken for, come from there.
    pub(super) fn place(self, directory: &Path, mounts: &mut [Mount]) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        for (number, (tree, mount)) in self.0.iter().zip(mounts).enumerate() {
            let place = directory.join(number.to_string());
            let mode = rustix::fs::fstat(tree)?.st_mode;
            match FileType::from_raw_mode(mode) {
                FileType::Directory => fs::create_dir(&place)?,
                _ => fs::write(&place, [])?,
            }
            let itself = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(tree, "", rustix::fs::CWD, &place, itself)?;
            let propagation = match mount.propagation {
                Propagation::Private => Some(MountPropagationFlags::PRIVATE),
                Propagation::HostToContainer => Some(MountPropagationFlags::DOWNSTREAM),
                // What the machine shares; what it keeps private cannot be heard of.
                Propagation::Bidirectional => None,
            };
            if let Some(propagation) = propagation {
                mount_change(&place, propagation | MountPropagationFlags::REC)?;
            }
            mount.source = place;
        }
        Ok(())
    }
}
