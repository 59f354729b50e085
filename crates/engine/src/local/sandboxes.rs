//! Making, stopping and removing sandboxes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use network::{Frontend, Protocol, PublishedPort};
use runtime::{Keeper, KeeperError};

use super::{Inner, SHM_SIZE};
use crate::api::{Error, NetworkMode, PortMapping, SandboxId, SandboxSpec, SandboxStatus};
use crate::error::machine;
use crate::etc;
use crate::sandbox::{Link, Made, Sandbox, SandboxNote};

impl Inner {
    pub(super) async fn run_sandbox(
        self: Arc<Self>,
        id: SandboxId,
        spec: SandboxSpec,
    ) -> Result<SandboxStatus, Error> {
        check_id(&id)?;
        let name_taken = || Error::Exists(format!("sandbox {}", id.0));
        if self.sandboxes.lock().contains_key(&id) || !self.making.lock().insert(id.clone()) {
            return Err(name_taken());
        }
        let directory = self.directory.join(&id.0);
        let place = self.places.acquire().await;
        let cgroup = self.cgroup(&id, &spec);
        let result = self.make_sandbox(&id, &directory, spec).await;
        drop(place);
        if result.is_err() {
            self.prune_cgroups(&cgroup);
            if let Err(error) = self.clear(&id, &directory).await {
                tracing::warn!(sandbox = id.0, %error, "a sandbox that failed left something behind");
            }
        }
        self.making.lock().remove(&id);
        result.map(|sandbox| sandbox.status())
    }

    async fn make_sandbox(
        self: &Arc<Self>,
        id: &SandboxId,
        directory: &Path,
        spec: SandboxSpec,
    ) -> Result<Arc<Sandbox>, Error> {
        let (keeper, events) = Keeper::start(
            &self.config.program,
            directory,
            self.keeper_spec(id, &spec)?,
        )
        .await
        .map_err(|error| machine("start the keeper of", &id.0, error))?;
        let result = self.connect_sandbox(id, directory, &spec, &keeper).await;
        let address = match result {
            Ok(address) => address,
            Err(error) => {
                let _ = keeper.end().await;
                return Err(error);
            }
        };
        let (record, containers) = keeper
            .list()
            .await
            .map_err(|error| machine("ask the keeper of", &id.0, error))?;
        let sandbox = Sandbox::new(
            id.clone(),
            directory.to_owned(),
            &record,
            spec,
            address,
            Link::Connected(keeper),
        );
        Ok(self.settle(sandbox, containers, Some(events)))
    }

    fn cgroup(&self, id: &SandboxId, spec: &SandboxSpec) -> String {
        match spec.cgroup.trim_matches('/') {
            "" => format!("/{}/pods/{}", self.config.instance, id.0),
            below => format!("/{}/{below}", self.config.instance),
        }
    }

    fn keeper_spec(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
    ) -> Result<runtime::SandboxSpec, Error> {
        let own_network = spec.network != NetworkMode::Host;
        let note = SandboxNote { spec: spec.clone() };
        Ok(runtime::SandboxSpec {
            id: id.0.clone(),
            hostname: own_network.then(|| spec.hostname.clone()),
            own_network,
            own_ipc: !spec.host_ipc,
            share_processes: spec.share_processes,
            host_processes: spec.host_processes,
            sysctls: spec.sysctls.clone(),
            cgroup: self.cgroup(id, spec),
            keeper_cgroup: format!("/{}/keepers", self.config.instance),
            resources: spec.resources.clone(),
            shm_size: SHM_SIZE,
            note: serde_json::to_value(note)
                .map_err(|error| machine("write the record of", &id.0, error))?,
        })
    }

