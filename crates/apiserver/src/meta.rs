//! What selectors and admission ask of an object, read from its stored bytes once and only if asked.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::Value;
use store::{Entry, Key};

use crate::handle::Resource;

/// Kept beside each stored object.
#[derive(Debug, Default)]
pub struct Meta {
    facts: OnceLock<Box<Facts>>,
}

/// What is asked of one version of an object more often than it is written.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) fields: Vec<(&'static str, String)>,
    /// Whether it is being deleted.
    pub(crate) is_leaving: bool,
}

/// The extraction to open a store with ([`crate::Config::store`]).
///
/// Nothing is read when an object is written: most objects are never asked for so, and for those
/// that are, the first question parses them once.
pub fn extract() -> store::Extract<Meta> {
    Arc::new(|_key: &Key, _bytes: &Bytes| Meta::default())
}

/// The facts of a stored object of this kind.
pub(crate) fn facts<'a>(resource: &Resource, entry: &'a Entry<Meta>) -> &'a Facts {
    entry.meta.facts.get_or_init(|| {
        // What is stored was written by this server and is JSON; anything else has no labels.
        let object: Value = serde_json::from_slice(&entry.bytes).unwrap_or_default();
        Box::new(Facts::of(resource.stored_kind, &object))
    })
}

impl Facts {
    /// Reads the facts of an object in hand.
    pub(crate) fn of(kind: &kinds::Kind, object: &Value) -> Facts {
        let labels = object["metadata"]["labels"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect();
        Facts {
            labels,
            fields: kind.selectable_fields(object),
            is_leaving: !object["metadata"]["deletionTimestamp"].is_null(),
        }
    }
}
