//! Requests and limits: quality of service, what the kernel is told, what the status shows.

use std::collections::BTreeMap;

use engine::Resources;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

type List = BTreeMap<String, Quantity>;

/// Microseconds in which a CPU quota is counted.
const PERIOD: u64 = 100_000;
/// The smallest quota that the kernel takes, in microseconds.
const QUOTA_MIN: i64 = 1_000;
/// CPU shares of one CPU, and the least that the kernel takes.
const SHARES_PER_CPU: i64 = 1024;
const SHARES_MIN: u64 = 2;

/// How a pod stands when resources run short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QualityOfService {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QualityOfService {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            QualityOfService::Guaranteed => "Guaranteed",
            QualityOfService::Burstable => "Burstable",
            QualityOfService::BestEffort => "BestEffort",
        }
    }

    /// The cgroup of a pod of this class, below the instance's own.
    pub(crate) fn cgroup(self, uid: &str) -> String {
        match self {
            QualityOfService::Guaranteed => format!("pods/pod{uid}"),
            QualityOfService::Burstable => format!("pods/burstable/pod{uid}"),
            QualityOfService::BestEffort => format!("pods/besteffort/pod{uid}"),
        }
    }
}

/// The class by the rule of the Kubernetes documentation: Guaranteed when every container has equal
/// requests and limits of CPU and memory, BestEffort when none has any.
pub(crate) fn quality_of_service(spec: &PodSpec) -> QualityOfService {
    let positive = |list: Option<&List>, name: &str| {
        list.and_then(|list| list.get(name))
            .filter(|quantity| milli(quantity) > 0)
            .map(milli)
    };
    let pod_level = spec.resources.as_ref();
    let all: Vec<Option<&ResourceRequirements>> = match pod_level {
        Some(resources) => vec![Some(resources)],
        None => spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
            .map(|container| container.resources.as_ref())
            .collect(),
    };
    let mut any = false;
    let mut guaranteed = true;
    for resources in all {
        for name in ["cpu", "memory"] {
            let limit = positive(resources.and_then(|r| r.limits.as_ref()), name);
            // A limit without a request is the request.
            let request = positive(resources.and_then(|r| r.requests.as_ref()), name).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => QualityOfService::BestEffort,
        (true, true) => QualityOfService::Guaranteed,
        (true, false) => QualityOfService::Burstable,
    }
}

/// What the kernel is told about one container.
pub(crate) fn of_container(container: &Container) -> Resources {
    let resources = container.resources.as_ref();
    let of = |list: Option<&List>, name: &str| list.and_then(|list| list.get(name)).map(milli);
    let requests = resources.and_then(|r| r.requests.as_ref());
    let limits = resources.and_then(|r| r.limits.as_ref());
    let cpu_limit = of(limits, "cpu");
    let cpu_request = of(requests, "cpu").or(cpu_limit);
    Resources {
        cpu_shares: Some(shares(cpu_request.unwrap_or(0))),
        cpu_quota: cpu_limit.filter(|milli| *milli > 0).map(quota),
        cpu_period: cpu_limit.filter(|milli| *milli > 0).map(|_| PERIOD),
        memory_limit: limits
            .and_then(|limits| limits.get("memory"))
            .map(whole)
            .filter(|bytes| *bytes > 0),
        pids_limit: None,
    }
}

/// What the kernel is told about a pod as a whole: shares for what its containers request, and limits
/// only when every container has one.
pub(crate) fn of_pod(spec: &PodSpec) -> Resources {
    let each: Vec<Resources> = spec.containers.iter().map(of_container).collect();
    let sum = |values: Vec<Option<i64>>| -> Option<i64> {
        values
            .into_iter()
            .try_fold(0_i64, |sum, value| sum.checked_add(value?))
            .filter(|sum| *sum > 0)
    };
    let is_bounded_by_main = spec.init_containers.iter().flatten().next().is_none();
    let request = spec
        .containers
        .iter()
        .filter_map(|container| container.resources.as_ref())
        .filter_map(|r| {
            let of = |list: &Option<List>| list.as_ref()?.get("cpu").map(milli);
            of(&r.requests).or_else(|| of(&r.limits))
        })
        .fold(0_i64, i64::saturating_add);
    let quota = sum(each.iter().map(|r| r.cpu_quota).collect()).filter(|_| is_bounded_by_main);
    Resources {
        cpu_shares: Some(shares(request)),
        cpu_quota: quota,
        cpu_period: quota.map(|_| PERIOD),
        memory_limit: sum(each.iter().map(|r| r.memory_limit).collect())
            .filter(|_| is_bounded_by_main),
        pids_limit: None,
    }
}

fn shares(milli: i64) -> u64 {
    let shares = milli.saturating_mul(SHARES_PER_CPU) / 1000;
    u64::try_from(shares)
        .unwrap_or(0)
        .clamp(SHARES_MIN, 262_144)
}

fn quota(milli: i64) -> i64 {
    let period = i64::try_from(PERIOD).expect("a small constant");
    (milli.saturating_mul(period) / 1000).max(QUOTA_MIN)
}

/// The kernel's inclination to end the container's processes when memory runs out: by class, and for
/// burstable pods the less, the more of the machine's memory they requested.
pub(crate) fn oom_score_adj(spec: &PodSpec, container: &Container, machine_memory: u64) -> i32 {
    if spec
        .priority
        .is_some_and(|priority| priority >= 2_000_000_000)
    {
        return -997;
    }
    match quality_of_service(spec) {
        QualityOfService::Guaranteed => -997,
        QualityOfService::BestEffort => 1000,
        QualityOfService::Burstable => {
            let request = container
                .resources
                .as_ref()
                .and_then(|resources| resources.requests.as_ref()?.get("memory"))
                .map_or(0, |quantity| i128::from(whole(quantity)));
            let share = 1000 * request / i128::from(machine_memory.max(1));
            i32::try_from((1000 - share).clamp(3, 999)).unwrap_or(999)
        }
    }
}

/// What the container was promised, for `allocatedResources`.
pub(crate) fn requests(container: &Container) -> Option<List> {
    effective(container).requests
}

/// Requests and limits, the limit standing in for an absent request, for the status.
pub(crate) fn effective(container: &Container) -> ResourceRequirements {
    let Some(resources) = &container.resources else {
        return ResourceRequirements::default();
    };
    let mut requests = resources.requests.clone().unwrap_or_default();
    for (name, limit) in resources.limits.iter().flatten() {
        requests
            .entry(name.clone())
            .or_insert_with(|| limit.clone());
    }
    ResourceRequirements {
        limits: resources.limits.clone().filter(|list| !list.is_empty()),
        requests: Some(requests).filter(|list| !list.is_empty()),
        claims: None,
    }
}

/// The sum of what the containers that run side by side were promised.
pub(crate) fn pod_requests(spec: &PodSpec) -> Option<List> {
    pod_resources(spec).requests
}

/// Sums over the main containers and sidecars; a limit only where every one of them has it.
pub(crate) fn pod_resources(spec: &PodSpec) -> ResourceRequirements {
    if let Some(resources) = &spec.resources {
        return resources.clone();
    }
    let each: Vec<ResourceRequirements> = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"))
        .chain(&spec.containers)
        .map(effective)
        .collect();
    let mut requests = List::new();
    let mut limits = List::new();
    for resources in &each {
        add(&mut requests, resources.requests.as_ref());
        add(&mut limits, resources.limits.as_ref());
    }
    limits.retain(|name, _| {
        each.iter().all(|resources| {
            resources
                .limits
                .as_ref()
                .is_some_and(|limits| limits.contains_key(name))
        })
    });
    ResourceRequirements {
        limits: Some(limits).filter(|list| !list.is_empty()),
        requests: Some(requests).filter(|list| !list.is_empty()),
        claims: None,
    }
}

fn add(sum: &mut List, list: Option<&List>) {
    for (name, quantity) in list.into_iter().flatten() {
        match sum.get_mut(name) {
            None => {
                sum.insert(name.clone(), quantity.clone());
            }
            Some(total) => *total = plus(total, quantity),
        }
    }
}

fn exact(quantity: &Quantity) -> kinds::Quantity {
    // The API server lets no other text through.
    quantity
        .0
        .parse()
        .unwrap_or_else(|_| kinds::Quantity::whole(0))
}

/// In thousandths, rounded up.
pub(crate) fn milli(quantity: &Quantity) -> i64 {
    exact(quantity).milli_value()
}

/// In whole units, rounded up.
pub(crate) fn whole(quantity: &Quantity) -> i64 {
    exact(quantity).value()
}

/// The sum of some.
pub(crate) fn sum<'a>(quantities: impl IntoIterator<Item = &'a Quantity>) -> Option<Quantity> {
    let mut quantities = quantities.into_iter();
    let first = quantities.next()?.clone();
    Some(quantities.fold(first, |sum, quantity| plus(&sum, quantity)))
}

