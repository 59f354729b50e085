//! Whether this node takes a pod: the last look before it runs, for pods that no scheduler placed.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::Mutex;

use crate::pod;
use crate::resources;
use crate::unsupported;

/// Why a pod is not taken. It fails for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// `OutOfcpu`, `OutOfpods`, `NodeAffinity`, or what [`unsupported`] says.
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// What the pods of this node were promised.
pub(crate) struct Admission {
    /// In thousandths for `cpu`, else whole; by resource.
    allocatable: HashMap<&'static str, i64>,
    pods_max: usize,
    taken: Mutex<HashMap<String, Promise>>,
}

type Promise = HashMap<&'static str, i64>;

const RESOURCES: [&str; 5] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "hugepages-1Gi",
    "hugepages-2Mi",
];

fn amount(name: &str, quantity: &Quantity) -> i64 {
    match name {
        "cpu" => resources::milli(quantity),
        _ => resources::whole(quantity),
    }
}

impl Admission {
    pub(crate) fn new(allocatable: &BTreeMap<String, Quantity>, pods_max: u32) -> Admission {
        let of = |name: &'static str| Some((name, amount(name, allocatable.get(name)?)));
        Admission {
            allocatable: RESOURCES.into_iter().filter_map(of).collect(),
            pods_max: usize::try_from(pods_max).unwrap_or(usize::MAX),
            taken: Mutex::default(),
        }
    }

    /// Takes a pod, or says why not. `runs_already`: an earlier daemon took it. `labels` are the
    /// node's as they are now: anybody may have added some.
    pub(crate) fn admit(
        &self,
        pod: &Pod,
        runs_already: bool,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), Rejection> {
        let promise = promise(pod);
        let mut taken = self.taken.lock();
        if !runs_already && !taken.contains_key(pod::uid(pod)) {
            if let Some(rejection) = pod.spec.as_ref().and_then(unsupported::rejection) {
                return Err(rejection);
            }
            check_selector(pod, labels)?;
            self.check_resources(&taken, &promise)?;
        }
        taken.insert(pod::uid(pod).to_owned(), promise);
        Ok(())
    }

    /// A pod needs nothing any more.
    pub(crate) fn release(&self, uid: &str) {
        self.taken.lock().remove(uid);
    }

    fn check_resources(
        &self,
        taken: &HashMap<String, Promise>,
        promise: &Promise,
    ) -> Result<(), Rejection> {
        let insufficient = |name: &str, requested: i64, used: i64, capacity: i64| Rejection {
            reason: format!("OutOf{name}"),
            message: format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        };
        if taken.len() >= self.pods_max {
            let count = |count| i64::try_from(count).unwrap_or(i64::MAX);
            return Err(insufficient(
                "pods",
                1,
                count(taken.len()),
                count(self.pods_max),
            ));
        }
        for (name, capacity) in &self.allocatable {
            let requested = promise.get(name).copied().unwrap_or(0);
            let used = taken.values().filter_map(|other| other.get(name));
            let used = used.fold(0_i64, |sum, amount| sum.saturating_add(*amount));
            if requested > 0 && used.saturating_add(requested) > *capacity {
                return Err(insufficient(name, requested, used, *capacity));
            }
        }
        Ok(())
    }
}

fn check_selector(pod: &Pod, labels: &BTreeMap<String, String>) -> Result<(), Rejection> {
    let selector = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.node_selector.as_ref());
    let fits = selector
        .into_iter()
        .flatten()
        .all(|(name, value)| labels.get(name) == Some(value));
    match fits {
        true => Ok(()),
        false => Err(Rejection {
            reason: "NodeAffinity".to_owned(),
            message:
                "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
                    .to_owned(),
        }),
    }
}

fn promise(pod: &Pod) -> Promise {
    let requests = pod.spec.as_ref().and_then(resources::pod_requests);
    let of = |name: &'static str| Some((name, amount(name, requests.as_ref()?.get(name)?)));
    RESOURCES.into_iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, cpu: &str, selector: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"uid": uid},
            "spec": {"nodeSelector": selector, "containers": [
                {"name": "c", "resources": {"requests": {"cpu": cpu}}},
            ]},
        }))
        .expect("a pod")
    }

    #[test]
    fn pods_that_fit_and_pods_that_do_not() {
        let quantity = |name: &str, amount: &str| (name.to_owned(), Quantity(amount.to_owned()));
        let allocatable = [quantity("cpu", "2"), quantity("hugepages-2Mi", "0")].into();
        let labels = [("zone".to_owned(), "a".to_owned())].into();
        let admission = Admission::new(&allocatable, 3);
        let check = |uid: &str, cpu: &str, selector, expected: &str| {
            let seen = admission.admit(&pod(uid, cpu, selector), false, &labels);
            let text = seen.map_or_else(
                |no| format!("{}: {}", no.reason, no.message),
                |()| String::new(),
            );
            assert_eq!(text, expected);
        };
        check("1", "1500m", json!({"zone": "a"}), "");
        check("1", "1500m", json!({}), "");
        check(
            "2",
            "600m",
            json!({}),
            "OutOfcpu: Node didn't have enough resource: cpu, requested: 600, used: 1500, capacity: 2000",
        );
        check("2", "500m", json!({}), "");
        check(
            "3",
            "0",
            json!({"zone": "b"}),
            "NodeAffinity: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        );
        check("3", "0", json!({}), "");
        check(
            "4",
            "0",
            json!({}),
            "OutOfpods: Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3",
        );
        admission.release("2");
        check("4", "500m", json!({}), "");
        admission.release("3");
        let huge: Pod = serde_json::from_value(json!({
            "metadata": {"uid": "6"},
            "spec": {"containers": [{"name": "c", "resources": {
                "requests": {"hugepages-2Mi": "2Mi"}, "limits": {"hugepages-2Mi": "2Mi"},
            }}]},
        }))
        .expect("a pod");
        let refused = admission
            .admit(&huge, false, &labels)
            .expect_err("no pages");
        assert_eq!(
            (refused.reason.as_str(), refused.message.as_str()),
            (
                "OutOfhugepages-2Mi",
                "Node didn't have enough resource: hugepages-2Mi, requested: 2097152, used: 0, capacity: 0"
            )
        );
        assert_eq!(
            admission.admit(&pod("5", "9", json!({})), true, &labels),
            Ok(())
        );
    }
}
