//! The disk of a store in memory: keeps the newest state over restarts, and all that ever was written.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use store::{Change, DurableEngine, EngineError, Key, OpenError, Revision, Row};

/// Spaces in which something is written though nothing happens: signs of life and remarks.
const RESTLESS: [&str; 4] = [
    "leases.coordination.k8s.io",
    "events",
    "events.events.k8s.io",
    "events.k8s.io",
];

/// One thing that was written.
#[derive(Clone, Debug)]
pub struct Record {
    /// Where.
    pub key: Key,
    /// What; `None` for a deletion.
    pub bytes: Option<Bytes>,
}

/// Clones are the same ledger, so that a test can read while a store writes.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    rows: BTreeMap<Key, (Revision, Bytes)>,
    newest: Revision,
    records: Vec<Record>,
    /// How many records tell of something that happened.
    steps: usize,
    last_step: Option<Key>,
}

impl Ledger {
    /// Everything that was written into one space, in order.
    pub fn records(&self, space: &str) -> Vec<Record> {
        let content = self.0.lock();
        let of_space = content
            .records
            .iter()
            .filter(|record| &*record.key.space == space);
        of_space.cloned().collect()
    }

    /// Everything that was written, in order.
    pub fn all(&self) -> Vec<Record> {
        self.0.lock().records.clone()
    }

    /// Counts what was written but for leases and events, which never rest.
    pub fn steps(&self) -> usize {
        self.0.lock().steps
    }

    /// Where the last of those was written.
    pub fn last_step(&self) -> Option<Key> {
        self.0.lock().last_step.clone()
    }
}

impl DurableEngine for Ledger {
    fn load(&mut self, row: &mut dyn FnMut(Row)) -> Result<Revision, OpenError> {
        let content = self.0.lock();
        for (key, (revision, bytes)) in &content.rows {
            row(Row {
                space: key.space.to_string(),
                name: key.name.to_string(),
                revision: *revision,
                bytes: bytes.to_vec(),
            });
        }
        Ok(content.newest)
    }

    fn commit(&mut self, changes: &[Change], newest: Revision) -> Result<(), EngineError> {
        let mut content = self.0.lock();
        for change in changes {
            let record = match change {
                Change::Put {
                    key,
                    revision,
                    bytes,
                } => {
                    content.rows.insert(key.clone(), (*revision, bytes.clone()));
                    Record {
                        key: key.clone(),
                        bytes: Some(bytes.clone()),
                    }
                }
                Change::Delete { key } => {
                    content.rows.remove(key);
                    Record {
                        key: key.clone(),
                        bytes: None,
                    }
                }
            };
            if !RESTLESS.contains(&&*record.key.space) {
                content.steps += 1;
                content.last_step = Some(record.key.clone());
            }
            content.records.push(record);
        }
        content.newest = newest;
        Ok(())
    }

    fn close(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}
