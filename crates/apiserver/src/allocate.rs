//! Addresses and node ports of Services.
//!
//! An allocation is an object of the store, written in the same transaction as the Service that
//! it belongs to, on condition that nobody has it: so two Services never share an address, a
//! request that is given up leaks none, and there is nothing to repair after a crash. Addresses
//! are `IPAddress` objects, as upstream keeps them; node ports lie in a space that is not served.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use rand::Rng as _;
use serde_json::{Value, json};
use store::{Body, Expected, Key, Snapshot, Transaction};

use crate::encode::{Head, metadata_str};
use crate::handle::Call;
use crate::meta::Meta;
use crate::status::{Failure, FaultReason, fault};
use crate::verbs::change::seconds;

const ADDRESSES: &str = "ipaddresses.networking.k8s.io";
const PORTS: &str = "nodeports";
/// Random choices before every one is looked at in order.
const TRIES_RANDOM: usize = 64;
/// Low addresses that are left to Services that ask for theirs; upstream keeps at most as many.
const STATIC_MOST: u32 = 256;

/// Allocations to make and to give back together with a write.
#[derive(Default)]
pub(crate) struct Claims {
    take: Vec<(Key, Body)>,
    give_back: Vec<(Key, Body)>,
    /// What was chosen rather than asked for, to be chosen anew if somebody else was faster.
    chosen: Vec<Chosen>,
}

#[derive(Clone, Copy)]
enum Chosen {
    Address,
    NodePort(usize),
    HealthCheckPort,
}

impl Claims {
    /// The transaction with these allocations in it, after its own write.
    pub(crate) fn join(&self, mut transaction: Transaction) -> Transaction {
        for (key, body) in &self.take {
            transaction = transaction
                .check(key.clone(), Expected::Absent)
                .put(key.clone(), body.clone());
        }
        for (key, body) in &self.give_back {
            transaction = transaction.delete(key.clone(), body.clone());
        }
        transaction
    }

    /// Takes back what was chosen, so that something else is chosen next.
    pub(crate) fn release(self, service: &mut Value) {
        for chosen in self.chosen {
            let spec = &mut service["spec"];
            match chosen {
                Chosen::Address => {
                    spec["clusterIP"] = "".into();
                    spec["clusterIPs"] = json!([]);
                }
                Chosen::NodePort(index) => spec["ports"][index]["nodePort"] = 0.into(),
                Chosen::HealthCheckPort => spec["healthCheckNodePort"] = 0.into(),
            }
        }
    }
}

/// Chooses and checks what a new Service needs; fills it in.
pub(crate) fn for_create(call: &Call, object: &mut Value) -> Result<Claims, Failure> {
    if !call.resource.is("", "Service") {
        return Ok(Claims::default());
    }
    let mut round = Round::new(call, metadata_str(object, "name").to_owned());
    round.fill(object, None)?;
    Ok(round.claims)
}

/// Chooses what a changed Service needs in addition, and gives back what it needs no longer.
pub(crate) fn for_update(call: &Call, new: &mut Value, old: &Value) -> Result<Claims, Failure> {
    if !call.resource.is("", "Service") || new["spec"] == old["spec"] {
        return Ok(Claims::default());
    }
    let mut round = Round::new(call, metadata_str(new, "name").to_owned());
    round.fill(new, Some(old))?;
    let kept = held(new);
    for key in held(old).difference(&kept) {
        round.give_back(key);
    }
    Ok(round.claims)
}

/// Gives back what a Service holds that goes.
pub(crate) fn for_delete(call: &Call, object: &Value) -> Claims {
    if !call.resource.is("", "Service") {
        return Claims::default();
    }
    let mut round = Round::new(call, String::new());
    for key in held(object) {
        round.give_back(&key);
    }
    round.claims
}

/// One look at a Service against one snapshot.
struct Round<'a> {
    call: &'a Call,
    snapshot: Snapshot<Meta>,
    name: String,
    claims: Claims,
}

