//! JSON, merge, strategic and server-side-apply patches: Value × Value → Value.
//!
//! All four kinds of patch of the Kubernetes API work on plain JSON; what strategic and apply
//! patches must know about a type (merge keys, list kinds, atomic maps) they ask through [`Shape`],
//! so built-in kinds and custom ones take the same way. Behaviour and texts are those of the
//! genuine server (1.36), including where it departs from the RFCs; they were found by asking it.
//!
//! Which patch a request carries, which status code an error becomes, and defaulting, pruning and
//! validating the result are left to the API server. Nothing here does IO, and time comes in as an
//! argument.
//!
//! Recursion follows the nesting of the values. serde_json reads no more than 128 levels, a JSON
//! patch is refused when it would build more ([`json_patch`]), and the other patches cannot nest
//! deeper than the deeper of their arguments.

pub mod apply;
mod go;
mod json_patch;
mod merge;
mod shape;
mod strategic;

pub use go::print as print_go;
pub use json_patch::{JsonPatchError, Problem as JsonPatchProblem, json_patch};
pub use merge::{MergePatchError, merge_patch};
pub use shape::{ListKind, Scalar, Shape, Strategy};
pub use strategic::{StrategicError, strategic};
