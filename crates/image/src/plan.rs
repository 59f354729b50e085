//! What an archive says it carries, before any layer is read.
//!
//! An archive of `docker save` has a `manifest.json`; an OCI image layout has an `index.json`;
//! Docker 25 and later write both, and then the first gives the names and the second is held to its
//! word.

use std::collections::BTreeSet;
use std::sync::Arc;

use oci::{
    Descriptor, Digest, DigestMismatch, DockerManifest, Index, Manifest, Reference, ReferenceError,
    media_type,
};
use serde::de::DeserializeOwned;

use crate::archive::{Archive, ArchiveError, Member};

/// Configurations, manifests and indexes.
const DOCUMENT_BYTES_MAX: u64 = 16 << 20;
/// Indexes within indexes.
const INDEX_DEPTH_MAX: usize = 4;
/// Entries of all indexes together, each as often as it is come to: an index may be listed many times
/// in another, and that one in yet another.
const DESCRIPTORS_MAX: usize = 10_000;
/// Images in one archive.
const IMAGES_MAX: usize = 1_000;
/// More layers than overlayfs can stack (500) are of no use.
const LAYERS_MAX: usize = 500;

const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Why an archive carries no image that can be loaded.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Neither of the documents that make an image archive.
    #[error(
        "this is not an image archive: there is neither manifest.json nor index.json in it; for a tar of a root file system use `wharf image import`"
    )]
    NotAnImage,
    /// The archive itself.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A document that is not what it should be.
    #[error("{path} in the archive cannot be read: {source}")]
    Document {
        /// Which one.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
    /// Something is referred to and not there.
    #[error(
        "{path} is missing from the archive: make the archive again, with all that the image needs"
    )]
    Missing {
        /// What.
        path: String,
    },
    /// Something is not what its digest says.
    #[error("{path} is damaged: {source}; make or copy the archive again")]
    Digest {
        /// Which member.
        path: String,
        /// What was found.
        source: DigestMismatch,
    },
    /// Something has not the length that its descriptor says.
    #[error("{path} is {actual} bytes long, expected {expected}; make or copy the archive again")]
    Length {
        /// Which member.
        path: String,
        /// What it should be.
        expected: u64,
        /// What it is.
        actual: u64,
    },
    /// Layers and diff ids do not go together.
    #[error("image {image} has {layers} layers, but its configuration names {diff_ids}")]
    LayerCount {
        /// The image.
        image: Digest,
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// More layers than can be mounted.
    #[error("image {image} has {layers} layers; more than {LAYERS_MAX} cannot be mounted")]
    TooManyLayers {
        /// The image.
        image: Digest,
        /// How many.
        layers: usize,
    },
    /// A name that is none.
    #[error("the archive names an image \"{name}\": {source}; give it another name with --tag")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        source: ReferenceError,
    },
    /// There are images, but not for this machine.
    #[error("the archive has no image for linux/{wanted}, only for {found}")]
    Platform {
        /// This machine's architecture.
        wanted: &'static str,
        /// What there is.
        found: String,
    },
    /// A Helm chart, a signature, and so on.
    #[error("the archive carries no container image but a {0}")]
    Artifact(String),
    /// Something in it is larger or deeper than images are.
    #[error("the archive {0}")]
    Excess(&'static str),
}

/// One image that is to be loaded.
pub(crate) struct PlannedImage {
    pub(crate) id: Digest,
    pub(crate) names: Vec<Reference>,
    /// Known for OCI layouts.
    pub(crate) manifest: Option<Digest>,
    pub(crate) config: Vec<u8>,
    pub(crate) document: Arc<oci::Image>,
    /// Lowest first.
    pub(crate) layers: Vec<PlannedLayer>,
}

/// One of its layers.
#[derive(Clone)]
pub(crate) struct PlannedLayer {
    pub(crate) diff_id: Digest,
    /// In the archive, for messages.
    pub(crate) path: String,
    pub(crate) member: Member,
    /// Of the member as it is, compressed or not; unknown for old archives.
    pub(crate) blob: Option<Digest>,
}

/// Reads the documents of an archive. At least one image.
pub(crate) fn plan(archive: &Archive) -> Result<Vec<PlannedImage>, PlanError> {
    let saved: Option<Vec<DockerManifest>> = document(archive, "manifest.json")?;
    let index: Option<Index> = document(archive, "index.json")?;
    let layout = match &index {
        Some(index) => layout_images(archive, index, saved.is_some())?,
        None => Vec::new(),
    };
    let images = match saved {
        Some(saved) => saved_images(archive, &saved, &layout)?,
        None if index.is_none() => return Err(PlanError::NotAnImage),
        None => layout,
    };
    if images.is_empty() {
        return Err(PlanError::NotAnImage);
    }
    Ok(images)
}

