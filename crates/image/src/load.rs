//! Loading archives: every layer that is not here yet is unpacked beside the store, all of them at
//! once as far as there are processors, and the table names the images when everything is in place.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use oci::{Algorithm, Digest, DigestMismatch, Reference, chain_id};
use parking_lot::Mutex;

use crate::archive::{Archive, ArchiveError, Source};
use crate::compression::Compression;
use crate::layer::{LayerError, Limits, Unpacked, unpack};
use crate::place::{describe_from, redescribe};
use crate::plan::{PlanError, PlannedImage, PlannedLayer, plan};
use crate::store::{Config, Images, Inner, LayerRecord, Scratch, StoreError, blocking};
use crate::stream::{Cancel, CancelOnDrop, Hashing};
use crate::table::{Named, Row, TableError};

const READ_BUFFER: usize = 1 << 17;
/// Between two reports on one layer.
const PROGRESS_STEP: u64 = 1 << 20;
/// What may follow the end of a tar in its stream: archivers pad to their record's length.
pub(crate) const TRAILER_MAX: u64 = 16 << 20;
/// Unpacking is bound by processors first and by the disk next.
const WORKERS_MAX: usize = 8;

/// Called while a load goes on, from several threads.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// How far a load is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes of a compressed or piped archive were read; layers come after it.
    Archive {
        /// Since the start, uncompressed.
        bytes: u64,
    },
    /// A layer is here already.
    Exists {
        /// Which one.
        diff_id: Digest,
    },
    /// A layer is being verified and unpacked.
    Layer {
        /// Which one.
        diff_id: Digest,
        /// Bytes done, as they are in the archive.
        done: u64,
        /// All of its bytes.
        total: u64,
    },
}

/// How to load.
#[derive(Clone, Default)]
pub struct LoadOptions {
    /// Instead of the names in the archive, which then may have one image only.
    pub name: Option<Reference>,
    /// Told how far it is.
    pub progress: Option<ProgressSink>,
    /// How much a layer may be.
    pub limits: Limits,
}

/// A name that now means an image of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Absent for an image that the archive does not name.
    pub reference: Option<Reference>,
    /// The image.
    pub id: Digest,
    /// The image that had the name before.
    pub replaced: Option<Digest>,
    /// What is not as in the archive, in words.
    pub warnings: Vec<String>,
}

/// Why an archive was not loaded. Nothing of it stays.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// It carries no image that can be loaded.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// One name for several images.
    #[error("the archive has {0} images, which cannot all have one name: load it without --tag")]
    OneName(usize),
    /// A layer is not what its digest says.
    #[error(
        "layer {number} of {image} ({path}) is damaged: {what} {source}; make or copy the archive again"
    )]
    Digest {
        /// The image's name or id.
        image: String,
        /// Counted from 1, the lowest.
        number: usize,
        /// In the archive.
        path: String,
        /// Which digest: `blob` or `diff id`.
        what: &'static str,
        /// What was found.
        source: DigestMismatch,
    },
    /// A layer cannot be unpacked.
    #[error("layer {number} of {image} ({path}): {source}")]
    Layer {
        /// The image's name or id.
        image: String,
        /// Counted from 1, the lowest.
        number: usize,
        /// In the archive.
        path: String,
        /// Why.
        source: LayerError,
    },
    /// The store's own directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The table could not be changed.
    #[error(transparent)]
    Table(#[from] TableError),
}

impl Images {
    /// Loads all images of an archive, of `docker save` or in OCI layout, plain, gzip or zstd, told
    /// by content. Every blob and every layer is verified. It is all or nothing: when this fails, or
    /// when its future is dropped, the store is as before.
    pub async fn load(
        &self,
        source: impl Into<Source>,
        options: LoadOptions,
    ) -> Result<Vec<Loaded>, LoadError> {
        let (inner, source) = (self.0.clone(), source.into());
        let cancel = Cancel::default();
        let _cancel_on_drop = CancelOnDrop(cancel.clone());
        blocking(move || Load::new(&inner, &options, &cancel).run(source)).await
    }
}

struct Load<'a> {
    inner: &'a Arc<Inner>,
    options: &'a LoadOptions,
    cancel: &'a Cancel,
}

/// A layer that was unpacked into the load's scratch directory.
struct Ready {
    directory: PathBuf,
    unpacked: Unpacked,
}

/// A layer that must be unpacked, and for whom, for messages.
#[derive(Clone, Copy)]
struct Job<'a> {
    layer: &'a PlannedLayer,
    image: &'a PlannedImage,
    number: usize,
}

