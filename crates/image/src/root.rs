//! Root file systems of containers: an overlay of an image's layers with a directory for what the
//! container changes.
//!
//! ```text
//! root ─► roots/<id>/{upper,work,rootfs,root.json} ─mount_root─► rootfs is the root file system
//!              ▲                                  └─unmount_root─┘        │
//!              └────────────── remove_root: gone, with all that was written
//! ```
//!
//! Mounts are the machine's: they stay when the daemon ends, and the next one finds them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::place;
use crate::store::{Image, Images, Inner, OpenError, blocking, names_in, remove_or_warn};

/// Name of the mount point in a root's directory.
pub(crate) const ROOTFS: &str = "rootfs";
const RECORD: &str = "root.json";
const ID_LENGTH_MAX: usize = 128;

/// A container's root, mounted or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The container.
    pub id: String,
    /// Directories of the layers, the uppermost first. Never written to.
    pub lower: Vec<PathBuf>,
    /// What the container changed.
    pub upper: PathBuf,
    /// Overlayfs's own.
    pub work: PathBuf,
    /// Where it is mounted.
    pub target: PathBuf,
}

/// Why a root cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// It would not be the name of one directory.
    #[error("\"{0}\" cannot be the id of a container's root")]
    Id(String),
    /// The image was removed meanwhile.
    #[error("image {0} is not on this machine any more")]
    ImageGone(Digest),
    /// There is no such root, or its layers are gone.
    #[error("container {0} has no root file system")]
    NotFound(String),
    /// The system refused.
    #[error("cannot {step} the root of container {id}: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// For which container.
        id: String,
        /// Why not.
        source: io::Error,
    },
}

/// `root.json`.
#[derive(Serialize, Deserialize)]
struct Record {
    /// Keys of the layers, lowest first.
    layers: Vec<Digest>,
}

impl Images {
    /// Prepares a container's root on an image; one that is there already is returned as it is.
    /// The layers stay until [`Images::remove_root`], even if the image is removed.
    pub async fn root(&self, image: &Image, container_id: &str) -> Result<Root, RootError> {
        let (inner, id) = (self.0.clone(), checked(container_id)?);
        let (image, layers) = (image.id.clone(), image.layers.clone());
        blocking(move || prepare(&inner, image, layers, id)).await
    }

    /// Mounts a root, if it is not mounted, and says where.
    pub async fn mount_root(&self, container_id: &str) -> Result<PathBuf, RootError> {
        let (inner, id) = (self.0.clone(), checked(container_id)?);
        blocking(move || {
            let root = described(&inner, &id)?;
            let failed = |source| RootError::System {
                step: "mount",
                id: id.clone(),
                source,
            };
            if mounts::is_mounted(&root.target).map_err(failed)? {
                return Ok(root.target);
            }
            let lower: Vec<&Path> = root.lower.iter().map(PathBuf::as_path).collect();
            let overlay = mounts::Overlay {
                lower: &lower,
                upper: Some(mounts::Upper {
                    directory: &root.upper,
                    work: &root.work,
                    volatile: false,
                }),
            };
            mounts::mount_overlay(&overlay, "wharf", &root.target).map_err(failed)?;
            Ok(root.target)
        })
        .await
    }

    /// Mounts the layers of a root, without what was written to it, on `target`: a directory, on
    /// which nothing can be written then. It stays until somebody unmounts it, which must be before
    /// [`Images::remove_root`]. Mounted there already is fine.
    pub async fn mount_layers(&self, id: &str, target: &Path) -> Result<(), RootError> {
        let (inner, id, target) = (self.0.clone(), checked(id)?, target.to_owned());
        blocking(move || {
            let root = described(&inner, &id)?;
            let failed = |source| RootError::System {
                step: "mount the layers of",
                id: id.clone(),
                source,
            };
            if mounts::is_mounted(&target).map_err(failed)? {
                return Ok(());
            }
            let empty = inner.empty_directory();
            let layers = root.lower.iter().map(PathBuf::as_path);
            let lower: Vec<&Path> = layers.chain([empty.as_path()]).collect();
            let overlay = mounts::Overlay {
                lower: &lower,
                upper: None,
            };
            mounts::mount_overlay(&overlay, "wharf", &target).map_err(failed)
        })
        .await
    }

    /// Takes the mount away; what the container wrote stays. Not mounted, or no such root, is fine.
    pub async fn unmount_root(&self, container_id: &str) -> Result<(), RootError> {
        let (inner, id) = (self.0.clone(), checked(container_id)?);
        blocking(move || {
            let target = inner.roots_directory().join(&id).join(ROOTFS);
            mounts::detach(&target).map_err(|source| RootError::System {
                step: "unmount",
                id,
                source,
            })
        })
        .await
    }

    /// Unmounts and removes a root with all that was written. No such root is fine.
    pub async fn remove_root(&self, container_id: &str) -> Result<(), RootError> {
        let (inner, id) = (self.0.clone(), checked(container_id)?);
        blocking(move || remove(&inner, &id)).await
    }

    /// A root as [`Images::root`] made it.
    pub fn find_root(&self, container_id: &str) -> Result<Root, RootError> {
        described(&self.0, &checked(container_id)?)
    }

    /// The containers that have a root, also those that an earlier process made.
    pub fn roots(&self) -> Vec<String> {
        self.0.state.read().roots.keys().cloned().collect()
    }

