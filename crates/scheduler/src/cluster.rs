//! What is known of the nodes and of the pods that have a place on them, the assumed ones included.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use informer::Key;
use k8s_openapi::api::core::v1::{Node, Pod};

use crate::request::{Request, Resources};

/// A port of the host: its address (empty for all), protocol and number.
pub(crate) type HostPort = (String, String, i32);

/// One node, with what its pods take of it.
#[derive(Debug, Default)]
pub(crate) struct NodeState {
    pub(crate) name: String,
    /// `None` while only pods speak of it.
    pub(crate) node: Option<Arc<Node>>,
    pub(crate) allocatable: Resources,
    /// How many pods the node takes.
    pub(crate) pods_max: i64,
    pub(crate) requested: Resources,
    /// See [`Request::weight`].
    pub(crate) weight: (i64, i64),
    pub(crate) ports: Vec<HostPort>,
    pub(crate) pods: HashMap<Key, Placed>,
}

/// A pod on a node.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) pod: Arc<Pod>,
    request: Request,
}

/// All nodes. Slots keep their number as long as there is something in them.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    slots: Vec<Option<NodeState>>,
    free: Vec<usize>,
    by_name: HashMap<String, usize>,
    /// Where each pod is.
    placed: HashMap<Key, usize>,
    /// The pods that keep others away, since these matter to every decision.
    repelling: BTreeSet<Key>,
    /// The labels of the namespaces, for rules that pick pods by them.
    pub(crate) namespaces: HashMap<String, std::collections::BTreeMap<String, String>>,
    /// Where the search for a node begins next, so that all have their turn.
    pub(crate) next_start: usize,
}

impl Cluster {
    /// The nodes that exist, with the number of their slot, beginning with the slot `start`.
    pub(crate) fn nodes_from(&self, start: usize) -> impl Iterator<Item = (usize, &NodeState)> {
        let count = self.slots.len();
        (0..count).filter_map(move |offset| {
            let index = (start + offset) % count;
            let state = self.slots[index].as_ref()?;
            state.node.is_some().then_some((index, state))
        })
    }

    /// The nodes that exist.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &NodeState> {
        self.slots
            .iter()
            .flatten()
            .filter(|state| state.node.is_some())
    }

    /// How many nodes there are.
    pub(crate) fn node_count(&self) -> usize {
        self.nodes().count()
    }

    /// The pods with a required anti-affinity, and the nodes on which they are.
    pub(crate) fn repelling(&self) -> impl Iterator<Item = (&Arc<Pod>, &NodeState)> {
        self.repelling.iter().filter_map(|key| {
            let state = self.slots[*self.placed.get(key)?].as_ref()?;
            Some((&state.pods.get(key)?.pod, state))
        })
    }

    /// Whether the pod has a place, be it only assumed.
    pub(crate) fn is_placed(&self, key: &Key) -> bool {
        self.placed.contains_key(key)
    }

    pub(crate) fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let index = self.slot_of(&name);
        if let Some(state) = &mut self.slots[index] {
            let status = node.status.as_ref();
            let allocatable = status.and_then(|status| status.allocatable.as_ref());
            state.allocatable = allocatable.map(Resources::of).unwrap_or_default();
            let pods = allocatable.and_then(|all| all.get("pods"));
            let pods = pods.and_then(|pods| pods.0.parse::<kinds::Quantity>().ok());
            state.pods_max = pods.map_or(0, |pods| pods.value());
            state.node = Some(node);
        }
    }

    pub(crate) fn remove_node(&mut self, name: &str) {
        if let Some(&index) = self.by_name.get(name) {
            if let Some(state) = &mut self.slots[index] {
                state.node = None;
            }
            self.free_if_empty(index);
        }
    }

    /// Puts a pod on a node, from wherever it was before.
    pub(crate) fn place(&mut self, pod: Arc<Pod>, node: &str) {
        let key = Key::of(&*pod);
        self.remove_pod(&key);
        let index = self.slot_of(node);
        let request = Request::of(&pod);
        if let Some(state) = &mut self.slots[index] {
            state.requested.add(&request.resources);
            state.weight.0 += request.weight.0;
            state.weight.1 += request.weight.1;
            state.ports.extend(host_ports(&pod));
            if crate::affinity::repels(&pod) {
                self.repelling.insert(key.clone());
            }
            state.pods.insert(key.clone(), Placed { pod, request });
        }
        self.placed.insert(key, index);
    }

    /// Whether the pod was there.
    pub(crate) fn remove_pod(&mut self, key: &Key) -> bool {
        let Some(index) = self.placed.remove(key) else {
            return false;
        };
        self.repelling.remove(key);
        if let Some(state) = &mut self.slots[index]
            && let Some(Placed { pod, request }) = state.pods.remove(key)
        {
            state.requested.remove(&request.resources);
            state.weight.0 -= request.weight.0;
            state.weight.1 -= request.weight.1;
            for port in host_ports(&pod) {
                if let Some(known) = state.ports.iter().position(|known| *known == port) {
                    state.ports.swap_remove(known);
                }
            }
        }
        self.free_if_empty(index);
        true
    }

    fn slot_of(&mut self, name: &str) -> usize {
        if let Some(&index) = self.by_name.get(name) {
            return index;
        }
        let state = NodeState {
            name: name.to_owned(),
            ..NodeState::default()
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index] = Some(state);
                index
            }
            None => {
                self.slots.push(Some(state));
                self.slots.len() - 1
            }
        };
        self.by_name.insert(name.to_owned(), index);
        index
    }

    fn free_if_empty(&mut self, index: usize) {
        let empty = |state: &NodeState| state.node.is_none() && state.pods.is_empty();
        if self.slots[index].as_ref().is_some_and(empty)
            && let Some(state) = self.slots[index].take()
        {
            self.by_name.remove(&state.name);
            self.free.push(index);
        }
    }
}

