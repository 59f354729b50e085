//! Connecting to a port on the sandbox's loopback, on behalf of the daemon.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

/// A connection being made.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) connection: u64,
    pub(super) request: u64,
    pub(super) socket: OwnedFd,
    pub(super) deadline: Instant,
    port: u16,
    address: IpAddr,
}

/// How far a connection has come.
pub(super) enum Progress {
    Connected(OwnedFd),
    Waiting(Dial),
    Failed(io::Error),
}

impl Dial {
    /// Begins with IPv4's loopback.
    pub(super) fn begin(connection: u64, request: u64, port: u16, deadline: Instant) -> Progress {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Dial::attempt(connection, request, port, deadline, address)
    }

    fn attempt(
        connection: u64,
        request: u64,
        port: u16,
        deadline: Instant,
        address: IpAddr,
    ) -> Progress {
        let family = match address {
            IpAddr::V4(_) => AddressFamily::INET,
            IpAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match socket_with(family, SocketType::STREAM, flags, None) {
            Ok(socket) => socket,
            Err(error) => return Progress::Failed(error.into()),
        };
        let result = connect(&socket, &SocketAddr::new(address, port));
        let dial = Dial {
            connection,
            request,
            socket,
            deadline,
            port,
            address,
        };
        match result {
            Ok(()) => Progress::Connected(dial.socket),
            Err(Errno::INPROGRESS) => Progress::Waiting(dial),
            Err(error) => dial.next(error),
        }
    }

    /// To be called when the socket is writable.
    pub(super) fn check(self) -> Progress {
        match sockopt::socket_error(&self.socket) {
            Ok(Ok(())) => Progress::Connected(self.socket),
            Ok(Err(error)) | Err(error) => self.next(error),
        }
    }

    /// A server that listens on IPv6 only.
    fn next(self, error: Errno) -> Progress {
        match self.address {
            IpAddr::V4(_) => {
                let address = IpAddr::V6(Ipv6Addr::LOCALHOST);
                match Dial::attempt(
                    self.connection,
                    self.request,
                    self.port,
                    self.deadline,
                    address,
                ) {
                    // What IPv4 said is what the user knows.
                    Progress::Failed(_) => Progress::Failed(error.into()),
                    progress => progress,
                }
            }
            IpAddr::V6(_) => Progress::Failed(error.into()),
        }
    }
}
