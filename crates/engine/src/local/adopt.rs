//! Taking up what an earlier daemon left.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use runtime::{Keeper, KeeperError};

use super::mounted_images::owner;
use super::{Inner, LocalEngine};
use crate::api::{Error, SandboxId};
use crate::error::machine;
use crate::sandbox::{Link, Made, Sandbox, SandboxNote};

impl LocalEngine {
    /// False for one that lives and is not understood: it is left alone with all that it has.
    pub(super) async fn adopt(&self, name: &str) -> bool {
        let (id, directory) = (SandboxId(name.to_owned()), self.0.directory.join(name));
        let result = match Keeper::connect(&directory).await {
            Ok(found) => self.adopt_living(&id, &directory, found).await,
            Err(reason) if reason.means_dead() => self.adopt_dead(&id, &directory, &reason),
            Err(reason) => match self.adopt_silent(&id, &directory) {
                Ok(()) => {
                    tracing::warn!(sandbox = name, %reason, "its keeper does not answer");
                    Ok(())
                }
                Err(error) => {
                    tracing::error!(
                        sandbox = name, %reason, %error,
                        "it runs and cannot be taken up; it is left alone"
                    );
                    return false;
                }
            },
        };
        if let Err(error) = result {
            tracing::warn!(sandbox = name, %error, "a sandbox of an earlier run is removed");
            if let Err(error) = self.0.clear(&id, &directory).await {
                tracing::warn!(sandbox = name, %error, "it could not be removed completely");
            }
        }
        true
    }

    async fn adopt_living(
        &self,
        id: &SandboxId,
        directory: &Path,
        (keeper, record, containers, events): runtime::Found,
    ) -> Result<(), Error> {
        let result = read_made(directory).and_then(|made| Ok((made, read_note(&record)?)));
        let (made, note) = match result {
            Ok(read) => read,
            Err(error) => {
                // Half-made: nobody was told of it.
                let _ = keeper.end().await;
                return Err(error);
            }
        };
        let sandbox = Sandbox::new(
            id.clone(),
            directory.to_owned(),
            &record,
            note.spec,
            made.address,
            Link::Connected(keeper),
        );
        self.0.settle(sandbox, containers, Some(events));
        Ok(())
    }

    fn adopt_dead(
        &self,
        id: &SandboxId,
        directory: &Path,
        reason: &KeeperError,
    ) -> Result<(), Error> {
        let failed = |error: KeeperError| machine("read what is left of", &id.0, error);
        let mut dead = Keeper::read_dead(directory)
            .map_err(failed)?
            .ok_or_else(|| Error::SandboxNotFound(id.clone()))?;
        let (made, note) = (read_made(directory)?, read_note(&dead.sandbox)?);
        tracing::info!(sandbox = id.0, %reason, "the sandbox has no keeper");
        dead.bury(directory, &self.0.cgroups).map_err(failed)?;
        let sandbox = Sandbox::new(
            id.clone(),
            directory.to_owned(),
            &dead.sandbox,
            note.spec,
            made.address,
            Link::Ended,
        );
        self.0.settle(sandbox, dead.containers, None);
        Ok(())
    }

    /// From what its keeper has written down.
    fn adopt_silent(&self, id: &SandboxId, directory: &Path) -> Result<(), Error> {
        let known = Keeper::read_dead(directory)
            .map_err(|error| machine("read what is known of", &id.0, error))?
            .ok_or_else(|| Error::SandboxNotFound(id.clone()))?;
        let (made, note) = (read_made(directory)?, read_note(&known.sandbox)?);
        let sandbox = Sandbox::new(
            id.clone(),
            directory.to_owned(),
            &known.sandbox,
            note.spec,
            made.address,
            Link::Silent,
        );
        self.0.settle(sandbox, known.containers, None);
        Ok(())
    }

    /// Addresses, roots and cgroups that belong to no sandbox.
    pub(super) async fn remove_leftovers(&self) {
        let inner = &self.0;
        let sandboxes: Vec<Arc<Sandbox>> = inner.sandboxes.lock().values().cloned().collect();
        let living = sandboxes
            .iter()
            .filter(|sandbox| sandbox.is_alive())
            .map(|sandbox| sandbox.id.0.clone());
        if let Err(error) = inner.config.network.release_except(living).await {
            tracing::warn!(%error, "addresses of sandboxes that are gone could not be released");
        }
        let known: BTreeSet<String> = sandboxes
            .iter()
            .flat_map(|sandbox| sandbox.containers())
            .map(|container| container.id().0)
            .collect();
        let is_known = |root: &str| match owner(root) {
            Some(owner) => sandboxes.iter().any(|sandbox| sandbox.id.0 == owner),
            None => known.contains(root),
        };
        for root in inner.config.images.roots() {
            if !is_known(&root)
                && let Err(error) = inner.config.images.remove_root(&root).await
            {
                tracing::warn!(container = root, %error, "a root that belongs to no container stays");
            }
        }
        let used: Vec<String> = sandboxes
            .iter()
            .filter(|sandbox| sandbox.is_alive())
            .map(|sandbox| sandbox.cgroup.clone())
            .collect();
        inner.remove_cgroups(&format!("/{}/pods", inner.config.instance), &used);
    }
}

impl Inner {
    /// Removes cgroups that no living sandbox uses, with what runs in them.
    fn remove_cgroups(&self, path: &str, used: &[String]) {
        let is_above = |above: &str, below: &str| {
            below
                .strip_prefix(above)
                .is_some_and(|rest| rest.starts_with('/'))
        };
        for name in self.cgroups.children(path) {
            let child = format!("{path}/{name}");
            if used.contains(&child) {
                continue;
            }
            if used.iter().any(|one| is_above(&child, one)) {
                self.remove_cgroups(&child, used);
                continue;
            }
            self.cgroups.kill(&child);
            if let Err(error) = self.cgroups.remove(&child) {
                tracing::warn!(%error, "a cgroup that belongs to no sandbox stays");
            }
        }
    }
}

fn read_note(record: &runtime::SandboxRecord) -> Result<SandboxNote, Error> {
    serde_json::from_value(record.spec.note.clone())
        .map_err(|error| machine("read the record of", &record.spec.id, error))
}

fn read_made(directory: &Path) -> Result<Made, Error> {
    let path = directory.join("engine.json");
    let shown = path.display().to_string();
    let bytes = fs::read(&path).map_err(|error| machine("read", &shown, error))?;
    serde_json::from_slice(&bytes).map_err(|error| machine("read", &shown, error))
}
