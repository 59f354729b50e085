//! Hearing that somebody took the table away.
//!
//! `nft flush ruleset`, or a firewall service that starts again, removes everybody's tables. The kernel
//! tells every change to those who listen, so nothing is polled: a word that our table is gone is
//! checked, and the table is built anew.

use std::io;
use std::sync::{Arc, Weak};

use netlink_sys::{Socket, SocketAddr};
use tokio::io::unix::AsyncFd;

use crate::Inner;
use crate::netlink::{Attributes, messages};

/// `NFT_MSG_DELTABLE` as netlink counts it: the subsystem in the upper byte.
const TABLE_REMOVED: u16 = 10 << 8 | libc::NFT_MSG_DELTABLE as u16;
const READ_BYTES: usize = 64 * 1024;

/// A socket that hears of changes to packet rules, in the namespace of the calling thread.
pub(crate) fn listen() -> io::Result<Socket> {
    let mut socket = Socket::new(libc::NETLINK_NETFILTER as isize)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.add_membership(libc::NFNLGRP_NFTABLES as u32)?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Builds the table anew whenever somebody removes it, until the network is closed.
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
        match ready.try_io(|socket| told_of_removal(socket.get_ref(), &table)) {
            // More than could be kept: it may have been among it.
            Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Ok(Err(error)) => {
                tracing::warn!(table, %error, "cannot watch the packet rules any more");
                return;
            }
            Ok(Ok(false)) | Err(_) => continue,
            Ok(Ok(true)) => {}
        }
        let Some(network) = network.upgrade() else {
            return;
        };
        crate::blocking(move || check(&network)).await;
    }
}

fn check(network: &Arc<Inner>) {
    match network.program.lock().repair() {
        Ok(false) => {}
        Ok(true) => tracing::warn!(
            table = network.config.instance,
            "somebody removed the packet rules; they are there again"
        ),
        Err(error) => tracing::error!(%error, "somebody removed the packet rules"),
    }
}

/// Reads one datagram; whether it says that the table is gone.
fn told_of_removal(socket: &Socket, table: &str) -> io::Result<bool> {
    let mut buffer = Vec::with_capacity(READ_BYTES);
    socket.recv(&mut buffer, 0)?;
    Ok(messages(&buffer).any(|(kind, payload)| {
        let attributes = payload.get(4..).unwrap_or_default();
        kind == TABLE_REMOVED && Attributes::find_text(attributes, 1) == Some(table)
    }))
}
