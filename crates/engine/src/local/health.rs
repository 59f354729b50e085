//! Whether keepers answer.
//!
//! What the engine knows of containers it knows from memory, so that knowing it says nothing about
//! whether anything can be done with them. One keeper that answers is enough: another one each time,
//! and a few more if that one does not.

use std::sync::atomic::Ordering;
use std::time::Duration;

use runtime::Keeper;

use super::Inner;
use crate::api::{Error, SandboxId};
use crate::error::machine;

/// For one keeper to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Keepers that are asked before nobody is thought to answer.
const ASKED_MAX: usize = 4;

impl Inner {
    /// Fine as well if there is no keeper.
    pub(super) async fn reach_a_keeper(&self) -> Result<(), Error> {
        let unreached = {
            let sandboxes = self.sandboxes.lock();
            sandboxes.values().find_map(|sandbox| sandbox.reach().err())
        };
        let keepers: Vec<(SandboxId, Keeper)> = {
            let sandboxes = self.sandboxes.lock();
            let living = sandboxes
                .values()
                .filter_map(|sandbox| Some((sandbox.id.clone(), sandbox.keeper()?)));
            living.collect()
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let first = turn.checked_rem(keepers.len()).unwrap_or_default();
        let asked = keepers.iter().cycle().skip(first);
        let mut outcome = unreached.map_or(Ok(()), Err);
        for (id, keeper) in asked.take(keepers.len().min(ASKED_MAX)) {
            match tokio::time::timeout(TIMEOUT, keeper.list()).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => outcome = Err(machine("ask the keeper of", &id.0, error)),
                Err(late) => outcome = Err(machine("ask the keeper of", &id.0, late)),
            }
        }
        outcome
    }
}
