//! What a rule does, as the expressions that the kernel's machine runs for each packet
//! (`linux/netfilter/nf_tables.h`, `NFTA_EXPR_…`). Methods are named after what `nft` prints.

use super::{FAMILY_IPV4, Register, Verdict};
use crate::netlink::Payload;

/// `IPS_DST_NAT`
const STATUS_DNAT: u32 = 0x20;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: two packets at once never take the same source port.
const RANGE_RANDOM_FULLY: u32 = 16;

/// The expressions of one rule, in order. Each method appends one or two.
pub(crate) struct Rule<'a, 'b>(pub(super) &'a mut Payload<'b>);

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
