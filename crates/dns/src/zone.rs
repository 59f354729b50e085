//! Names and what they stand for.
//!
//! ```text
//! cluster.local                   SOA, NS of the zone itself
//!   svc                           nothing, but it exists: NODATA, not NXDOMAIN (RFC 8020)
//!     default
//!       web                       A 10.96.0.77          group "service default/web"
//!         _tcp
//!           _http                 SRV … web.default.svc.cluster.local
//!   pod
//!     default                     dashed addresses: 10-244-0-5 below it stands for 10.244.0.5
//! 77.0.96.10.in-addr.arpa         PTR                   outside the origin: known, or somebody else's
//! ```

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::rr::rdata::{A, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType};
use parking_lot::RwLock;

/// Seconds for which an answer may be kept.
const TTL: u32 = 30;
/// Seconds for which "there is no such thing" may be kept: new services shall be found soon.
const TTL_NEGATIVE: u32 = 5;
/// Aliases followed for one question.
const ALIASES_MAX: usize = 8;

/// What one name stands for, in one respect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Data {
    /// An address.
    Address(Ipv4Addr),
    /// A port on a host (SRV, RFC 2782). The target is a full name.
    Service {
        /// Lower comes first; all of Kubernetes' are 0.
        priority: u16,
        /// Share among those of the same priority.
        weight: u16,
        /// The port.
        port: u16,
        /// The host's full name.
        target: Name,
    },
    /// Another name for this full name (CNAME).
    Alias(Name),
    /// The full name of an address (PTR).
    Pointer(Name),
    /// Text (TXT).
    Text(String),
    /// Names below this one that are addresses with dashes stand for these addresses.
    DashedAddresses,
    /// Nothing; the name exists.
    Exists,
}

/// One record to be: a full name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The full name.
    pub name: Name,
    /// What it stands for.
    pub data: Data,
}

/// A text is not a domain name.
#[derive(Debug, thiserror::Error)]
#[error("{name:?} is not a domain name: {reason}")]
pub struct ZoneError {
    /// The text.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The zone. Clones share it.
#[derive(Clone)]
pub struct Zone(Arc<Inner>);

struct Inner {
    origin: LowerName,
    server: Name,
    contact: Name,
    names: RwLock<Names>,
}

#[derive(Default)]
struct Names {
    nodes: HashMap<LowerName, Node>,
    groups: HashMap<String, Vec<Entry>>,
    serial: u32,
}

/// A name. It exists while it has data, or names below it.
#[derive(Default)]
struct Node {
    data: Vec<(String, Data)>,
    below: usize,
}

/// What the zone says to a question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Records, and records that the client will want next; a name that must be asked elsewhere to
    /// complete the answer.
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
        elsewhere: Option<Name>,
    },
    /// The name exists, but has nothing of this type.
    NoData(Box<Record>),
    /// The name does not exist.
    NoName(Box<Record>),
    /// Not of this zone.
    Elsewhere,
}

impl Zone {
    /// An empty zone for the names below `origin` (`cluster.local`).
    pub fn new(origin: &str) -> Result<Zone, ZoneError> {
        let origin = full_name(origin)?;
        let child = |label: &str| full_name(&format!("{label}.{origin}"));
        let inner = Inner {
            server: child("ns.dns")?,
            contact: child("hostmaster")?,
            origin: LowerName::new(&origin),
            names: RwLock::default(),
        };
        Ok(Zone(Arc::new(inner)))
    }

    /// A name relative to the origin, as a full name.
    pub fn name(&self, relative: &str) -> Result<Name, ZoneError> {
        full_name(&format!("{relative}.{}", self.0.origin))
    }

    /// Sets the entries of a group, in place of those that it had; none to remove it. Groups may
    /// share names: a name stands for what all of its groups say.
    pub fn set(&self, group: &str, mut entries: Vec<Entry>) {
        // Once each, or one of them would stay behind.
        let mut seen = HashSet::new();
        entries.retain(|entry| seen.insert(entry.clone()));
        let new: HashSet<&Entry> = entries.iter().collect();
        let mut names = self.0.names.write();
        let known = names.groups.remove(group).unwrap_or_default();
        let old: HashSet<&Entry> = known.iter().collect();
        for entry in known.iter().filter(|entry| !new.contains(entry)) {
            names.remove(group, entry, &self.0.origin);
        }
        for entry in entries.iter().filter(|entry| !old.contains(entry)) {
            names.insert(group, entry, &self.0.origin);
        }
        if old != new {
            names.serial = names.serial.wrapping_add(1);
        }
        if !entries.is_empty() {
            names.groups.insert(group.to_owned(), entries);
        }
    }

