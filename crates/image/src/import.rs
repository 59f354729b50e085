//! Importing the tar of a root file system as an image with one layer, as `docker import` does.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use oci::{Algorithm, Digest, History, ImageConfig, Reference, RootFs};

use crate::Loaded;
use crate::archive::Source;
use crate::compression::{Compression, MAGIC_LENGTH};
use crate::layer::{LayerError, Limits, unpack};
use crate::load::{TRAILER_MAX, decode, warn_of_devices};
use crate::plan::architecture;
use crate::store::{Config, Images, Inner, LayerRecord, Scratch, StoreError, blocking};
use crate::stream::{Cancel, CancelOnDrop, Cancellable, Hashing};
use crate::table::{Named, Row, TableError};

/// What an imported image is to be.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Its name.
    pub name: Option<Reference>,
    /// How to run it; a root file system says nothing of that.
    pub config: ImageConfig,
    /// Stands in its history.
    pub message: String,
    /// Now; 1970 by default.
    pub created: Timestamp,
    /// How much it may be.
    pub limits: Limits,
}

/// Why a root file system was not imported. Nothing of it stays.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It cannot be opened.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be unpacked.
    #[error("the archive: {0}")]
    Unpack(#[from] LayerError),
    /// There is nothing in it.
    #[error("the archive is empty: nothing was imported")]
    Empty,
    /// The store's own directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The table could not be changed.
    #[error(transparent)]
    Table(#[from] TableError),
}

impl Images {
    /// Makes an image of the tar of a root file system, plain, gzip or zstd. All or nothing.
    pub async fn import(
        &self,
        source: impl Into<Source>,
        options: ImportOptions,
    ) -> Result<Loaded, ImportError> {
        let (inner, source) = (self.0.clone(), source.into());
        let cancel = Cancel::default();
        let _cancel_on_drop = CancelOnDrop(cancel.clone());
        blocking(move || import(&inner, source, options, cancel)).await
    }
}

fn import(
    inner: &Arc<Inner>,
    source: Source,
    options: ImportOptions,
    cancel: Cancel,
) -> Result<Loaded, ImportError> {
    let (compression, raw) = open(source)?;
    let scratch = Scratch::new(inner).map_err(inner.failed("work"))?;
    let directory = scratch.layer("layer").map_err(inner.failed("work"))?;
    let root = tree::open(&directory.join("fs")).map_err(inner.failed("work"))?;
    let raw = Cancellable::new(raw, cancel);
    let (unpacked, diff_id) = decode(compression, raw, |decoded| {
        let mut content = Hashing::new(decoded, Algorithm::Sha256);
        let unpacked = unpack(&mut content, root, options.limits)?;
        content.drain(TRAILER_MAX).map_err(LayerError::Stream)?;
        Ok((unpacked, content.finish()))
    })?;
    if unpacked.members == 0 {
        return Err(ImportError::Empty);
    }
    let mut warnings = Vec::new();
    warn_of_devices(&unpacked, &mut warnings);
    let _pins = inner.pin([diff_id.clone()].into());
    let record = LayerRecord::of(&unpacked);
    inner
        .keep_layer(&diff_id, &directory, record)
        .map_err(inner.failed("keep a layer"))?;
    inner.flush().map_err(inner.failed("flush"))?;
    let document = document(&options, diff_id.clone());
    let content = serde_json::to_vec(&document).expect("strings and digests are plain data");
    let config = Config {
        id: Digest::of(&content),
        content,
        document: Arc::new(document),
    };
    let id = config.id.clone();
    let replaced = inner.change_with(vec![config], |table| {
        let layers = vec![diff_id];
        table.images.insert(id.clone(), Row { layers });
        let named = Named {
            image: id.clone(),
            manifest: None,
        };
        Ok::<_, TableError>(
            options
                .name
                .clone()
                .and_then(|name| table.names.insert(name, named)),
        )
    })?;
    Ok(Loaded {
        reference: options.name,
        replaced: replaced.map(|named| named.image).filter(|old| *old != id),
        id,
        warnings,
    })
}

fn open(source: Source) -> Result<(Compression, Box<dyn Read + Send>), ImportError> {
    let (path, mut reader) = match source {
        Source::Reader(reader) => (PathBuf::from("-"), reader),
        Source::Path(path) => match std::fs::File::open(&path) {
            Ok(file) => (path, Box::new(file) as Box<dyn Read + Send>),
            Err(source) => return Err(ImportError::Open { path, source }),
        },
    };
    let mut first = Vec::new();
    reader
        .by_ref()
        .take(MAGIC_LENGTH as u64)
        .read_to_end(&mut first)
        .map_err(|source| ImportError::Open { path, source })?;
    let compression = Compression::detect(&first);
    Ok((compression, Box::new(io::Cursor::new(first).chain(reader))))
}

fn document(options: &ImportOptions, diff_id: Digest) -> oci::Image {
    oci::Image {
        architecture: architecture().to_owned(),
        os: "linux".to_owned(),
        created: Some(options.created),
        config: options.config.clone(),
        rootfs: RootFs {
            diff_ids: vec![diff_id],
            ..RootFs::default()
        },
        history: vec![History {
            created: Some(options.created),
            comment: options.message.clone(),
            ..History::default()
        }],
        ..oci::Image::default()
    }
}
