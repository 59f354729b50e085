//! What the instance's nf_tables table looks like, and which elements a service is in it.
//!
//! A frontend is one element of `services` and one of `endpoints` per backend. Chains are shared: all
//! frontends with three backends are of one class and go through `pick-3`. So a lookup is O(1), a
//! service has no chain or rule of its own, and a change is a handful of elements. Verdicts stand in a
//! map of the few classes, not in that of the many frontends, because whenever a verdict comes to a map
//! the kernel walks the whole of it in search of rings.
//!
//! ```text
//! prerouting, output (nat)
//!   └ services   daddr . protocol . port               @services → priority ┐
//!                any . protocol . port (local daddr)   @services → priority ┤
//!                                priority vmap @classes → pick-N        ◄───┘
//!       pick-N   frontend . random mod N      @endpoints → address . port → dnat
//!   └ fallback   frontend . 0                 @endpoints → address . port → dnat
//! with affinity, before that of pick-N:
//!                client . frontend            @sticky → priority
//!                frontend . random mod N      @sticky-places → priority → @sticky
//!                frontend . priority          @sticky-backends → address . port → dnat
//! postrouting (nat)
//!                saddr . daddr @hairpin, from 127/8, original frontend @hide-source,
//!                from pods to elsewhere       → rewrite source
//! input, forward, output (filter)
//!   └ unserved   frontend @dropped, @refused → drop, refuse
//!                frontend @services          → drop
//!                anything left in the service range → refuse
//! guard (raw)    127/8 through a sandbox's link → drop
//! ```
//!
//! One lookup may give the key of the next, and it goes there in the packet's priority. It could go in
//! a register, but `nft` 1.0.6 of Debian 12 ends by an assertion when it meets such a rule, and it
//! reads all tables whatever it is asked to do: nobody could list even his own rules. Only queues that
//! send look at the priority; the kernel sets that of forwarded packets anew after `prerouting`, and
//! the `output` chain takes back what `nat-output` has set.
//!
//! A batch takes effect at one instant, but a packet makes several lookups, and the instant may lie
//! between two of them. Nobody may be refused because of that:
//!
//! - The frontend led to `pick-3`, and when place 2 is looked up, there are two places left. Place 0
//!   is there as long as there is any backend, so `fallback` looks there.
//! - An element that is replaced under its key can be missed in both its forms: a lookup goes by the
//!   generation that was in force when it began, whose element is unlinked right after the change.
//!   (Linux 6.17 and later begin such a lookup again by themselves.) `fallback` looks after the
//!   change, and finds the new one.
//! - Whatever is left untranslated even so, and has endpoints, came midway: it is dropped, not
//!   refused. Its client sends again.
//!
//! Whether a source must be rewritten is read off the connection's original destination, so no packet
//! marks are used, which other programs might use as well.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use crate::netlink::{Connection, Refused, number32};
use crate::nft::{self, Datum, Element, Hook, Leads, Register, Rules, Set, Type, Verdict};
use crate::{Frontend, Protocol, ServicePort, Subnet, Unserved};

pub(crate) const SERVICES: &str = "services";
pub(crate) const CLASSES: &str = "classes";
pub(crate) const ENDPOINTS: &str = "endpoints";
pub(crate) const STICKY: &str = "sticky";
pub(crate) const STICKY_PLACES: &str = "sticky-places";
pub(crate) const STICKY_BACKENDS: &str = "sticky-backends";
pub(crate) const REFUSED: &str = "refused";
pub(crate) const DROPPED: &str = "dropped";
pub(crate) const HIDE_SOURCE: &str = "hide-source";
pub(crate) const KEEP_SOURCE: &str = "keep-source";
pub(crate) const HAIRPIN: &str = "hairpin";

/// Clients that are remembered for session affinity, all services together (~10 MB of kernel memory).
const STICKY_LIMIT: u32 = 65_536;

const FRONTEND: [Type; 3] = [Type::Address, Type::Protocol, Type::Port];
const BACKEND: [Type; 2] = [Type::Address, Type::Port];

