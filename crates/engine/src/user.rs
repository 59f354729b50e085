//! Who a container runs as: names are looked up in the root file system it will have.

use std::collections::HashMap;
use std::path::Path;

use image::Images;
use parking_lot::Mutex;

use crate::api::Error;
use crate::error::machine;

/// Lookups that are remembered.
const REMEMBERED_MAX: usize = 512;

/// Users of images that were looked up. Images do not change, so neither do the answers.
#[derive(Debug, Default)]
pub(crate) struct Users(Mutex<HashMap<(oci::Digest, String), image::User>>);

impl Users {
    /// Finds `spec` in an image; `root` is the fresh root of a container on it.
    pub(crate) async fn find(
        &self,
        images: &Images,
        image: &oci::Digest,
        root: &image::Root,
        spec: &str,
    ) -> Result<image::User, Error> {
        let key = (image.clone(), spec.to_owned());
        if let Some(user) = self.0.lock().get(&key) {
            return Ok(user.clone());
        }
        let user = look_up(images, root, spec).await?;
        let mut remembered = self.0.lock();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(key, user.clone());
        Ok(user)
    }
}

/// Looks into the layers as one file system, which is mounted for as long as that takes.
async fn look_up(images: &Images, root: &image::Root, spec: &str) -> Result<image::User, Error> {
    if let [only] = &root.lower[..] {
        return look_in(only, spec);
    }
    let failed = |error| machine("look into the image for user", spec, error);
    let mounted = images.mount_root(&root.id).await.map_err(failed)?;
    let found = look_in(&mounted, spec);
    images.unmount_root(&root.id).await.map_err(failed)?;
    found
}

/// Looks into a directory that is the root of a container.
pub(crate) fn look_in(root: &Path, spec: &str) -> Result<image::User, Error> {
    image::lookup_user(root, spec).map_err(|error| match error {
        image::UserError::Read { .. } => machine("look up user", spec, error),
        error => Error::Invalid(error.to_string()),
    })
}