    /// The address, the ports and the files; when this has returned, the sandbox is made.
    async fn connect_sandbox(
        &self,
        id: &SandboxId,
        directory: &Path,
        spec: &SandboxSpec,
        keeper: &Keeper,
    ) -> Result<Option<std::net::Ipv4Addr>, Error> {
        let network = &self.config.network;
        let failed = |error| machine("connect sandbox", &id.0, error);
        let address = if spec.network == NetworkMode::Own {
            let namespace = PathBuf::from(format!("/proc/{}/ns/net", keeper.pid()));
            let attachment = network.attach(&namespace, &id.0).await.map_err(failed)?;
            let ports = published(&spec.ports)?;
            if !ports.is_empty() {
                network.publish(&id.0, ports).await.map_err(failed)?;
            }
            Some(attachment.address)
        } else {
            None
        };
        etc::write(directory, spec, address)?;
        let made = serde_json::to_vec(&Made { address })
            .map_err(|error| machine("write the record of", &id.0, error))?;
        let (new, path) = (directory.join("engine.new"), directory.join("engine.json"));
        fs::write(&new, made)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|error| machine("write", path.display().to_string(), error))?;
        Ok(address)
    }

    /// Ends the keeper and gives the address back.
    pub(super) async fn stop(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        let name = &sandbox.id.0;
        // First, so that nothing new comes in while everything ends.
        self.config
            .network
            .detach(name)
            .await
            .map_err(|error| machine("disconnect sandbox", name, error))?;
        match sandbox.link() {
            Link::Ended => return Ok(()),
            Link::Silent => self.end_by_force(sandbox).await?,
            Link::Connected(keeper) => match keeper.end().await {
                Err(KeeperError::Silent { .. }) => self.end_by_force(sandbox).await?,
                result => result.map_err(|error| machine("end the keeper of", name, error))?,
            },
        }
        self.tidy(sandbox)
            .await
            .map_err(|error| machine("clear up after", name, error))
    }

    /// Ends a sandbox whose keeper does not do it.
    async fn end_by_force(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        tracing::warn!(
            sandbox = sandbox.id.0,
            "its keeper does not end it, and is killed with all that is in it"
        );
        Keeper::kill(&sandbox.directory)
            .await
            .map_err(|error| machine("kill the keeper of", &sandbox.id.0, error))
    }

    pub(super) async fn remove(self: &Arc<Self>, id: &SandboxId) -> Result<(), Error> {
        let Ok(sandbox) = self.sandbox(id) else {
            return self.release_images(id).await;
        };
        let _alone = sandbox.ending.lock().await;
        self.stop(&sandbox).await?;
        for container in sandbox.containers() {
            self.remove_root(&container.id()).await?;
            sandbox.forget(&container.id());
        }
        self.release_images(id).await?;
        self.clear(id, &sandbox.directory).await?;
        // On version 1 nothing else removes the directories between.
        let above = sandbox
            .cgroup
            .rsplit_once('/')
            .map_or("/", |(above, _)| above);
        self.cgroups
            .prune(above, &format!("/{}", self.config.instance));
        self.sandboxes.lock().remove(id);
        Ok(())
    }

    /// Removes what a sandbox has on this machine, beside its containers' roots.
    pub(super) async fn clear(&self, id: &SandboxId, directory: &Path) -> Result<(), Error> {
        self.config
            .network
            .detach(&id.0)
            .await
            .map_err(|error| machine("disconnect sandbox", &id.0, error))?;
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(machine("remove", directory.display().to_string(), error))
            }
            _ => Ok(()),
        }
    }

    /// Removes a sandbox's cgroup, which is empty, and those above it that became so.
    fn prune_cgroups(&self, cgroup: &str) {
        self.cgroups
            .prune(cgroup, &format!("/{}", self.config.instance));
    }
}

fn published(ports: &[PortMapping]) -> Result<Vec<PublishedPort>, Error> {
    ports
        .iter()
        .map(|mapping| {
            let protocol = match mapping.protocol.as_str() {
                "TCP" | "" => Protocol::Tcp,
                "UDP" => Protocol::Udp,
                "SCTP" => Protocol::Sctp,
                other => return Err(Error::Invalid(format!("unknown protocol {other:?}"))),
            };
            let address = match mapping.host_address {
                None => None,
                Some(std::net::IpAddr::V4(address)) => {
                    Some(address).filter(|address| !address.is_unspecified())
                }
                Some(std::net::IpAddr::V6(address)) => {
                    let message = format!("port {} of {address}: no IPv6 here", mapping.host_port);
                    return Err(Error::Invalid(message));
                }
            };
            Ok(PublishedPort {
                frontend: Frontend {
                    address,
                    protocol,
                    port: mapping.host_port,
                },
                port: mapping.port,
            })
        })
        .collect()
}

fn check_id(id: &SandboxId) -> Result<(), Error> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=64).contains(&id.0.len()) && id.0.bytes().all(is_plain) {
        return Ok(());
    }
    let message = format!(
        "{:?} is not a sandbox name: it must match [a-z0-9-]{{1,64}}",
        id.0
    );
    Err(Error::Invalid(message))
}