fn plus(left: &Quantity, right: &Quantity) -> Quantity {
    Quantity((exact(left) + exact(right)).to_string())
}

/// `value` in units of `divisor` (1 if absent), rounded up.
pub(crate) fn divided(value: Option<&Quantity>, divisor: Option<&Quantity>) -> i128 {
    let Some(value) = value else { return 0 };
    let divisor = divisor.map_or_else(|| kinds::Quantity::whole(1), exact);
    let (value, divisor) = (exact(value).nanos(), divisor.nanos().max(1));
    value / divisor + i128::from(value % divisor > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(resources: &[serde_json::Value]) -> PodSpec {
        let containers: Vec<_> = resources
            .iter()
            .enumerate()
            .map(|(index, resources)| json!({"name": format!("c{index}"), "resources": resources}))
            .collect();
        serde_json::from_value(json!({ "containers": containers })).expect("a spec")
    }

    #[test]
    fn classes() {
        use QualityOfService::{BestEffort, Burstable, Guaranteed};
        let check = |resources: &[serde_json::Value], expected| {
            assert_eq!(
                quality_of_service(&spec(resources)),
                expected,
                "{resources:?}"
            );
        };
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        check(&[json!({})], BestEffort);
        check(&[json!({"requests": {"cpu": "0"}})], BestEffort);
        check(std::slice::from_ref(&full), Guaranteed);
        check(&[full.clone(), json!({})], Burstable);
        check(&[json!({"limits": {"memory": "1Gi"}})], Burstable);
        check(
            &[
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}),
            ],
            Guaranteed,
        );
        check(
            &[json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})],
            Burstable,
        );
    }

    #[test]
    fn what_the_kernel_is_told() {
        let spec = spec(&[
            json!({"requests": {"cpu": "250m"}, "limits": {"cpu": "500m", "memory": "64Mi"}}),
        ]);
        let resources = of_container(&spec.containers[0]);
        assert_eq!(resources.cpu_shares, Some(256));
        assert_eq!(resources.cpu_quota, Some(50_000));
        assert_eq!(resources.memory_limit, Some(64 << 20));
        let none = of_container(&Container::default());
        assert_eq!(
            (none.cpu_shares, none.cpu_quota, none.memory_limit),
            (Some(2), None, None)
        );
    }

    #[test]
    fn sums_keep_the_units_people_wrote() {
        let spec = spec(&[
            json!({"requests": {"cpu": "250m", "memory": "16Mi"}, "limits": {"memory": "32Mi"}}),
            json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2", "memory": "1Gi"}}),
        ]);
        let sum = pod_resources(&spec);
        let text = serde_json::to_value(sum).expect("plain data");
        assert_eq!(
            text,
            json!({"requests": {"cpu": "1250m", "memory": "1040Mi"}, "limits": {"memory": "1056Mi"}})
        );
    }

    #[test]
    fn out_of_memory_scores() {
        let gib = 1 << 30;
        let check = |resources: serde_json::Value, expected| {
            let spec = spec(&[resources]);
            assert_eq!(oom_score_adj(&spec, &spec.containers[0], 8 * gib), expected);
        };
        check(json!({}), 1000);
        check(json!({"requests": {"memory": "2Gi"}}), 750);
        check(json!({"requests": {"cpu": "1"}}), 999);
        check(json!({"limits": {"cpu": "1", "memory": "1Gi"}}), -997);
    }
}
