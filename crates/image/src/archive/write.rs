//! Writing archives: what `docker load`, `ctr import`, `skopeo` and [`crate::Images::load`] all read.
//!
//! They are as those of `docker save` since Docker 25: an OCI image layout with a `manifest.json`.
//! The same input gives the same bytes.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use oci::{
    Algorithm, Descriptor, Digest, DockerManifest, Hasher, History, Image, ImageConfig, Index,
    Manifest, Reference, RootFs, media_type,
};
use serde::Serialize;
use tar::{Builder, EntryType, Header, HeaderMode};

use crate::plan::architecture;

/// A file of an image that is made FROM scratch.
#[derive(Clone, Copy, Debug)]
pub struct ScratchFile<'a> {
    /// In the image; directories above it are made.
    pub path: &'a str,
    /// Permission bits.
    pub mode: u32,
    /// What is in it.
    pub content: &'a [u8],
}

/// Why an archive was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A file of the tree cannot be packed.
    #[error("cannot pack {}: {source}", path.display())]
    Pack {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("cannot write the archive: {0}")]
    Write(#[from] io::Error),
}

/// Writes an archive of an image with one layer that has just these files, owned by root. The image
/// gets the names `references`. Returns its id.
pub fn write_scratch(
    out: impl Write,
    references: &[Reference],
    files: &[ScratchFile<'_>],
    config: ImageConfig,
    created: Timestamp,
) -> Result<Digest, WriteError> {
    let mut builder = Builder::new(tempfile::tempfile()?);
    let mut directories = std::collections::BTreeSet::new();
    for file in files {
        let path = Path::new(file.path.trim_start_matches('/'));
        let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
        above.retain(|path| !path.as_os_str().is_empty() && directories.insert(path.to_owned()));
        for directory in above.into_iter().rev() {
            let mut header = header(EntryType::Directory, 0o755, 0, created);
            builder.append_data(&mut header, directory, io::empty())?;
        }
        let length = file.content.len() as u64;
        let mut header = header(EntryType::Regular, file.mode, length, created);
        builder.append_data(&mut header, path, file.content)?;
    }
    write_image(out, references, builder.into_inner()?, config, created)
}

/// Writes an archive of an image with one layer that is the tree at `directory`, with its owners,
/// modes, times and links. Returns the image's id.
pub fn write_directory(
    out: impl Write,
    references: &[Reference],
    directory: &Path,
    config: ImageConfig,
    created: Timestamp,
) -> Result<Digest, WriteError> {
    let layer = tar_directory(tempfile::tempfile()?, directory)?;
    write_image(out, references, layer, config, created)
}

/// Packs a tree, sorted by name; `directory` itself is the entry `./`.
fn tar_directory<W: Write>(out: W, directory: &Path) -> Result<W, WriteError> {
    let mut builder = Builder::new(out);
    builder.follow_symlinks(false);
    builder.mode(HeaderMode::Complete);
    builder.sparse(false);
    for entry in walkdir::WalkDir::new(directory).sort_by_file_name() {
        let entry = entry.map_err(|error| WriteError::Pack {
            path: error.path().unwrap_or(directory).to_owned(),
            source: error.into(),
        })?;
        let path = entry.path();
        let name = match path.strip_prefix(directory) {
            Ok(name) if !name.as_os_str().is_empty() => name,
            _ => Path::new("./"),
        };
        builder
            .append_path_with_name(path, name)
            .map_err(|source| WriteError::Pack {
                path: path.to_owned(),
                source,
            })?;
    }
    Ok(builder.into_inner()?)
}

fn write_image(
    out: impl Write,
    references: &[Reference],
    mut layer: File,
    config: ImageConfig,
    created: Timestamp,
) -> Result<Digest, WriteError> {
    let layer_descriptor = describe_file(&mut layer)?;
    let document = Image {
        architecture: architecture().to_owned(),
        os: "linux".to_owned(),
        created: Some(created),
        config,
        rootfs: RootFs {
            diff_ids: vec![layer_descriptor.digest.clone()],
            ..RootFs::default()
        },
        history: vec![History {
            created: Some(created),
            created_by: "wharf".to_owned(),
            ..History::default()
        }],
        ..Image::default()
    };
    let (config, config_descriptor) = describe(&document, media_type::CONFIG);
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::MANIFEST.to_owned()),
        config: config_descriptor.clone(),
        layers: vec![layer_descriptor.clone()],
        annotations: Default::default(),
    };
    let (manifest, manifest_descriptor) = describe(&manifest, media_type::MANIFEST);
    let index = index(references, manifest_descriptor.clone());
    let saved = [DockerManifest {
        config: blob_path(&config_descriptor.digest),
        repo_tags: references.iter().map(Reference::familiar).collect(),
        layers: vec![blob_path(&layer_descriptor.digest)],
    }];

    let mut builder = Builder::new(out);
    let mut put = |path: &str, length: u64, content: &mut dyn Read| {
        let mut header = header(EntryType::Regular, 0o644, length, created);
        builder.append_data(&mut header, path, content)
    };
    put(
        &blob_path(&layer_descriptor.digest),
        layer_descriptor.size,
        &mut layer,
    )?;
    let id = config_descriptor.digest.clone();
    for (descriptor, content) in [(config_descriptor, config), (manifest_descriptor, manifest)] {
        put(
            &blob_path(&descriptor.digest),
            descriptor.size,
            &mut &content[..],
        )?;
    }
    for (path, content) in [
        ("index.json", json(&index)),
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("manifest.json", json(&saved)),
    ] {
        put(path, content.len() as u64, &mut &content[..])?;
    }
    builder.into_inner()?.flush()?;
    Ok(id)
}

/// One entry for each name, or one without.
fn index(references: &[Reference], manifest: Descriptor) -> Index {
    let named = |reference: &Reference| {
        let mut descriptor = manifest.clone();
        descriptor
            .annotations
            .insert("io.containerd.image.name".to_owned(), reference.to_string());
        if let Some(tag) = reference.tag() {
            descriptor.annotations.insert(
                "org.opencontainers.image.ref.name".to_owned(),
                tag.to_owned(),
            );
        }
        descriptor
    };
    let mut manifests: Vec<Descriptor> = references.iter().map(named).collect();
    if manifests.is_empty() {
        manifests.push(manifest);
    }
    Index {
        schema_version: 2,
        media_type: Some(media_type::INDEX.to_owned()),
        manifests,
        annotations: Default::default(),
    }
}

fn describe(document: &impl Serialize, media_type: &str) -> (Vec<u8>, Descriptor) {
    let content = json(document);
    let descriptor = Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of(&content),
        size: content.len() as u64,
        platform: None,
        annotations: Default::default(),
    };
    (content, descriptor)
}

fn describe_file(file: &mut File) -> io::Result<Descriptor> {
    file.rewind()?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let size = io::copy(file, &mut hasher)?;
    file.rewind()?;
    Ok(Descriptor {
        media_type: media_type::LAYER.to_owned(),
        digest: hasher.finish(),
        size,
        platform: None,
        annotations: Default::default(),
    })
}

fn json(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("documents are plain data")
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

fn header(kind: EntryType, mode: u32, length: u64, modified: Timestamp) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(length);
    header.set_mtime(u64::try_from(modified.as_second()).unwrap_or(0));
    header
}