    /// Removes all groups for which `keep` says no.
    pub fn retain(&self, mut keep: impl FnMut(&str) -> bool) {
        let doomed: Vec<String> = {
            let names = self.0.names.read();
            names
                .groups
                .keys()
                .filter(|group| !keep(group))
                .cloned()
                .collect()
        };
        for group in doomed {
            self.set(&group, Vec::new());
        }
    }

    /// Number of names that exist.
    pub fn len(&self) -> usize {
        self.0.names.read().nodes.len()
    }

    /// Whether no name exists.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Answers a question. Records of a kind come in the order that `turn` gives: each time another
    /// one is first.
    pub(crate) fn ask(&self, name: &Name, kind: RecordType, turn: usize) -> Reply {
        let inner = &*self.0;
        let names = inner.names.read();
        let mut answers = Vec::new();
        let mut asked = name.clone();
        for _ in 0..=ALIASES_MAX {
            let key = LowerName::new(&asked);
            let inside = inner.origin.zone_of(&key);
            let (found, exists) = inner.find(&names, &key, kind);
            match found {
                Found::Alias(target) => {
                    answers.push(record(&asked, RData::CNAME(CNAME(target.clone()))));
                    asked = target;
                }
                Found::Data(mut data) if !data.is_empty() => {
                    let turn = turn % data.len();
                    data.rotate_left(turn);
                    let additionals = inner.additionals(&names, &data);
                    answers.extend(data.into_iter().map(|data| record(&asked, data)));
                    return Reply::Records {
                        answers,
                        additionals,
                        elsewhere: None,
                    };
                }
                // What an alias leads to decides nothing about the name that was asked for.
                Found::Data(_) if !answers.is_empty() => {
                    let elsewhere = (!inside).then_some(asked);
                    return Reply::Records {
                        answers,
                        additionals: Vec::new(),
                        elsewhere,
                    };
                }
                Found::Data(_) if exists => return Reply::NoData(inner.authority(&names)),
                Found::Data(_) if inside => return Reply::NoName(inner.authority(&names)),
                Found::Data(_) => return Reply::Elsewhere,
            }
        }
        Reply::Records {
            answers,
            additionals: Vec::new(),
            elsewhere: None,
        }
    }
}

enum Found {
    Data(Vec<RData>),
    Alias(Name),
}

impl Inner {
    /// What a name has of a type, and whether it exists.
    fn find(&self, names: &Names, key: &LowerName, kind: RecordType) -> (Found, bool) {
        if let Some(address) = dashed_address(names, key) {
            let wanted = matches!(kind, RecordType::A | RecordType::ANY);
            let data = if wanted {
                vec![RData::A(A(address))]
            } else {
                Vec::new()
            };
            return (Found::Data(data), true);
        }
        let node = names.nodes.get(key);
        let data = || {
            node.into_iter()
                .flat_map(|node| node.data.iter().map(|(_, data)| data))
        };
        if kind != RecordType::CNAME && kind != RecordType::ANY {
            let alias = data().find_map(|data| match data {
                Data::Alias(target) => Some(target.clone()),
                _ => None,
            });
            if let Some(target) = alias {
                return (Found::Alias(target), true);
            }
        }
        // Groups that share a name may say the same of it.
        let mut seen = HashSet::new();
        let mut found: Vec<RData> = data()
            .filter(|data| seen.insert(*data))
            .filter_map(to_record_data)
            .filter(|data| kind == RecordType::ANY || data.record_type() == kind)
            .collect();
        let apex = *key == self.origin;
        if apex && kind == RecordType::SOA {
            found.push(self.start_of_authority(names));
        }
        if apex && kind == RecordType::NS {
            found.push(RData::NS(NS(self.server.clone())));
        }
        (Found::Data(found), apex || node.is_some())
    }