impl<'a> Round<'a> {
    fn new(call: &'a Call, name: String) -> Round<'a> {
        Round {
            call,
            snapshot: call.core.store().snapshot(),
            name,
            claims: Claims::default(),
        }
    }

    fn fill(&mut self, service: &mut Value, old: Option<&Value>) -> Result<(), Failure> {
        let already = old.map(held).unwrap_or_default();
        let kind = service["spec"]["type"]
            .as_str()
            .unwrap_or("ClusterIP")
            .to_owned();
        if kind == "ExternalName" {
            return Ok(());
        }
        self.fill_address(service, &already)?;
        let wants_ports = kind == "NodePort"
            || (kind == "LoadBalancer"
                && service["spec"]["allocateLoadBalancerNodePorts"] != false);
        let count = service["spec"]["ports"].as_array().map_or(0, Vec::len);
        for index in 0..count {
            self.fill_port(service, index, wants_ports, &already)?;
        }
        let wants_health =
            kind == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local";
        if wants_health {
            self.fill_health_check(service, &already)?;
        }
        Ok(())
    }

    fn fill_address(
        &mut self,
        service: &mut Value,
        already: &BTreeSet<Key>,
    ) -> Result<(), Failure> {
        let asked = service["spec"]["clusterIP"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if asked == "None" {
            service["spec"]["clusterIPs"] = json!(["None"]);
        } else if asked.is_empty() {
            let address = self.free_address()?;
            self.claims.chosen.push(Chosen::Address);
            self.take_address(address, service);
        } else if !already.contains(&address_key(&asked)) {
            let address = self.asked_address(&asked)?;
            self.take_address(address, service);
        }
        let spec = &mut service["spec"];
        if spec["ipFamilies"].as_array().is_none_or(Vec::is_empty) {
            spec["ipFamilies"] = json!(["IPv4"]);
        }
        if spec["ipFamilyPolicy"]
            .as_str()
            .unwrap_or_default()
            .is_empty()
        {
            spec["ipFamilyPolicy"] = "SingleStack".into();
        }
        Ok(())
    }

    fn take_address(&mut self, address: Ipv4Addr, service: &mut Value) {
        let text = address.to_string();
        service["spec"]["clusterIP"] = text.as_str().into();
        service["spec"]["clusterIPs"] = json!([text]);
        let namespace = &self.call.info.namespace;
        let object = json!({
            "metadata": {
                "name": text,
                "uid": uuid::Uuid::new_v4().to_string(),
                "creationTimestamp": seconds(self.call.now),
                "labels": {
                    "ipaddress.kubernetes.io/ip-family": "IPv4",
                    "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
                },
            },
            "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": self.name}},
        });
        self.claims
            .take
            .push((address_key(&text), address_head().body(&object)));
    }

    /// The address that was asked for, if it can be had.
    fn asked_address(&self, asked: &str) -> Result<Ipv4Addr, Failure> {
        let cidr = self.call.core.config.service_cidr;
        let refuse = |why: String| {
            self.invalid(
                "spec.clusterIPs",
                json!([asked]),
                format!("failed to allocate IP {asked}: {why}"),
            )
        };
        let address: Option<Ipv4Addr> = asked.parse().ok();
        let range = addresses(cidr);
        let Some(address) = address.filter(|address| range.contains(&u32::from(*address))) else {
            return Err(refuse(format!(
                "the provided IP ({asked}) is not in the valid range. The range of valid IPs is {cidr}"
            )));
        };
        if self.is_taken(&address_key(asked)) {
            return Err(refuse("provided IP is already allocated".into()));
        }
        Ok(address)
    }

