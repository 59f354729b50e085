//! The machine's side: the bridge that carries the node's address, routes and sysctls.
//!
//! ```text
//!          10.244.0.1/32                     169.254.1.1 (answered by a permanent neighbour entry)
//! ┌────────── wharf0 ──────────┐         ┌─ wharfv5 ═══════════ eth0 ─┐
//! │ portless bridge: DNS, API  │  host   │  10.244.0.5/32 dev wharfv5 │ pod 10.244.0.5/32
//! │ route 10.96.0.0/16         │         └────────────────────────────┘ default via 169.254.1.1
//! └────────────────────────────┘
//! unreachable 10.244.0.0/24: what is not attached is refused at once
//! ```
//!
//! The route to the service addresses exists so that a process of this machine finds a way (and a
//! source address that pods can answer) before the rules rewrite where it goes.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::netlink::{Batch, Connection, Refused};
use crate::route::{self, Link, LinkChange, Switch, Way};
use crate::{Config, OpenError, Subnet};

/// The host's end of every veth has this address: there is nobody else on the link.
pub(crate) const HOST_MAC: route::Mac = [0xee; 6];
const MTU_DEFAULT: u32 = 1500;

/// Names and facts of the machine's side.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) bridge: String,
    /// Host ends of veths are named with this and the number of their address in the subnet.
    pub(crate) veth_prefix: String,
    pub(crate) mtu: u32,
    pub(crate) has_ipv6: bool,
    pub(crate) node_address: Ipv4Addr,
    /// Marks the one route of the instance that has no link to tell whose it is.
    metric: u32,
}

/// What a network is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Use,
    /// To be closed with everything: what is not there is not made.
    Removal,
}

/// Link names of an instance: bridge, and prefix of host ends.
pub(crate) fn names(instance: &str) -> (String, String) {
    // 15 bytes are all that a link name has, and the number of an address may take 7.
    let short = match instance.len() {
        0..=7 => instance.to_owned(),
        length => format!("w{}", &instance[length - 6..]),
    };
    (format!("{instance}0"), format!("{short}v"))
}

/// A number of 31 bits that follows from the name (FNV-1a).
fn metric(instance: &str) -> u32 {
    let hash = instance.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash >> 1
}

impl Host {
    /// The name of the host's end of the veth of an address.
    pub(crate) fn link_name(&self, subnet: Subnet, address: Ipv4Addr) -> String {
        format!(
            "{}{}",
            self.veth_prefix,
            address.to_bits() - subnet.address().to_bits()
        )
    }

    /// Whether a link is a host end of this instance.
    pub(crate) fn owns(&self, link: &Link) -> bool {
        let number = link
            .name
            .strip_prefix(&self.veth_prefix)
            .unwrap_or_default();
        link.kind == "veth"
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
    }

    /// Makes or adopts the bridge, routes and sysctls. Returns the links that were there.
    pub(crate) fn open(
        config: &Config,
        connection: &mut Connection,
        purpose: Purpose,
    ) -> Result<(Host, Vec<Link>), OpenError> {
        let (bridge, veth_prefix) = names(&config.instance);
        let kernel = |refused: Refused| OpenError::kernel(&bridge, refused);
        let links = route::links(connection).map_err(kernel)?;
        let routes = route::routes(connection).map_err(kernel)?;
        let uplink_mtu = routes
            .iter()
            .find(|route| route.to.prefix() == 0)
            .and_then(|route| links.iter().find(|link| Some(link.index) == route.link))
            .map(|link| link.mtu);
        let host = Host {
            bridge: bridge.clone(),
            veth_prefix,
            mtu: uplink_mtu.unwrap_or(MTU_DEFAULT).min(MTU_DEFAULT),
            has_ipv6: Path::new("/proc/sys/net/ipv6").exists(),
            node_address: config.node_address,
            metric: metric(&config.instance),
        };
        if purpose == Purpose::Removal {
            host.forget_other_ranges(config, connection, &links, &routes)
                .map_err(kernel)?;
            return Ok((host, links));
        }
        host.check_overlap(config, &links, &routes)?;
        set_sysctl("/proc/sys/net/ipv4/ip_forward", "1")?;
        host.forget_other_ranges(config, connection, &links, &routes)
            .map_err(kernel)?;

        match route::index_of(connection, &bridge)
            .map_err(kernel)?
            .and_then(|index| links.iter().find(|link| link.index == index))
        {
            Some(link) if link.kind == "bridge" => {}
            Some(link) => {
                return Err(OpenError::Config(format!(
                    "link {bridge} exists and is a {:?}, not a bridge; remove it or rename it",
                    link.kind
                )));
            }
            None => {
                let mut batch = Batch::default();
                let octets = config.node_address.octets();
                let mac = [0x0a, 0x58, octets[0], octets[1], octets[2], octets[3]];
                route::add_bridge(&mut batch, &bridge, mac);
                connection.execute(&batch).map_err(|refused| {
                    OpenError::lacking("bridge links", "CONFIG_BRIDGE", refused)
                })?;
            }
        }
        let index = route::index_of_existing(connection, &bridge).map_err(kernel)?;
        disable_ipv6(&host, &bridge)?;
        let mut batch = Batch::default();
        let change = LinkChange {
            no_link_local: host.has_ipv6,
            ..LinkChange::default()
        };
        route::change_link(&mut batch, index, &change);
        route::add_address(&mut batch, index, config.node_address);
        let way = Way::Link {
            index,
            source: Some(config.node_address),
        };
        route::add_route(&mut batch, config.service_cidr, &way);
        route::add_route(&mut batch, config.pod_subnet, &host.unreachable());
        connection.execute(&batch).map_err(kernel)?;
        Ok((host, links))
    }

