//! Keeps the table in the kernel equal to what is wanted, by batches of differences.
//!
//! What is programmed is known here, element by element, so a change sends what changed and nothing
//! else. A daemon that starts anew reads the elements back, and goes on from there: services work
//! before it knows why, and once it is told all services, only what changed meanwhile is sent. A
//! table whose fixed part is not this version's is replaced by one batch, elements and all: no packet
//! meets a table half built.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use crate::netlink::{Connection, Refused};
use crate::nft::{self, Datum, Element, Rules};
use crate::table::{self, Class, Shape};
use crate::{Frontend, Protocol, RulesError, ServiceChange, ServicePort, Unserved};

/// Unused classes stay for the next service that has as many backends; up to this many.
const CLASSES_IDLE_MAX: usize = 64;

/// Who claims a frontend. Published ports come before services, as upstream's port mapping does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Owner {
    Sandbox(String),
    Service(String),
    /// Found in the kernel; stands until all services are known.
    Adopted,
}

/// A frontend as it is in the kernel. Backends have places, and keep them while others come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Programmed {
    backends: Vec<SocketAddrV4>,
    affinity: Option<Duration>,
    rewrite_source: bool,
    unserved: Unserved,
}

/// Connections that must be forgotten: they go to a backend that is no more, or (`None`) stayed with
/// the frontend's own address from before it led anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stale {
    pub(crate) frontend: Frontend,
    pub(crate) backend: Option<SocketAddrV4>,
}

/// What a batch cost; for tests and the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) bytes: usize,
    pub(crate) elements: usize,
}

/// The table of an instance.
pub(crate) struct Program {
    connection: Connection,
    table: String,
    shape: Shape,
    claims: HashMap<Frontend, BTreeMap<Owner, ServicePort>>,
    owned: BTreeMap<Owner, Vec<Frontend>>,
    programmed: HashMap<Frontend, Programmed>,
    classes: BTreeSet<Class>,
    hairpins: BTreeSet<Ipv4Addr>,
    /// The table was removed on purpose, or is another daemon's business from now on.
    closed: bool,
}

/// Elements to go and to come, by set.
#[derive(Default)]
struct Difference {
    gone: BTreeMap<&'static str, Vec<Element>>,
    new: BTreeMap<&'static str, Vec<Element>>,
    classes: BTreeSet<Class>,
}

impl Difference {
    /// What is in both lists of elements of a set stays untouched.
    fn between(&mut self, set: &'static str, old: Vec<Element>, new: Vec<Element>) {
        let gone = old.iter().filter(|element| !new.contains(element)).cloned();
        let come = new.iter().filter(|element| !old.contains(element)).cloned();
        self.gone.entry(set).or_default().extend(gone);
        self.new.entry(set).or_default().extend(come);
    }

    fn elements(&self) -> usize {
        self.gone
            .values()
            .chain(self.new.values())
            .map(Vec::len)
            .sum()
    }
}

impl Program {
    /// Makes the table, or takes up the one that is there.
    pub(crate) fn open(
        connection: Connection,
        table: String,
        shape: Shape,
    ) -> Result<Program, Refused> {
        let mut program = Program {
            connection,
            table,
            shape,
            claims: HashMap::new(),
            owned: BTreeMap::new(),
            programmed: HashMap::new(),
            classes: BTreeSet::new(),
            hairpins: BTreeSet::new(),
            closed: false,
        };
        let chains = nft::chains(&mut program.connection, &program.table)?;
        if chains.is_empty() {
            program.rebuild()?;
            return Ok(program);
        }
        // A table of another version may lack a set: then there is nothing to take up from it.
        let read = table::read(&mut program.connection, &program.table).and_then(|found| {
            let classes = table::read_classes(&mut program.connection, &program.table)?;
            Ok((found, classes))
        });
        match read {
            Ok((found, classes)) => {
                program.adopt(found);
                program.classes = classes;
            }
            Err(error) => tracing::warn!(
                table = program.table,
                error = %error.source,
                "cannot read the packet rules back; building them anew"
            ),
        }
        if !chains.contains(&table::version_chain(&program.table, &program.shape)) {
            program.rebuild()?;
        }
        Ok(program)
    }