const SETS: [Set; 11] = {
    const fn set(name: &'static str, key: &'static [Type], leads: Leads) -> Set {
        Set {
            name,
            key,
            leads,
            dynamic: None,
        }
    }
    const SLOT: [Type; 4] = [Type::Address, Type::Protocol, Type::Port, Type::Mark];
    const CLIENT: [Type; 4] = [Type::Address, Type::Address, Type::Protocol, Type::Port];
    const PINNED: [Type; 4] = [Type::Address, Type::Protocol, Type::Port, Type::Priority];
    const NUMBER: [Type; 1] = [Type::Priority];
    [
        set(SERVICES, &FRONTEND, Leads::Data(&NUMBER)),
        set(CLASSES, &NUMBER, Leads::Verdict),
        set(ENDPOINTS, &SLOT, Leads::Data(&BACKEND)),
        Set {
            name: STICKY,
            key: &CLIENT,
            leads: Leads::Data(&NUMBER),
            dynamic: Some(STICKY_LIMIT),
        },
        set(STICKY_PLACES, &SLOT, Leads::Data(&NUMBER)),
        set(STICKY_BACKENDS, &PINNED, Leads::Data(&BACKEND)),
        set(REFUSED, &FRONTEND, Leads::Nowhere),
        set(DROPPED, &FRONTEND, Leads::Nowhere),
        set(HIDE_SOURCE, &FRONTEND, Leads::Nowhere),
        set(KEEP_SOURCE, &FRONTEND, Leads::Nowhere),
        set(HAIRPIN, &[Type::Address, Type::Address], Leads::Nowhere),
    ]
};

/// What the table is built for.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) node_address: Ipv4Addr,
    pub(crate) pod_cidr: Subnet,
    pub(crate) service_cidr: Subnet,
    pub(crate) veth_prefix: String,
}

/// How a backend is picked: how many there are, how long a client stays with one (seconds; 0: not at
/// all), and whether the frontend is every local address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Class {
    local: bool,
    count: u32,
    seconds: u32,
}

/// A class is one number in the maps: seconds, place and count in one row.
const COUNT_BITS: u32 = 14;
const SECONDS_BITS: u32 = 17;

impl Class {
    /// More backends than this are not used.
    pub(crate) const COUNT_MAX: usize = (1 << COUNT_BITS) - 1;
    /// Nobody stays longer with a backend that he does not ask: a day and a half. Kubernetes allows a day.
    const SECONDS_MAX: u64 = (1 << SECONDS_BITS) - 1;

    /// The class of a frontend with backends. An affinity of less than a second counts as one.
    pub(crate) fn new(frontend: &Frontend, count: usize, affinity: Option<Duration>) -> Class {
        let seconds = affinity.map_or(0, |time| time.as_secs().clamp(1, Self::SECONDS_MAX));
        Class {
            local: frontend.address.is_none(),
            count: count.min(Self::COUNT_MAX) as u32,
            seconds: seconds as u32,
        }
    }

    fn chain(self) -> String {
        let place = if self.local { "pick-local" } else { "pick" };
        match self.seconds {
            0 => format!("{place}-{}", self.count),
            seconds => format!("{place}-{}-sticky-{seconds}", self.count),
        }
    }

    /// As `services` leads to it.
    fn number(self) -> [u8; 4] {
        let place = self.seconds << 1 | u32::from(self.local);
        (place << COUNT_BITS | self.count).to_ne_bytes()
    }

    fn read(number: &[u8]) -> Option<Class> {
        let number = number32(number, 0)?;
        Some(Class {
            local: number >> COUNT_BITS & 1 != 0,
            count: number & Self::COUNT_MAX as u32,
            seconds: number >> (COUNT_BITS + 1),
        })
    }

    fn affinity(self) -> Option<Duration> {
        (self.seconds > 0).then(|| Duration::from_secs(self.seconds.into()))
    }
}

/// The name of a chain without rules, by which a table of exactly this fixed part is known.
pub(crate) fn version_chain(table: &str, shape: &Shape) -> String {
    let mut rules = Rules::new(table);
    write_fixed(&mut rules, shape);
    for (local, seconds) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        add_class(
            &mut rules,
            Class {
                local,
                count: 2,
                seconds,
            },
        );
    }
    let mut hasher = std::hash::DefaultHasher::new();
    rules.finish().bytes().hash(&mut hasher);
    format!("version-{:016x}", hasher.finish())
}

/// Writes everything that does not depend on services.
pub(crate) fn build(rules: &mut Rules, table: &str, shape: &Shape) {
    write_fixed(rules, shape);
    rules.add_chain(&version_chain(table, shape), None);
}