    fn unreachable(&self) -> Way {
        Way::Unreachable {
            metric: self.metric,
        }
    }

    /// Whether a route is the one of this instance that has no link.
    fn owns_route(&self, route: &route::Route) -> bool {
        route.link.is_none() && route.metric == self.metric
    }

    /// Takes away what the instance had when it was last open, with other ranges, and did not close.
    fn forget_other_ranges(
        &self,
        config: &Config,
        connection: &mut Connection,
        links: &[Link],
        routes: &[route::Route],
    ) -> Result<(), Refused> {
        for route in routes {
            if self.owns_route(route) && route.to != config.pod_subnet {
                self.remove_unreachable(connection, route.to)?;
            }
        }
        let bridge = links.iter().find(|link| link.name == self.bridge);
        let Some(bridge) = bridge.filter(|link| link.kind == "bridge") else {
            return Ok(());
        };
        let other = |route: &route::Route| {
            let elsewhere =
                route.to != config.service_cidr || route.source != Some(self.node_address);
            route.link == Some(bridge.index) && elsewhere
        };
        // Nothing is on it but the node's address, which is another now.
        if routes.iter().any(other) {
            remove_link(connection, &bridge.name)?;
        }
        Ok(())
    }

    fn remove_unreachable(
        &self,
        connection: &mut Connection,
        subnet: Subnet,
    ) -> Result<(), Refused> {
        let mut batch = Batch::default();
        route::remove_route(&mut batch, subnet, &self.unreachable());
        match connection.execute(&batch) {
            Err(refused) if refused.errno() != Some(libc::ESRCH) => Err(refused),
            _ => Ok(()),
        }
    }

    fn check_overlap(
        &self,
        config: &Config,
        links: &[Link],
        routes: &[route::Route],
    ) -> Result<(), OpenError> {
        for ours in [config.pod_subnet, config.service_cidr] {
            for theirs in routes {
                // A wider route that ours lie in is overruled by ours; one inside would overrule us.
                let inside =
                    ours.contains(theirs.to.address()) && theirs.to.prefix() >= ours.prefix();
                let leftover = self.owns_route(theirs);
                let link = links.iter().find(|link| Some(link.index) == theirs.link);
                let known = link.is_some_and(|link| link.name == self.bridge || self.owns(link));
                if inside && !known && !leftover {
                    let (theirs, metric) = (theirs.to, theirs.metric);
                    return Err(match link {
                        Some(link) => OpenError::Overlap {
                            ours,
                            theirs,
                            link: link.name.clone(),
                        },
                        None => OpenError::OverlapUnreachable {
                            ours,
                            theirs,
                            metric,
                        },
                    });
                }
            }
        }
        Ok(())
    }

    /// Brings up the host's end of a veth: address and way of the sandbox behind it.
    pub(crate) fn set_up(
        &self,
        connection: &mut Connection,
        index: u32,
        id: &str,
        address: Ipv4Addr,
    ) -> Result<(), Refused> {
        let mut batch = Batch::default();
        let change = LinkChange {
            alias: Some(id),
            // Replies to 127.0.0.1 come back through here; `guard` in the table keeps others out.
            // Strict path checks keep a sandbox from using another's address.
            switches: &[
                (Switch::RouteLocalnet, 1),
                (Switch::ReversePathFilter, 1),
                (Switch::SendRedirects, 0),
            ],
            no_link_local: self.has_ipv6,
        };
        route::change_link(&mut batch, index, &change);
        route::add_neighbour(&mut batch, index, address, sandbox_mac(address));
        let way = Way::Link {
            index,
            source: Some(self.node_address),
        };
        route::add_route(&mut batch, Subnet::containing(address, 32), &way);
        connection.execute(&batch)
    }