    fn adopt(&mut self, found: Vec<ServicePort>) {
        for port in found {
            let entry = Programmed {
                // In the order in which they were read: their places.
                backends: port.backends.clone(),
                affinity: port.affinity,
                rewrite_source: port.rewrite_source,
                unserved: port.unserved,
            };
            self.programmed.insert(port.frontend, entry);
            self.owned
                .entry(Owner::Adopted)
                .or_default()
                .push(port.frontend);
            self.claims
                .entry(port.frontend)
                .or_default()
                .insert(Owner::Adopted, port);
        }
    }

    fn error(&self, refused: Refused) -> RulesError {
        RulesError {
            table: self.table.clone(),
            step: refused.step,
            source: refused.source,
        }
    }

    /// Makes known which sandboxes are attached, all at once; for opening.
    pub(crate) fn adopt_sandboxes(
        &mut self,
        addresses: impl IntoIterator<Item = Ipv4Addr>,
    ) -> Result<(), RulesError> {
        let found = nft::elements(&mut self.connection, &self.table, table::HAIRPIN)
            .map_err(|refused| self.error(refused))?;
        let there: Vec<_> = found
            .into_iter()
            .map(|(key, _)| Element {
                key,
                datum: Datum::None,
            })
            .collect();
        self.hairpins = addresses.into_iter().collect();
        let wanted: Vec<_> = self
            .hairpins
            .iter()
            .copied()
            .map(table::hairpin_element)
            .collect();
        let mut difference = Difference::default();
        difference.between(table::HAIRPIN, there, wanted);
        self.send(&difference)
            .map(drop)
            .map_err(|refused| self.error(refused))
    }

    /// A sandbox has come.
    pub(crate) fn add_sandbox(&mut self, address: Ipv4Addr) -> Result<(), RulesError> {
        self.hairpins.insert(address);
        let mut rules = Rules::new(&self.table);
        rules.add_elements(table::HAIRPIN, &[table::hairpin_element(address)]);
        self.commit(rules)
    }

    /// A sandbox has gone, and its published ports with it.
    pub(crate) fn remove_sandbox(&mut self, id: &str, address: Ipv4Addr) -> Result<(), RulesError> {
        self.publish(id, Vec::new())?;
        if !self.hairpins.remove(&address) {
            return Ok(());
        }
        let mut rules = Rules::new(&self.table);
        rules.delete_elements(table::HAIRPIN, &[table::hairpin_element(address)]);
        self.commit(rules)
    }

    /// Sends a batch. If somebody has removed the table, builds it anew with all that is wanted.
    fn commit(&mut self, rules: Rules) -> Result<(), RulesError> {
        let batch = rules.finish();
        match self.connection.execute(&batch) {
            Ok(()) => Ok(()),
            Err(refused) if is_not_as_known(&refused) => {
                tracing::warn!(
                    table = self.table,
                    step = refused.step,
                    "packet rules are not what they were; building them anew"
                );
                self.rebuild()
                    .map(drop)
                    .map_err(|refused| self.error(refused))
            }
            Err(refused) => Err(self.error(refused)),
        }
    }

    /// Ports of the machine that lead to a sandbox, all of them.
    pub(crate) fn publish(
        &mut self,
        id: &str,
        ports: Vec<ServicePort>,
    ) -> Result<Vec<Stale>, RulesError> {
        let owner = Owner::Sandbox(id.to_owned());
        if ports.is_empty() && !self.owned.contains_key(&owner) {
            return Ok(Vec::new());
        }
        let touched = self.claim(owner, ports);
        self.update(touched).map(|(stale, _)| stale)
    }

