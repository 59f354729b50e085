//! The way from the API server to this machine's node agent, which is made after it.

use std::sync::OnceLock;

use apiserver::{Nodes, Service};

/// Knows one node, as soon as there is one.
pub(crate) struct LocalNode {
    name: String,
    service: OnceLock<Service>,
}

impl LocalNode {
    pub(crate) fn new(name: &str) -> LocalNode {
        LocalNode {
            name: name.into(),
            service: OnceLock::new(),
        }
    }

    /// From now on the node is reached.
    pub(crate) fn connect(&self, service: Service) {
        // Connected once, by the one that starts the agent.
        let _ = self.service.set(service);
    }
}

impl Nodes for LocalNode {
    fn node(&self, name: &str) -> Option<Service> {
        (name == self.name)
            .then(|| self.service.get().cloned())
            .flatten()
    }
}
