//! Images whose files are mounted for a sandbox's containers, beside the image that each runs.
//!
//! The image store holds the layers for whoever has a root on them, so such an image has a root of
//! its own, to which nothing is ever written. Its name begins with the sandbox's and a dot, which is
//! in no container's id: so it is known to whom it belongs, also by the next daemon.

use std::path::Path;

use super::Inner;
use crate::api::{Error, SandboxId};
use crate::error::machine;

impl Inner {
    pub(super) async fn mount_image(
        &self,
        sandbox: &SandboxId,
        name: &str,
        image: &str,
        target: &Path,
    ) -> Result<(), Error> {
        let images = &self.config.images;
        let found = images
            .find(image)
            .ok_or_else(|| Error::ImageNotFound(image.to_owned()))?;
        let root = format!("{}.{name}", sandbox.0);
        let failed = |error| machine("mount image", image, error);
        images.root(&found, &root).await.map_err(failed)?;
        images.mount_layers(&root, target).await.map_err(failed)
    }

    /// Lets the layers of a sandbox's mounted images go.
    pub(super) async fn release_images(&self, sandbox: &SandboxId) -> Result<(), Error> {
        let images = &self.config.images;
        for root in images.roots() {
            if owner(&root) == Some(sandbox.0.as_str()) {
                images
                    .remove_root(&root)
                    .await
                    .map_err(|error| machine("release the image of", &root, error))?;
            }
        }
        Ok(())
    }
}

/// The sandbox to which a root belongs, if it is none of a container.
pub(super) fn owner(root: &str) -> Option<&str> {
    root.split_once('.').map(|(sandbox, _)| sandbox)
}