    /// Who has published a frontend, other than this sandbox.
    pub(crate) fn publisher(&self, frontend: &Frontend, besides: &str) -> Option<String> {
        let everywhere = Frontend {
            address: None,
            ..*frontend
        };
        let taken = |owner: &Owner| match owner {
            Owner::Sandbox(id) if id != besides => Some(id.clone()),
            _ => None,
        };
        if frontend.address.is_some() {
            return [*frontend, everywhere]
                .iter()
                .find_map(|frontend| self.claims.get(frontend)?.keys().find_map(taken));
        }
        // Every address: whoever has the port on any of them.
        let same =
            |other: &&Frontend| (other.protocol, other.port) == (frontend.protocol, frontend.port);
        self.owned.iter().find_map(|(owner, frontends)| {
            frontends.iter().find(same)?;
            taken(owner)
        })
    }

    /// Changes some services.
    pub(crate) fn change(
        &mut self,
        changes: Vec<ServiceChange>,
    ) -> Result<(Vec<Stale>, Cost), RulesError> {
        let mut touched = HashSet::new();
        for change in changes {
            touched.extend(self.claim(Owner::Service(change.name), change.ports));
        }
        self.update(touched)
    }

    /// These are all services: others are removed.
    pub(crate) fn replace(
        &mut self,
        services: Vec<ServiceChange>,
    ) -> Result<(Vec<Stale>, Cost), RulesError> {
        let keep: HashSet<&str> = services.iter().map(|change| change.name.as_str()).collect();
        let others: Vec<_> = self
            .owned
            .keys()
            .filter_map(|owner| match owner {
                Owner::Service(name) if !keep.contains(name.as_str()) => Some(name.clone()),
                _ => None,
            })
            .collect();
        let mut touched = self.claim(Owner::Adopted, Vec::new());
        for name in others {
            touched.extend(self.claim(Owner::Service(name), Vec::new()));
        }
        for change in services {
            touched.extend(self.claim(Owner::Service(change.name), change.ports));
        }
        self.update(touched)
    }

    /// Those that are stale by what is programmed now: backends may have come back.
    pub(crate) fn still_stale(&self, mut stale: Vec<Stale>) -> Vec<Stale> {
        stale.retain(|stale| {
            let programmed = self.programmed.get(&stale.frontend);
            let backends = programmed.map_or(&[][..], |entry| &entry.backends);
            match stale.backend {
                Some(backend) => !backends.contains(&backend),
                None => !backends.is_empty(),
            }
        });
        stale
    }

    /// Builds the table anew if it is not there, or not whole; whether that was needed.
    pub(crate) fn repair(&mut self) -> Result<bool, RulesError> {
        if self.closed {
            return Ok(false);
        }
        let chains = nft::chains(&mut self.connection, &self.table)
            .map_err(|refused| self.error(refused))?;
        if chains.contains(&table::version_chain(&self.table, &self.shape)) {
            return Ok(false);
        }
        self.rebuild().map_err(|refused| self.error(refused))?;
        Ok(true)
    }

    /// Leaves the table as it is, for good.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// Removes the table.
    pub(crate) fn remove(&mut self) -> Result<(), RulesError> {
        let mut rules = Rules::new(&self.table);
        rules.delete_table();
        let batch = rules.finish();
        self.connection
            .execute(&batch)
            .map_err(|refused| self.error(refused))
    }

    /// Notes what an owner wants; returns the frontends for which that may make a difference.
    fn claim(&mut self, owner: Owner, ports: Vec<ServicePort>) -> HashSet<Frontend> {
        let before = self.owned.remove(&owner).unwrap_or_default();
        let mut touched: HashSet<Frontend> = before.iter().copied().collect();
        for frontend in before {
            if let Some(owners) = self.claims.get_mut(&frontend) {
                owners.remove(&owner);
                if owners.is_empty() {
                    self.claims.remove(&frontend);
                }
            }
        }
        if ports.is_empty() {
            return touched;
        }
        let mut frontends = Vec::with_capacity(ports.len());
        for port in ports {
            touched.insert(port.frontend);
            frontends.push(port.frontend);
            self.claims
                .entry(port.frontend)
                .or_default()
                .insert(owner.clone(), port);
        }
        self.owned.insert(owner, frontends);
        touched
    }

