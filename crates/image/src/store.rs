//! The store itself: what is open, who uses which layer, and how the table changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use oci::{Digest, History, ImageConfig, Reference};
use parking_lot::{Mutex, RwLock};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::layer::Unpacked;
use crate::table::{Table, TableError};

/// Shortest beginning of an id that is looked for.
const ID_PREFIX_MIN: usize = 1;

/// The images of one directory. Clones are the same store.
///
/// Look-ups answer from memory. What works on the disk runs beside the async runtime; dropping the
/// future of a load gives the load up.
#[derive(Clone)]
pub struct Images(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) directory: PathBuf,
    /// One change at a time; held over the write to the disk, which readers do not wait for.
    writer: Mutex<()>,
    pub(crate) state: RwLock<State>,
    /// Held, not read.
    _lock: File,
}

/// What is in memory.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) table: Table,
    documents: BTreeMap<Digest, Arc<oci::Image>>,
    pub(crate) layers: HashMap<Digest, LayerRecord>,
    images: BTreeMap<Digest, Arc<Image>>,
    /// Layers that a load in progress wants, with the number of those loads.
    pins: HashMap<Digest, usize>,
    /// Containers' roots with the layers that they are made of.
    pub(crate) roots: BTreeMap<String, Vec<Digest>>,
}

/// An image's configuration on its way into the store.
pub(crate) struct Config {
    pub(crate) id: Digest,
    pub(crate) content: Vec<u8>,
    pub(crate) document: Arc<oci::Image>,
}

/// `layer.json`: what was found while the layer was unpacked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Bytes of file content.
    pub(crate) size: u64,
    /// It describes all of its directories, so that it is the same above any other layers.
    pub(crate) self_contained: bool,
    /// It describes the root directory.
    pub(crate) root_described: bool,
    /// It hides all layers below.
    pub(crate) root_opaque: bool,
}

impl LayerRecord {
    pub(crate) fn of(unpacked: &Unpacked) -> LayerRecord {
        LayerRecord {
            size: unpacked.size,
            self_contained: unpacked.implied.is_empty(),
            root_described: unpacked.root_described,
            root_opaque: unpacked.root_opaque,
        }
    }
}

/// An image as it was when it was looked up.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Digest of its configuration.
    pub id: Digest,
    /// Its names, sorted; none after another image has taken the last.
    pub references: Vec<Reference>,
    /// How to run it.
    pub config: ImageConfig,
    /// As Go names it.
    pub architecture: String,
    /// As Go names it.
    pub os: String,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// How it was made.
    pub history: Vec<History>,
    /// Keys of its layers in the store, lowest first.
    pub layers: Vec<Digest>,
    /// Bytes of all its files, unpacked.
    pub size: u64,
}

/// Why something cannot be done in the store's own directory.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} in {}: {source}; see that the disk is healthy and has space, and try again", directory.display())]
pub struct StoreError {
    /// What was being done.
    pub step: &'static str,
    /// Where.
    pub directory: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{} is in use by another Wharf process: stop that one first, or choose another data directory", .0.display())]
    Locked(PathBuf),
    /// The system refused.
    #[error("cannot {step} {}: {source}", path.display())]
    Directory {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The table is unusable.
    #[error(transparent)]
    Table(#[from] TableError),
}

impl Images {
    /// Opens the store in `directory`, which is made if need be, and takes away what killed
    /// processes left. Roots of containers, mounted or not, are taken up as they are. Blocking.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Images, OpenError> {
        let directory = directory.into();
        make_directory(&directory)?;
        // Mounts outlive the working directory of this process.
        let directory = directory
            .canonicalize()
            .map_err(|source| OpenError::Directory {
                step: "find",
                path: directory,
                source,
            })?;
        for below in ["configs", "empty", "layers", "roots", "tmp"] {
            make_directory(&directory.join(below))?;
        }
        let lock = lock(&directory)?;
        empty(&directory.join("tmp"))?;
        let mut state = State {
            table: Table::read(&directory)?,
            ..State::default()
        };
        state.roots = crate::root::take_up(&directory.join("roots"))?;
        leave_out_damaged(&directory, &mut state);
        state.refresh();
        let inner = Inner {
            directory,
            writer: Mutex::new(()),
            state: RwLock::new(state),
            _lock: lock,
        };
        inner.remove_unknown_layers()?;
        Ok(Images(Arc::new(inner)))
    }

    /// All images, ordered by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.0.state.read().images.values().cloned().collect()
    }

