//! What a pod asks of a node, and what a node has.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// For comparing nodes, a container that asks for nothing counts as this much: it uses something.
const SMALL_MILLI_CPU: i64 = 100;
const SMALL_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    /// Thousandths of a core.
    pub(crate) milli_cpu: i64,
    /// Bytes.
    pub(crate) memory: i64,
    /// Bytes.
    pub(crate) ephemeral_storage: i64,
    /// All others by their name, such as `example.com/gpu` or `hugepages-2Mi`.
    pub(crate) others: BTreeMap<String, i64>,
}

impl Resources {
    /// From a list as the API has it. `pods` is not among them: it is counted, not asked for.
    pub(crate) fn of(list: &BTreeMap<String, Quantity>) -> Resources {
        let mut resources = Resources::default();
        for (name, quantity) in list {
            // The API takes no other quantities; one from elsewhere counts for nothing.
            let Ok(quantity) = quantity.0.parse::<kinds::Quantity>() else {
                continue;
            };
            match name.as_str() {
                "cpu" => resources.milli_cpu = quantity.milli_value(),
                "memory" => resources.memory = quantity.value(),
                "ephemeral-storage" => resources.ephemeral_storage = quantity.value(),
                "pods" => {}
                other => {
                    resources.others.insert(other.to_owned(), quantity.value());
                }
            }
        }
        resources
    }

    pub(crate) fn add(&mut self, other: &Resources) {
        self.milli_cpu = self.milli_cpu.saturating_add(other.milli_cpu);
        self.memory = self.memory.saturating_add(other.memory);
        self.ephemeral_storage = self
            .ephemeral_storage
            .saturating_add(other.ephemeral_storage);
        for (name, amount) in &other.others {
            let sum = self.others.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    pub(crate) fn remove(&mut self, other: &Resources) {
        self.milli_cpu -= other.milli_cpu;
        self.memory -= other.memory;
        self.ephemeral_storage -= other.ephemeral_storage;
        for (name, amount) in &other.others {
            if let Some(sum) = self.others.get_mut(name) {
                *sum -= amount;
                if *sum == 0 {
                    self.others.remove(name);
                }
            }
        }
    }

    /// The larger of each.
    fn at_least(&mut self, other: &Resources) {
        self.milli_cpu = self.milli_cpu.max(other.milli_cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (name, amount) in &other.others {
            let most = self.others.entry(name.clone()).or_default();
            *most = (*most).max(*amount);
        }
    }
}

/// What a pod asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// What must be free on the node.
    pub(crate) resources: Resources,
    /// The same for comparing nodes, where nothing counts as a little.
    pub(crate) weight: (i64, i64),
}

impl Request {
    /// The most that the pod needs at any moment of its life: starters run one after the other, beside
    /// the sidecars begun before them; then all containers and sidecars together.
    pub(crate) fn of(pod: &Pod) -> Request {
        let Some(spec) = &pod.spec else {
            return Request::default();
        };
        let mut request = Request {
            resources: total(spec, &|container| asked(container.resources.as_ref())),
            weight: (0, 0),
        };
        let weighed = total(spec, &|container| {
            let mut asked = asked(container.resources.as_ref());
            let requests = container
                .resources
                .as_ref()
                .and_then(|all| all.requests.as_ref());
            let names = |name| requests.is_some_and(|requests| requests.contains_key(name));
            if !names("cpu") {
                asked.milli_cpu = SMALL_MILLI_CPU;
            }
            if !names("memory") {
                asked.memory = SMALL_MEMORY;
            }
            asked
        });
        request.weight = (weighed.milli_cpu, weighed.memory);
        request
    }
}

fn asked(resources: Option<&ResourceRequirements>) -> Resources {
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    requests.map(Resources::of).unwrap_or_default()
}

fn total(spec: &PodSpec, of_container: &dyn Fn(&Container) -> Resources) -> Resources {
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of_container(container));
    }
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut moment = of_container(container);
        if container.restart_policy.as_deref() == Some("Always") {
            running.add(&moment);
            sidecars.add(&moment);
            moment = Resources::default();
        }
        moment.add(&sidecars);
        starting.at_least(&moment);
    }
    running.at_least(&starting);
    // What is asked for the pod as a whole takes the place of what its containers ask for.
    let whole = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref());
    for (name, amount) in whole.into_iter().flatten() {
        let amount = Resources::of(&BTreeMap::from([(name.clone(), amount.clone())]));
        match name.as_str() {
            "cpu" => running.milli_cpu = amount.milli_cpu,
            "memory" => running.memory = amount.memory,
            _ => running.others.extend(amount.others),
        }
    }
    if let Some(overhead) = &spec.overhead {
        running.add(&Resources::of(overhead));
    }
    running
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(spec: serde_json::Value, milli_cpu: i64, memory_mi: i64) {
        let pod: Pod = serde_json::from_value(json!({ "spec": spec })).expect("is a pod");
        let resources = Request::of(&pod).resources;
        assert_eq!(
            (resources.milli_cpu, resources.memory),
            (milli_cpu, memory_mi * 1024 * 1024),
            "{spec}"
        );
    }

    fn container(cpu: &str, memory: &str) -> serde_json::Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}})
    }

    fn sidecar(cpu: &str, memory: &str) -> serde_json::Value {
        let mut sidecar = container(cpu, memory);
        sidecar["restartPolicy"] = json!("Always");
        sidecar
    }

    #[test]
    fn containers_are_added_and_starters_take_turns() {
        check(
            json!({"containers": [container("100m", "64Mi"), container("1", "1Gi")]}),
            1100,
            1088,
        );
        check(
            json!({"containers": [container("100m", "64Mi")],
                "initContainers": [container("2", "1Mi"), container("1", "128Mi")]}),
            2000,
            128,
        );
    }

    #[test]
    fn sidecars_run_beside_what_starts_after_them() {
        check(
            json!({"containers": [container("1", "10Mi")],
                "initContainers": [container("3", "1Mi"), sidecar("500m", "100Mi"), container("2800m", "1Mi")]}),
            3300,
            110,
        );
    }

    #[test]
    fn the_pod_s_own_requests_and_its_overhead_count() {
        check(
            json!({"containers": [container("1", "10Mi")], "overhead": {"cpu": "250m", "memory": "6Mi"}}),
            1250,
            16,
        );
        check(
            json!({"containers": [container("1", "10Mi")], "resources": {"requests": {"cpu": "4"}}}),
            4000,
            10,
        );
    }

    #[test]
    fn nothing_asked_for_weighs_a_little() {
        let pod: Pod =
            serde_json::from_value(json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}))
                .expect("is a pod");
        let request = Request::of(&pod);
        assert_eq!(request.resources, Resources::default());
        assert_eq!(request.weight, (200, 400 * 1024 * 1024));
    }
}