    /// What a frontend shall be: the claim of its first owner.
    fn wanted(&self, frontend: &Frontend) -> Option<Programmed> {
        let (owner, port) = self.claims.get(frontend)?.iter().next()?;
        let old = self
            .programmed
            .get(frontend)
            .map_or(&[][..], |old| &old.backends);
        let backends = arrange(old, &port.backends);
        if port.backends.len() > Class::COUNT_MAX {
            tracing::warn!(
                ?owner,
                used = Class::COUNT_MAX,
                "too many backends; the others are not used"
            );
        }
        Some(Programmed {
            backends,
            affinity: port.affinity,
            rewrite_source: port.rewrite_source,
            unserved: port.unserved,
        })
    }

    /// Brings the kernel up to date for these frontends, by one batch.
    fn update(&mut self, touched: HashSet<Frontend>) -> Result<(Vec<Stale>, Cost), RulesError> {
        let mut difference = Difference::default();
        let mut stale = Vec::new();
        let mut next = Vec::new();
        for frontend in touched {
            let old = self.programmed.get(&frontend);
            let new = self.wanted(&frontend);
            if old == new.as_ref() {
                continue;
            }
            self.compare(&frontend, old, new.as_ref(), &mut difference);
            let refused_before = self.in_range(&frontend);
            stale.extend(stale_backends(&frontend, old, new.as_ref(), refused_before));
            next.push((frontend, new));
        }
        if next.is_empty() {
            return Ok((stale, Cost::default()));
        }
        let elements = difference.elements();
        let before: Vec<_> = next
            .iter()
            .map(|(frontend, _)| (*frontend, self.programmed.get(frontend).cloned()))
            .collect();
        self.note(next);
        let (bytes, idle) = match self.send(&difference) {
            Ok(sent) => sent,
            Err(refused) if is_not_as_known(&refused) => {
                tracing::warn!(
                    table = self.table,
                    step = refused.step,
                    "packet rules are not what they were; building them anew"
                );
                let cost = self.rebuild().map_err(|refused| self.error(refused))?;
                return Ok((stale, cost));
            }
            Err(refused) => {
                self.note(before);
                return Err(self.error(refused));
            }
        };
        for class in idle {
            self.classes.remove(&class);
        }
        self.classes.extend(difference.classes);
        Ok((stale, Cost { bytes, elements }))
    }

    fn note(&mut self, entries: Vec<(Frontend, Option<Programmed>)>) {
        for (frontend, entry) in entries {
            match entry {
                Some(entry) => self.programmed.insert(frontend, entry),
                None => self.programmed.remove(&frontend),
            };
        }
    }

    /// Sends a difference; returns its size and the classes that went with it.
    fn send(&mut self, difference: &Difference) -> Result<(usize, Vec<Class>), Refused> {
        let mut rules = Rules::new(&self.table);
        for (set, elements) in &difference.gone {
            rules.delete_elements(set, elements);
        }
        for class in difference.classes.difference(&self.classes) {
            table::add_class(&mut rules, *class);
        }
        for (set, elements) in &difference.new {
            rules.add_elements(set, elements);
        }
        let idle = self.idle_classes();
        for class in &idle {
            table::delete_class(&mut rules, *class);
        }
        let batch = rules.finish();
        self.connection.execute(&batch)?;
        Ok((batch.len(), idle))
    }

    /// Classes that nobody uses, once there are too many of them.
    fn idle_classes(&self) -> Vec<Class> {
        if self.classes.len() <= CLASSES_IDLE_MAX {
            return Vec::new();
        }
        let used: HashSet<Class> = self
            .programmed
            .iter()
            .filter_map(|(frontend, entry)| class_of(frontend, entry))
            .collect();
        let idle: Vec<_> = self
            .classes
            .iter()
            .copied()
            .filter(|class| !used.contains(class))
            .collect();
        if idle.len() > CLASSES_IDLE_MAX {
            idle
        } else {
            Vec::new()
        }
    }

