//! Archives that carry images: what `docker save` writes, and OCI image layouts in a tar.

mod read;
mod write;

pub use read::{ArchiveError, Source};
pub use write::{ScratchFile, WriteError, write_directory, write_scratch};

pub(crate) use read::{Archive, Member};
