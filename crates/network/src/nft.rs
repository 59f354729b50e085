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

use crate::netlink::{ACK, APPEND, Attributes, Batch, CREATE, Connection, Payload, Refused};

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

/// Names of a table's chains; none if there is no such table.
pub(crate) fn chains(connection: &mut Connection, table: &str) -> Result<Vec<String>, Refused> {
    let mut found = Vec::new();
    connection.dump(
        "list chains",
        kind(libc::NFT_MSG_GETCHAIN),
        |message| header(message, FAMILY_IPV4, 0),
        |_, payload| {
            let attributes = payload.get(4..).unwrap_or_default();
            if Attributes::find_text(attributes, 1) == Some(table) {
                found.extend(Attributes::find_text(attributes, 3).map(str::to_owned));
            }
        },
    )?;
    Ok(found)
}

/// Shows each chain of every table: its family, and its attributes.
pub(crate) fn each_chain(
    connection: &mut Connection,
    mut each: impl FnMut(u8, &[u8]),
) -> Result<(), Refused> {
    connection.dump(
        "list chains",
        kind(libc::NFT_MSG_GETCHAIN),
        |message| header(message, FAMILY_ANY, 0),
        |_, payload| {
            if let Some((family, _)) = payload.split_first() {
                each(*family, payload.get(4..).unwrap_or_default());
            }
        },
    )
}

/// Handles and comments of the rules in a chain that have one.
pub(crate) fn comments(
    connection: &mut Connection,
    table: &str,
    chain: &str,
) -> Result<Vec<(u64, String)>, Refused> {
    let mut found = Vec::new();
    connection.dump(
        "list rules",
        kind(libc::NFT_MSG_GETRULE),
        |message| {
            header(message, FAMILY_IPV4, 0);
            message.text(1, table);
            message.text(2, chain);
        },
        |_, payload| {
            let attributes = payload.get(4..).unwrap_or_default();
            let handle = Attributes::find(attributes, 3)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u64::from_be_bytes);
            let comment = Attributes::find(attributes, 7).and_then(read_comment);
            // Kernels before 5.19 show the rules of all chains.
            let is_asked_for = Attributes::find_text(attributes, 1) == Some(table)
                && Attributes::find_text(attributes, 2) == Some(chain);
            if let (true, Some(handle), Some(comment)) = (is_asked_for, handle, comment) {
                found.push((handle, comment));
            }
        },
    )?;
    Ok(found)
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

fn read_comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return String::from_utf8(text.to_vec()).ok();
        }
        data = &rest[value.len()..];
    }
    None
}

/// Key and datum of an element that was read back; for a verdict, the name of the chain it leads to.
pub(crate) type Pair = (Vec<u8>, Vec<u8>);