    /// Replaces the whole table by one batch.
    fn rebuild(&mut self) -> Result<Cost, Refused> {
        let frontends: Vec<Frontend> = self.claims.keys().copied().collect();
        let next: Vec<_> = frontends
            .into_iter()
            .map(|frontend| (frontend, self.wanted(&frontend)))
            .collect();
        let mut difference = Difference::default();
        for (frontend, new) in &next {
            self.compare(frontend, None, new.as_ref(), &mut difference);
        }
        let mut rules = Rules::new(&self.table);
        rules.delete_table();
        rules.add_table();
        table::build(&mut rules, &self.table, &self.shape);
        let hairpins: Vec<_> = self
            .hairpins
            .iter()
            .copied()
            .map(table::hairpin_element)
            .collect();
        rules.add_elements(table::HAIRPIN, &hairpins);
        for class in &difference.classes {
            table::add_class(&mut rules, *class);
        }
        for (set, elements) in &difference.new {
            rules.add_elements(set, elements);
        }
        let batch = rules.finish();
        self.connection.execute(&batch)?;
        self.programmed.clear();
        let elements = difference.elements();
        self.note(next);
        self.classes = difference.classes;
        Ok(Cost {
            bytes: batch.len(),
            elements,
        })
    }

    /// Whether the frontend lies where everything that is not served is refused.
    fn in_range(&self, frontend: &Frontend) -> bool {
        let service_cidr = self.shape.service_cidr;
        frontend
            .address
            .is_some_and(|address| service_cidr.contains(address))
    }

    /// Adds what must change for one frontend.
    fn compare(
        &self,
        frontend: &Frontend,
        old: Option<&Programmed>,
        new: Option<&Programmed>,
        difference: &mut Difference,
    ) {
        let empty = || Programmed {
            backends: Vec::new(),
            affinity: None,
            rewrite_source: false,
            unserved: Unserved::Refuse,
        };
        let in_range = self.in_range(frontend);
        let one = |yes: bool| {
            if yes {
                vec![table::frontend_element(frontend)]
            } else {
                Vec::new()
            }
        };
        let elements = |set: &'static str, entry: Option<&Programmed>| -> Vec<Element> {
            let Some(entry) = entry else {
                return Vec::new();
            };
            let served = !entry.backends.is_empty();
            match set {
                table::SERVICES => class_of(frontend, entry)
                    .map(|class| table::service_element(frontend, class))
                    .into_iter()
                    .collect(),
                table::STICKY_PLACES if entry.affinity.is_some() => {
                    table::sticky_elements(frontend, &entry.backends).0
                }
                table::STICKY_BACKENDS if entry.affinity.is_some() => {
                    table::sticky_elements(frontend, &entry.backends).1
                }
                // The service range is refused as a whole.
                table::REFUSED => one(!served && !in_range && entry.unserved == Unserved::Refuse),
                table::DROPPED => one(!served && entry.unserved == Unserved::Drop),
                table::HIDE_SOURCE => one(served && entry.rewrite_source),
                table::KEEP_SOURCE => {
                    one(served && !entry.rewrite_source && !in_range && frontend.address.is_some())
                }
                _ => Vec::new(),
            }
        };
        for set in [
            table::SERVICES,
            table::STICKY_PLACES,
            table::STICKY_BACKENDS,
            table::REFUSED,
            table::DROPPED,
            table::HIDE_SOURCE,
            table::KEEP_SOURCE,
        ] {
            difference.between(set, elements(set, old), elements(set, new));
        }
        // Backends keep their places, so slot by slot is the whole difference.
        let (nothing, nobody) = (empty(), empty());
        let (old, new) = (old.unwrap_or(&nothing), new.unwrap_or(&nobody));
        for slot in 0..old.backends.len().max(new.backends.len()) {
            let (was, is) = (old.backends.get(slot), new.backends.get(slot));
            if was == is {
                continue;
            }
            let element = |backend| table::endpoint_element(frontend, slot, backend);
            difference
                .gone
                .entry(table::ENDPOINTS)
                .or_default()
                .extend(was.map(element));
            difference
                .new
                .entry(table::ENDPOINTS)
                .or_default()
                .extend(is.map(element));
        }
        difference.classes.extend(class_of(frontend, new));
    }
}

