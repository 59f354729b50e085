//! Lets packets of sandboxes through a chain of others: `FORWARD` of iptables, where it drops.
//!
//! A packet is forwarded if every base chain accepts it, so what one drops, no rule in a table of ours
//! can save. Docker gives `FORWARD` of iptables' table `filter` the policy drop, and with it every
//! other program's pods are cut off. That chain is the board on which all of them pin their rules
//! (flannel and the CNI plugins do), so two rules go there, at the head:
//!
//! ```text
//! ip saddr 10.244.0.0/16 counter accept comment "pods of wharf: 10.244.0.0/16"
//! ip daddr 10.244.0.0/16 counter accept comment "pods of wharf: 10.244.0.0/16"
//! ```
//!
//! They are of the kind that `iptables -S` can print, and are known by the comment. Every other chain
//! that drops belongs to a firewall whose owner meant it: those are named by [`forward_drops`] and
//! left alone.

use crate::Subnet;
use crate::netlink::{Attributes, Connection, Refused};
use crate::nft::{self, Register, Rules, Verdict};

/// iptables' table and chain; the names are fixed.
const TABLE: &str = "filter";
const CHAIN: &str = "FORWARD";

/// The way of an instance's sandboxes through the chain.
pub(crate) struct Passage {
    connection: Connection,
    /// Begins the comments of the instance's rules, whatever range they are for.
    mark: String,
    pods: Subnet,
    /// The rules were removed on purpose, or are another daemon's business from now on.
    closed: bool,
}

/// A chain that drops what no rule in it takes before it is forwarded.
pub(crate) struct Dropping {
    /// Family and table: `ip filter`.
    pub(crate) table: String,
    pub(crate) chain: String,
}

impl Dropping {
    /// Whether it is the one that is opened here.
    pub(crate) fn is_common(&self) -> bool {
        self.chain == CHAIN && self.table.strip_prefix("ip ") == Some(TABLE)
    }
}

impl Passage {
    pub(crate) fn new(connection: Connection, instance: &str, pods: Subnet) -> Passage {
        Passage {
            connection,
            mark: format!("pods of {instance}: "),
            pods,
            closed: false,
        }
    }

    /// Puts the rules into the chain if it drops and does not have them; whether that was needed.
    pub(crate) fn open(&mut self) -> Result<bool, Refused> {
        if self.closed {
            return Ok(false);
        }
        let dropping = forward_drops(&mut self.connection)?;
        if !dropping.iter().any(Dropping::is_common) {
            return Ok(false);
        }
        let comment = format!("{}{}", self.mark, self.pods);
        let found = self.find()?;
        if found.len() == 2 && found.iter().all(|(_, text)| *text == comment) {
            return Ok(false);
        }
        let mut rules = Rules::of_another(TABLE);
        for (handle, _) in found {
            rules.delete_rule(CHAIN, handle);
        }
        let pods = self.pods;
        for source in [false, true] {
            rules.insert_rule(CHAIN, &comment, |rule| {
                if source {
                    rule.source_address(Register(0));
                } else {
                    rule.destination_address(Register(0));
                }
                rule.within(Register(0), pods, true)
                    .counter()
                    .verdict(Verdict::Accept);
            });
        }
        self.connection.execute(&rules.finish())?;
        Ok(true)
    }

    /// Leaves the rules as they are, for good.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// Takes the rules out, if they are there.
    pub(crate) fn remove(&mut self) -> Result<(), Refused> {
        let found = self.find()?;
        if found.is_empty() {
            return Ok(());
        }
        let mut rules = Rules::of_another(TABLE);
        for (handle, _) in found {
            rules.delete_rule(CHAIN, handle);
        }
        self.connection.execute(&rules.finish())
    }

    /// Handles and comments of the instance's rules.
    fn find(&mut self) -> Result<Vec<(u64, String)>, Refused> {
        let mut found = match nft::comments(&mut self.connection, TABLE, CHAIN) {
            Ok(found) => found,
            Err(refused) if refused.errno() == Some(libc::ENOENT) => Vec::new(),
            Err(refused) => return Err(refused),
        };
        found.retain(|(_, comment)| comment.starts_with(&self.mark));
        Ok(found)
    }
}

/// Whether a message tells of a change after which rules may be missing in the chain: it came, or its
/// policy changed, or rules went.
pub(crate) fn concerns(kind: u16, payload: &[u8]) -> bool {
    let attributes = payload.get(4..).unwrap_or_default();
    let chain = if kind == nft::CHAIN_ADDED {
        3
    } else if kind == nft::RULE_REMOVED {
        2
    } else {
        return false;
    };
    payload.first() == Some(&nft::FAMILY_IPV4)
        && Attributes::find_text(attributes, 1) == Some(TABLE)
        && Attributes::find_text(attributes, chain) == Some(CHAIN)
}

/// All chains that drop what other chains do not take before it is forwarded.
pub(crate) fn forward_drops(connection: &mut Connection) -> Result<Vec<Dropping>, Refused> {
    let mut found = Vec::new();
    nft::each_chain(connection, |family, attributes| {
        let family = match family {
            nft::FAMILY_INET => "inet",
            nft::FAMILY_IPV4 => "ip",
            _ => return,
        };
        let find = |kind| Attributes::find(attributes, kind);
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_be_bytes);
        let hook = find(4)
            .and_then(|hook| Attributes::find(hook, 1))
            .and_then(number);
        let drops = find(5).and_then(number) == Some(libc::NF_DROP as u32);
        let names = (
            Attributes::find_text(attributes, 1),
            Attributes::find_text(attributes, 3),
        );
        if let (Some(nft::FORWARD), true, (Some(table), Some(chain))) = (hook, drops, names) {
            found.push(Dropping {
                table: format!("{family} {table}"),
                chain: chain.to_owned(),
            });
        }
    })?;
    Ok(found)
}
