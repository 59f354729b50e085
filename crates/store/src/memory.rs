//! The engine that forgets: for tests, and for clusters that may.

use crate::{Change, DurableEngine, EngineError, OpenError, Revision, Row};

/// Keeps nothing. A store on it lives as long as its process.
#[derive(Debug, Default)]
pub struct Memory;

impl DurableEngine for Memory {
    fn load(&mut self, _row: &mut dyn FnMut(Row)) -> Result<Revision, OpenError> {
        Ok(Revision(0))
    }

    fn commit(&mut self, _changes: &[Change], _newest: Revision) -> Result<(), EngineError> {
        Ok(())
    }

    fn close(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}