/// Somebody else has changed the table: something is missing, or there already, or in the way.
fn is_not_as_known(refused: &Refused) -> bool {
    let errno = refused.errno();
    matches!(errno, Some(libc::ENOENT | libc::EEXIST | libc::EBUSY))
}

fn class_of(frontend: &Frontend, entry: &Programmed) -> Option<Class> {
    let count = entry.backends.len();
    (count > 0).then(|| Class::new(frontend, count, entry.affinity))
}

/// UDP has no end of a connection: clients of a backend that went would go on talking to nobody. So
/// would those who were answered by the machine itself; in the service range nobody is
/// (`refused_before`).
fn stale_backends(
    frontend: &Frontend,
    old: Option<&Programmed>,
    new: Option<&Programmed>,
    refused_before: bool,
) -> Vec<Stale> {
    if frontend.protocol != Protocol::Udp {
        return Vec::new();
    }
    let new = new.map_or(&[][..], |new| &new.backends);
    let old = old.map_or(&[][..], |old| &old.backends);
    let gone = old.iter().filter(|backend| !new.contains(backend));
    let mut stale: Vec<Stale> = gone
        .map(|backend| Stale {
            frontend: *frontend,
            backend: Some(*backend),
        })
        .collect();
    if old.is_empty() && !new.is_empty() && !refused_before {
        stale.push(Stale {
            frontend: *frontend,
            backend: None,
        });
    }
    stale
}

/// The new backends in places that differ least from the old ones: who stays keeps its place, who
/// comes takes the place of one who goes, and gaps are filled from the end.
fn arrange(old: &[SocketAddrV4], new: &[SocketAddrV4]) -> Vec<SocketAddrV4> {
    let wanted: BTreeSet<SocketAddrV4> = new.iter().copied().take(Class::COUNT_MAX).collect();
    let known: HashSet<SocketAddrV4> = old.iter().copied().collect();
    let mut coming = wanted
        .iter()
        .copied()
        .filter(|backend| !known.contains(backend));
    let mut places: Vec<Option<SocketAddrV4>> = old
        .iter()
        .map(|backend| {
            if wanted.contains(backend) {
                Some(*backend)
            } else {
                coming.next()
            }
        })
        .collect();
    places.extend(coming.map(Some));
    let mut slot = 0;
    while slot < places.len() {
        if places[slot].is_some() {
            slot += 1;
        } else {
            places.swap_remove(slot);
        }
    }
    places.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stays_keeps_its_place() {
        let address = |number: u8| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, number), 80);
        let check = |old: &[u8], new: &[u8], expected: &[u8]| {
            let list = |numbers: &[u8]| numbers.iter().copied().map(address).collect::<Vec<_>>();
            assert_eq!(
                arrange(&list(old), &list(new)),
                list(expected),
                "{old:?} → {new:?}"
            );
        };
        check(&[], &[2, 1, 2], &[1, 2]);
        check(&[1, 2, 3], &[3, 2, 1], &[1, 2, 3]);
        check(&[1, 2, 3], &[1, 3, 4], &[1, 4, 3]);
        check(&[1, 2, 3, 4], &[1, 3, 4], &[1, 4, 3]);
        check(&[1, 2, 3, 4], &[3], &[3]);
        check(&[1, 2], &[1, 2, 3], &[1, 2, 3]);
        check(&[1, 2, 3], &[], &[]);
    }
}