    /// The image of that name. With a digest, the tag does not matter: the digest is that of the
    /// manifest the image was loaded with, or the image's id.
    pub fn resolve(&self, reference: &Reference) -> Option<Arc<Image>> {
        let state = self.0.state.read();
        let id = state.named(reference)?;
        state.images.get(&id).cloned()
    }

    /// The image that a person means: an id, a name short or full, or the beginning of an id that
    /// only one image has.
    pub fn find(&self, text: &str) -> Option<Arc<Image>> {
        let state = self.0.state.read();
        let id = state.meant(text)?;
        state.images.get(&id).cloned()
    }

    /// Gives an image another name; an image that had the name loses it.
    pub async fn tag(&self, id: &Digest, name: Reference) -> Result<(), TagError> {
        let (inner, id) = (self.0.clone(), id.clone());
        blocking(move || {
            inner.change(|table| {
                if !table.images.contains_key(&id) {
                    return Err(TagError::NotFound(id.clone()));
                }
                let named = crate::table::Named {
                    image: id.clone(),
                    manifest: None,
                };
                table.names.insert(name, named);
                Ok(())
            })
        })
        .await
    }
}

/// Why an image cannot be given a name.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// It is not here.
    #[error("No such image: {0}")]
    NotFound(Digest),
    /// The table could not be changed.
    #[error(transparent)]
    Table(#[from] TableError),
}

impl State {
    fn named(&self, reference: &Reference) -> Option<Digest> {
        let Some(digest) = reference.digest() else {
            return Some(self.table.names.get(reference)?.image.clone());
        };
        self.table
            .names
            .iter()
            .filter(|(name, _)| name.same_repository(reference))
            .find(|(_, named)| named.manifest.as_ref() == Some(digest) || named.image == *digest)
            .map(|(_, named)| named.image.clone())
    }

    pub(crate) fn meant(&self, text: &str) -> Option<Digest> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if let Ok(id) = Digest::from_sha256_hex(hex) {
            return self.images.contains_key(&id).then_some(id);
        }
        let named = Reference::parse(text)
            .ok()
            .and_then(|reference| self.named(&reference));
        named.or_else(|| self.by_prefix(hex))
    }

    fn by_prefix(&self, hex: &str) -> Option<Digest> {
        if hex.len() < ID_PREFIX_MIN {
            return None;
        }
        let mut found = self.images.keys().filter(|id| id.hex().starts_with(hex));
        match (found.next(), found.next()) {
            (Some(id), None) => Some(id.clone()),
            _ => None,
        }
    }

    /// Makes the images anew from the table.
    fn refresh(&mut self) {
        let mut images = BTreeMap::new();
        for (id, row) in &self.table.images {
            let document = self
                .documents
                .get(id)
                .expect("what is in the table has its document in memory");
            let size = row
                .layers
                .iter()
                .filter_map(|key| self.layers.get(key))
                .map(|layer| layer.size)
                .sum();
            let image = Image {
                id: id.clone(),
                references: self.table.names_of(id),
                config: document.config.clone(),
                architecture: document.architecture.clone(),
                os: document.os.clone(),
                created: document.created,
                history: document.history.clone(),
                layers: row.layers.clone(),
                size,
            };
            // What did not change keeps its address: somebody may hold it.
            let image = match self.images.get(id) {
                Some(old) if **old == image => old.clone(),
                _ => Arc::new(image),
            };
            images.insert(id.clone(), image);
        }
        self.images = images;
        self.documents
            .retain(|id, _| self.table.images.contains_key(id));
    }

    fn used_layers(&self) -> BTreeSet<&Digest> {
        self.table
            .images
            .values()
            .flat_map(|row| &row.layers)
            .chain(self.roots.values().flatten())
            .chain(self.pins.keys())
            .collect()
    }
}

impl Inner {
    /// Says what was being done here when the system refused.
    pub(crate) fn failed(&self, step: &'static str) -> impl FnOnce(io::Error) -> StoreError {
        let directory = self.directory.clone();
        move |source| StoreError {
            step,
            directory,
            source,
        }
    }

    pub(crate) fn layer_directory(&self, key: &Digest) -> PathBuf {
        self.directory.join("layers").join(key.hex())
    }

    pub(crate) fn roots_directory(&self) -> PathBuf {
        self.directory.join("roots")
    }

    pub(crate) fn empty_directory(&self) -> PathBuf {
        self.directory.join("empty")
    }

    pub(crate) fn tmp_directory(&self) -> PathBuf {
        self.directory.join("tmp")
    }

