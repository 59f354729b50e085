//! Routing messages: links, addresses, neighbours and routes, in the words of this crate.
//!
//! Each function appends one message to a batch; nothing is sent here. Source: rtnetlink(7).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::Subnet;
use crate::netlink::{
    ACK, Attributes, Batch, CREATE, Connection, EXCLUSIVE, Payload, REPLACE, Refused, number32,
};

/// A link-layer address.
pub(crate) type Mac = [u8; 6];

const INFO_PEER: u16 = 1;
const INET_CONF: u16 = 1;
const INET6_ADDRESS_GENERATION: u16 = 8;
const ADDRESS_GENERATION_NONE: u8 = 1;
const FLAG_UP: u32 = libc::IFF_UP as u32;
/// `RTA_PRIORITY`
const METRIC: u16 = 6;
/// `RTNH_F_ONLINK`
const NEXT_HOP_ONLINK: u32 = 4;
const PREFIX_ALL: u8 = 32;

/// Switches of a link that are sysctls elsewhere (`net.ipv4.conf.LINK.*`, `linux/ip.h`).
#[derive(Clone, Copy)]
#[repr(u16)]
pub(crate) enum Switch {
    /// Answer with redirects when a packet leaves where it came in.
    SendRedirects = 6,
    /// 1: a source address must be reachable through the link that it came in by.
    ReversePathFilter = 8,
    /// Let 127.0.0.0/8 pass as a source or destination.
    RouteLocalnet = 26,
}

/// What a link shall become, beyond being there.
#[derive(Default)]
pub(crate) struct LinkChange<'a> {
    pub(crate) alias: Option<&'a str>,
    pub(crate) switches: &'a [(Switch, u32)],
    /// Give it no IPv6 address of its own accord. Only where the kernel has IPv6.
    pub(crate) no_link_local: bool,
}

/// A link as far as this crate looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) mtu: u32,
}

/// A route of the main table as far as this crate looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) to: Subnet,
    /// Index of the link; absent for unreachable and the like.
    pub(crate) link: Option<u32>,
    pub(crate) metric: u32,
    /// What packets of this machine carry.
    pub(crate) source: Option<Ipv4Addr>,
}

fn link_header(payload: &mut Payload<'_>, index: u32, up: bool) {
    let flags = if up { FLAG_UP } else { 0 };
    let mut header = [0_u8; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    payload.raw(&header);
}

/// Makes a bridge without ports.
pub(crate) fn add_bridge(batch: &mut Batch, name: &str, mac: Mac) {
    let flags = ACK | CREATE | EXCLUSIVE;
    batch.message("create the bridge", libc::RTM_NEWLINK, flags, |message| {
        link_header(message, 0, false);
        message.text(libc::IFLA_IFNAME, name);
        message.attribute(libc::IFLA_ADDRESS, &mac);
        message.nested(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "bridge")
        });
    });
}

/// One end of a pair of links.
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
}

/// Makes a pair of links, one end here and one at once in another namespace.
pub(crate) fn add_pair(
    batch: &mut Batch,
    here: &End<'_>,
    there: &End<'_>,
    namespace: BorrowedFd<'_>,
    mtu: u32,
) {
    let flags = ACK | CREATE | EXCLUSIVE;
    batch.message(
        "create the veth pair",
        libc::RTM_NEWLINK,
        flags,
        |message| {
            link_header(message, 0, false);
            message.text(libc::IFLA_IFNAME, here.name);
            message.attribute(libc::IFLA_ADDRESS, &here.mac);
            message.native(libc::IFLA_MTU, mtu);
            message.nested(libc::IFLA_LINKINFO, |info| {
                info.text(libc::IFLA_INFO_KIND, "veth");
                info.nested(libc::IFLA_INFO_DATA, |data| {
                    data.nested(INFO_PEER, |peer| {
                        link_header(peer, 0, false);
                        peer.text(libc::IFLA_IFNAME, there.name);
                        peer.attribute(libc::IFLA_ADDRESS, &there.mac);
                        peer.native(libc::IFLA_MTU, mtu);
                        peer.native(libc::IFLA_NET_NS_FD, namespace.as_raw_fd() as u32);
                    });
                });
            });
        },
    );
}