/// Reads back what [`build`] and changes since have left in the kernel. Backends come by their places.
pub(crate) fn read(connection: &mut Connection, table: &str) -> Result<Vec<ServicePort>, Refused> {
    let mut found: BTreeMap<Frontend, ServicePort> = BTreeMap::new();
    let mut places: BTreeMap<(Frontend, u32), SocketAddrV4> = BTreeMap::new();
    for (key, data) in nft::elements(connection, table, SERVICES)? {
        if let Some(frontend) = read_frontend(&key) {
            port_at(&mut found, frontend).affinity = Class::read(&data).and_then(Class::affinity);
        }
    }
    for (key, data) in nft::elements(connection, table, ENDPOINTS)? {
        let place = key.get(12..).and_then(|place| number32(place, 0));
        if let (Some(frontend), Some(place), Some(backend)) =
            (read_frontend(&key), place, read_backend(&data))
        {
            places.insert((frontend, place), backend);
        }
    }
    for ((frontend, _), backend) in places {
        port_at(&mut found, frontend).backends.push(backend);
    }
    for (set, note) in [
        (
            HIDE_SOURCE,
            (|port| port.rewrite_source = true) as fn(&mut ServicePort),
        ),
        (DROPPED, |port| port.unserved = Unserved::Drop),
        (REFUSED, |port| port.unserved = Unserved::Refuse),
    ] {
        for (key, _) in nft::elements(connection, table, set)? {
            if let Some(frontend) = read_frontend(&key) {
                note(port_at(&mut found, frontend));
            }
        }
    }
    Ok(found.into_values().collect())
}

/// Reads back which classes there are.
pub(crate) fn read_classes(
    connection: &mut Connection,
    table: &str,
) -> Result<BTreeSet<Class>, Refused> {
    let found = nft::elements(connection, table, CLASSES)?;
    Ok(found
        .iter()
        .filter_map(|(key, _)| Class::read(key))
        .collect())
}

fn port_at(found: &mut BTreeMap<Frontend, ServicePort>, frontend: Frontend) -> &mut ServicePort {
    found.entry(frontend).or_insert_with(|| ServicePort {
        frontend,
        backends: Vec::new(),
        affinity: None,
        rewrite_source: false,
        unserved: Unserved::Refuse,
    })
}

fn read_frontend(key: &[u8]) -> Option<Frontend> {
    let address = Ipv4Addr::from(<[u8; 4]>::try_from(key.get(..4)?).ok()?);
    Some(Frontend {
        address: (!address.is_unspecified()).then_some(address),
        protocol: Protocol::from_number(*key.get(4)?)?,
        port: u16::from_be_bytes(key.get(8..10)?.try_into().ok()?),
    })
}

fn read_backend(data: &[u8]) -> Option<SocketAddrV4> {
    let address = Ipv4Addr::from(<[u8; 4]>::try_from(data.get(..4)?).ok()?);
    let port = u16::from_be_bytes(data.get(4..6)?.try_into().ok()?);
    Some(SocketAddrV4::new(address, port))
}

/// The key of a frontend in the sets.
pub(crate) fn frontend_key(frontend: &Frontend) -> Vec<u8> {
    let address = frontend.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let mut key = Vec::with_capacity(12);
    key.extend_from_slice(&address.octets());
    key.extend_from_slice(&[frontend.protocol.number(), 0, 0, 0]);
    key.extend_from_slice(&port_bytes(frontend.port));
    key
}

