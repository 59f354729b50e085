//! Volumes on this machine: directories, memory, projected files.
//!
//! A volume is a directory that containers see, so nothing in it can be trusted: between two calls
//! a container may have put a link where a file was. Paths below a volume are therefore looked up
//! from the volume's own descriptor by the kernel, never as a text from `/`; and taking a volume
//! away first unmounts what is below it and then refuses to step over a mount that is left.
//!
//! ```text
//! make_directory ─► (write_files │ bind_sub_path │ a container's own writes)* ─► remove
//! ```
//!
//! What volumes a pod has, and when, is left to others; so are volumes on other machines. All calls
//! block.

mod directory;
mod files;
mod folder;
mod host_path;
mod remove;
mod sub_path;

pub use directory::{Medium, make_directory};
pub use files::{File, Files, FilesError, write_files};
pub use host_path::{HostPathError, HostPathKind, check_host_path};
pub use remove::{remove, unmount_all};
pub use sub_path::{SubPathError, bind_sub_path};

use std::io;
use std::path::{Path, PathBuf};

/// A step on this machine that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step} {}: {source}", path.display())]
pub struct MachineError {
    /// What was being done.
    pub step: &'static str,
    /// To what.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

/// For `map_err`: names the step and its subject.
fn failed<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl Fn(E) -> MachineError {
    let path = path.to_owned();
    move |source| MachineError {
        step,
        path: path.clone(),
        source: source.into(),
    }
}
