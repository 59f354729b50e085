//! Who a container runs as: names are looked up in the root file system it will have.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use crate::api::Error;
use crate::error::machine;

/// Lookups that are remembered.
const REMEMBERED_MAX: usize = 512;

/// Users of images that were looked up. Images do not change, so neither do the answers.
#[derive(Debug, Default)]
pub(crate) struct Users(Mutex<HashMap<(oci::Digest, String), image::User>>);

impl Users {
    /// Finds `spec` in an image; `root` is the fresh root of a container on it.
    pub(crate) fn find(
        &self,
        image: &oci::Digest,
        root: &image::Root,
        spec: &str,
    ) -> Result<image::User, Error> {
        let key = (image.clone(), spec.to_owned());
        if let Some(user) = self.0.lock().get(&key) {
            return Ok(user.clone());
        }
        let user = look_up(&root.lower, spec)?;
        let mut remembered = self.0.lock();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(key, user.clone());
        Ok(user)
    }
}

/// Looks into layers, uppermost first, as one file system: as an overlay that is mounted nowhere
/// and is gone with its descriptor.
fn look_up(layers: &[PathBuf], spec: &str) -> Result<image::User, Error> {
    let failed = |source: std::io::Error| machine("look into the image for user", spec, source);
    if let [only] = layers {
        return look_in(only, spec);
    }
    let overlay = overlay(layers).map_err(|error| failed(error.into()))?;
    look_in(
        Path::new(&format!("/proc/self/fd/{}", overlay.as_raw_fd())),
        spec,
    )
}

/// Looks into a directory that is the root of a container.
pub(crate) fn look_in(root: &Path, spec: &str) -> Result<image::User, Error> {
    image::lookup_user(root, spec).map_err(|error| match error {
        image::UserError::Read { .. } => machine("look up user", spec, error),
        error => Error::Invalid(error.to_string()),
    })
}

fn overlay(layers: &[PathBuf]) -> rustix::io::Result<std::os::fd::OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in layers {
        fsconfig_set_string(context.as_fd(), "lowerdir+", layer)?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )
}