    /// Addresses of the hosts that the records name, as far as they are known here.
    fn additionals(&self, names: &Names, data: &[RData]) -> Vec<Record> {
        let mut additionals: Vec<Record> = Vec::new();
        for data in data {
            let RData::SRV(service) = data else { continue };
            if additionals.iter().any(|known| known.name == service.target) {
                continue;
            }
            let key = LowerName::new(&service.target);
            if let (Found::Data(found), _) = self.find(names, &key, RecordType::A) {
                additionals.extend(found.into_iter().map(|data| record(&service.target, data)));
            }
        }
        additionals
    }

    fn start_of_authority(&self, names: &Names) -> RData {
        let (server, contact) = (self.server.clone(), self.contact.clone());
        RData::SOA(SOA::new(
            server,
            contact,
            names.serial,
            7200,
            1800,
            86_400,
            TTL_NEGATIVE,
        ))
    }

    fn authority(&self, names: &Names) -> Box<Record> {
        let origin = Name::from(self.origin.clone());
        Box::new(Record::from_rdata(
            origin,
            TTL_NEGATIVE,
            self.start_of_authority(names),
        ))
    }
}

impl Names {
    fn insert(&mut self, group: &str, entry: &Entry, origin: &LowerName) {
        let key = LowerName::new(&entry.name);
        let is_new = !self.nodes.contains_key(&key);
        let node = self.nodes.entry(key.clone()).or_default();
        node.data.push((group.to_owned(), entry.data.clone()));
        if is_new {
            self.note_above(key, origin);
        }
    }

    /// Every name between a new one and the origin exists, too.
    fn note_above(&mut self, mut key: LowerName, origin: &LowerName) {
        while origin.zone_of(&key) && key != *origin {
            key = key.base_name();
            let known = self.nodes.contains_key(&key);
            self.nodes.entry(key.clone()).or_default().below += 1;
            if known {
                return;
            }
        }
    }

    fn remove(&mut self, group: &str, entry: &Entry, origin: &LowerName) {
        let mut key = LowerName::new(&entry.name);
        let Some(node) = self.nodes.get_mut(&key) else {
            return;
        };
        let place = node
            .data
            .iter()
            .position(|(other, data)| other == group && *data == entry.data);
        if let Some(place) = place {
            node.data.remove(place);
        }
        while self
            .nodes
            .get(&key)
            .is_some_and(|node| node.data.is_empty() && node.below == 0)
        {
            self.nodes.remove(&key);
            if !origin.zone_of(&key) || key == *origin {
                return;
            }
            key = key.base_name();
            if let Some(above) = self.nodes.get_mut(&key) {
                above.below -= 1;
            }
        }
    }
}

/// The address that a name like `10-244-0-5.default.pod.cluster.local` stands for.
fn dashed_address(names: &Names, key: &LowerName) -> Option<Ipv4Addr> {
    let parent = names.nodes.get(&key.base_name())?;
    parent
        .data
        .iter()
        .find(|(_, data)| *data == Data::DashedAddresses)?;
    let name = Name::from(key);
    let label = std::str::from_utf8(name.iter().next()?).ok()?;
    label.replace('-', ".").parse().ok()
}

