//! The cluster's certificate authority: make, load, issue.
//!
//! One authority signs everything: the server's certificate, the client certificates of people
//! and of parts that live in other processes. Keys are ECDSA P-256, because handshakes are many
//! and RSA signatures cost twenty times as much. The authority is made once per data directory and
//! kept; leaf certificates are made at each start, in memory or into files that only root can read.
//! [`TokenKey`] is the pair of keys that signs ServiceAccount tokens.
//!
//! Who may do what with an identity, and tokens themselves, are left to the API server.

mod authority;
mod file;
mod token_key;
mod unverified;

pub use authority::{Authority, Issued, ServerNames};
pub use token_key::TokenKey;
pub use unverified::unverified_client;

use std::path::PathBuf;

/// Why a key or certificate could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the data directory could not be read or written.
    #[error("{step} {}: {source}", path.display())]
    File {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file is there, but is not what it should be.
    #[error("{} is damaged ({reason}); move it away to have a new one made (clients then need a new kubeconfig)", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Only one of a key and its certificate is there.
    #[error("{} is missing, although its counterpart is there; restore it, or move the counterpart away to have both made anew", path.display())]
    Incomplete {
        /// The missing file.
        path: PathBuf,
    },
    /// The certificate could not be made.
    #[error("issue a certificate for {subject}: {source}")]
    Issue {
        /// For whom.
        subject: String,
        /// Why not.
        source: rcgen::Error,
    },
    /// The key could not be made.
    #[error("make a key: {0}")]
    MakeKey(String),
}
