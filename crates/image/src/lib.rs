//! Images on this machine: archives in, verified layers, root file systems out.
//!
//! A layer is unpacked once, into a directory that is named by its content, and every image and
//! every container that has the layer reads that directory through overlayfs. Nothing becomes
//! visible before it is whole and verified: archives are read into a place of their own, renamed
//! into the store, flushed, and only then named by the table that says what there is. What a
//! killed process left behind is in nobody's table and is taken away by the next
//! [`Images::open`].
//!
//! ```text
//! images/
//!   lock                    held while open
//!   images.json             the table: ids, their layers, names        (replaced, never rewritten)
//!   empty/                  stands in for an image without layers
//!   configs/<id>.json       what an id is the digest of
//!   layers/<key>/fs         one layer, as overlayfs wants it
//!   layers/<key>/layer.json what was found while it was unpacked
//!   roots/<container>/      upper, work and mount point of a container's root
//!   tmp/                    unfinished and unwanted; emptied at open
//! ```
//!
//! Running anything in a root, and pulling from registries, is left to others.

pub mod archive;
mod compression;
mod import;
mod layer;
mod load;
mod place;
mod plan;
mod remove;
mod root;
mod space;
mod store;
mod stream;
mod table;
mod user;

pub use archive::{ArchiveError, Source};
pub use import::{ImportError, ImportOptions};
pub use layer::{LayerError, Limits};
pub use load::{LoadError, LoadOptions, Loaded, Progress, ProgressSink};
pub use place::Fault;
pub use plan::PlanError;
pub use remove::{RemoveError, Removed, Use};
pub use root::{Root, RootError};
pub use store::{Image, Images, OpenError, StoreError};
pub use table::TableError;
pub use user::{User, UserError, lookup_user};
