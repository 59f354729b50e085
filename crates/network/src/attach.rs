//! Putting a sandbox on the network, and taking it off.
//!
//! The pair is made with one end already inside; the rest is one batch on each side. A thread that
//! has entered another network namespace is never used for anything else: it ends.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

use crate::host::{self, HOST_MAC, Host, sandbox_mac};
use crate::netlink::{Batch, Connection, Refused};
use crate::route::{self, LinkChange, Way};
use crate::{AttachError, OpenError, Subnet};

/// The router of every sandbox: link-local, on the machine's end of the pair.
const ROUTER: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const INSIDE: &str = "eth0";

/// Whether a name can be a sandbox's: it becomes a file name.
pub(crate) fn is_name(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !id.is_empty() && id.len() <= 64 && id.bytes().all(allowed)
}

/// A network namespace that is held open.
pub(crate) struct Namespace {
    path: PathBuf,
    file: File,
    /// Tells it from all others while it lives.
    pub(crate) inode: u64,
}

impl Namespace {
    /// Opens a namespace by its file.
    pub(crate) fn open(path: &Path) -> Result<Namespace, AttachError> {
        let failed = |source| AttachError::Namespace {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let theirs = file.metadata().map_err(failed)?;
        let ours = std::fs::metadata("/proc/thread-self/ns/net").map_err(failed)?;
        if (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) {
            return Err(AttachError::OwnNamespace(path.to_owned()));
        }
        Ok(Namespace {
            path: path.to_owned(),
            file,
            inode: theirs.ino(),
        })
    }

    fn failed(&self, source: io::Error) -> AttachError {
        AttachError::Namespace {
            path: self.path.clone(),
            source,
        }
    }
}

/// One pair to be made.
pub(crate) struct Pair<'a> {
    pub(crate) id: &'a str,
    pub(crate) namespace: &'a Namespace,
    pub(crate) address: Ipv4Addr,
    pub(crate) link: &'a str,
}

impl Pair<'_> {
    fn refused(&self, subject: &str) -> impl Fn(Refused) -> AttachError {
        let (id, subject) = (self.id.to_owned(), subject.to_owned());
        move |refused| AttachError::Kernel {
            id: id.clone(),
            step: refused.step,
            subject: subject.clone(),
            source: refused.source,
        }
    }

    /// Makes the pair and sets up the machine's end. Runs in the machine's namespace.
    pub(crate) fn make(&self, host: &Host, connection: &mut Connection) -> Result<(), AttachError> {
        let refused = self.refused(self.link);
        let mut batch = Batch::default();
        let here = route::End {
            name: self.link,
            mac: HOST_MAC,
        };
        let there = route::End {
            name: INSIDE,
            mac: sandbox_mac(self.address),
        };
        route::add_pair(
            &mut batch,
            &here,
            &there,
            self.namespace.file.as_fd(),
            host.mtu,
        );
        match connection.execute(&batch) {
            // The name is this address's, and the address was free: what is there was left behind.
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                host::remove_link(connection, self.link).map_err(&refused)?;
                connection.execute(&batch)
            }
            other => other,
        }
        .map_err(&refused)?;
        let index = route::index_of_existing(connection, self.link).map_err(&refused)?;
        host::disable_ipv6(host, self.link).map_err(|error| match error {
            OpenError::Sysctl { path, source, .. } => AttachError::Kernel {
                id: self.id.to_owned(),
                step: "write",
                subject: path.display().to_string(),
                source,
            },
            other => AttachError::Kernel {
                id: self.id.to_owned(),
                step: "disable IPv6 on",
                subject: self.link.to_owned(),
                source: io::Error::other(other),
            },
        })?;
        host.set_up(connection, index, self.id, self.address)
            .map_err(&refused)
    }

    /// Sets up the sandbox's end. Leaves the calling thread in the sandbox's namespace.
    pub(crate) fn enter_and_set_up(&self, host: &Host) -> Result<(), AttachError> {
        let refused = self.refused(INSIDE);
        setns(&self.namespace.file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| self.namespace.failed(errno.into()))?;
        let mut connection =
            Connection::open(libc::NETLINK_ROUTE).map_err(|error| self.namespace.failed(error))?;
        let loopback = route::index_of_existing(&mut connection, "lo").map_err(&refused)?;
        let index = route::index_of_existing(&mut connection, INSIDE).map_err(&refused)?;
        let mut batch = Batch::default();
        route::change_link(&mut batch, loopback, &LinkChange::default());
        let change = LinkChange {
            no_link_local: host.has_ipv6,
            ..LinkChange::default()
        };
        route::change_link(&mut batch, index, &change);
        route::add_address(&mut batch, index, self.address);
        route::add_neighbour(&mut batch, index, ROUTER, HOST_MAC);
        let everywhere = Subnet::containing(Ipv4Addr::UNSPECIFIED, 0);
        let link = Way::Link {
            index,
            source: None,
        };
        route::add_route(&mut batch, Subnet::containing(ROUTER, 32), &link);
        route::add_route(
            &mut batch,
            everywhere,
            &Way::Router {
                index,
                router: ROUTER,
            },
        );
        connection.execute(&batch).map_err(&refused)
    }
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn names_are_safe_as_file_names() {
        for good in ["a", "0d5ad2e5-5b19-4b0c-a9a6-0e1e5c1f8d11", &"x".repeat(64)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "..", "a/b", "A", "a.json", "ä", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
