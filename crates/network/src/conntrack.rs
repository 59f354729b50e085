//! Forgetting connections whose backend is gone (`ctnetlink`).
//!
//! A UDP "connection" lives in the kernel for as long as its client keeps sending, and goes where its
//! first packet went. TCP needs none of this: its peers notice. Source:
//! `linux/netfilter/nfnetlink_conntrack.h`.
//!
//! The kernel may follow hundreds of thousands of connections. It is asked for those of the frontends
//! in question only; kernels before 5.8 do not know the question and list all, so what comes is always
//! looked at.

use std::collections::{BTreeSet, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::netlink::{ACK, Attributes, Batch, Connection, Payload, Refused};
use crate::program::Stale;
use crate::{Frontend, Protocol};

const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
/// Which parts of a tuple a filter looks at (`CTA_FILTER_F_CTA_*`).
const FILTER_DESTINATION: u32 = 1 << 1;
const FILTER_PROTOCOL: u32 = 1 << 3;
const FILTER_DESTINATION_PORT: u32 = 1 << 5;
/// Each frontend asked for has the kernel walk all connections; where there are more, one walk lists
/// all of UDP.
const FRONTENDS_MAX: usize = 8;
/// Deletions sent in one go.
const CHUNK: usize = 500;

/// One direction of a connection.
struct Tuple {
    source: (Ipv4Addr, u16),
    destination: (Ipv4Addr, u16),
    protocol: u8,
}

/// Deletes the entries of connections that go where they should not any more. Returns how many there were.
pub(crate) fn forget(connection: &mut Connection, stale: &[Stale]) -> Result<usize, Refused> {
    let gone: HashSet<Stale> = stale.iter().copied().collect();
    let frontends: BTreeSet<Frontend> = stale.iter().map(|stale| stale.frontend).collect();
    let questions: Vec<Option<Frontend>> = if frontends.len() > FRONTENDS_MAX {
        vec![None]
    } else {
        frontends.into_iter().map(Some).collect()
    };
    let mut doomed: Vec<Vec<u8>> = Vec::new();
    for question in questions {
        connection.dump(
            "list connections",
            GET,
            |message| {
                message.raw(&[libc::AF_INET as u8, 0, 0, 0]);
                write_filter(message, question);
            },
            |_, payload| {
                let attributes = payload.get(4..).unwrap_or_default();
                if let Some(original) = is_stale(attributes, &gone) {
                    doomed.push(original.to_vec());
                }
            },
        )?;
    }
    for chunk in doomed.chunks(CHUNK) {
        let mut batch = Batch::default();
        for original in chunk {
            batch.message("delete a connection", DELETE, ACK, |message| {
                message.raw(&[libc::AF_INET as u8, 0, 0, 0]);
                message.nested(TUPLE_ORIGINAL, |tuple| tuple.raw(original));
            });
        }
        match connection.execute(&batch) {
            // It ended by itself meanwhile.
            Err(refused) if refused.errno() == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
    Ok(doomed.len())
}

/// Asks for connections that a client opened to the frontend, or for all of UDP.
fn write_filter(message: &mut Payload<'_>, frontend: Option<Frontend>) {
    let protocol = frontend.map_or(Protocol::Udp, |frontend| frontend.protocol);
    let address = frontend.and_then(|frontend| frontend.address);
    let mut looks_at = FILTER_PROTOCOL;
    message.nested(TUPLE_ORIGINAL, |tuple| {
        if let Some(address) = address {
            looks_at |= FILTER_DESTINATION;
            tuple.nested(TUPLE_IP, |ip| ip.attribute(2, &address.octets()));
        }
        tuple.nested(TUPLE_PROTOCOL, |ports| {
            ports.attribute(1, &[protocol.number()]);
            if let Some(frontend) = frontend {
                looks_at |= FILTER_DESTINATION_PORT;
                ports.attribute(3, &frontend.port.to_be_bytes());
            }
        });
    });
    message.nested(FILTER, |filter| filter.native(FILTER_ORIGINAL, looks_at));
}

/// The original tuple, as the kernel wrote it, if the connection is one of those.
fn is_stale<'a>(attributes: &'a [u8], gone: &HashSet<Stale>) -> Option<&'a [u8]> {
    let bytes = Attributes::find(attributes, TUPLE_ORIGINAL)?;
    let original = read(bytes)?;
    let reply = read(Attributes::find(attributes, TUPLE_REPLY)?)?;
    let protocol = Protocol::from_number(original.protocol)?;
    let (address, port) = original.destination;
    let backend = Some(SocketAddrV4::new(reply.source.0, reply.source.1));
    let backend = if reply.source == original.destination {
        None
    } else {
        backend
    };
    [Some(address), None]
        .into_iter()
        .map(|address| Stale {
            frontend: Frontend {
                address,
                protocol,
                port,
            },
            backend,
        })
        .any(|stale| gone.contains(&stale))
        .then_some(bytes)
}

fn read(tuple: &[u8]) -> Option<Tuple> {
    let ip = Attributes::find(tuple, TUPLE_IP)?;
    let protocol = Attributes::find(tuple, TUPLE_PROTOCOL)?;
    let address = |kind| -> Option<Ipv4Addr> {
        Some(
            <[u8; 4]>::try_from(Attributes::find(ip, kind)?)
                .ok()?
                .into(),
        )
    };
    let port = |kind| -> Option<u16> {
        Some(u16::from_be_bytes(
            Attributes::find(protocol, kind)?.try_into().ok()?,
        ))
    };
    Some(Tuple {
        source: (address(1)?, port(2)?),
        destination: (address(2)?, port(3)?),
        protocol: *Attributes::find(protocol, 1)?.first()?,
    })
}
