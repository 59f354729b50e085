//! Whether keepers answer.
//!
//! What the engine knows of containers it knows from memory, so that knowing it says nothing about
//! whether anything can be done with them. One keeper that answers is enough: another one each time,
//! and a few more if that one does not. One that does not answer and has no other beside it says little:
//! what it hangs on may be its own pod's.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use runtime::Keeper;

use super::Inner;
use crate::api::{Error, SandboxId};
use crate::error::machine;
use crate::sandbox::Sandbox;

/// For one keeper to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Keepers that are asked before nobody is thought to answer.
const ASKED_MAX: usize = 4;

/// Keepers that have to be silent, and no other to answer, before it is not taken for their own trouble.
const SILENT_MIN: usize = 2;

impl Inner {
    /// Fine as well if there is no keeper.
    pub(super) async fn reach_a_keeper(&self) -> Result<(), Error> {
        let sandboxes: Vec<Arc<Sandbox>> = self.sandboxes.lock().values().cloned().collect();
        let (mut silent, mut keepers): (Vec<Error>, Vec<(&SandboxId, Keeper)>) = Default::default();
        for sandbox in &sandboxes {
            match sandbox.reach() {
                Ok(Some(keeper)) => keepers.push((&sandbox.id, keeper)),
                Ok(None) => {}
                Err(error) => silent.push(error),
            }
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let first = turn.checked_rem(keepers.len()).unwrap_or_default();
        let asked = keepers.iter().cycle().skip(first);
        for (id, keeper) in asked.take(keepers.len().min(ASKED_MAX)) {
            let failed = |error| machine("ask the keeper of", &id.0, error);
            match tokio::time::timeout(TIMEOUT, keeper.list()).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => silent.push(failed(
                    Box::<dyn std::error::Error + Send + Sync>::from(error),
                )),
                Err(late) => silent.push(failed(late.into())),
            }
        }
        match silent.len() {
            ..SILENT_MIN => Ok(()),
            _ => silent.pop().map_or(Ok(()), Err),
        }
    }
}