impl<'a> Load<'a> {
    fn new(inner: &'a Arc<Inner>, options: &'a LoadOptions, cancel: &'a Cancel) -> Load<'a> {
        Load {
            inner,
            options,
            cancel,
        }
    }

    fn run(&self, source: Source) -> Result<Vec<Loaded>, LoadError> {
        let read = AtomicU64::new(0);
        let archive = Archive::open(source, &self.inner.tmp_directory(), self.cancel, &|bytes| {
            let bytes = read.fetch_add(bytes, Ordering::Relaxed) + bytes;
            self.report(Progress::Archive { bytes });
        })?;
        let mut images = plan(&archive)?;
        if let Some(name) = &self.options.name {
            let [image] = &mut images[..] else {
                return Err(LoadError::OneName(images.len()));
            };
            image.names = vec![name.clone()];
        }
        let keys = images
            .iter()
            .flat_map(|image| chains(&image.layers))
            .flat_map(|(layer, chain)| [layer.diff_id.clone(), chain])
            .collect();
        let _pins = self.inner.pin(keys);
        let scratch = Scratch::new(self.inner).map_err(self.inner.failed("work"))?;
        let mut ready = self.unpack_missing(&archive, &images, &scratch)?;
        let mut rows = Vec::new();
        let mut warnings = Vec::new();
        for image in &images {
            let mut words = Vec::new();
            rows.push(self.place(&archive, image, &mut ready, &scratch, &mut words)?);
            warnings.push(words);
        }
        self.inner.flush().map_err(self.inner.failed("flush"))?;
        self.commit(images, rows, warnings)
    }

    fn unpack_missing(
        &self,
        archive: &Archive,
        images: &[PlannedImage],
        scratch: &Scratch,
    ) -> Result<BTreeMap<Digest, Ready>, LoadError> {
        let mut seen = BTreeSet::new();
        let mut jobs = Vec::new();
        for image in images {
            for (at, (layer, chain)) in chains(&image.layers).into_iter().enumerate() {
                if self.stored(at, &layer.diff_id, &chain).is_some() {
                    if seen.insert(&layer.diff_id) {
                        self.report(Progress::Exists {
                            diff_id: layer.diff_id.clone(),
                        });
                    }
                } else if seen.insert(&layer.diff_id) {
                    jobs.push(Job {
                        layer,
                        image,
                        number: at + 1,
                    });
                }
            }
        }
        // The largest first, so that the last to finish is a short one.
        jobs.sort_by_key(|job| std::cmp::Reverse(job.layer.member.length));
        self.unpack_side_by_side(archive, &jobs, scratch)
    }

    fn unpack_side_by_side(
        &self,
        archive: &Archive,
        jobs: &[Job<'_>],
        scratch: &Scratch,
    ) -> Result<BTreeMap<Digest, Ready>, LoadError> {
        let workers = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .clamp(1, WORKERS_MAX)
            .min(jobs.len());
        let next = AtomicUsize::new(0);
        let done = Mutex::new(BTreeMap::new());
        let failed = Mutex::new(None);
        let work = || {
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                if failed.lock().is_some() {
                    return;
                }
                match self.unpack(archive, *job, scratch) {
                    Ok(ready) => {
                        done.lock().insert(job.layer.diff_id.clone(), ready);
                    }
                    Err(error) => {
                        failed.lock().get_or_insert(error);
                        return;
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..workers {
                scope.spawn(work);
            }
            work();
        });
        match failed.into_inner() {
            Some(error) => Err(error),
            None => Ok(done.into_inner()),
        }
    }

    /// Verifies and unpacks one layer into the scratch directory.
    fn unpack(
        &self,
        archive: &Archive,
        job: Job<'_>,
        scratch: &Scratch,
    ) -> Result<Ready, LoadError> {
        let layer = job.layer;
        let store = || self.inner.failed("unpack a layer");
        let directory = scratch.layer(layer.diff_id.hex()).map_err(store())?;
        let root = tree::open(&directory.join("fs")).map_err(store())?;
        let compression = archive
            .compression(layer.member)
            .map_err(|source| job.failed(LayerError::Stream(source)))?;
        let done = AtomicU64::new(0);
        let watch = |bytes| self.report_layer(layer, &done, bytes);
        let raw = archive.read(layer.member, self.cancel).watched(&watch);
        let algorithm = layer.diff_id.algorithm();
        let unpacked = if compression == Compression::None {
            let mut content = Hashing::new(raw, algorithm);
            let unpacked = unpack(&mut content, root, self.options.limits);
            job.check(unpacked, content, &layer.diff_id, "diff id")?
        } else {
            let blob = layer.blob.as_ref();
            let mut raw = Hashing::new(raw, blob.map_or(Algorithm::Sha256, Digest::algorithm));
            let (unpacked, diff_id) = decode(compression, &mut raw, |decoded| {
                let mut content = Hashing::new(decoded, algorithm);
                let unpacked = unpack(&mut content, root, self.options.limits)?;
                content.drain(TRAILER_MAX).map_err(LayerError::Stream)?;
                Ok((unpacked, content.finish()))
            })
            .map_or_else(
                |error| (Err(error), None),
                |(unpacked, id)| (Ok(unpacked), Some(id)),
            );
            let unpacked = match blob {
                Some(blob) => job.check(unpacked, raw, blob, "blob")?,
                None => unpacked.map_err(|error| job.failed(error))?,
            };
            job.check_diff_id(diff_id)?;
            unpacked
        };
        Ok(Ready {
            directory,
            unpacked,
        })
    }

    /// Moves an image's layers into the store, lowest first, and says under which keys.
    fn place(
        &self,
        archive: &Archive,
        image: &PlannedImage,
        ready: &mut BTreeMap<Digest, Ready>,
        scratch: &Scratch,
        warnings: &mut Vec<String>,
    ) -> Result<Row, LoadError> {
        let mut keys: Vec<Digest> = Vec::new();
        for (at, (layer, chain)) in chains(&image.layers).into_iter().enumerate() {
            if let Some(key) = self.stored(at, &layer.diff_id, &chain) {
                keys.push(key);
                continue;
            }
            let layer_ready = match ready.remove(&layer.diff_id) {
                Some(layer_ready) => layer_ready,
                // It was placed for another stack of layers, and is not the same on this one.
                None => {
                    let number = at + 1;
                    let job = Job {
                        layer,
                        image,
                        number,
                    };
                    self.unpack(archive, job, scratch)?
                }
            };
            warn_of_devices(&layer_ready.unpacked, warnings);
            let store = || self.inner.failed("keep a layer");
            let lower: Vec<PathBuf> = keys
                .iter()
                .rev()
                .map(|key| self.inner.layer_directory(key).join("fs"))
                .collect();
            let depends = describe_implied(&layer_ready, &lower).map_err(store())?;
            let key = if depends {
                chain
            } else {
                layer.diff_id.clone()
            };
            let record = LayerRecord::of(&layer_ready.unpacked);
            self.inner
                .keep_layer(&key, &layer_ready.directory, record)
                .map_err(store())?;
            keys.push(key);
        }
        Ok(Row { layers: keys })
    }

    /// The key under which a layer is in the store, if it is the right one above what is below.
    fn stored(&self, at: usize, diff_id: &Digest, chain: &Digest) -> Option<Digest> {
        let state = self.inner.state.read();
        match state.layers.get(diff_id) {
            Some(record) if at == 0 || record.self_contained => Some(diff_id.clone()),
            _ => state.layers.contains_key(chain).then(|| chain.clone()),
        }
    }

    fn commit(
        &self,
        images: Vec<PlannedImage>,
        rows: Vec<Row>,
        warnings: Vec<Vec<String>>,
    ) -> Result<Vec<Loaded>, LoadError> {
        let mut configs = Vec::new();
        let mut changes = Vec::new();
        for ((image, row), warnings) in images.into_iter().zip(rows).zip(warnings) {
            configs.push(Config {
                id: image.id.clone(),
                content: image.config,
                document: image.document,
            });
            changes.push((image.id, row, image.names, image.manifest, warnings));
        }
        self.inner.change_with(configs, |table| {
            let mut loaded = Vec::new();
            for (id, row, names, manifest, warnings) in changes {
                table.images.insert(id.clone(), row);
                let unnamed = names.is_empty().then_some(None);
                for reference in names.into_iter().map(Some).chain(unnamed) {
                    let replaced = reference.as_ref().and_then(|name| {
                        let named = Named {
                            image: id.clone(),
                            manifest: manifest.clone(),
                        };
                        table.names.insert(name.clone(), named)
                    });
                    loaded.push(Loaded {
                        reference,
                        id: id.clone(),
                        replaced: replaced.map(|named| named.image).filter(|old| *old != id),
                        warnings: warnings.clone(),
                    });
                }
            }
            Ok(loaded)
        })
    }

    fn report(&self, progress: Progress) {
        if let Some(sink) = &self.options.progress {
            sink(progress);
        }
    }

    fn report_layer(&self, layer: &PlannedLayer, done: &AtomicU64, bytes: u64) {
        let before = done.fetch_add(bytes, Ordering::Relaxed);
        let (after, total) = (before + bytes, layer.member.length);
        if bytes > 0 && (after / PROGRESS_STEP > before / PROGRESS_STEP || after == total) {
            self.report(Progress::Layer {
                diff_id: layer.diff_id.clone(),
                done: after,
                total,
            });
        }
    }
}

impl Job<'_> {
    /// Whether a layer was unpacked and its bytes are what they should be. Where they made no sense,
    /// that they are not what was promised says more.
    fn check<R: Read>(
        &self,
        unpacked: Result<Unpacked, LayerError>,
        mut bytes: Hashing<R>,
        expected: &Digest,
        what: &'static str,
    ) -> Result<Unpacked, LoadError> {
        if unpacked.as_ref().err().is_none_or(LayerError::is_of_stream) {
            bytes
                .drain(u64::MAX)
                .map_err(|error| self.failed(LayerError::Stream(error)))?;
            bytes
                .verify(expected)
                .map_err(|mismatch| self.damaged(what, mismatch))?;
        }
        unpacked.map_err(|error| self.failed(error))
    }

    fn check_diff_id(&self, found: Option<Digest>) -> Result<(), LoadError> {
        match found {
            Some(actual) if actual != self.layer.diff_id => {
                let expected = self.layer.diff_id.clone();
                Err(self.damaged("diff id", DigestMismatch { expected, actual }))
            }
            _ => Ok(()),
        }
    }

    fn failed(&self, source: LayerError) -> LoadError {
        LoadError::Layer {
            image: self.image_name(),
            number: self.number,
            path: self.layer.path.clone(),
            source,
        }
    }

    fn damaged(&self, what: &'static str, source: DigestMismatch) -> LoadError {
        LoadError::Digest {
            image: self.image_name(),
            number: self.number,
            path: self.layer.path.clone(),
            what,
            source,
        }
    }

    fn image_name(&self) -> String {
        match self.image.names.first() {
            Some(name) => name.familiar(),
            None => self.image.id.short().to_owned(),
        }
    }
}

/// Gives the plain stream to `read`.
pub(crate) fn decode<T>(
    compression: Compression,
    raw: impl Read + Send,
    read: impl FnOnce(&mut dyn Read) -> Result<T, LayerError>,
) -> Result<T, LayerError> {
    let raw = io::BufReader::with_capacity(READ_BUFFER, raw);
    let mut decoded = compression.decode(raw).map_err(LayerError::Stream)?;
    read(&mut decoded)
}

/// Layers, lowest first, each with the name of the stack that ends with it.
fn chains(layers: &[PlannedLayer]) -> Vec<(&PlannedLayer, Digest)> {
    let mut below: Option<Digest> = None;
    layers
        .iter()
        .map(|layer| {
            let chain = chain_id(below.as_ref(), &layer.diff_id);
            below = Some(chain.clone());
            (layer, chain)
        })
        .collect()
}

/// Gives directories that a layer has but does not describe the owner and mode that they have in
/// the layers below, the uppermost first. Whether there were any such: then the layer is right only
/// above these.
fn describe_implied(layer: &Ready, lower: &[PathBuf]) -> io::Result<bool> {
    let implied = &layer.unpacked.implied;
    if implied.is_empty() || lower.is_empty() {
        return Ok(false);
    }
    let root = tree::open(&layer.directory.join("fs"))?;
    let lower = lower
        .iter()
        .map(|path| tree::open(path))
        .collect::<io::Result<Vec<_>>>()?;
    for path in implied {
        if let Some(attributes) = describe_from(&lower, path)? {
            match redescribe(&root, path, &attributes) {
                // Something else took the directory's place later in the layer.
                Ok(())
                | Err(
                    rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP,
                ) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(true)
}

pub(crate) fn warn_of_devices(unpacked: &Unpacked, warnings: &mut Vec<String>) {
    if !unpacked.devices_left_out.is_empty() {
        warnings.push(format!(
            "devices were left out, containers get theirs from the runtime: {}",
            unpacked.devices_left_out.join(", ")
        ));
    }
}
