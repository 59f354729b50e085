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
//!   └ services   daddr . protocol . port       @services → count . seconds ┐
//!                any . protocol . port (local daddr)   @services → the same ┤
//!                local? . count . seconds     vmap @classes → pick-N     ◄──┘
//!       pick-N   frontend . random mod N      @endpoints → address . port → dnat
//!   └ fallback   frontend . 0                 @endpoints → address . port → dnat
//! postrouting (nat)
//!                saddr . daddr @hairpin, from 127/8, original frontend @hide-source,
//!                from pods to elsewhere       → rewrite source
//! input, forward, output (filter)
//!   └ unserved   frontend @dropped, @refused → drop, refuse
//!                frontend . 0 @endpoints     → drop
//!                anything left in the service range → refuse
//! guard (raw)    127/8 through a sandbox's link → drop
//! ```
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
pub(crate) const STICKY_BACKENDS: &str = "sticky-backends";
pub(crate) const REFUSED: &str = "refused";
pub(crate) const DROPPED: &str = "dropped";
pub(crate) const HIDE_SOURCE: &str = "hide-source";
pub(crate) const KEEP_SOURCE: &str = "keep-source";
pub(crate) const HAIRPIN: &str = "hairpin";

/// Clients that are remembered for session affinity, all services together (~10 MB of kernel memory).
const STICKY_LIMIT: u32 = 65_536;

/// The place of the backend that is there as long as there is any.
const PLACE_FIRST: [u8; 4] = [0; 4];

const FRONTEND: [Type; 3] = [Type::Address, Type::Protocol, Type::Port];
const BACKEND: [Type; 2] = [Type::Address, Type::Port];

