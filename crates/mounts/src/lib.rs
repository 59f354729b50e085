//! Mounts of this machine: overlays made, what is mounted found, and taken away.
//!
//! The decision: the kernel is asked in its newest words, and in older ones where it does not know those,
//! in one place for all who mount: keepers, the image store, volumes. Names of layers, of any length and
//! with any letter, never become part of a list of options.
//!
//! What is taken away goes in one place only: mounts that others share are cut off from them first.
//!
//! What is mounted where, and who may write there, is left to the callers.

mod list;
mod overlay;
mod point;

pub use list::{below, unescape};
pub use overlay::{Overlay, Upper, mount_overlay};
pub use point::{cut_off, detach, is_mounted};