/// All elements of a set or map.
pub(crate) fn elements(
    connection: &mut Connection,
    table: &str,
    set: &str,
) -> Result<Vec<Pair>, Refused> {
    let mut found = Vec::new();
    fn value(entry: &[u8], kind: u16) -> Option<Vec<u8>> {
        let datum = Attributes::find(entry, kind)?;
        if let Some(verdict) = Attributes::find(datum, 2) {
            return Attributes::find_text(verdict, 2).map(|chain| chain.as_bytes().to_vec());
        }
        Attributes::find(datum, 1).map(<[u8]>::to_vec)
    }
    connection.dump(
        "list elements",
        kind(libc::NFT_MSG_GETSETELEM),
        |message| {
            header(message, FAMILY_IPV4, 0);
            message.text(1, table);
            message.text(2, set);
        },
        |_, payload| {
            let list = Attributes::find(payload.get(4..).unwrap_or_default(), 3);
            for (_, entry) in Attributes(list.unwrap_or_default()) {
                let key = value(entry, 1);
                found.extend(key.map(|key| (key, value(entry, 2).unwrap_or_default())));
            }
        },
    )?;
    Ok(found)
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

/// The expressions of one rule, in order. Each method appends one or two.
pub(crate) struct Rule<'a, 'b>(&'a mut Payload<'b>);

impl Rule<'_, '_> {
    fn expression(&mut self, name: &str, body: impl FnOnce(&mut Payload<'_>)) -> &mut Self {
        self.0.nested(1, |entry| {
            entry.text(1, name);
            entry.nested(2, body);
        });
        self
    }

    fn payload(&mut self, to: Register, base: u32, offset: u32, length: u32) -> &mut Self {
        self.expression("payload", |data| {
            data.network(1, to.number());
            data.network(2, base);
            data.network(3, offset);
            data.network(4, length);
        })
    }

    /// `ip saddr`
    pub(crate) fn source_address(&mut self, to: Register) -> &mut Self {
        self.payload(to, 1, 12, 4)
    }

    /// `ip daddr`
    pub(crate) fn destination_address(&mut self, to: Register) -> &mut Self {
        self.payload(to, 1, 16, 4)
    }

    /// `th dport`
    pub(crate) fn destination_port(&mut self, to: Register) -> &mut Self {
        self.payload(to, 2, 2, 2)
    }

    fn meta(&mut self, to: Register, key: libc::c_int) -> &mut Self {
        self.expression("meta", |data| {
            data.network(1, to.number());
            data.network(2, key as u32);
        })
    }

    /// `meta l4proto`
    pub(crate) fn protocol(&mut self, to: Register) -> &mut Self {
        self.meta(to, libc::NFT_META_L4PROTO)
    }

    fn name_equals(&mut self, key: libc::c_int, name: &[u8]) -> &mut Self {
        // Names fill four registers; comparing fewer bytes compares a prefix.
        self.meta(Register(0), key).compare(Register(0), true, name)
    }

    /// `iifname "PREFIX*"`
    pub(crate) fn came_in_by_prefix(&mut self, prefix: &str) -> &mut Self {
        self.name_equals(libc::NFT_META_IIFNAME, prefix.as_bytes())
    }

    /// `oifname "NAME"`
    pub(crate) fn goes_out_by(&mut self, name: &str) -> &mut Self {
        let mut bytes = [0_u8; libc::IFNAMSIZ];
        let length = name.len().min(bytes.len() - 1);
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        self.name_equals(libc::NFT_META_OIFNAME, &bytes)
    }

    fn connection(&mut self, to: Register, key: libc::c_int, original: bool) -> &mut Self {
        self.expression("ct", |data| {
            data.network(1, to.number());
            data.network(2, key as u32);
            if original {
                data.attribute(3, &[0]);
            }
        })
    }

    /// `ct original ip daddr`
    pub(crate) fn original_address(&mut self, to: Register) -> &mut Self {
        self.connection(to, libc::NFT_CT_DST_IP, true)
    }

    /// `ct original proto-dst`
    pub(crate) fn original_port(&mut self, to: Register) -> &mut Self {
        // NFT_CT_PROTO_DST
        self.connection(to, 12, true)
    }

    /// Any of the bits is set, or none is. A packet without a connection is neither.
    fn bits(&mut self, key: libc::c_int, bits: u32, set: bool) -> &mut Self {
        self.connection(Register(0), key, false)
            .mask(Register(0), &bits.to_ne_bytes())
            .compare(Register(0), !set, &[0; 4])
    }

    /// `ct status dnat`: the destination was rewritten.
    pub(crate) fn destination_rewritten(&mut self) -> &mut Self {
        self.bits(libc::NFT_CT_STATUS, STATUS_DNAT, true)
    }

    /// `ct status & dnat == 0`: the packet goes where its client sent it.
    pub(crate) fn destination_kept(&mut self) -> &mut Self {
        self.bits(libc::NFT_CT_STATUS, STATUS_DNAT, false)
    }

    /// `ct state established,related`
    pub(crate) fn established(&mut self) -> &mut Self {
        self.bits(libc::NFT_CT_STATE, 0x02 | 0x04, true)
    }

    /// `ct state invalid`
    pub(crate) fn invalid(&mut self) -> &mut Self {
        self.bits(libc::NFT_CT_STATE, 0x01, true)
    }

    fn mask(&mut self, register: Register, mask: &[u8; 4]) -> &mut Self {
        self.expression("bitwise", |data| {
            data.network(1, register.number());
            data.network(2, register.number());
            data.network(3, 4);
            data.nested(4, |value| value.attribute(1, mask));
            data.nested(5, |value| value.attribute(1, &[0; 4]));
        })
    }

    fn compare(&mut self, register: Register, equal: bool, bytes: &[u8]) -> &mut Self {
        let operator = if equal {
            libc::NFT_CMP_EQ
        } else {
            libc::NFT_CMP_NEQ
        };
        self.expression("cmp", |data| {
            data.network(1, register.number());
            data.network(2, operator as u32);
            data.nested(3, |value| value.attribute(1, bytes));
        })
    }

    /// The address in the register lies in the subnet, or does not.
    pub(crate) fn within(
        &mut self,
        register: Register,
        subnet: crate::Subnet,
        yes: bool,
    ) -> &mut Self {
        self.mask(register, &subnet.mask().octets()).compare(
            register,
            yes,
            &subnet.address().octets(),
        )
    }

    /// The protocol in the register is this one.
    pub(crate) fn is_protocol(&mut self, register: Register, protocol: u8) -> &mut Self {
        self.compare(register, true, &[protocol])
    }

    /// `fib daddr type local`: the destination is an address of this machine.
    pub(crate) fn destination_is_local(&mut self) -> &mut Self {
        self.expression("fib", |data| {
            data.network(1, Register(0).number());
            data.network(2, 3); // NFT_FIB_RESULT_ADDRTYPE
            data.network(3, 2); // NFTA_FIB_F_DADDR
        });
        self.compare(Register(0), true, &u32::from(libc::RTN_LOCAL).to_ne_bytes())
    }

    /// Loads 0.0.0.0, in a form that `nft list` can print.
    pub(crate) fn any_address(&mut self, to: Register) -> &mut Self {
        self.destination_address(to).mask(to, &[0; 4])
    }

    /// Loads zero as [`Type::Mark`], in a form that `nft list` can print.
    pub(crate) fn zero(&mut self, to: Register) -> &mut Self {
        self.meta(to, libc::NFT_META_MARK).mask(to, &[0; 4])
    }

    /// Loads four bytes.
    pub(crate) fn load(&mut self, to: Register, bytes: [u8; 4]) -> &mut Self {
        self.expression("immediate", |data| {
            data.network(1, to.number());
            data.nested(2, |value| value.attribute(1, &bytes));
        })
    }

    /// `meta priority set`: the number goes with the packet to where it is looked at.
    pub(crate) fn set_priority(&mut self, from: Register) -> &mut Self {
        self.expression("meta", |data| {
            data.network(2, libc::NFT_META_PRIORITY as u32);
            data.network(3, from.number());
        })
    }

    /// `meta priority`
    pub(crate) fn priority(&mut self, to: Register) -> &mut Self {
        self.meta(to, libc::NFT_META_PRIORITY)
    }

    /// `numgen random mod COUNT`
    pub(crate) fn random(&mut self, to: Register, count: u32) -> &mut Self {
        self.expression("numgen", |data| {
            data.network(1, to.number());
            data.network(2, count);
            data.network(3, libc::NFT_NG_RANDOM as u32);
        })
    }

    /// Goes on only if the key that starts at the register is in the set.
    pub(crate) fn is_in(&mut self, key: Register, set: &str) -> &mut Self {
        self.expression("lookup", |data| {
            data.text(1, set);
            data.network(2, key.number());
        })
    }

    /// Loads what the map leads to; goes on only if it has the key.
    pub(crate) fn look_up(&mut self, key: Register, map: &str, to: Register) -> &mut Self {
        self.expression("lookup", |data| {
            data.text(1, map);
            data.network(2, key.number());
            data.network(3, to.number());
        })
    }

    /// Follows the verdict map, if it has the key.
    pub(crate) fn follow(&mut self, key: Register, map: &str) -> &mut Self {
        self.expression("lookup", |data| {
            data.text(1, map);
            data.network(2, key.number());
            data.network(3, libc::NFT_REG_VERDICT as u32);
        })
    }

    /// Puts the key with its datum into a dynamic map for a while, or lets it stay as long anew.
    pub(crate) fn remember(
        &mut self,
        key: Register,
        map: &str,
        datum: Register,
        milliseconds: u64,
    ) -> &mut Self {
        self.expression("dynset", |data| {
            data.text(1, map);
            data.network(3, 1); // NFT_DYNSET_OP_UPDATE
            data.network(4, key.number());
            data.network(5, datum.number());
            data.network_long(6, milliseconds);
        })
    }

    /// Takes the key out of a dynamic map.
    pub(crate) fn forget(&mut self, key: Register, map: &str, datum: Register) -> &mut Self {
        self.expression("dynset", |data| {
            data.text(1, map);
            data.network(3, 2); // NFT_DYNSET_OP_DELETE
            data.network(4, key.number());
            data.network(5, datum.number());
        })
    }

    /// `dnat to`: the registers hold an address and a port.
    pub(crate) fn rewrite_destination(&mut self, address: Register, port: Register) {
        self.expression("nat", |data| {
            data.network(1, libc::NFT_NAT_DNAT as u32);
            data.network(2, u32::from(FAMILY_IPV4));
            data.network(3, address.number());
            data.network(5, port.number());
        });
    }

    /// `snat to … fully-random`: the register holds an address.
    pub(crate) fn rewrite_source(&mut self, address: Register) {
        self.expression("nat", |data| {
            data.network(1, libc::NFT_NAT_SNAT as u32);
            data.network(2, u32::from(FAMILY_IPV4));
            data.network(3, address.number());
            data.network(7, RANGE_RANDOM_FULLY);
        });
    }

    /// `masquerade fully-random`: the source becomes the address of the link that it leaves by.
    pub(crate) fn masquerade(&mut self) {
        self.expression("masq", |data| data.network(1, RANGE_RANDOM_FULLY));
    }

    /// `reject with tcp reset`
    pub(crate) fn reset(&mut self) {
        self.expression("reject", |data| {
            data.network(1, 1);
            data.attribute(2, &[0]);
        });
    }

    /// `reject`: ICMP port unreachable.
    pub(crate) fn reject(&mut self) {
        self.expression("reject", |data| {
            data.network(1, 0);
            data.attribute(2, &[3]);
        });
    }

    /// `counter`: counts packets and bytes that come here.
    pub(crate) fn counter(&mut self) -> &mut Self {
        self.expression("counter", |_| {})
    }

    /// Ends the rule with a verdict.
    pub(crate) fn verdict(&mut self, verdict: Verdict<'_>) {
        self.expression("immediate", |data| {
            data.network(1, libc::NFT_REG_VERDICT as u32);
            verdict.write(data, 2);
        });
    }
}

/// `IPS_DST_NAT`
const STATUS_DNAT: u32 = 0x20;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: two packets at once never take the same source port.
const RANGE_RANDOM_FULLY: u32 = 16;
