//! A range of IPv4 addresses with a common prefix.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 network such as `10.244.0.0/24`; the bits after the prefix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subnet {
    address: Ipv4Addr,
    prefix: u8,
}

/// Why a text or a pair is not a subnet.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// Not `A.B.C.D/N`.
    #[error("{0:?} is not an IPv4 network; write it like 10.244.0.0/16")]
    Form(String),
    /// A prefix longer than 32.
    #[error("the prefix length of {0:?} is not between 0 and 32")]
    Prefix(String),
    /// Bits behind the prefix.
    #[error("{given} has bits behind its prefix; the network is {meant}")]
    HostBits {
        /// What was given.
        given: String,
        /// The network that it lies in.
        meant: Subnet,
    },
}

impl Subnet {
    /// The network of this prefix length in which the address lies. Lengths over 32 count as 32.
    pub fn containing(address: Ipv4Addr, prefix: u8) -> Subnet {
        let prefix = prefix.min(32);
        let address = Ipv4Addr::from_bits(address.to_bits() & mask(prefix));
        Subnet { address, prefix }
    }

    /// The first address, which names the network.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Number of common leading bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The netmask as an address.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.prefix))
    }

    /// The last address.
    pub fn last(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !mask(self.prefix))
    }

    /// Number of addresses, with the first and the last.
    pub fn size(&self) -> u64 {
        1 << (32 - u64::from(self.prefix))
    }

    /// The address at a distance from the first, if it is inside.
    pub fn nth(&self, distance: u32) -> Option<Ipv4Addr> {
        (u64::from(distance) < self.size())
            .then(|| Ipv4Addr::from_bits(self.address.to_bits() + distance))
    }

    /// Whether the address lies inside.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.address.to_bits()
    }

    /// Whether the two share an address.
    pub fn overlaps(&self, other: &Subnet) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Subnet, SubnetError> {
        let form = || SubnetError::Form(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        let address: Ipv4Addr = address.parse().map_err(|_| form())?;
        let digits = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
        if !digits || (prefix.len() > 1 && prefix.starts_with('0')) {
            return Err(form());
        }
        let prefix: u8 = match prefix.parse() {
            Ok(prefix) if prefix <= 32 => prefix,
            _ => return Err(SubnetError::Prefix(text.to_owned())),
        };
        let subnet = Subnet::containing(address, prefix);
        if subnet.address != address {
            return Err(SubnetError::HostBits {
                given: text.to_owned(),
                meant: subnet,
            });
        }
        Ok(subnet)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_networks_and_says_what_is_wrong_with_others() {
        let check = |text: &str, expected: Result<&str, &str>| {
            let found = text.parse::<Subnet>();
            let found = found
                .map(|subnet| subnet.to_string())
                .map_err(|error| error.to_string());
            assert_eq!(
                found,
                expected.map(str::to_owned).map_err(str::to_owned),
                "{text}"
            );
        };
        check("10.244.0.0/16", Ok("10.244.0.0/16"));
        check("0.0.0.0/0", Ok("0.0.0.0/0"));
        check("10.1.2.3/32", Ok("10.1.2.3/32"));
        let form = "is not an IPv4 network; write it like 10.244.0.0/16";
        check("10.244.0.0", Err(&format!("\"10.244.0.0\" {form}")));
        check("10.244.0.0/", Err(&format!("\"10.244.0.0/\" {form}")));
        check("10.244.0.0/+8", Err(&format!("\"10.244.0.0/+8\" {form}")));
        check("fd00::/64", Err(&format!("\"fd00::/64\" {form}")));
        check(
            "10.244.0.0/33",
            Err("the prefix length of \"10.244.0.0/33\" is not between 0 and 32"),
        );
        check(
            "10.244.7.1/16",
            Err("10.244.7.1/16 has bits behind its prefix; the network is 10.244.0.0/16"),
        );
    }

    #[test]
    fn knows_its_addresses() {
        let subnet: Subnet = "10.244.0.0/30".parse().expect("a network");
        assert_eq!(subnet.size(), 4);
        assert_eq!(subnet.nth(3), Some(subnet.last()));
        assert_eq!(subnet.nth(4), None);
        assert!(subnet.contains(Ipv4Addr::new(10, 244, 0, 2)));
        assert!(!subnet.contains(Ipv4Addr::new(10, 244, 0, 4)));
        let all: Subnet = "0.0.0.0/0".parse().expect("a network");
        assert!(all.overlaps(&subnet) && subnet.overlaps(&all));
        assert_eq!(all.size(), 1 << 32);
    }
}