const SETS: [Set; 10] = {
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
    const PINNED: [Type; 5] = [
        Type::Address,
        Type::Protocol,
        Type::Port,
        Type::Address,
        Type::Port,
    ];
    const CLASS: [Type; 2] = [Type::Mark, Type::Mark];
    const CLASS_AT: [Type; 3] = [Type::Mark, Type::Mark, Type::Mark];
    [
        set(SERVICES, &FRONTEND, Leads::Data(&CLASS)),
        set(CLASSES, &CLASS_AT, Leads::Verdict),
        set(ENDPOINTS, &SLOT, Leads::Data(&BACKEND)),
        Set {
            name: STICKY,
            key: &CLIENT,
            leads: Leads::Data(&BACKEND),
            dynamic: Some(STICKY_LIMIT),
        },
        set(STICKY_BACKENDS, &PINNED, Leads::Nowhere),
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

impl Class {
    /// More backends than this are not used.
    pub(crate) const COUNT_MAX: usize = 1 << 15;

    /// The class of a frontend with backends. An affinity of less than a second counts as one.
    pub(crate) fn new(frontend: &Frontend, count: usize, affinity: Option<Duration>) -> Class {
        let seconds = affinity.map_or(0, |time| time.as_secs().clamp(1, u64::from(u32::MAX)));
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

    /// As `services` leads to it; where the frontend is, is known there.
    fn datum(self) -> [u8; 8] {
        let [count, seconds] = [self.count, self.seconds].map(u32::to_ne_bytes);
        let mut datum = [0; 8];
        datum[..4].copy_from_slice(&count);
        datum[4..].copy_from_slice(&seconds);
        datum
    }

    fn read(local: bool, datum: &[u8]) -> Option<Class> {
        let (count, seconds) = (number32(datum, 0)?, number32(datum, 4)?);
        let class = Class {
            local,
            count,
            seconds,
        };
        (count as usize <= Self::COUNT_MAX).then_some(class)
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
            let class = Class::read(frontend.address.is_none(), &data);
            port_at(&mut found, frontend).affinity = class.and_then(Class::affinity);
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
    let class = |(key, _): nft::Pair| Class::read(number32(&key, 0)? != 0, key.get(4..)?);
    Ok(found.into_iter().filter_map(class).collect())
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
        datum: Datum::Bytes(class.datum().to_vec()),
    }
}

/// The element that leads to the chain of a class.
fn class_element(class: Class) -> Element {
    Element {
        key: [&place(class.local)[..], &class.datum()].concat(),
        datum: Datum::Goto(class.chain()),
    }
}

/// Whether the frontend is every local address, as part of a class's key.
fn place(local: bool) -> [u8; 4] {
    u32::from(local).to_ne_bytes()
}

/// The element of one backend at its place among the others.
pub(crate) fn endpoint_element(
    frontend: &Frontend,
    slot: usize,
    backend: &SocketAddrV4,
) -> Element {
    let mut key = frontend_key(frontend);
    key.extend_from_slice(&(slot as u32).to_ne_bytes());
    Element {
        key,
        datum: Datum::Bytes(backend_bytes(backend)),
    }
}

/// The element that lets clients stay with a backend.
pub(crate) fn sticky_element(frontend: &Frontend, backend: &SocketAddrV4) -> Element {
    let mut key = frontend_key(frontend);
    key.extend_from_slice(&backend_bytes(backend));
    Element {
        key,
        datum: Datum::None,
    }
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
    // Registers: 0…2 frontend · 3 place · 4, 5 class. The class's key is 3…5 in one row.
    for any_address in [false, true] {
        rules.add_rule(SERVICES, |rule| {
            load_frontend(rule, any_address);
            rule.look_up(Register(0), SERVICES, Register(4))
                .load(Register(3), place(any_address))
                .follow(Register(3), CLASSES);
        });
    }
}

/// For packets that have met a change of their service between two lookups.
fn build_fallback(rules: &mut Rules) {
    for any_address in [false, true] {
        rules.add_rule("fallback", |rule| {
            look_up_first(rule, any_address);
            rule.rewrite_destination(Register(4), Register(5));
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
            look_up_first(rule, any_address);
            rule.verdict(Verdict::Drop);
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

/// Registers 4 and 5: the first backend of the frontend that the packet is for; or goes no further.
fn look_up_first(rule: &mut nft::Rule<'_, '_>, any_address: bool) {
    load_frontend(rule, any_address);
    rule.load(Register(3), PLACE_FIRST)
        .look_up(Register(0), ENDPOINTS, Register(4));
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
    // Registers: 0 client · 1…3 frontend · 4 slot · 5, 6 backend. For `sticky-backends` the key is
    // frontend and backend in one row: 1…3 and 4, 5.
    let frontend = |rule: &mut nft::Rule<'_, '_>| {
        rule.source_address(Register(0));
        if class.local {
            rule.any_address(Register(1));
        } else {
            rule.destination_address(Register(1));
        }
        rule.protocol(Register(2)).destination_port(Register(3));
    };
    let pick = |rule: &mut nft::Rule<'_, '_>| {
        frontend(rule);
        rule.random(Register(4), class.count)
            .look_up(Register(1), ENDPOINTS, Register(5));
    };
    if class.seconds > 0 {
        let milliseconds = u64::from(class.seconds) * 1000;
        rules.add_rule(chain, |rule| {
            frontend(rule);
            rule.look_up(Register(0), STICKY, Register(4))
                .is_in(Register(1), STICKY_BACKENDS)
                .remember(Register(0), STICKY, Register(4), milliseconds)
                .rewrite_destination(Register(4), Register(5));
        });
        // Whoever comes here with an entry has lost the backend that it names.
        rules.add_rule(chain, |rule| {
            frontend(rule);
            rule.look_up(Register(0), STICKY, Register(4))
                .forget(Register(0), STICKY, Register(4));
        });
        rules.add_rule(chain, |rule| {
            pick(rule);
            rule.remember(Register(0), STICKY, Register(5), milliseconds)
                .rewrite_destination(Register(5), Register(6));
        });
    }
    // With affinity, this is for clients for whom `sticky` has no room.
    rules.add_rule(chain, |rule| {
        pick(rule);
        rule.rewrite_destination(Register(5), Register(6));
    });
}