fn saved_images(
    archive: &Archive,
    saved: &[DockerManifest],
    layout: &[PlannedImage],
) -> Result<Vec<PlannedImage>, PlanError> {
    if saved.len() > IMAGES_MAX {
        return Err(PlanError::Excess("has more than 1,000 images"));
    }
    let mut images = Vec::new();
    for manifest in saved {
        let config = required(archive, &manifest.config)?;
        let id = Digest::of(&config);
        if let Some(promised) = digest_in_name(&manifest.config) {
            verify(&manifest.config, &promised, &config)?;
        }
        let same = layout.iter().find(|image| image.id == id);
        let names = manifest
            .repo_tags
            .iter()
            .map(|name| parse_name(name))
            .collect::<Result<_, _>>()?;
        let document = parse(&manifest.config, &config)?;
        let layers = manifest
            .layers
            .iter()
            .map(|path| (path.clone(), digest_in_blob_path(path)))
            .collect();
        let mut image = planned(archive, id, config, document, layers)?;
        image.names = names;
        if let Some(same) = same {
            image.manifest = same.manifest.clone();
            for (layer, twin) in image.layers.iter_mut().zip(&same.layers) {
                layer.blob = layer.blob.take().or_else(|| twin.blob.clone());
            }
        }
        images.push(image);
    }
    Ok(images)
}

/// The images of an OCI layout for this machine. Beside a `manifest.json` an image that is not
/// whole, or for another machine, is passed over: `docker save` lists those, too.
fn layout_images(
    archive: &Archive,
    index: &Index,
    beside_saved: bool,
) -> Result<Vec<PlannedImage>, PlanError> {
    let mut images: Vec<PlannedImage> = Vec::new();
    let mut search = Search::default();
    for descriptor in &index.manifests {
        if images.len() == IMAGES_MAX {
            return Err(PlanError::Excess("has more than 1,000 images"));
        }
        if beside_saved && archive.find(&blob_path(&descriptor.digest)).is_none() {
            continue;
        }
        let Some(found) = search.manifest_for_machine(archive, descriptor, 0)? else {
            continue;
        };
        let manifest: Manifest = parse(&blob_path(&found), &blob(archive, &found, None)?)?;
        let mut image = match layout_image(archive, &manifest) {
            Ok(image) => image,
            Err(PlanError::Missing { .. } | PlanError::Artifact(_)) if beside_saved => continue,
            Err(error) => return Err(error),
        };
        image.manifest = Some(found);
        image.names = name_in(descriptor)?.into_iter().collect();
        // The same image under several names is listed once for each.
        match images.iter_mut().find(|other| other.id == image.id) {
            Some(other) => other.names.append(&mut image.names),
            None => images.push(image),
        }
    }
    if images.is_empty() && !beside_saved && !search.other_platforms.is_empty() {
        let found: Vec<_> = search.other_platforms.into_iter().collect();
        return Err(PlanError::Platform {
            wanted: architecture(),
            found: found.join(", "),
        });
    }
    Ok(images)
}

/// A search for what this machine can run.
#[derive(Default)]
struct Search {
    visited: usize,
    other_platforms: BTreeSet<String>,
}