    /// Bytes on the disk that the container changed, layers not counted. Counting ends beyond `most`.
    pub async fn root_size(&self, container_id: &str, most: u64) -> Result<u64, RootError> {
        let (inner, id) = (self.0.clone(), checked(container_id)?);
        blocking(move || {
            let upper = described(&inner, &id)?.upper;
            tree::usage(&upper, most).map_err(|source| RootError::System {
                step: "measure",
                id,
                source,
            })
        })
        .await
    }
}

/// At open: roots that are whole. Half-made ones are removed.
pub(crate) fn take_up(directory: &Path) -> Result<BTreeMap<String, Vec<Digest>>, OpenError> {
    let mut roots = BTreeMap::new();
    for name in names_in(directory)? {
        let path = directory.join(&name);
        let record = std::fs::read(path.join(RECORD))
            .and_then(|content| Ok(serde_json::from_slice::<Record>(&content)?));
        match (name.into_string(), record) {
            (Ok(id), Ok(record)) => {
                roots.insert(id, record.layers);
            }
            (name, record) => {
                let error = record.err().map(|error| error.to_string());
                tracing::warn!(?name, error, "removing what is left of a container's root");
                if let Err(error) = mounts::detach(&path.join(ROOTFS)) {
                    tracing::warn!(path = %path.display(), %error, "cannot unmount it");
                    continue;
                }
                remove_or_warn(&path);
            }
        }
    }
    Ok(roots)
}

fn checked(id: &str) -> Result<String, RootError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if id.is_empty() || id.len() > ID_LENGTH_MAX || id.starts_with('.') || !id.bytes().all(is_plain)
    {
        return Err(RootError::Id(id.to_owned()));
    }
    Ok(id.to_owned())
}

fn prepare(
    inner: &Inner,
    image: Digest,
    layers: Vec<Digest>,
    id: String,
) -> Result<Root, RootError> {
    // From here on the layers are this root's: nobody else can take them away.
    let mut state = inner.state.write();
    if state.roots.contains_key(&id) {
        drop(state);
        return described(inner, &id);
    }
    if layers.iter().any(|key| !state.layers.contains_key(key)) {
        return Err(RootError::ImageGone(image));
    }
    state.roots.insert(id.clone(), layers.clone());
    drop(state);
    let made = described(inner, &id).and_then(|root| {
        make(inner, &root, layers).map_err(|source| RootError::System {
            step: "make",
            id: id.clone(),
            source,
        })?;
        Ok(root)
    });
    if made.is_err() {
        inner.state.write().roots.remove(&id);
    }
    made
}

/// Makes the directories, and moves them into place when they are whole.
fn make(inner: &Inner, root: &Root, layers: Vec<Digest>) -> io::Result<()> {
    let unfinished = tempfile::Builder::new()
        .prefix("root-")
        .tempdir_in(inner.tmp_directory())?;
    for name in ["upper", "work", ROOTFS] {
        std::fs::create_dir(unfinished.path().join(name))?;
    }
    let upper = unfinished.path().join("upper");
    // The root directory of an overlay is that of its upper layer.
    match described_root(inner, &layers) {
        Some(layer) => place::copy_description(&layer, &upper)?,
        None => {
            std::fs::set_permissions(&upper, std::os::unix::fs::PermissionsExt::from_mode(0o755))?
        }
    }
    let record = serde_json::to_vec(&Record { layers }).expect("digests are plain data");
    std::fs::write(unfinished.path().join(RECORD), record)?;
    let target = root
        .target
        .parent()
        .expect("a mount point is in its root's directory");
    std::fs::rename(unfinished.path(), target)?;
    // It is not there any more.
    let _ = unfinished.keep();
    Ok(())
}

/// The uppermost layer that says who owns `/`.
fn described_root(inner: &Inner, layers: &[Digest]) -> Option<PathBuf> {
    let state = inner.state.read();
    let key = layers.iter().rev().find(|key| {
        state
            .layers
            .get(key)
            .is_some_and(|layer| layer.root_described)
    })?;
    Some(inner.layer_directory(key).join("fs"))
}

fn described(inner: &Inner, id: &str) -> Result<Root, RootError> {
    let state = inner.state.read();
    let not_found = || RootError::NotFound(id.to_owned());
    let layers = state.roots.get(id).ok_or_else(not_found)?;
    let mut lower = Vec::new();
    for key in layers.iter().rev() {
        let layer = state.layers.get(key).ok_or_else(not_found)?;
        lower.push(inner.layer_directory(key).join("fs"));
        if layer.root_opaque {
            break;
        }
    }
    if lower.is_empty() {
        // Overlayfs wants at least one: an image without layers stands on an empty one.
        lower.push(inner.empty_directory());
    }
    let directory = inner.roots_directory().join(id);
    Ok(Root {
        id: id.to_owned(),
        lower,
        upper: directory.join("upper"),
        work: directory.join("work"),
        target: directory.join(ROOTFS),
    })
}

fn remove(inner: &Inner, id: &str) -> Result<(), RootError> {
    let directory = inner.roots_directory().join(id);
    let failed = |step| {
        move |source| RootError::System {
            step,
            id: id.to_owned(),
            source,
        }
    };
    mounts::detach(&directory.join(ROOTFS)).map_err(failed("unmount"))?;
    match inner.set_aside(&directory) {
        Ok(aside) => remove_or_warn(&aside),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("remove")(error)),
    }
    inner.state.write().roots.remove(id);
    inner.collect_garbage();
    Ok(())
}
