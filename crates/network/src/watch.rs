//! Hearing that somebody took rules away, or began to drop.
//!
//! `nft flush ruleset`, or a firewall service that starts again, removes everybody's tables. The kernel
//! tells every change to those who listen, so nothing is polled: a word that our table is gone is
//! checked, and the table is built anew; a word from the chain that all share, and our rules are put
//! there again.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use tokio::io::unix::AsyncFd;

use crate::netlink::{Attributes, messages};
use crate::{Inner, nft, passage};

const READ_BYTES: usize = 64 * 1024;
/// Between two checks: who starts again makes many changes, and somebody else may take our rules away
/// each time that they are there.
const PAUSE: Duration = Duration::from_millis(100);

/// A socket that hears of changes to packet rules, in the namespace of the calling thread.
pub(crate) fn listen() -> io::Result<Socket> {
    let mut socket = Socket::new(libc::NETLINK_NETFILTER as isize)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.add_membership(libc::NFNLGRP_NFTABLES as u32)?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Puts rules back whenever somebody removes them, until the network is closed.
pub(crate) async fn repair(socket: Socket, table: String, network: Weak<Inner>) {
    #[expect(
        unsafe_code,
        reason = "waiting for a descriptor of no type that tokio knows"
    )]
    // SAFETY: a netlink `Socket` owns one descriptor, open from its making to its end, and the
    // `AsyncFd` owns the `Socket`.
    let registered = unsafe { AsyncFd::register(socket) };
    let socket = match registered {
        Ok(socket) => socket,
        Err(error) => {
            tracing::warn!(table, %error, "cannot watch the packet rules");
            return;
        }
    };
    loop {
        let Ok(mut ready) = socket.readable().await else {
            return;
        };
        match ready.try_io(|socket| is_concern(socket.get_ref(), &table)) {
            // More than could be kept: it may have been among it.
            Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Ok(Err(error)) => {
                tracing::warn!(table, %error, "cannot watch the packet rules any more");
                return;
            }
            Ok(Ok(false)) | Err(_) => continue,
            Ok(Ok(true)) => {}
        }
        if let Err(error) = read_all(socket.get_ref()) {
            tracing::warn!(table, %error, "cannot watch the packet rules any more");
            return;
        }
        let Some(network) = network.upgrade() else {
            return;
        };
        crate::blocking(move || check(&network)).await;
        tokio::time::sleep(PAUSE).await;
    }
}

fn check(network: &Arc<Inner>) {
    let table = &network.config.instance;
    match network.program.lock().repair() {
        Ok(false) => {}
        Ok(true) => tracing::warn!(
            table,
            "somebody removed the packet rules; they are there again"
        ),
        Err(error) => tracing::error!(%error, "somebody removed the packet rules"),
    }
    network.open_passage();
}

/// Reads one datagram; whether it tells of something that must be looked at.
fn is_concern(socket: &Socket, table: &str) -> io::Result<bool> {
    let mut buffer = Vec::with_capacity(READ_BYTES);
    socket.recv(&mut buffer, 0)?;
    let is_ours = |kind, payload: &[u8]| {
        let attributes = payload.get(4..).unwrap_or_default();
        kind == nft::TABLE_REMOVED && Attributes::find_text(attributes, 1) == Some(table)
    };
    let concern = |(kind, payload)| is_ours(kind, payload) || passage::concerns(kind, payload);
    Ok(messages(&buffer).any(concern))
}

/// Reads all that has come: the check that follows sees it.
fn read_all(socket: &Socket) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(READ_BYTES);
    loop {
        buffer.clear();
        match socket.recv(&mut buffer, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(error) => return Err(error),
        }
    }
}
