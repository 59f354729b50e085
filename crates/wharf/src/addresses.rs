//! Which addresses an instance uses, derived from its ranges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use cli::Config;

/// A node's share of the pod range.
const NODE_PREFIX: u8 = 24;

/// Derived addresses of an instance.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    /// This machine's in the pod range; DNS and the API listen there for pods.
    pub(crate) node_in_pod_range: Ipv4Addr,
    /// This machine's share of the pod range.
    pub(crate) node_pod_cidr: String,
    /// The first address of the Service range: the API.
    pub(crate) api_service: Ipv4Addr,
    /// The tenth: the name server.
    pub(crate) dns_service: Ipv4Addr,
    /// Where this machine is reached by others, or by itself if it is alone.
    pub(crate) node: Ipv4Addr,
}

impl Addresses {
    pub(crate) fn of(config: &Config) -> Addresses {
        let node_in_pod_range = config.pod_cidr.address(1);
        Addresses {
            node_in_pod_range,
            node_pod_cidr: format!("{}/{NODE_PREFIX}", config.pod_cidr.network),
            api_service: config.service_cidr.address(1),
            dns_service: config.service_cidr.address(10),
            node: outward().unwrap_or(node_in_pod_range),
        }
    }

    /// By what the API server may be called.
    pub(crate) fn server_names(&self, config: &Config) -> pki::ServerNames {
        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            &config.node_name,
        ];
        let mut addresses: Vec<IpAddr> = vec![
            Ipv4Addr::LOCALHOST.into(),
            Ipv6Addr::LOCALHOST.into(),
            self.api_service.into(),
            self.node_in_pod_range.into(),
            self.node.into(),
        ];
        if !config.api_listen.ip().is_unspecified() {
            addresses.push(config.api_listen.ip());
        }
        addresses.sort();
        addresses.dedup();
        pki::ServerNames {
            names: names.map(String::from).to_vec(),
            addresses,
        }
    }

    /// Where the API listens for pods; absent when the address for people covers it.
    pub(crate) fn api_for_pods(&self, config: &Config) -> Option<SocketAddr> {
        let inside = SocketAddr::new(self.node_in_pod_range.into(), config.api_listen.port());
        let covered = config.api_listen.ip() == IpAddr::from(Ipv4Addr::UNSPECIFIED)
            || config.api_listen == inside;
        (!covered).then_some(inside)
    }
}

/// The address that this machine would send from. Choosing a route sends nothing; 192.0.2.1 is
/// for documentation (RFC 5737).
fn outward() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) if !address.is_loopback() && !address.is_unspecified() => Some(address),
        _ => None,
    }
}