impl Search {
    /// Follows indexes down to the first manifest that this machine can run.
    fn manifest_for_machine(
        &mut self,
        archive: &Archive,
        descriptor: &Descriptor,
        depth: usize,
    ) -> Result<Option<Digest>, PlanError> {
        self.visited += 1;
        if self.visited > DESCRIPTORS_MAX {
            return Err(PlanError::Excess("lists more than 10,000 manifests"));
        }
        // Provenance of a build and such, which buildkit lists among the manifests.
        if descriptor
            .annotations
            .contains_key("vnd.docker.reference.type")
        {
            return Ok(None);
        }
        if let Some(platform) = &descriptor.platform
            && (platform.os != "linux" || platform.architecture != architecture())
        {
            let other = format!("{}/{}", platform.os, platform.architecture);
            self.other_platforms.insert(other);
            return Ok(None);
        }
        if !media_type::is_index(&descriptor.media_type) {
            if !media_type::is_manifest(&descriptor.media_type) {
                return Err(PlanError::Artifact(descriptor.media_type.clone()));
            }
            return Ok(Some(descriptor.digest.clone()));
        }
        if depth == INDEX_DEPTH_MAX {
            return Err(PlanError::Excess("has indexes within indexes without end"));
        }
        let content = blob(archive, &descriptor.digest, Some(descriptor.size))?;
        let index: Index = parse(&blob_path(&descriptor.digest), &content)?;
        for below in &index.manifests {
            if let Some(found) = self.manifest_for_machine(archive, below, depth + 1)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

fn layout_image(archive: &Archive, manifest: &Manifest) -> Result<PlannedImage, PlanError> {
    let kind = &manifest.config.media_type;
    if kind != media_type::CONFIG && kind != DOCKER_CONFIG {
        return Err(PlanError::Artifact(kind.clone()));
    }
    let config = blob(archive, &manifest.config.digest, Some(manifest.config.size))?;
    let document = parse(&blob_path(&manifest.config.digest), &config)?;
    let layers = manifest
        .layers
        .iter()
        .map(|layer| (blob_path(&layer.digest), Some(layer.digest.clone())))
        .collect();
    let image = planned(archive, Digest::of(&config), config, document, layers)?;
    for (layer, descriptor) in image.layers.iter().zip(&manifest.layers) {
        check_length(&layer.path, descriptor.size, layer.member.length)?;
    }
    Ok(image)
}

fn planned(
    archive: &Archive,
    id: Digest,
    config: Vec<u8>,
    document: oci::Image,
    layers: Vec<(String, Option<Digest>)>,
) -> Result<PlannedImage, PlanError> {
    let diff_ids = &document.rootfs.diff_ids;
    if layers.len() != diff_ids.len() {
        return Err(PlanError::LayerCount {
            image: id,
            layers: layers.len(),
            diff_ids: diff_ids.len(),
        });
    }
    if layers.len() > LAYERS_MAX {
        return Err(PlanError::TooManyLayers {
            image: id,
            layers: layers.len(),
        });
    }
    let layers = layers
        .into_iter()
        .zip(diff_ids)
        .map(|((path, blob), diff_id)| {
            let member = archive
                .find(&path)
                .ok_or_else(|| PlanError::Missing { path: path.clone() })?;
            Ok(PlannedLayer {
                diff_id: diff_id.clone(),
                path,
                member,
                blob,
            })
        })
        .collect::<Result<_, PlanError>>()?;
    Ok(PlannedImage {
        id,
        names: Vec::new(),
        manifest: None,
        config,
        document: Arc::new(document),
        layers,
    })
}

/// Either a whole name, or only a tag, which names nothing (OCI image spec, annotations.md).
fn name_in(descriptor: &Descriptor) -> Result<Option<Reference>, PlanError> {
    let annotations = &descriptor.annotations;
    if let Some(name) = annotations.get(NAME) {
        return parse_name(name).map(Some);
    }
    match annotations.get(REF_NAME) {
        Some(name) if name.contains(['/', ':']) => parse_name(name).map(Some),
        _ => Ok(None),
    }
}

fn parse_name(name: &str) -> Result<Reference, PlanError> {
    Reference::parse(name).map_err(|source| PlanError::Name {
        name: name.to_owned(),
        source,
    })
}

fn document<T: DeserializeOwned>(archive: &Archive, path: &str) -> Result<Option<T>, PlanError> {
    match archive.bytes(path, DOCUMENT_BYTES_MAX)? {
        Some(content) => parse(path, &content).map(Some),
        None => Ok(None),
    }
}

fn parse<T: DeserializeOwned>(path: &str, content: &[u8]) -> Result<T, PlanError> {
    serde_json::from_slice(content).map_err(|source| PlanError::Document {
        path: path.to_owned(),
        source,
    })
}

fn required(archive: &Archive, path: &str) -> Result<Vec<u8>, PlanError> {
    archive
        .bytes(path, DOCUMENT_BYTES_MAX)?
        .ok_or_else(|| PlanError::Missing {
            path: path.to_owned(),
        })
}

/// A document by its digest, verified.
fn blob(archive: &Archive, digest: &Digest, length: Option<u64>) -> Result<Vec<u8>, PlanError> {
    let path = blob_path(digest);
    let content = required(archive, &path)?;
    verify(&path, digest, &content)?;
    if let Some(length) = length {
        check_length(&path, length, content.len() as u64)?;
    }
    Ok(content)
}

fn verify(path: &str, digest: &Digest, content: &[u8]) -> Result<(), PlanError> {
    digest.verify(content).map_err(|source| PlanError::Digest {
        path: path.to_owned(),
        source,
    })
}

fn check_length(path: &str, expected: u64, actual: u64) -> Result<(), PlanError> {
    if expected == actual {
        return Ok(());
    }
    Err(PlanError::Length {
        path: path.to_owned(),
        expected,
        actual,
    })
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// `blobs/sha256/<hex>`.
fn digest_in_blob_path(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// The same, or `<hex>.json` as before Docker 25.
fn digest_in_name(path: &str) -> Option<Digest> {
    digest_in_blob_path(path).or_else(|| Digest::from_sha256_hex(path.strip_suffix(".json")?).ok())
}

/// This machine's, as Go names it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