    /// Changes the table: on the disk first, then in memory. On an error nothing is changed.
    pub(crate) fn change<T, E: From<TableError>>(
        &self,
        change: impl FnOnce(&mut Table) -> Result<T, E>,
    ) -> Result<T, E> {
        self.change_with(Vec::new(), change)
    }

    /// The same, with the configurations of images that are new in the table.
    pub(crate) fn change_with<T, E: From<TableError>>(
        &self,
        configs: Vec<Config>,
        change: impl FnOnce(&mut Table) -> Result<T, E>,
    ) -> Result<T, E> {
        let _writer = self.writer.lock();
        let before = self.state.read().table.clone();
        let mut after = before.clone();
        let result = change(&mut after)?;
        let directory = self.directory.join("configs");
        for config in &configs {
            let name = config_name(&config.id);
            crate::table::replace(&directory, &name, &config.content).map_err(|source| {
                TableError::Write {
                    path: directory.join(name),
                    source,
                }
            })?;
        }
        after.write(&self.directory)?;
        for id in before.images.keys() {
            if !after.images.contains_key(id) {
                remove_or_warn(&directory.join(config_name(id)));
            }
        }
        let mut state = self.state.write();
        state.table = after;
        state.documents.extend(
            configs
                .into_iter()
                .map(|config| (config.id, config.document)),
        );
        state.refresh();
        Ok(result)
    }

    /// Keeps layers from being taken away, whether they are here already or not.
    pub(crate) fn pin(self: &Arc<Self>, keys: BTreeSet<Digest>) -> Pins {
        let mut state = self.state.write();
        for key in &keys {
            *state.pins.entry(key.clone()).or_default() += 1;
        }
        drop(state);
        Pins {
            inner: self.clone(),
            keys,
        }
    }

    /// Moves an unpacked layer into the store; one that is there already stays.
    pub(crate) fn keep_layer(
        &self,
        key: &Digest,
        unpacked: &Path,
        record: LayerRecord,
    ) -> io::Result<()> {
        let content = serde_json::to_vec(&record).expect("numbers are plain data");
        std::fs::write(unpacked.join("layer.json"), content)?;
        let mut state = self.state.write();
        match std::fs::rename(unpacked, self.layer_directory(key)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) => return Err(error),
        }
        state.layers.insert(key.clone(), record);
        Ok(())
    }

    /// Sees to it that all that was written survives a loss of power.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let directory = tree::open(&self.directory)?;
        Ok(rustix::fs::syncfs(&directory)?)
    }

    /// Takes away layers that nothing uses any more.
    pub(crate) fn collect_garbage(&self) {
        let mut unwanted = Vec::new();
        let mut state = self.state.write();
        let used: BTreeSet<Digest> = state.used_layers().into_iter().cloned().collect();
        let unused: Vec<Digest> = state
            .layers
            .keys()
            .filter(|key| !used.contains(key))
            .cloned()
            .collect();
        for key in unused {
            match self.set_aside(&self.layer_directory(&key)) {
                Ok(aside) => unwanted.push(aside),
                Err(error) => {
                    tracing::warn!(layer = %key, %error, "cannot take an unused layer away");
                    continue;
                }
            }
            state.layers.remove(&key);
        }
        drop(state);
        for path in unwanted {
            remove_or_warn(&path);
        }
    }

    /// Moves a directory out of the store, to be removed at leisure.
    pub(crate) fn set_aside(&self, path: &Path) -> io::Result<PathBuf> {
        let aside = tempfile::Builder::new()
            .prefix("unwanted-")
            .tempdir_in(self.tmp_directory())?;
        std::fs::rename(path, aside.path())?;
        Ok(aside.keep())
    }

    /// At open: layers of loads that were killed before the table named them.
    fn remove_unknown_layers(&self) -> Result<(), OpenError> {
        let state = self.state.read();
        let used: BTreeSet<&str> = state.used_layers().into_iter().map(Digest::hex).collect();
        let directory = self.directory.join("layers");
        for name in names_in(&directory)? {
            if !name.to_str().is_some_and(|name| used.contains(name)) {
                remove_or_warn(&directory.join(&name));
            }
        }
        let configs = self.directory.join("configs");
        for name in names_in(&configs)? {
            let known = name
                .to_str()
                .and_then(|name| Digest::from_sha256_hex(name.strip_suffix(".json")?).ok())
                .is_some_and(|id| state.table.images.contains_key(&id));
            if !known {
                remove_or_warn(&configs.join(&name));
            }
        }
        Ok(())
    }
}