    /// Lets nothing reach a sandbox any more, nor it anything: its packets have no way back, and the
    /// path check of its link drops them. The link itself ends with the sandbox's namespace: taken
    /// away by itself it would hold up every other change of links for tens of milliseconds.
    pub(crate) fn cut_off(
        &self,
        connection: &mut Connection,
        link: &str,
        address: Ipv4Addr,
    ) -> Result<(), Refused> {
        let Some(index) = route::index_of(connection, link)? else {
            return Ok(());
        };
        let mut batch = Batch::default();
        let way = Way::Link {
            index,
            source: Some(self.node_address),
        };
        route::remove_route(&mut batch, Subnet::containing(address, 32), &way);
        match connection.execute(&batch) {
            Err(refused) if refused.errno() != Some(libc::ESRCH) => Err(refused),
            _ => Ok(()),
        }
    }

    /// Removes all links and routes of the instance, whatever ranges they were made for.
    pub(crate) fn remove(&self, connection: &mut Connection) -> Result<(), Refused> {
        let links = route::links(connection)?;
        for link in links
            .iter()
            .filter(|link| link.name == self.bridge || self.owns(link))
        {
            remove_link(connection, &link.name)?;
        }
        for route in route::routes(connection)? {
            if self.owns_route(&route) {
                self.remove_unreachable(connection, route.to)?;
            }
        }
        Ok(())
    }
}

/// Removes a link; one that is gone already is no error.
pub(crate) fn remove_link(connection: &mut Connection, name: &str) -> Result<(), Refused> {
    let mut batch = Batch::default();
    route::remove_link(&mut batch, name);
    match connection.execute(&batch) {
        Err(refused) if refused.errno() != Some(libc::ENODEV) => Err(refused),
        _ => Ok(()),
    }
}

/// The link-layer address of a sandbox follows from its IPv4 address: no ARP is needed.
pub(crate) fn sandbox_mac(address: Ipv4Addr) -> route::Mac {
    let octets = address.octets();
    [0x0a, 0x58, octets[0], octets[1], octets[2], octets[3]]
}

/// Keeps IPv6 off a link of the machine, so that nothing reaches it round the rules.
pub(crate) fn disable_ipv6(host: &Host, link: &str) -> Result<(), OpenError> {
    if !host.has_ipv6 {
        return Ok(());
    }
    set_sysctl(&format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1")
}

/// Writes a sysctl unless it has the value: `/proc/sys` may be read-only and right.
fn set_sysctl(path: &str, value: &'static str) -> Result<(), OpenError> {
    if std::fs::read_to_string(path).is_ok_and(|found| found.trim() == value) {
        return Ok(());
    }
    std::fs::write(path, value).map_err(|source| OpenError::Sysctl {
        path: PathBuf::from(path),
        value,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit() {
        let check = |instance: &str, bridge: &str, last: &str| {
            let (found, veth_prefix) = names(instance);
            assert_eq!(found, bridge);
            let host = Host {
                bridge: found,
                veth_prefix,
                mtu: 1500,
                has_ipv6: true,
                node_address: Ipv4Addr::UNSPECIFIED,
                metric: metric(instance),
            };
            let subnet = Subnet::containing(Ipv4Addr::new(10, 244, 0, 0), 16);
            let name = host.link_name(subnet, Ipv4Addr::new(10, 244, 255, 254));
            assert_eq!(name, last);
            assert!(name.len() < libc::IFNAMSIZ && host.bridge.len() < libc::IFNAMSIZ);
            let link = |name: &str, kind: &str| Link {
                index: 1,
                name: name.to_owned(),
                kind: kind.to_owned(),
                mtu: 1500,
            };
            assert!(host.owns(&link(&name, "veth")));
            assert!(!host.owns(&link(&name, "bridge")));
            assert!(!host.owns(&link(&host.veth_prefix, "veth")));
            assert!(!host.owns(&link("eth0", "veth")));
        };
        check("wharf", "wharf0", "wharfv65534");
        check("wharf-0a1b2c", "wharf-0a1b2c0", "w0a1b2cv65534");
    }
}
