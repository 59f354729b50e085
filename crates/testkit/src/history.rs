//! Every state that the cluster was in, one write after the other.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use objects::pod::{has_ended, is_ready};

use crate::ledger::Ledger;

/// The state after one write to a pod or a ReplicaSet.
#[derive(Clone, Debug, Default)]
pub struct Moment {
    /// Pods, by `namespace/name`.
    pub pods: BTreeMap<String, Pod>,
    /// ReplicaSets, by `namespace/name`.
    pub replica_sets: BTreeMap<String, ReplicaSet>,
}

impl Moment {
    /// The pods with this label that are neither being deleted nor over.
    pub fn active(&self, label: (&str, &str)) -> Vec<&Pod> {
        let has = |pod: &&Pod| {
            let labels = pod.metadata.labels.as_ref();
            labels
                .and_then(|labels| labels.get(label.0))
                .map(String::as_str)
                == Some(label.1)
        };
        self.pods
            .values()
            .filter(has)
            .filter(|pod| pod.metadata.deletion_timestamp.is_none() && !has_ended(pod))
            .collect()
    }

    /// Those of them that are Ready.
    pub fn ready(&self, label: (&str, &str)) -> Vec<&Pod> {
        let mut pods = self.active(label);
        pods.retain(|pod| is_ready(pod));
        pods
    }
}

/// What was written into a ledger.
pub struct History(pub(crate) Ledger);

impl History {
    /// Looks at every state after a write to a pod or ReplicaSet, from the first to the newest.
    /// `look` is given the count of such writes, for what it has to say, and the state.
    ///
    /// # Panics
    /// When something was stored that is not of its kind.
    pub fn each(&self, mut look: impl FnMut(usize, &Moment)) {
        self.walk(&mut look);
    }

    fn walk(&self, look: &mut dyn FnMut(usize, &Moment)) -> Moment {
        let mut moment = Moment::default();
        for (index, record) in self.0.all().into_iter().enumerate() {
            let name = record.key.name.to_string();
            let bytes = record.bytes.as_deref();
            match &*record.key.space {
                "pods" => replace(&mut moment.pods, name, bytes),
                "replicasets.apps" => replace(&mut moment.replica_sets, name, bytes),
                _ => continue,
            }
            look(index, &moment);
        }
        moment
    }

    /// The newest state.
    pub fn last(&self) -> Moment {
        self.walk(&mut |_, _| {})
    }
}

fn replace<K: serde::de::DeserializeOwned>(
    known: &mut BTreeMap<String, K>,
    name: String,
    bytes: Option<&[u8]>,
) {
    match bytes {
        Some(bytes) => {
            let object = serde_json::from_slice(bytes);
            let object = object.unwrap_or_else(|error| panic!("{name}: {error}"));
            known.insert(name, object);
        }
        None => drop(known.remove(&name)),
    }
}