/// The ports of the host that a pod takes for itself.
pub(crate) fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let starters = spec.init_containers.iter().flatten();
    let sidecars = starters.filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|one| &one.ports)
        .flatten();
    let taken = ports.filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let address = port.host_ip.clone().filter(|address| address != "0.0.0.0");
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        Some((address.unwrap_or_default(), protocol, number))
    });
    taken.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, cpu: &str) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "namespace": "default"}, "spec": {"containers": [{"name": "c",
            "resources": {"requests": {"cpu": cpu, "example.com/gpu": "1"}},
            "ports": [{"containerPort": 80, "hostPort": 80}]}]}});
        Arc::new(serde_json::from_value(pod).expect("is a pod"))
    }

    fn node(name: &str) -> Arc<Node> {
        let node = json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "4", "pods": "10"}}});
        Arc::new(serde_json::from_value(node).expect("is a node"))
    }

    #[test]
    fn what_a_pod_takes_is_given_back_when_it_goes_or_moves() {
        let mut cluster = Cluster::default();
        cluster.set_node(node("a"));
        cluster.place(pod("one", "1"), "a");
        cluster.place(pod("two", "500m"), "a");
        // The same pod again, as the server confirms it with another request.
        cluster.place(pod("one", "2"), "a");
        let state = cluster.nodes().next().expect("there is one");
        assert_eq!(
            (
                state.requested.milli_cpu,
                state.pods.len(),
                state.ports.len()
            ),
            (2500, 2, 2)
        );
        assert_eq!(state.requested.others["example.com/gpu"], 2);
        assert!(cluster.remove_pod(&Key::new("default", "one")));
        assert!(!cluster.remove_pod(&Key::new("default", "one")));
        assert!(cluster.remove_pod(&Key::new("default", "two")));
        let state = cluster.nodes().next().expect("there is one");
        assert_eq!(state.requested, Resources::default());
        assert!(state.ports.is_empty() && state.weight == (0, 0));
    }

    #[test]
    fn a_node_that_only_pods_speak_of_is_none_and_its_slot_is_used_again() {
        let mut cluster = Cluster::default();
        cluster.place(pod("one", "1"), "ghost");
        assert_eq!(cluster.node_count(), 0);
        cluster.set_node(node("ghost"));
        assert_eq!(
            cluster
                .nodes()
                .next()
                .map(|state| state.requested.milli_cpu),
            Some(1000)
        );
        cluster.remove_node("ghost");
        cluster.remove_pod(&Key::new("default", "one"));
        cluster.set_node(node("b"));
        assert_eq!((cluster.node_count(), cluster.slots.len()), (1, 1));
    }
}
