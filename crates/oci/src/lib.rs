//! Words of the Open Container Initiative: references, digests, manifests, image configurations.
//!
//! They are values without IO: what is parsed is checked, what is printed is canonical. A
//! [`Reference`] is normalised as Docker does it the moment it is read, so that two names for one
//! image compare equal everywhere else. Documents keep the fields that Wharf acts on and step over
//! the rest, because images of ten years of tools are out there; whoever needs a document unchanged
//! keeps its bytes, which are what its digest is of.
//!
//! Where blobs are kept, and how archives and registries carry them, is left to `image` and
//! `registry`.

mod digest;
mod image;
mod manifest;
mod reference;

pub use digest::{Algorithm, Digest, DigestError, DigestMismatch, Hasher};
pub use image::{Healthcheck, History, Image, ImageConfig, RootFs, chain_id};
pub use manifest::{
    Annotations, Descriptor, DockerManifest, Index, Manifest, Platform, media_type,
};
pub use reference::{DEFAULT_DOMAIN, DEFAULT_TAG, Reference, ReferenceError};