    fn free_address(&self) -> Result<Ipv4Addr, Failure> {
        let range = addresses(self.call.core.config.service_cidr);
        let size = range.end() - range.start();
        // The low end is left to Services that ask for a certain address.
        let low = range.start() + (size / 16).min(STATIC_MOST);
        let free =
            |number: &u32| !self.is_taken(&address_key(&Ipv4Addr::from(*number).to_string()));
        let mut random = rand::rng();
        (0..TRIES_RANDOM)
            .map(|_| random.random_range(low..=*range.end()))
            .find(free)
            .or_else(|| (low..=*range.end()).chain(*range.start()..low).find(free))
            .map(Ipv4Addr::from)
            .ok_or_else(|| Failure::internal("failed to allocate a serviceIP: range is full"))
    }

    fn fill_port(
        &mut self,
        service: &mut Value,
        index: usize,
        wanted: bool,
        already: &BTreeSet<Key>,
    ) -> Result<(), Failure> {
        let port = &service["spec"]["ports"][index];
        let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
        let asked = port["nodePort"].as_u64().unwrap_or(0);
        if asked == 0 {
            if wanted {
                let sibling = sibling_port(service, index, &protocol);
                let number = match sibling.filter(|number| !self.is_claimed(*number, &protocol)) {
                    Some(number) => number,
                    None => self.free_port(&protocol)?,
                };
                self.claims.chosen.push(Chosen::NodePort(index));
                service["spec"]["ports"][index]["nodePort"] = number.into();
                self.take_port(number, &protocol);
            }
            return Ok(());
        }
        let path = format!("spec.ports[{index}].nodePort");
        let number = self.in_range(asked, &path)?;
        if already.contains(&port_key(number, &protocol)) {
            return Ok(());
        }
        if self.is_claimed(number, &protocol) {
            return Err(self.invalid(
                &path,
                asked.into(),
                "provided port is already allocated".into(),
            ));
        }
        self.take_port(number, &protocol);
        Ok(())
    }

    fn fill_health_check(
        &mut self,
        service: &mut Value,
        already: &BTreeSet<Key>,
    ) -> Result<(), Failure> {
        let path = "spec.healthCheckNodePort";
        let asked = service["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0);
        if asked == 0 {
            let number = self.free_port("TCP")?;
            self.claims.chosen.push(Chosen::HealthCheckPort);
            service["spec"]["healthCheckNodePort"] = number.into();
            self.take_port(number, "TCP");
            return Ok(());
        }
        let number = self.in_range(asked, path)?;
        if already.contains(&port_key(number, "TCP")) {
            return Ok(());
        }
        if self.is_claimed(number, "TCP") {
            return Err(self.invalid(
                path,
                asked.into(),
                "provided port is already allocated".into(),
            ));
        }
        self.take_port(number, "TCP");
        Ok(())
    }

    fn in_range(&self, asked: u64, path: &str) -> Result<u16, Failure> {
        let range = &self.call.core.config.node_port_range;
        u16::try_from(asked)
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                self.invalid(
                    path,
                    asked.into(),
                    format!(
                        "provided port is not in the valid range. The range of valid ports is {}-{}",
                        range.start(),
                        range.end()
                    ),
                )
            })
    }

    fn free_port(&self, protocol: &str) -> Result<u16, Failure> {
        let range = self.call.core.config.node_port_range.clone();
        let mut random = rand::rng();
        let free = |number: &u16| !self.is_claimed(*number, protocol);
        (0..TRIES_RANDOM)
            .map(|_| random.random_range(range.clone()))
            .find(free)
            .or_else(|| range.clone().find(free))
            .ok_or_else(|| Failure::internal("failed to allocate a nodePort: range is full"))
    }

    fn take_port(&mut self, number: u16, protocol: &str) {
        let owner = format!("{}/{}", self.call.info.namespace, self.name);
        self.claims.take.push((
            port_key(number, protocol),
            Body::plain(Value::from(owner).to_string()),
        ));
    }

    fn give_back(&mut self, key: &Key) {
        // What an older version did not claim cannot be given back.
        if let Some(entry) = self.snapshot.get(key) {
            let body = if *key.space == *ADDRESSES {
                address_head().restamp(&entry.bytes)
            } else {
                Body::plain(entry.bytes.clone())
            };
            self.claims.give_back.push((key.clone(), body));
        }
    }

    fn is_claimed(&self, number: u16, protocol: &str) -> bool {
        let key = port_key(number, protocol);
        self.is_taken(&key) || self.claims.take.iter().any(|(taken, _)| *taken == key)
    }

    fn is_taken(&self, key: &Key) -> bool {
        self.snapshot.get(key).is_some()
    }

    fn invalid(&self, path: &str, bad_value: Value, detail: String) -> Failure {
        let fault = fault(path, FaultReason::Invalid, bad_value, detail);
        self.call.resource.invalid(&self.name, &[fault])
    }
}

