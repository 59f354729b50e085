//! The ground floor of an instance, opened in the order in which things need each other.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cli::Config;
use engine::{Engine, LocalEngine};
use futures::StreamExt;
use image::Images;
use network::Network;

use crate::addresses::Addresses;

/// Removing a sandbox waits for the kernel; more at once do not make it faster.
const REMOVING_MAX: usize = 16;
/// For the processes of a sandbox to end that were killed.
const TIMEOUT_REMOVE: Duration = Duration::from_secs(30);

/// Images, network, and the containers on them.
pub(crate) struct Ground {
    pub(crate) images: Images,
    pub(crate) network: Network,
    pub(crate) engine: Arc<LocalEngine>,
    /// Where the volumes of pods are.
    pods_dir: PathBuf,
    /// Of pods on the machine's network.
    host_ip: IpAddr,
}

impl Ground {
    /// Opens all of it; what an earlier process left running is taken up.
    pub(crate) async fn open(config: &Config) -> anyhow::Result<Ground> {
        Ground::open_on(config, Network::open(network_config(config)?)).await
    }

    /// The same for [`Ground::take_down`] alone, which succeeds also where the addresses have come
    /// into use by others.
    pub(crate) async fn open_to_take_down(config: &Config) -> anyhow::Result<Ground> {
        Ground::open_on(config, Network::open_to_remove(network_config(config)?)).await
    }

    async fn open_on(
        config: &Config,
        network: impl Future<Output = Result<Network, network::OpenError>>,
    ) -> anyhow::Result<Ground> {
        let (data_dir, name) = (&config.instance.data_dir, &config.instance.name);
        let images_dir = data_dir.join("images");
        let images = tokio::task::spawn_blocking(move || Images::open(images_dir));
        let (images, network) = tokio::join!(images, network);
        let images = images
            .context("open the images")?
            .context("open the images")?;
        let network = network.context("set up the network")?;
        let engine = LocalEngine::open(engine::Config {
            instance: name.clone(),
            data_dir: data_dir.clone(),
            program: "/proc/self/exe".into(),
            images: images.clone(),
            network: network.clone(),
        })
        .await
        .context("take up the containers")?;
        Ok(Ground {
            images,
            network,
            engine: Arc::new(engine),
            pods_dir: data_dir.join("pods"),
            host_ip: Addresses::of(config).node.into(),
        })
    }

    /// Ends every container and takes links, rules and cgroups away. What is stored stays.
    /// Pods end as they asked to, but no later than after `limit`; zero kills them at once.
    /// Whether there were containers.
    pub(crate) async fn take_down(&self, limit: Duration) -> anyhow::Result<bool> {
        if !limit.is_zero() {
            node::end_pods(&*self.engine, self.host_ip, limit).await;
        }
        let sandboxes = self.engine.sandboxes().await;
        let removed: Vec<_> = futures::stream::iter(sandboxes)
            .map(|sandbox| async move {
                tokio::time::timeout(TIMEOUT_REMOVE, self.engine.remove_sandbox(&sandbox.id))
                    .await
                    .context("its processes were killed and do not end (`ps axf` shows them)")
                    .and_then(|removed| removed.map_err(anyhow::Error::new))
                    .with_context(|| format!("remove sandbox {}", sandbox.id.0))
            })
            .buffer_unordered(REMOVING_MAX)
            .collect()
            .await;
        let any = !removed.is_empty();
        removed.into_iter().collect::<anyhow::Result<()>>()?;
        let pods_dir = self.pods_dir.clone();
        tokio::task::spawn_blocking(move || volume::unmount_all(&pods_dir))
            .await
            .context("unmount volumes")?
            .context("unmount volumes")?;
        self.engine.close().context("remove the cgroups")?;
        self.network
            .close(true)
            .await
            .context("remove the network")?;
        Ok(any)
    }
}

fn network_config(config: &Config) -> anyhow::Result<network::Config> {
    let addresses = Addresses::of(config);
    Ok(network::Config {
        instance: config.instance.name.clone(),
        state_dir: config.instance.data_dir.join("run/network"),
        node_address: addresses.node_in_pod_range,
        pod_subnet: addresses
            .node_pod_cidr
            .parse()
            .context("the node's share of --pod-cidr")?,
        pod_cidr: config.pod_cidr.to_string().parse().context("--pod-cidr")?,
        service_cidr: config
            .service_cidr
            .to_string()
            .parse()
            .context("--service-cidr")?,
    })
}
