//! What shall be reachable where: plain types, no kernel.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

/// A transport protocol that has ports.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// Its number in the IP header (IANA protocol numbers).
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl Protocol {
    pub(crate) fn from_number(number: u8) -> Option<Protocol> {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|protocol| protocol.number() == number)
    }
}

impl std::str::FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Protocol, UnknownProtocol> {
        match text.to_ascii_uppercase().as_str() {
            "TCP" => Ok(Protocol::Tcp),
            "UDP" => Ok(Protocol::Udp),
            "SCTP" => Ok(Protocol::Sctp),
            _ => Err(UnknownProtocol(text.to_owned())),
        }
    }
}

/// Not TCP, UDP or SCTP.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown protocol {0:?}; supported are TCP, UDP and SCTP")]
pub struct UnknownProtocol(pub String);

/// What clients connect to.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Frontend {
    /// The address; `None` for every address of this machine, 127.0.0.1 with them.
    pub address: Option<Ipv4Addr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// What a client meets where there is no backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unserved {
    /// A TCP reset, or ICMP port unreachable: it knows at once.
    #[default]
    Refuse,
    /// Silence: somebody else may serve it.
    Drop,
}

/// A frontend with what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// What clients connect to.
    pub frontend: Frontend,
    /// Where connections go, each with the same chance. Order and repetition mean nothing.
    pub backends: Vec<SocketAddrV4>,
    /// A client stays with its backend until it was silent for this long (whole seconds count).
    pub affinity: Option<Duration>,
    /// Backends see an address of this machine in place of the client's.
    pub rewrite_source: bool,
    /// What clients meet while `backends` is empty.
    pub unserved: Unserved,
}

/// A change of one named group of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceChange {
    /// The group's name: for a Kubernetes Service, `namespace/name`. Where two groups claim the same
    /// frontend, the one whose name sorts first has it.
    pub name: String,
    /// All of its ports from now on; empty to remove it.
    pub ports: Vec<ServicePort>,
}

/// A port of the machine that leads to a port of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PublishedPort {
    /// Address and port on the machine.
    pub frontend: Frontend,
    /// Port in the sandbox.
    pub port: u16,
}