/// Changes a link and sets it up.
pub(crate) fn change_link(batch: &mut Batch, index: u32, change: &LinkChange<'_>) {
    batch.message("set the link up", libc::RTM_NEWLINK, ACK, |message| {
        link_header(message, index, true);
        if let Some(alias) = change.alias {
            message.attribute(libc::IFLA_IFALIAS, alias.as_bytes());
        }
        if change.switches.is_empty() && !change.no_link_local {
            return;
        }
        message.nested(libc::IFLA_AF_SPEC, |families| {
            if !change.switches.is_empty() {
                families.nested(libc::AF_INET as u16, |inet| {
                    inet.nested(INET_CONF, |switches| {
                        for (switch, value) in change.switches {
                            switches.native(*switch as u16, *value);
                        }
                    });
                });
            }
            if change.no_link_local {
                families.nested(libc::AF_INET6 as u16, |inet6| {
                    inet6.attribute(INET6_ADDRESS_GENERATION, &[ADDRESS_GENERATION_NONE]);
                });
            }
        });
    });
}

/// Removes a link, and with a pair its other end.
pub(crate) fn remove_link(batch: &mut Batch, name: &str) {
    batch.message("remove the link", libc::RTM_DELLINK, ACK, |message| {
        link_header(message, 0, false);
        message.text(libc::IFLA_IFNAME, name);
    });
}

/// Gives a link an address that stands for itself only (/32). Repeating it is no error.
pub(crate) fn add_address(batch: &mut Batch, index: u32, address: Ipv4Addr) {
    let flags = ACK | CREATE | REPLACE;
    batch.message("add the address", libc::RTM_NEWADDR, flags, |message| {
        message.raw(&[libc::AF_INET as u8, PREFIX_ALL, 0, libc::RT_SCOPE_UNIVERSE]);
        message.raw(&index.to_ne_bytes());
        message.attribute(libc::IFA_LOCAL, &address.octets());
        message.attribute(libc::IFA_ADDRESS, &address.octets());
    });
}

/// Says which link-layer address a neighbour has, for good.
pub(crate) fn add_neighbour(batch: &mut Batch, index: u32, address: Ipv4Addr, mac: Mac) {
    let flags = ACK | CREATE | REPLACE;
    batch.message("add the neighbour", libc::RTM_NEWNEIGH, flags, |message| {
        message.raw(&[libc::AF_INET as u8, 0, 0, 0]);
        message.raw(&index.to_ne_bytes());
        message.raw(&libc::NUD_PERMANENT.to_ne_bytes());
        message.raw(&[0, 0]);
        message.attribute(libc::NDA_DST, &address.octets());
        message.attribute(libc::NDA_LLADDR, &mac);
    });
}

/// Where packets for a subnet go.
pub(crate) enum Way {
    /// Its addresses are neighbours on the link; packets of this machine carry `source`.
    Link {
        index: u32,
        source: Option<Ipv4Addr>,
    },
    /// Through a router on the link, which need not lie in a subnet of the link's.
    Router { index: u32, router: Ipv4Addr },
    /// Nowhere: senders are told so at once. The metric tells whose route it is.
    Unreachable { metric: u32 },
}

fn route_message(
    batch: &mut Batch,
    step: &'static str,
    (kind, flags): (u16, u16),
    to: Subnet,
    way: &Way,
) {
    let (scope, route_kind) = match way {
        Way::Link { .. } => (libc::RT_SCOPE_LINK, libc::RTN_UNICAST),
        Way::Router { .. } => (libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST),
        Way::Unreachable { .. } => (libc::RT_SCOPE_UNIVERSE, libc::RTN_UNREACHABLE),
    };
    batch.message(step, kind, flags, |message| {
        let (family, table) = (libc::AF_INET as u8, libc::RT_TABLE_MAIN);
        let protocol = libc::RTPROT_BOOT;
        message.raw(&[
            family,
            to.prefix(),
            0,
            0,
            table,
            protocol,
            scope,
            route_kind,
        ]);
        let onlink = if matches!(way, Way::Router { .. }) {
            NEXT_HOP_ONLINK
        } else {
            0
        };
        message.raw(&onlink.to_ne_bytes());
        message.attribute(libc::RTA_DST, &to.address().octets());
        match way {
            Way::Link { index, source } => {
                message.native(libc::RTA_OIF, *index);
                if let Some(source) = source {
                    message.attribute(libc::RTA_PREFSRC, &source.octets());
                }
            }
            Way::Router { index, router } => {
                message.native(libc::RTA_OIF, *index);
                message.attribute(libc::RTA_GATEWAY, &router.octets());
            }
            Way::Unreachable { metric } => message.native(METRIC, *metric),
        }
    });
}

