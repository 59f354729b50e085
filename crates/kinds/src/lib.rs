//! The Kubernetes object model: what kinds there are, and what each of them demands and promises.
//!
//! A kind is data: names, scope, verbs, schema, how fields merge, columns. One machinery reads bodies, fills in
//! defaults, checks and prints them, for built-in kinds as for custom ones; a kind's own file holds only what is
//! special about it. Objects are `serde_json::Value`s throughout, so nothing is lost by going through a struct.
//! Texts of faults follow upstream, as people search for them and programs match them.
//!
//! No IO and no clock: storing, admission, authorization and the merging of patches are for others.

mod base64;
mod decode;
mod descriptions;
mod discovery;
mod fault;
mod groups;
mod kind;
mod labels;
pub mod metadata;
pub mod names;
mod openapi;
mod quantity;
mod read;
mod registry;
mod rules;
mod schema;
mod selector;
mod strict;
mod table;
mod time;

pub use decode::{Decoded, go_kind};
pub use fault::{Cause, Fault, FaultReason, Path, quote};
pub use kind::{Kind, Subresource};
pub use quantity::{Format, Quantity, QuantityError};
pub use registry::{Registry, builtin};
pub use schema::{Form, ListType, MapType, SchemaRef, Type, definition};
pub use selector::{FieldSelector, FieldTerm, Selector, SelectorError};
pub use strict::duplicate_fields;
pub use table::{Column, age, human_duration};