fn to_record_data(data: &Data) -> Option<RData> {
    match data {
        Data::Address(address) => Some(RData::A(A(*address))),
        Data::Service {
            priority,
            weight,
            port,
            target,
        } => Some(RData::SRV(SRV::new(
            *priority,
            *weight,
            *port,
            target.clone(),
        ))),
        Data::Alias(target) => Some(RData::CNAME(CNAME(target.clone()))),
        Data::Pointer(target) => Some(RData::PTR(PTR(target.clone()))),
        Data::Text(text) => Some(RData::TXT(TXT::new(vec![text.clone()]))),
        Data::DashedAddresses | Data::Exists => None,
    }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

/// A text as a full name, with or without the closing dot.
///
/// # Errors
/// When it is not a domain name.
pub fn full_name(text: &str) -> Result<Name, ZoneError> {
    let mut name = Name::from_ascii(text).map_err(|error| ZoneError {
        name: text.to_owned(),
        reason: error.to_string(),
    })?;
    name.set_fqdn(true);
    Ok(name)
}

/// The name under which the pointer of an address stands (RFC 1035, section 3.5).
pub fn reverse_name(address: Ipv4Addr) -> Name {
    Name::from(std::net::IpAddr::from(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, data: Data) -> Entry {
        Entry {
            name: full_name(name).expect("a name"),
            data,
        }
    }

    fn address(last: u8) -> Data {
        Data::Address(Ipv4Addr::new(10, 96, 0, last))
    }

    fn zone() -> Zone {
        let zone = Zone::new("cluster.local").expect("a zone");
        let target = full_name("web.default.svc.cluster.local").expect("a name");
        let port = |port| Data::Service {
            priority: 0,
            weight: 100,
            port,
            target: target.clone(),
        };
        zone.set(
            "web",
            vec![
                entry("web.default.svc.cluster.local", address(7)),
                entry("_http._tcp.web.default.svc.cluster.local", port(80)),
                entry("7.0.96.10.in-addr.arpa", Data::Pointer(target.clone())),
            ],
        );
        let many = (1..=3).map(|last| entry("db.default.svc.cluster.local", address(last)));
        zone.set("db", many.collect());
        let alias = |name: &str| Data::Alias(full_name(name).expect("a name"));
        zone.set(
            "aliases",
            vec![
                entry(
                    "inside.default.svc.cluster.local",
                    alias("WEB.default.svc.cluster.local"),
                ),
                entry("outside.default.svc.cluster.local", alias("example.com")),
                entry(
                    "round.default.svc.cluster.local",
                    alias("round.default.svc.cluster.local"),
                ),
            ],
        );
        zone.set(
            "namespace",
            vec![entry("default.pod.cluster.local", Data::DashedAddresses)],
        );
        zone
    }

    /// One line: records as `TYPE data`, or what there is instead.
    fn ask(zone: &Zone, name: &str, kind: RecordType) -> String {
        let list = |records: Vec<Record>| {
            let text = |record: Record| format!("{} {}", record.record_type(), record.data);
            records.into_iter().map(text).collect::<Vec<_>>().join(", ")
        };
        match zone.ask(&full_name(name).expect("a name"), kind, 0) {
            Reply::Records {
                answers,
                additionals,
                elsewhere,
            } => {
                let mut text = list(answers);
                if !additionals.is_empty() {
                    text += &format!("; {}", list(additionals));
                }
                if let Some(name) = elsewhere {
                    text += &format!("; ask for {name}");
                }
                text
            }
            Reply::NoData(_) => "NODATA".to_owned(),
            Reply::NoName(_) => "NXDOMAIN".to_owned(),
            Reply::Elsewhere => "elsewhere".to_owned(),
        }
    }

    #[test]
    fn answers_what_it_knows_and_says_what_it_does_not() {
        let zone = zone();
        let check = |name: &str, kind: RecordType, expected: &str| {
            assert_eq!(ask(&zone, name, kind), expected, "{name} {kind}");
        };
        check(
            "web.default.svc.cluster.local",
            RecordType::A,
            "A 10.96.0.7",
        );
        check(
            "WEB.Default.svc.CLUSTER.local",
            RecordType::A,
            "A 10.96.0.7",
        );
        check("web.default.svc.cluster.local", RecordType::AAAA, "NODATA");
        check("web.default.svc.cluster.local", RecordType::MX, "NODATA");
        check(
            "_tcp.web.default.svc.cluster.local",
            RecordType::A,
            "NODATA",
        );
        check("default.svc.cluster.local", RecordType::A, "NODATA");
        check("svc.cluster.local", RecordType::SRV, "NODATA");
        check("cluster.local", RecordType::A, "NODATA");
        check(
            "nobody.default.svc.cluster.local",
            RecordType::A,
            "NXDOMAIN",
        );
        check("web.other.svc.cluster.local", RecordType::A, "NXDOMAIN");
        check(
            "www.example.com.cluster.local",
            RecordType::AAAA,
            "NXDOMAIN",
        );
        check("www.example.com", RecordType::A, "elsewhere");
        check("local", RecordType::A, "elsewhere");
        check("notcluster.local", RecordType::A, "elsewhere");
        check(
            "_http._tcp.web.default.svc.cluster.local",
            RecordType::SRV,
            "SRV 0 100 80 web.default.svc.cluster.local.; A 10.96.0.7",
        );
        check(
            "7.0.96.10.in-addr.arpa",
            RecordType::PTR,
            "PTR web.default.svc.cluster.local.",
        );
        check("8.0.96.10.in-addr.arpa", RecordType::PTR, "elsewhere");
        check(
            "10-244-0-5.default.pod.cluster.local",
            RecordType::A,
            "A 10.244.0.5",
        );
        check(
            "10-244-0-5.default.pod.cluster.local",
            RecordType::AAAA,
            "NODATA",
        );
        check(
            "10-244-0.default.pod.cluster.local",
            RecordType::A,
            "NXDOMAIN",
        );
        check(
            "10-244-0-5.other.pod.cluster.local",
            RecordType::A,
            "NXDOMAIN",
        );
        check("cluster.local", RecordType::NS, "NS ns.dns.cluster.local.");
    }

    #[test]
    fn aliases_are_followed_as_far_as_they_are_known() {
        let zone = zone();
        let check = |name: &str, kind: RecordType, expected: &str| {
            assert_eq!(ask(&zone, name, kind), expected, "{name} {kind}");
        };
        let name = "inside.default.svc.cluster.local";
        check(
            name,
            RecordType::A,
            "CNAME WEB.default.svc.cluster.local., A 10.96.0.7",
        );
        check(
            name,
            RecordType::AAAA,
            "CNAME WEB.default.svc.cluster.local.",
        );
        check(
            name,
            RecordType::CNAME,
            "CNAME WEB.default.svc.cluster.local.",
        );
        check(
            "outside.default.svc.cluster.local",
            RecordType::A,
            "CNAME example.com.; ask for example.com.",
        );
        let round = ask(&zone, "round.default.svc.cluster.local", RecordType::A);
        assert_eq!(
            round.matches("CNAME").count(),
            1 + ALIASES_MAX,
            "a ring ends"
        );
    }

    #[test]
    fn addresses_take_turns() {
        let zone = zone();
        let name = full_name("db.default.svc.cluster.local").expect("a name");
        let first = |turn| match zone.ask(&name, RecordType::A, turn) {
            Reply::Records { answers, .. } => {
                assert_eq!(answers.len(), 3);
                answers[0].data.to_string()
            }
            other => panic!("{other:?}"),
        };
        let firsts = [first(0), first(1), first(2), first(3)];
        assert_eq!(firsts, ["10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.1"]);
    }

    #[test]
    fn what_goes_leaves_no_name_behind() {
        let zone = zone();
        let web = "web.default.svc.cluster.local";
        zone.set("web", vec![entry(web, address(8))]);
        assert_eq!(ask(&zone, web, RecordType::A), "A 10.96.0.8");
        assert_eq!(
            ask(&zone, &format!("_tcp.{web}"), RecordType::A),
            "NXDOMAIN"
        );
        assert_eq!(
            ask(&zone, "7.0.96.10.in-addr.arpa", RecordType::PTR),
            "elsewhere"
        );
        // The same twice is the same.
        for last in [8, 9, 8] {
            zone.set(
                "web",
                vec![entry(web, address(8)), entry(web, address(last))],
            );
        }
        assert_eq!(ask(&zone, web, RecordType::A), "A 10.96.0.8");
        // Two groups, one name.
        zone.set("more", vec![entry(web, address(9)), entry(web, address(8))]);
        assert_eq!(ask(&zone, web, RecordType::A), "A 10.96.0.8, A 10.96.0.9");
        zone.set("web", Vec::new());
        assert_eq!(ask(&zone, web, RecordType::A), "A 10.96.0.9, A 10.96.0.8");
        zone.retain(|group| group == "namespace");
        assert_eq!(ask(&zone, "svc.cluster.local", RecordType::A), "NXDOMAIN");
        assert_eq!(
            ask(&zone, "default.pod.cluster.local", RecordType::A),
            "NODATA"
        );
        zone.retain(|_| false);
        assert!(zone.is_empty());
    }

    #[test]
    fn negative_answers_carry_the_zone_and_a_short_life() {
        let zone = zone();
        let name = full_name("nobody.cluster.local").expect("a name");
        let Reply::NoName(authority) = zone.ask(&name, RecordType::A, 0) else {
            panic!("the name does not exist")
        };
        assert_eq!(authority.name.to_string(), "cluster.local.");
        assert_eq!(
            (authority.ttl, authority.record_type()),
            (TTL_NEGATIVE, RecordType::SOA)
        );
    }
}