/// Adds a route, in place of one to the same subnet.
pub(crate) fn add_route(batch: &mut Batch, to: Subnet, way: &Way) {
    let kind = (libc::RTM_NEWROUTE, ACK | CREATE | REPLACE);
    route_message(batch, "add the route", kind, to, way);
}

/// Removes a route.
pub(crate) fn remove_route(batch: &mut Batch, to: Subnet, way: &Way) {
    route_message(
        batch,
        "remove the route",
        (libc::RTM_DELROUTE, ACK),
        to,
        way,
    );
}

/// All links of the connection's namespace.
pub(crate) fn links(connection: &mut Connection) -> Result<Vec<Link>, Refused> {
    let mut found = Vec::new();
    connection.dump(
        "list links",
        libc::RTM_GETLINK,
        |message| link_header(message, 0, false),
        |kind, payload| {
            if kind == libc::RTM_NEWLINK {
                found.extend(read_link(payload));
            }
        },
    )?;
    Ok(found)
}

/// The index of a link by its name; `None` if there is none.
pub(crate) fn index_of(connection: &mut Connection, name: &str) -> Result<Option<u32>, Refused> {
    let mut batch = Batch::default();
    batch.message("look for the link", libc::RTM_GETLINK, 0, |message| {
        link_header(message, 0, false);
        message.text(libc::IFLA_IFNAME, name);
    });
    let mut found = None;
    match connection.exchange(&batch, |_, payload| found = read_link(payload)) {
        Ok(()) => Ok(found.map(|link| link.index)),
        Err(refused) if refused.errno() == Some(libc::ENODEV) => Ok(None),
        Err(refused) => Err(refused),
    }
}

/// As [`index_of`], for a link that must be there.
pub(crate) fn index_of_existing(connection: &mut Connection, name: &str) -> Result<u32, Refused> {
    index_of(connection, name)?.ok_or_else(|| Refused {
        step: "look for the link",
        source: io::Error::from_raw_os_error(libc::ENODEV),
    })
}

fn read_link(payload: &[u8]) -> Option<Link> {
    let index = number32(payload, 4)?;
    let attributes = payload.get(16..)?;
    let kind = Attributes::find(attributes, libc::IFLA_LINKINFO)
        .and_then(|info| Attributes::find_text(info, libc::IFLA_INFO_KIND));
    Some(Link {
        index,
        name: Attributes::find_text(attributes, libc::IFLA_IFNAME)?.to_owned(),
        kind: kind.unwrap_or_default().to_owned(),
        mtu: Attributes::find(attributes, libc::IFLA_MTU).and_then(|mtu| number32(mtu, 0))?,
    })
}

/// All IPv4 routes of the main table.
pub(crate) fn routes(connection: &mut Connection) -> Result<Vec<Route>, Refused> {
    let mut found = Vec::new();
    connection.dump(
        "list routes",
        libc::RTM_GETROUTE,
        |message| {
            message.raw(&[libc::AF_INET as u8, 0, 0, 0, 0, 0, 0, 0]);
            message.raw(&[0; 4]);
        },
        |kind, payload| {
            if kind == libc::RTM_NEWROUTE {
                found.extend(read_route(payload));
            }
        },
    )?;
    Ok(found)
}

fn read_route(payload: &[u8]) -> Option<Route> {
    let (prefix, table) = (*payload.get(1)?, *payload.get(4)?);
    if table != libc::RT_TABLE_MAIN {
        return None;
    }
    let attributes = payload.get(12..)?;
    let address = |kind| {
        let octets = Attributes::find(attributes, kind)?;
        Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?))
    };
    let to = address(libc::RTA_DST).unwrap_or(Ipv4Addr::UNSPECIFIED);
    let link = Attributes::find(attributes, libc::RTA_OIF).and_then(|index| number32(index, 0));
    let metric = Attributes::find(attributes, METRIC).and_then(|metric| number32(metric, 0));
    Some(Route {
        to: Subnet::containing(to, prefix),
        link,
        metric: metric.unwrap_or(0),
        source: address(libc::RTA_PREFSRC),
    })
}
