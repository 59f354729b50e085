//! nf_tables messages: one table's chains, sets, elements and rules, as one atomic batch.
//!
//! The kernel takes a batch whole or not at all, and packets see the table as it was before or as it
//! is after. Rules are written as the expressions that the kernel's own machine runs: each loads
//! 32-bit registers, compares them, looks them up, or ends with a verdict.
//!
//! ```text
//! BATCH_BEGIN · NEWTABLE · NEWSET … NEWCHAIN … NEWRULE … DELSETELEM … NEWSETELEM … · BATCH_END
//! ```
//!
//! Source: `linux/netfilter/nf_tables.h`. What the table contains is left to `table`.

mod dump;
mod expression;

pub(crate) use dump::{chains, comments, each_chain, elements};
pub(crate) use expression::Rule;

use crate::netlink::{ACK, APPEND, Batch, CREATE, Payload};

const FAMILY_ANY: u8 = 0;
pub(crate) const FAMILY_INET: u8 = 1;
pub(crate) const FAMILY_IPV4: u8 = 2;
/// Kinds of messages to those who listen.
pub(crate) const TABLE_REMOVED: u16 = kind(libc::NFT_MSG_DELTABLE);
pub(crate) const CHAIN_ADDED: u16 = kind(libc::NFT_MSG_NEWCHAIN);
pub(crate) const RULE_REMOVED: u16 = kind(libc::NFT_MSG_DELRULE);
const SUBSYSTEM: u16 = 10;
/// Elements go in messages below this size: the attribute round them has 16 bits for its length.
const ELEMENTS_BYTES: usize = 48 * 1024;
/// `nft` shows no longer comments.
const COMMENT_BYTES: usize = 127;

/// A 32-bit register: 0…15.
#[derive(Clone, Copy)]
pub(crate) struct Register(pub(crate) u8);

impl Register {
    fn number(self) -> u32 {
        // NFT_REG32_00
        8 + u32::from(self.0)
    }
}

/// A type of datum as `nft` names it; each takes one register. The kernel does not look at it, `nft
/// list` prints by it.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Type {
    Address = 7,
    Protocol = 12,
    Port = 13,
    Mark = 19,
    /// What `meta priority` is.
    Priority = 23,
}

/// What a map leads to.
#[derive(Clone, Copy)]
pub(crate) enum Leads {
    Nowhere,
    Data(&'static [Type]),
    Verdict,
}

/// A set or map that the table has.
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) key: &'static [Type],
    pub(crate) leads: Leads,
    /// Filled by packets, with a time to live, up to this many elements.
    pub(crate) dynamic: Option<u32>,
}

/// Where packets enter a chain.
pub(crate) struct Hook {
    pub(crate) kind: &'static str,
    pub(crate) number: u32,
    pub(crate) priority: i32,
}

pub(crate) const PREROUTING: u32 = 0;
pub(crate) const INPUT: u32 = 1;
pub(crate) const FORWARD: u32 = 2;
pub(crate) const OUTPUT: u32 = 3;
pub(crate) const POSTROUTING: u32 = 4;

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict<'a> {
    Accept,
    Drop,
    Return,
    Jump(&'a str),
    Goto(&'a str),
}

impl Verdict<'_> {
    fn write(&self, payload: &mut Payload<'_>, kind: u16) {
        let (code, chain) = match self {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
            Verdict::Return => (-5, None),
        };
        payload.nested(kind, |data| {
            // NFTA_DATA_VERDICT { NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN }
            data.nested(2, |verdict| {
                verdict.network(1, code as u32);
                if let Some(chain) = chain {
                    verdict.text(2, chain);
                }
            });
        });
    }
}

/// An element's right side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Datum {
    None,
    Bytes(Vec<u8>),
    Goto(String),
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    pub(crate) datum: Datum,
}

/// A batch for one table.
pub(crate) struct Rules {
    batch: Batch,
    table: String,
    sets: u32,
}

const fn kind(message: libc::c_int) -> u16 {
    SUBSYSTEM << 8 | message as u16
}