/// The node port that the same port number has for another protocol: upstream keeps them equal.
fn sibling_port(service: &Value, index: usize, protocol: &str) -> Option<u16> {
    let ports = service["spec"]["ports"].as_array()?;
    let wanted = ports.get(index)?["port"].as_u64()?;
    ports
        .iter()
        .filter(|port| port["port"].as_u64() == Some(wanted))
        .filter(|port| port["protocol"].as_str().unwrap_or("TCP") != protocol)
        .find_map(|port| {
            u16::try_from(port["nodePort"].as_u64()?)
                .ok()
                .filter(|number| *number > 0)
        })
}

/// All allocations that a Service holds.
fn held(service: &Value) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
    let spec = &service["spec"];
    if spec["type"] == "ExternalName" {
        return keys;
    }
    if let Some(address) = spec["clusterIP"]
        .as_str()
        .filter(|text| !matches!(*text, "" | "None"))
    {
        keys.insert(address_key(address));
    }
    let number = |value: &Value| {
        u16::try_from(value.as_u64()?)
            .ok()
            .filter(|number| *number > 0)
    };
    for port in spec["ports"].as_array().into_iter().flatten() {
        if let Some(number) = number(&port["nodePort"]) {
            keys.insert(port_key(number, port["protocol"].as_str().unwrap_or("TCP")));
        }
    }
    if let Some(number) = number(&spec["healthCheckNodePort"]) {
        keys.insert(port_key(number, "TCP"));
    }
    keys
}

fn address_key(address: &str) -> Key {
    Key::new(ADDRESSES, address)
}

fn port_key(number: u16, protocol: &str) -> Key {
    Key::new(PORTS, format!("{number}/{protocol}"))
}

fn address_head() -> Head {
    Head::new("IPAddress", "networking.k8s.io/v1")
}

/// The addresses of a range but the first, which names the range, and the last.
fn addresses(cidr: crate::Cidr) -> std::ops::RangeInclusive<u32> {
    let first = u32::from(cidr.address);
    let size = 1_u64 << (32 - u32::from(cidr.prefix.min(32)));
    let last = first.saturating_add(u32::try_from(size.saturating_sub(2)).unwrap_or(u32::MAX));
    first.saturating_add(1)..=last.max(first.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_a_range_are_not_given_out() {
        let range = addresses("10.0.0.0/29".parse().expect("a range"));
        assert_eq!(Ipv4Addr::from(*range.start()), Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(Ipv4Addr::from(*range.end()), Ipv4Addr::new(10, 0, 0, 6));
    }

    #[test]
    fn what_a_service_holds() {
        let service = json!({"spec": {
            "clusterIP": "10.0.0.3",
            "healthCheckNodePort": 30009,
            "ports": [{"nodePort": 30001}, {"nodePort": 30001, "protocol": "UDP"}, {"port": 1}],
        }});
        let names: Vec<String> = held(&service)
            .iter()
            .map(|key| key.name.to_string())
            .collect();
        assert_eq!(names, ["10.0.0.3", "30001/TCP", "30001/UDP", "30009/TCP"]);
        assert!(held(&json!({"spec": {"clusterIP": "None"}})).is_empty());
    }
}