fn port_bytes(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

fn backend_bytes(backend: &SocketAddrV4) -> Vec<u8> {
    [backend.ip().octets(), port_bytes(backend.port())].concat()
}

/// The element of a frontend in `services`, which says of what class it is.
pub(crate) fn service_element(frontend: &Frontend, class: Class) -> Element {
    Element {
        key: frontend_key(frontend),
        datum: Datum::Bytes(class.number().to_vec()),
    }
}

/// The element that leads to the chain of a class.
fn class_element(class: Class) -> Element {
    Element {
        key: class.number().to_vec(),
        datum: Datum::Goto(class.chain()),
    }
}

/// The element of one backend at its place among the others.
pub(crate) fn endpoint_element(
    frontend: &Frontend,
    slot: usize,
    backend: &SocketAddrV4,
) -> Element {
    Element {
        key: place_key(frontend, slot),
        datum: Datum::Bytes(backend_bytes(backend)),
    }
}

/// The key of a place.
fn place_key(frontend: &Frontend, slot: usize) -> Vec<u8> {
    let mut key = frontend_key(frontend);
    key.extend_from_slice(&(slot as u32).to_ne_bytes());
    key
}

/// The elements that let clients stay with backends: `sticky-places`, `sticky-backends`.
pub(crate) fn sticky_elements(
    frontend: &Frontend,
    backends: &[SocketAddrV4],
) -> (Vec<Element>, Vec<Element>) {
    let pins = pins(backends);
    let elements = |(slot, backend): (usize, &SocketAddrV4)| {
        let pin = pins[backend].to_ne_bytes();
        let place = Element {
            key: place_key(frontend, slot),
            datum: Datum::Bytes(pin.to_vec()),
        };
        let pinned = Element {
            key: [&frontend_key(frontend)[..], &pin].concat(),
            datum: Datum::Bytes(backend_bytes(backend)),
        };
        (place, pinned)
    };
    backends.iter().enumerate().map(elements).unzip()
}

/// The number by which each of a frontend's backends is remembered. It follows from address and port
/// (FNV-1a), so that it stays the same while others come and go; where two meet, the later one takes
/// the next that is free.
fn pins(backends: &[SocketAddrV4]) -> BTreeMap<SocketAddrV4, u32> {
    let sorted: BTreeSet<SocketAddrV4> = backends.iter().copied().collect();
    let mut taken = BTreeSet::new();
    let pin = |backend: SocketAddrV4| {
        let mut pin = backend_bytes(&backend)
            .iter()
            .fold(0x811c_9dc5_u32, |hash, byte| {
                (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
            });
        while !taken.insert(pin) {
            pin = pin.wrapping_add(1);
        }
        (backend, pin)
    };
    sorted.into_iter().map(pin).collect()
}

/// A frontend as an element of a set.
pub(crate) fn frontend_element(frontend: &Frontend) -> Element {
    Element {
        key: frontend_key(frontend),
        datum: Datum::None,
    }
}

/// A sandbox as an element of `hairpin`.
pub(crate) fn hairpin_element(address: Ipv4Addr) -> Element {
    Element {
        key: [address.octets(), address.octets()].concat(),
        datum: Datum::None,
    }
}

fn write_fixed(rules: &mut Rules, shape: &Shape) {
    for set in &SETS {
        rules.add_set(set);
    }
    let nat = |number, priority| Hook {
        kind: "nat",
        number,
        priority,
    };
    let filter = |number, priority| Hook {
        kind: "filter",
        number,
        priority,
    };
    for name in [SERVICES, "fallback", "unserved", "refuse", "rewrite"] {
        rules.add_chain(name, None);
    }
    for (name, hook) in [
        ("guard", filter(nft::PREROUTING, -300)),
        ("prerouting", nat(nft::PREROUTING, -100)),
        ("nat-output", nat(nft::OUTPUT, -100)),
        ("postrouting", nat(nft::POSTROUTING, 100)),
        ("input", filter(nft::INPUT, 0)),
        ("forward", filter(nft::FORWARD, 0)),
        ("output", filter(nft::OUTPUT, 0)),
    ] {
        rules.add_chain(name, Some(&hook));
    }
    build_guard(rules, shape);
    for chain in ["prerouting", "nat-output"] {
        for next in [SERVICES, "fallback"] {
            rules.add_rule(chain, |rule| rule.verdict(Verdict::Jump(next)));
        }
    }
    build_services(rules);
    build_fallback(rules);
    build_postrouting(rules, shape);
    build_filters(rules, shape);
}

/// Links of sandboxes let 127/8 pass, for the sake of replies; nobody may send it there himself.
fn build_guard(rules: &mut Rules, shape: &Shape) {
    let loopback = Subnet::containing(Ipv4Addr::LOCALHOST, 8);
    rules.add_rule("guard", |rule| {
        rule.came_in_by_prefix(&shape.veth_prefix)
            .destination_address(Register(0))
            .within(Register(0), loopback, true)
            .verdict(Verdict::Drop);
    });
    rules.add_rule("guard", |rule| {
        rule.came_in_by_prefix(&shape.veth_prefix)
            .source_address(Register(0))
            .within(Register(0), loopback, true)
            .verdict(Verdict::Drop);
    });
}

fn build_services(rules: &mut Rules) {
    // Registers: 0…2 frontend · 3 class.
    for any_address in [false, true] {
        rules.add_rule(SERVICES, |rule| {
            load_frontend(rule, any_address);
            rule.look_up(Register(0), SERVICES, Register(3))
                .set_priority(Register(3))
                .priority(Register(3))
                .follow(Register(3), CLASSES);
        });
    }
}

/// For packets that have met a change of their service between two lookups.
fn build_fallback(rules: &mut Rules) {
    for any_address in [false, true] {
        rules.add_rule("fallback", |rule| {
            load_frontend(rule, any_address);
            // The place that is there as long as there is any.
            rule.zero(Register(3))
                .look_up(Register(0), ENDPOINTS, Register(4))
                .rewrite_destination(Register(4), Register(5));
        });
    }
}

fn build_postrouting(rules: &mut Rules, shape: &Shape) {
    let loopback = Subnet::containing(Ipv4Addr::LOCALHOST, 8);
    let rewrite = || Verdict::Goto("rewrite");
    rules.add_rule("postrouting", |rule| {
        rule.goes_out_by("lo").verdict(Verdict::Return)
    });
    rules.add_rule("postrouting", |rule| {
        rule.source_address(Register(0))
            .destination_address(Register(1))
            .is_in(Register(0), HAIRPIN)
            .verdict(rewrite());
    });
    rules.add_rule("postrouting", |rule| {
        rule.destination_rewritten()
            .source_address(Register(0))
            .within(Register(0), loopback, true)
            .verdict(rewrite());
    });
    for (set, any_address, verdict) in [
        (HIDE_SOURCE, false, rewrite()),
        (KEEP_SOURCE, false, Verdict::Return),
        (HIDE_SOURCE, true, rewrite()),
    ] {
        rules.add_rule("postrouting", |rule| {
            rule.destination_rewritten().original_address(Register(0));
            if any_address {
                rule.within(Register(0), shape.service_cidr, false)
                    .any_address(Register(0));
            }
            rule.protocol(Register(1))
                .original_port(Register(2))
                .is_in(Register(0), set)
                .verdict(verdict);
        });
    }
    // Who is not a pod and uses a service address could not understand a pod's own reply.
    rules.add_rule("postrouting", |rule| {
        rule.destination_rewritten()
            .original_address(Register(0))
            .within(Register(0), shape.service_cidr, true)
            .source_address(Register(1))
            .within(Register(1), shape.pod_cidr, false)
            .verdict(rewrite());
    });
    rules.add_rule("postrouting", |rule| {
        rule.source_address(Register(0))
            .within(Register(0), shape.pod_cidr, true)
            .destination_address(Register(1))
            .within(Register(1), shape.pod_cidr, false)
            .masquerade();
    });
    rules.add_rule("rewrite", |rule| {
        rule.destination_address(Register(0))
            .within(Register(0), shape.pod_cidr, true)
            .load(Register(1), shape.node_address.octets())
            .rewrite_source(Register(1));
    });
    rules.add_rule("rewrite", |rule| rule.masquerade());
}

fn build_filters(rules: &mut Rules, shape: &Shape) {
    for chain in ["input", "forward", "output"] {
        rules.add_rule(chain, |rule| rule.established().verdict(Verdict::Accept));
        rules.add_rule(chain, |rule| rule.verdict(Verdict::Jump("unserved")));
    }
    rules.add_rule("output", |rule| {
        rule.destination_rewritten()
            .load(Register(0), [0; 4])
            .set_priority(Register(0));
    });
    // A packet that its connection has given up would reach a pod with addresses not rewritten, and
    // be answered with a reset to the wrong party.
    for source in [true, false] {
        rules.add_rule("forward", |rule| {
            rule.invalid();
            if source {
                rule.source_address(Register(0));
            } else {
                rule.destination_address(Register(0));
            }
            rule.within(Register(0), shape.pod_cidr, true)
                .verdict(Verdict::Drop);
        });
    }
    for (set, verdict) in [(DROPPED, Verdict::Drop), (REFUSED, Verdict::Goto("refuse"))] {
        for any_address in [false, true] {
            rules.add_rule("unserved", |rule| {
                load_frontend(rule, any_address);
                rule.is_in(Register(0), set).verdict(verdict.clone());
            });
        }
    }
    // Served, and yet not translated: it has met a change midway.
    for any_address in [false, true] {
        rules.add_rule("unserved", |rule| {
            rule.destination_kept();
            load_frontend(rule, any_address);
            // A map can only be asked for what it leads to, and that must go somewhere.
            rule.look_up(Register(0), SERVICES, Register(3))
                .set_priority(Register(3))
                .verdict(Verdict::Drop);
        });
    }
    rules.add_rule("unserved", |rule| {
        rule.destination_address(Register(0))
            .within(Register(0), shape.service_cidr, true)
            .verdict(Verdict::Goto("refuse"));
    });
    // The kernel limits how many ICMP errors it sends per second, but not how many resets.
    rules.add_rule("refuse", |rule| {
        rule.protocol(Register(0))
            .is_protocol(Register(0), Protocol::Tcp.number())
            .reset();
    });
    rules.add_rule("refuse", |rule| rule.reject());
}

/// Registers 0…2: the frontend that the packet is for, as a key of the sets; or goes no further.
fn load_frontend(rule: &mut nft::Rule<'_, '_>, any_address: bool) {
    if any_address {
        rule.destination_is_local().any_address(Register(0));
    } else {
        rule.destination_address(Register(0));
    }
    rule.protocol(Register(1)).destination_port(Register(2));
}

/// Makes the chain of a class.
pub(crate) fn add_class(rules: &mut Rules, class: Class) {
    let chain = class.chain();
    rules.add_chain(&chain, None);
    // A table that was taken up may have the chain already, with the same rules.
    rules.flush_chain(&chain);
    build_pick(rules, &chain, class);
    rules.add_elements(CLASSES, &[class_element(class)]);
}

/// Takes the chain of a class away, which no service uses any more.
pub(crate) fn delete_class(rules: &mut Rules, class: Class) {
    let chain = class.chain();
    rules.delete_elements(CLASSES, &[class_element(class)]);
    rules.flush_chain(&chain);
    rules.delete_chain(&chain);
}

fn build_pick(rules: &mut Rules, chain: &str, class: Class) {
    // Registers: 0 client · 1…3 frontend · 4 place or pin · 5, 6 backend.
    let frontend = |rule: &mut nft::Rule<'_, '_>| {
        rule.source_address(Register(0));
        if class.local {
            rule.any_address(Register(1));
        } else {
            rule.destination_address(Register(1));
        }
        rule.protocol(Register(2)).destination_port(Register(3));
    };
    if class.seconds > 0 {
        let milliseconds = u64::from(class.seconds) * 1000;
        let go_to_pinned = |rule: &mut nft::Rule<'_, '_>| {
            rule.set_priority(Register(4))
                .priority(Register(4))
                .remember(Register(0), STICKY, Register(4), milliseconds)
                .look_up(Register(1), STICKY_BACKENDS, Register(5))
                .rewrite_destination(Register(5), Register(6));
        };
        rules.add_rule(chain, |rule| {
            frontend(rule);
            rule.look_up(Register(0), STICKY, Register(4));
            go_to_pinned(rule);
        });
        // Whoever comes here with an entry has lost the backend that it names.
        rules.add_rule(chain, |rule| {
            frontend(rule);
            rule.priority(Register(4))
                .forget(Register(0), STICKY, Register(4));
        });
        rules.add_rule(chain, |rule| {
            frontend(rule);
            rule.random(Register(4), class.count)
                .look_up(Register(1), STICKY_PLACES, Register(4));
            go_to_pinned(rule);
        });
    }
    // With affinity, this is for clients for whom `sticky` has no room.
    rules.add_rule(chain, |rule| {
        frontend(rule);
        rule.random(Register(4), class.count)
            .look_up(Register(1), ENDPOINTS, Register(5))
            .rewrite_destination(Register(5), Register(6));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_a_number_and_back() {
        for local in [false, true] {
            for count in [1, 3, Class::COUNT_MAX as u32] {
                for seconds in [0, 1, 10_800, Class::SECONDS_MAX as u32] {
                    let class = Class {
                        local,
                        count,
                        seconds,
                    };
                    assert_eq!(Class::read(&class.number()), Some(class));
                }
            }
        }
    }

    #[test]
    fn every_backend_has_a_number_of_its_own_and_keeps_it() {
        let all: Vec<SocketAddrV4> = (0..60_000_u16)
            .map(|number| {
                let [high, low] = number.to_be_bytes();
                SocketAddrV4::new(Ipv4Addr::new(10, 244, high, low), 80 + number % 3)
            })
            .collect();
        let pins_of_all = pins(&all);
        let numbers: BTreeSet<u32> = pins_of_all.values().copied().collect();
        assert_eq!(numbers.len(), all.len());
        let some: Vec<SocketAddrV4> = all.iter().rev().step_by(7000).copied().collect();
        for (backend, pin) in pins(&some) {
            assert_eq!(pins_of_all[&backend], pin, "{backend}");
        }
    }
}