/// Layers that are not taken away while this lives.
pub(crate) struct Pins {
    inner: Arc<Inner>,
    keys: BTreeSet<Digest>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = self.inner.state.write();
        for key in &self.keys {
            if let Some(count) = state.pins.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(key);
                }
            }
        }
        drop(state);
        self.inner.collect_garbage();
    }
}

/// A directory below `tmp` that is gone when this is.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(inner: &Inner) -> io::Result<Scratch> {
        let directory = tempfile::Builder::new()
            .prefix("load-")
            .tempdir_in(inner.tmp_directory())?;
        Ok(Scratch(directory.keep()))
    }

    /// Makes `name/fs` in it.
    pub(crate) fn layer(&self, name: &str) -> io::Result<PathBuf> {
        let layer = self.0.join(name);
        std::fs::create_dir_all(layer.join("fs"))?;
        std::fs::set_permissions(
            layer.join("fs"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )?;
        Ok(layer)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_or_warn(&self.0);
    }
}

/// Runs what blocks beside the async runtime.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking tasks are only cancelled with the runtime, which runs this very future.
            Err(_) => std::future::pending().await,
        },
    }
}

pub(crate) fn remove_or_warn(path: &Path) {
    if let Err(error) = tree::remove_path(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove; the next start tries again");
    }
}

fn make_directory(path: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| OpenError::Directory {
            step: "make",
            path: path.to_owned(),
            source,
        })
}

fn lock(directory: &Path) -> Result<File, OpenError> {
    let path = directory.join("lock");
    let failed = |source| OpenError::Directory {
        step: "lock",
        path: path.clone(),
        source,
    };
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked(directory.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}

pub(crate) fn names_in(directory: &Path) -> Result<Vec<std::ffi::OsString>, OpenError> {
    let failed = |source| OpenError::Directory {
        step: "read",
        path: directory.to_owned(),
        source,
    };
    std::fs::read_dir(directory)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.file_name()).map_err(failed))
        .collect()
}

fn empty(directory: &Path) -> Result<(), OpenError> {
    for name in names_in(directory)? {
        let path = directory.join(&name);
        // A root that was being removed may still be mounted.
        let rootfs = path.join(OsStr::new(crate::root::ROOTFS));
        if mounts::is_mounted(&rootfs).unwrap_or(false)
            && let Err(error) = mounts::detach(&rootfs)
        {
            tracing::warn!(path = %rootfs.display(), %error, "cannot unmount what a killed process left");
            continue;
        }
        remove_or_warn(&path);
    }
    Ok(())
}

/// Reads what the table names. An image whose files are damaged is left out, with a word to the
/// log: the others are still good, and it can be loaded again.
fn leave_out_damaged(directory: &Path, state: &mut State) {
    let mut damaged = Vec::new();
    for (id, row) in &state.table.images {
        let document = match read_config(directory, id) {
            Ok(document) => document,
            Err(error) => {
                tracing::error!(image = %id, %error, "the image's configuration is damaged: load the image again");
                damaged.push(id.clone());
                continue;
            }
        };
        let mut layers = Vec::new();
        for key in &row.layers {
            match read_layer(directory, key) {
                Ok(layer) => layers.push((key.clone(), layer)),
                Err(error) => {
                    tracing::error!(image = %id, layer = %key, %error, "a layer of the image is damaged: load the image again");
                    break;
                }
            }
        }
        if layers.len() < row.layers.len() {
            damaged.push(id.clone());
            continue;
        }
        state.layers.extend(layers);
        state.documents.insert(id.clone(), Arc::new(document));
    }
    for id in damaged {
        state.table.images.remove(&id);
        state.table.names.retain(|_, named| named.image != id);
    }
    for key in state.roots.values().flatten() {
        if !state.layers.contains_key(key)
            && let Ok(layer) = read_layer(directory, key)
        {
            state.layers.insert(key.clone(), layer);
        }
    }
}

fn config_name(id: &Digest) -> String {
    format!("{}.json", id.hex())
}

fn read_config(directory: &Path, id: &Digest) -> io::Result<oci::Image> {
    let path = directory.join("configs").join(config_name(id));
    let content = std::fs::read(path)?;
    id.verify(&content).map_err(io::Error::other)?;
    Ok(serde_json::from_slice(&content)?)
}

fn read_layer(directory: &Path, key: &Digest) -> io::Result<LayerRecord> {
    let path = directory.join("layers").join(key.hex());
    let content = std::fs::read(path.join("layer.json"))?;
    std::fs::symlink_metadata(path.join("fs"))?;
    Ok(serde_json::from_slice(&content)?)
}