fn header(payload: &mut Payload<'_>, family: u8, resource: u16) {
    payload.raw(&[family, 0]);
    payload.raw(&resource.to_be_bytes());
}

impl Rules {
    /// An empty batch. It makes the table if it is absent.
    pub(crate) fn new(table: &str) -> Rules {
        let mut rules = Rules::of_another(table);
        rules.add_table();
        rules
    }

    /// An empty batch for a table that others have made.
    pub(crate) fn of_another(table: &str) -> Rules {
        let mut rules = Rules {
            batch: Batch::default(),
            table: table.to_owned(),
            sets: 0,
        };
        rules
            .batch
            .message("begin", libc::NFNL_MSG_BATCH_BEGIN as u16, 0, |message| {
                header(message, 0, SUBSYSTEM);
            });
        rules
    }

    /// The batch, ready to be sent.
    pub(crate) fn finish(mut self) -> Batch {
        self.batch
            .message("commit", libc::NFNL_MSG_BATCH_END as u16, 0, |message| {
                header(message, 0, SUBSYSTEM);
            });
        self.batch
    }

    fn message(
        &mut self,
        step: &'static str,
        number: libc::c_int,
        flags: u16,
        body: impl FnOnce(&mut Payload<'_>),
    ) {
        let table = &self.table;
        self.batch.message(step, kind(number), flags, |message| {
            header(message, FAMILY_IPV4, 0);
            // The first attribute of every kind of message is the table's name.
            message.text(1, table);
            body(message);
        });
    }

    /// Makes the table if it is absent.
    pub(crate) fn add_table(&mut self) {
        self.message(
            "make the table",
            libc::NFT_MSG_NEWTABLE,
            CREATE | ACK,
            |_| {},
        );
    }

    /// Removes the table with all that is in it.
    pub(crate) fn delete_table(&mut self) {
        self.message("remove the table", libc::NFT_MSG_DELTABLE, 0, |_| {});
    }

    /// Makes a chain if it is absent.
    pub(crate) fn add_chain(&mut self, name: &str, hook: Option<&Hook>) {
        self.message("make a chain", libc::NFT_MSG_NEWCHAIN, CREATE, |message| {
            message.text(3, name);
            if let Some(hook) = hook {
                message.nested(4, |nested| {
                    nested.network(1, hook.number);
                    nested.network(2, hook.priority as u32);
                });
                message.text(7, hook.kind);
            }
        });
    }

    /// Lets a chain drop what its rules do not take, as firewalls do.
    #[cfg(test)]
    pub(crate) fn set_policy_drop(&mut self, name: &str) {
        self.message("set a policy", libc::NFT_MSG_NEWCHAIN, 0, |message| {
            message.text(3, name);
            message.network(5, libc::NF_DROP as u32);
        });
    }

    /// Removes all rules of a chain.
    pub(crate) fn flush_chain(&mut self, name: &str) {
        self.message("empty a chain", libc::NFT_MSG_DELRULE, 0, |message| {
            message.text(2, name)
        });
    }

    /// Removes a chain that nothing leads to.
    pub(crate) fn delete_chain(&mut self, name: &str) {
        self.message("remove a chain", libc::NFT_MSG_DELCHAIN, 0, |message| {
            message.text(3, name)
        });
    }

    /// Makes a set or map.
    pub(crate) fn add_set(&mut self, set: &Set) {
        const MAP: u32 = libc::NFT_SET_MAP as u32;
        const DYNAMIC: u32 = (libc::NFT_SET_TIMEOUT | libc::NFT_SET_EVAL) as u32;
        self.sets += 1;
        let id = self.sets;
        self.message("make a set", libc::NFT_MSG_NEWSET, CREATE, |message| {
            message.text(2, set.name);
            let mut flags = if matches!(set.leads, Leads::Nowhere) {
                0
            } else {
                MAP
            };
            if set.dynamic.is_some() {
                flags |= DYNAMIC;
            }
            message.network(3, flags);
            message.network(4, concatenation(set.key));
            message.network(5, set.key.len() as u32 * 4);
            match set.leads {
                Leads::Nowhere => {}
                Leads::Data(types) => {
                    message.network(6, concatenation(types));
                    message.network(7, types.len() as u32 * 4);
                }
                Leads::Verdict => {
                    message.network(6, libc::NFT_DATA_VERDICT);
                    message.network(7, 16);
                }
            }
            message.network(10, id);
            if let Some(limit) = set.dynamic {
                message.nested(9, |description| description.network(1, limit));
            }
        });
    }

    /// Adds elements to a set or map.
    pub(crate) fn add_elements(&mut self, set: &str, elements: &[Element]) {
        self.elements(
            "add elements",
            libc::NFT_MSG_NEWSETELEM,
            CREATE,
            set,
            elements,
        );
    }

    /// Removes elements, which must be there, from a set or map.
    pub(crate) fn delete_elements(&mut self, set: &str, elements: &[Element]) {
        self.elements(
            "remove elements",
            libc::NFT_MSG_DELSETELEM,
            0,
            set,
            elements,
        );
    }

    fn elements(
        &mut self,
        step: &'static str,
        number: libc::c_int,
        flags: u16,
        set: &str,
        elements: &[Element],
    ) {
        let mut rest = elements;
        while !rest.is_empty() {
            self.message(step, number, flags, |message| {
                message.text(2, set);
                message.nested(3, |list| {
                    let start = list.position();
                    while let Some((element, others)) = rest.split_first() {
                        if list.position() - start > ELEMENTS_BYTES {
                            break;
                        }
                        list.nested(1, |entry| write_element(entry, element));
                        rest = others;
                    }
                });
            });
        }
    }

    /// Puts a rule with a comment at the head of a chain, and has the kernel answer.
    pub(crate) fn insert_rule(
        &mut self,
        chain: &str,
        comment: &str,
        body: impl FnOnce(&mut Rule<'_, '_>),
    ) {
        let flags = CREATE | ACK;
        self.message("insert a rule", libc::NFT_MSG_NEWRULE, flags, |message| {
            message.text(2, chain);
            message.nested(4, |expressions| body(&mut Rule(expressions)));
            message.attribute(7, &write_comment(comment));
        });
    }

    /// Removes one rule, and has the kernel answer.
    pub(crate) fn delete_rule(&mut self, chain: &str, handle: u64) {
        self.message("remove a rule", libc::NFT_MSG_DELRULE, ACK, |message| {
            message.text(2, chain);
            message.network_long(3, handle);
        });
    }

    /// Adds a rule at the end of a chain.
    pub(crate) fn add_rule(&mut self, chain: &str, body: impl FnOnce(&mut Rule<'_, '_>)) {
        self.message(
            "add a rule",
            libc::NFT_MSG_NEWRULE,
            CREATE | APPEND,
            |message| {
                message.text(2, chain);
                message.nested(4, |expressions| body(&mut Rule(expressions)));
            },
        );
    }
}

/// A comment as user data of a rule: kind 0, length with the closing NUL, text. The kernel keeps it
/// and does not look at it (`libnftnl/udata.h`).
fn write_comment(comment: &str) -> Vec<u8> {
    let text = &comment.as_bytes()[..comment.len().min(COMMENT_BYTES)];
    let mut bytes = vec![0, text.len() as u8 + 1];
    bytes.extend_from_slice(text);
    bytes.push(0);
    bytes
}

fn concatenation(types: &[Type]) -> u32 {
    types.iter().fold(0, |sum, part| sum << 6 | *part as u32)
}

fn write_element(entry: &mut Payload<'_>, element: &Element) {
    entry.nested(1, |key| key.attribute(1, &element.key));
    match &element.datum {
        Datum::None => {}
        Datum::Bytes(bytes) => entry.nested(2, |data| data.attribute(1, bytes)),
        Datum::Goto(chain) => Verdict::Goto(chain).write(entry, 2),
    }
}
