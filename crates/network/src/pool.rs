//! Which addresses of a subnet are in use.
//!
//! Addresses are given out going round, so that one that was given back rests for as long as the
//! subnet allows: caches and half-closed connections elsewhere may still mean its last holder.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::Subnet;

/// Addresses of one subnet. The first (network), the last (broadcast) and reserved ones are never given.
#[derive(Debug)]
pub(crate) struct Pool {
    subnet: Subnet,
    used: BTreeSet<Ipv4Addr>,
    last: Ipv4Addr,
}

/// Every address is taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no free address in {subnet}: all {used} are in use; remove sandboxes, or start with a larger pod subnet"
)]
pub struct Exhausted {
    /// The subnet.
    pub subnet: Subnet,
    /// How many addresses of it are taken.
    pub used: usize,
}

impl Pool {
    /// A pool that never gives `reserved`, and goes on after `last`.
    pub(crate) fn new(subnet: Subnet, reserved: Ipv4Addr, last: Option<Ipv4Addr>) -> Pool {
        let last = last
            .filter(|last| subnet.contains(*last))
            .unwrap_or(subnet.address());
        Pool {
            subnet,
            used: BTreeSet::from([subnet.address(), subnet.last(), reserved]),
            last,
        }
    }

    /// Marks an address as taken; false if it was, or is not of this subnet.
    pub(crate) fn claim(&mut self, address: Ipv4Addr) -> bool {
        self.subnet.contains(address) && self.used.insert(address)
    }

    /// Gives the next free address after the one given last.
    pub(crate) fn take(&mut self) -> Result<Ipv4Addr, Exhausted> {
        let start = self.last.to_bits() - self.subnet.address().to_bits();
        let size = self.subnet.size();
        // Ends at the first gap behind `last`; looks at every address only when all are taken.
        for step in 1..=size {
            let distance = (u64::from(start) + step) % size;
            let address = self
                .subnet
                .nth(distance as u32)
                .expect("the distance is below the size");
            if self.used.insert(address) {
                self.last = address;
                return Ok(address);
            }
        }
        Err(Exhausted {
            subnet: self.subnet,
            used: self.used.len(),
        })
    }

    /// Takes an address back.
    pub(crate) fn release(&mut self, address: Ipv4Addr) {
        self.used.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(subnet: &str, reserved: [u8; 4]) -> Pool {
        Pool::new(subnet.parse().expect("a network"), reserved.into(), None)
    }

    #[test]
    fn goes_round_and_skips_what_is_never_given() {
        let mut pool = pool("10.0.0.0/29", [10, 0, 0, 1]);
        let taken: Vec<_> = std::iter::from_fn(|| pool.take().ok())
            .map(|a| a.octets()[3])
            .collect();
        assert_eq!(taken, [2, 3, 4, 5, 6]);
        let exhausted = pool.take().expect_err("all are taken");
        assert!(exhausted.to_string().contains("10.0.0.0/29"), "{exhausted}");
        pool.release([10, 0, 0, 3].into());
        pool.release([10, 0, 0, 5].into());
        assert_eq!(pool.take(), Ok([10, 0, 0, 3].into()));
        pool.release([10, 0, 0, 3].into());
        assert_eq!(
            pool.take(),
            Ok([10, 0, 0, 5].into()),
            "3 was given back last and rests"
        );
    }

    #[test]
    fn goes_on_after_a_restart_where_it_was() {
        let subnet = "10.0.0.0/24".parse().expect("a network");
        let mut pool = Pool::new(subnet, [10, 0, 0, 1].into(), Some([10, 0, 0, 254].into()));
        assert!(pool.claim([10, 0, 0, 2].into()));
        assert!(!pool.claim([10, 0, 0, 2].into()));
        assert!(!pool.claim([10, 0, 1, 2].into()));
        assert_eq!(pool.take(), Ok([10, 0, 0, 3].into()));
    }

    #[test]
    fn a_subnet_of_one_address_has_none_to_give() {
        assert!(pool("10.0.0.1/32", [10, 0, 0, 1]).take().is_err());
    }
}
