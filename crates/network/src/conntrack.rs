//! Forgetting connections whose backend is gone (`ctnetlink`).
//!
//! A UDP "connection" lives in the kernel for as long as its client keeps sending, and goes where its
//! first packet went. TCP needs none of this: its peers notice. Source:
//! `linux/netfilter/nfnetlink_conntrack.h`.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::Frontend;
use crate::netlink::{ACK, Attributes, Batch, Connection, Refused};
use crate::program::Stale;

const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
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
    let mut doomed: Vec<Vec<u8>> = Vec::new();
    connection.dump(
        "list connections",
        GET,
        |message| message.raw(&[libc::AF_INET as u8, 0, 0, 0]),
        |_, payload| {
            let attributes = payload.get(4..).unwrap_or_default();
            if let Some(original) = is_stale(attributes, &gone) {
                doomed.push(original.to_vec());
            }
        },
    )?;
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

/// The original tuple, as the kernel wrote it, if the connection is one of those.
fn is_stale<'a>(attributes: &'a [u8], gone: &HashSet<Stale>) -> Option<&'a [u8]> {
    let bytes = Attributes::find(attributes, TUPLE_ORIGINAL)?;
    let original = read(bytes)?;
    let reply = read(Attributes::find(attributes, TUPLE_REPLY)?)?;
    let protocol = crate::Protocol::from_number(original.protocol)?;
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
