//! Kubernetes' protobuf requests as JSON.
//!
//! The server keeps objects as JSON. Typed Go clients, and with them parts of kubectl, send
//! `application/vnd.kubernetes.protobuf` and do not fall back. So what they send is turned into the JSON
//! that it stands for, by a table of fields (`data/fields.tsv`, made by `generate` from the published
//! protocol definitions) and the few message types whose JSON is not an object. They all accept JSON
//! as an answer, which is why nothing is encoded here.
//!
//! Go clients send every field that is not a pointer, also when it is empty. What an empty value
//! means, and what is left out of JSON, is the schema's business and left to the caller.

mod decode;
mod fields;
mod wire;

pub use decode::{DecodeError, decode};
