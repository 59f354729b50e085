//! What can go wrong, by step.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::netlink::Refused;
use crate::{Exhausted, Frontend, Subnet};

/// Why the network of an instance cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration contradicts itself.
    #[error("network configuration: {0}")]
    Config(String),
    /// Not permitted to change the network.
    #[error("cannot change the network: CAP_NET_ADMIN is missing; run as root")]
    NotPermitted,
    /// The kernel was built without something, or its module cannot be loaded.
    #[error(
        "this kernel has no {feature} ({option}); load its module or use a kernel that has it: {source}"
    )]
    Feature {
        /// What is lacking, in words.
        feature: &'static str,
        /// The kernel's configuration option.
        option: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The addresses are in use on this machine.
    #[error(
        "{ours} overlaps with {theirs} on link {link}; choose another with --pod-cidr or --service-cidr"
    )]
    Overlap {
        /// What was asked for.
        ours: Subnet,
        /// What is there.
        theirs: Subnet,
        /// Its link.
        link: String,
    },
    /// The addresses are taken by a route that leads nowhere, as every instance has one.
    #[error(
        "{ours} overlaps with an unreachable route to {theirs}; choose another with --pod-cidr or \
         --service-cidr, or if no other instance has it (one that was deleted without `wharf reset` \
         leaves it): ip route del unreachable {theirs} metric {metric}"
    )]
    OverlapUnreachable {
        /// What was asked for.
        ours: Subnet,
        /// What is there.
        theirs: Subnet,
        /// By which it is told from others to the same addresses.
        metric: u32,
    },
    /// A sysctl cannot be written.
    #[error("set {path} to {value}: {source}")]
    Sysctl {
        /// Its file.
        path: PathBuf,
        /// The value it needs.
        value: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused a step.
    #[error("{step} {subject}: {source}")]
    Kernel {
        /// What was to be done.
        step: &'static str,
        /// To what.
        subject: String,
        /// Its answer.
        source: io::Error,
    },
    /// The records of attached sandboxes cannot be read or written.
    #[error(transparent)]
    Records(#[from] RecordError),
}

impl OpenError {
    pub(crate) fn kernel(subject: &str, refused: Refused) -> OpenError {
        match refused.errno() {
            Some(libc::EPERM) => OpenError::NotPermitted,
            _ => OpenError::Kernel {
                step: refused.step,
                subject: subject.to_owned(),
                source: refused.source,
            },
        }
    }

    /// A refusal that on kernels without the feature means its absence.
    pub(crate) fn lacking(
        feature: &'static str,
        option: &'static str,
        refused: Refused,
    ) -> OpenError {
        match refused.errno() {
            Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::ENOENT | libc::EINVAL) => {
                OpenError::Feature {
                    feature,
                    option,
                    source: refused.source,
                }
            }
            _ => OpenError::kernel(feature, refused),
        }
    }
}

/// Why a sandbox cannot be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Names become file names.
    #[error("{0:?} is not a sandbox name: it must match [a-z0-9-]{{1,64}}")]
    Name(String),
    /// All addresses are in use.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The network namespace cannot be opened or entered.
    #[error("network namespace {path}: {source}")]
    Namespace {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The namespace is the machine's own.
    #[error("network namespace {0} is the machine's own; it cannot be attached")]
    OwnNamespace(PathBuf),
    /// The kernel refused a step.
    #[error("sandbox {id}: {step} {subject}: {source}")]
    Kernel {
        /// The sandbox.
        id: String,
        /// What was to be done.
        step: &'static str,
        /// To what.
        subject: String,
        /// Its answer.
        source: io::Error,
    },
    /// No thread could be started to enter the namespace.
    #[error("sandbox {id}: start a thread: {source}")]
    Thread {
        /// The sandbox.
        id: String,
        /// Why not.
        source: io::Error,
    },
    /// The sandbox is not attached.
    #[error("sandbox {0} is not attached to the network")]
    Unknown(String),
    /// Another sandbox has the port.
    #[error("port {}/{:?} of {} is already published by sandbox {holder}", .frontend.port, .frontend.protocol, display_address(.frontend.address))]
    PortTaken {
        /// What was asked for.
        frontend: Frontend,
        /// Who has it.
        holder: String,
    },
    /// The record of the sandbox cannot be written.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The rules for the sandbox could not be changed.
    #[error(transparent)]
    Rules(#[from] RulesError),
}

fn display_address(address: Option<Ipv4Addr>) -> String {
    address.map_or_else(|| "all addresses".to_owned(), |address| address.to_string())
}

/// Why the records of attached sandboxes cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("{step} {path}: {source}")]
pub struct RecordError {
    /// What was to be done.
    pub step: &'static str,
    /// To which file.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// Why the packet rules could not be changed. What was programmed before still is.
#[derive(Debug, thiserror::Error)]
#[error("nf_tables table {table}: {step}: {source}")]
pub struct RulesError {
    /// The table.
    pub table: String,
    /// What the kernel refused.
    pub step: &'static str,
    /// Its answer.
    pub source: io::Error,
}
