//! The choice itself.

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::affinity::Neighbours;
use crate::cluster::{Cluster, NodeState};
use crate::filter::{self, Refusal, Rules, Subject};
use crate::score;
use crate::spread::Spread;

/// Nodes that can take the pod, among which the best is sought; in a large cluster not all are.
const CANDIDATES_MIN: usize = 100;

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The name of the node.
    Place(String),
    Wait(Rejection),
}

/// Why no node will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// What is said of it in the pod's condition and in the event.
    pub(crate) message: String,
    /// Which rules have to change their minds.
    pub(crate) rules: Rules,
}

/// Chooses a node. The cluster is changed only in where the next search begins.
pub(crate) fn decide(cluster: &mut Cluster, pod: &Pod) -> Decision {
    let count = cluster.node_count();
    if count == 0 {
        return Decision::Wait(Rejection {
            message: "no nodes available to schedule pods".to_owned(),
            rules: Rules::NODE,
        });
    }
    let subject = Subject::new(pod);
    let neighbours = Neighbours::new(pod, cluster);
    let spread = Spread::new(&subject, cluster);
    let enough = candidates(count);
    let mut possible: Vec<(&NodeState, &Node)> = Vec::new();
    let mut refusals: Vec<Refusal> = Vec::new();
    // The next search begins where this one ends, or one further if it goes round.
    let mut next_start = cluster.next_start + 1;
    for (index, state) in cluster.nodes_from(cluster.next_start) {
        let Some(node) = &state.node else {
            continue;
        };
        let refusal = filter::refuse(&subject, state, node)
            .or_else(|| spread.refuse(state))
            .or_else(|| neighbours.refuse(state));
        match refusal {
            Some(refusal) => refusals.push(refusal),
            None => possible.push((state, node)),
        }
        if possible.len() == enough && enough < count {
            next_start = index + 1;
            break;
        }
    }
    let best = score::best(&subject, &possible, &neighbours, &spread);
    let decision = match best {
        Some(index) => Decision::Place(possible[index].0.name.clone()),
        None => Decision::Wait(reject(pod, count, &refusals)),
    };
    cluster.next_start = next_start;
    decision
}

/// All of up to a hundred nodes; of more a share that shrinks from 50 % to 5 %, but a hundred at
/// least. Upstream's rule.
fn candidates(count: usize) -> usize {
    if count <= CANDIDATES_MIN {
        return count;
    }
    let percent = 50_usize.saturating_sub(count / 125).max(5);
    (count * percent / 100).max(CANDIDATES_MIN)
}

fn reject(pod: &Pod, count: usize, refusals: &[Refusal]) -> Rejection {
    let reasons = refusals
        .iter()
        .flat_map(|refusal| refusal.reasons.iter().cloned());
    let reasons = score::histogram(reasons);
    let spec = pod.spec.as_ref();
    let never = spec.and_then(|spec| spec.preemption_policy.as_deref()) == Some("Never");
    let preemption = match never {
        true => "not eligible due to preemptionPolicy=Never.".to_owned(),
        false => {
            let helpful = refusals.iter().map(|refusal| match refusal.resolvable {
                true => "No preemption victims found for incoming pod".to_owned(),
                false => "Preemption is not helpful for scheduling".to_owned(),
            });
            format!(
                "0/{count} nodes are available: {}.",
                score::histogram(helpful)
            )
        }
    };
    let rules = refusals
        .iter()
        .fold(Rules::default(), |all, refusal| all.with(refusal.rule));
    Rejection {
        message: format!(
            "0/{count} nodes are available: {reasons}. no new claims to deallocate, preemption: {preemption}"
        ),
        rules,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    /// A cluster of nodes with four cores, ten pods and a zone each, and pods on them.
    fn cluster(nodes: &[Value], pods: &[(&str, Value)]) -> Cluster {
        let mut cluster = Cluster::default();
        for node in nodes {
            let node = serde_json::from_value(node.clone()).expect("is a node");
            cluster.set_node(Arc::new(node));
        }
        for (node, pod) in pods {
            cluster.place(Arc::new(parse(pod)), node);
        }
        cluster
    }

    fn node(name: &str, zone: &str, spec: Value) -> Value {
        json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": zone}},
            "spec": spec,
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}},
        })
    }

    fn parse(pod: &Value) -> Pod {
        serde_json::from_value(pod.clone()).expect("is a pod")
    }

    fn pod(name: &str, app: &str, cpu: &str, spec: Value) -> Value {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "default", "labels": {"app": app}},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "1Gi"}}}]},
        });
        for (field, value) in spec.as_object().into_iter().flatten() {
            pod["spec"][field] = value.clone();
        }
        pod
    }

    /// `expected` is the node's name, or the reasons before "no new claims".
    fn check(cluster: &mut Cluster, pod: &Value, expected: &str) {
        let decided = match decide(cluster, &parse(pod)) {
            Decision::Place(node) => node,
            Decision::Wait(rejection) => {
                let reasons = rejection.message.split(". no new claims").next();
                reasons.unwrap_or_default().to_owned()
            }
        };
        assert_eq!(decided, expected, "{pod}");
    }

    #[test]
    fn a_pod_goes_where_there_is_room_and_most_of_it() {
        let nodes = [node("a", "x", json!({})), node("b", "x", json!({}))];
        let mut cluster = cluster(&nodes, &[("a", pod("one", "web", "3", json!({})))]);
        check(&mut cluster, &pod("new", "web", "2", json!({})), "b");
        check(&mut cluster, &pod("new", "web", "500m", json!({})), "b");
        check(
            &mut cluster,
            &pod("new", "web", "5", json!({})),
            "0/2 nodes are available: 2 Insufficient cpu",
        );
    }

    #[test]
    fn the_whole_message_is_upstream_s() {
        let tainted = json!({"taints": [{"key": "k", "effect": "NoSchedule"}]});
        let nodes = [
            node("a", "x", json!({})),
            node("b", "x", tainted),
            node("c", "x", json!({})),
        ];
        let mut cluster = cluster(&nodes, &[("a", pod("one", "web", "3", json!({})))]);
        let message = |cluster: &mut Cluster, pod: &Value| match decide(cluster, &parse(pod)) {
            Decision::Place(node) => node,
            Decision::Wait(rejection) => rejection.message,
        };
        let mut big = pod("new", "web", "100", json!({}));
        big["spec"]["containers"][0]["resources"]["requests"]["memory"] = json!("900Gi");
        assert_eq!(
            message(&mut cluster, &big),
            "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient cpu, \
             2 Insufficient memory. no new claims to deallocate, preemption: 0/3 nodes are available: \
             3 Preemption is not helpful for scheduling."
        );
        cluster.remove_node("c");
        assert_eq!(
            message(&mut cluster, &pod("new", "web", "2", json!({}))),
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s). no new \
             claims to deallocate, preemption: 0/2 nodes are available: 1 No preemption victims found \
             for incoming pod, 1 Preemption is not helpful for scheduling."
        );
        assert_eq!(
            message(
                &mut cluster,
                &pod("new", "web", "2", json!({"preemptionPolicy": "Never"}))
            ),
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s). no new \
             claims to deallocate, preemption: not eligible due to preemptionPolicy=Never."
        );
        let none = message(&mut Cluster::default(), &big);
        assert_eq!(none, "no nodes available to schedule pods");
    }

    #[test]
    fn taints_and_closed_nodes_need_to_be_tolerated() {
        let nodes = [
            node(
                "a",
                "x",
                json!({"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}),
            ),
            node(
                "b",
                "x",
                json!({"unschedulable": true, "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}),
            ),
        ];
        let mut cluster = cluster(&nodes, &[]);
        check(
            &mut cluster,
            &pod("new", "web", "1", json!({})),
            "0/2 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable",
        );
        let tolerant =
            |toleration: Value| pod("new", "web", "1", json!({"tolerations": [toleration]}));
        check(
            &mut cluster,
            &tolerant(json!({"key": "gpu", "value": "yes"})),
            "a",
        );
        check(
            &mut cluster,
            &tolerant(json!({"key": "gpu", "operator": "Exists", "effect": "NoSchedule"})),
            "a",
        );
        check(
            &mut cluster,
            &tolerant(json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists"})),
            "b",
        );
        check(
            &mut cluster,
            &tolerant(json!({"key": "gpu", "value": "no"})),
            "0/2 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable",
        );
    }

    #[test]
    fn selectors_and_node_affinity_choose_by_label_and_name() {
        let nodes = [node("a", "x", json!({})), node("b", "y", json!({}))];
        let mut cluster = cluster(&nodes, &[]);
        let affinity = |kind: &str, term: Value| {
            let rule = match kind {
                "hard" => {
                    json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}})
                }
                _ => {
                    json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 10, "preference": term}]})
                }
            };
            pod(
                "new",
                "web",
                "1",
                json!({"affinity": {"nodeAffinity": rule}}),
            )
        };
        let expression = |operator: &str, values: Value| json!({"matchExpressions": [{"key": "zone", "operator": operator, "values": values}]});
        check(
            &mut cluster,
            &pod("new", "web", "1", json!({"nodeSelector": {"zone": "y"}})),
            "b",
        );
        check(
            &mut cluster,
            &affinity("hard", expression("NotIn", json!(["x"]))),
            "b",
        );
        check(
            &mut cluster,
            &affinity("soft", expression("In", json!(["y"]))),
            "b",
        );
        check(
            &mut cluster,
            &affinity("soft", expression("In", json!(["x"]))),
            "a",
        );
        check(
            &mut cluster,
            &affinity(
                "hard",
                json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}),
            ),
            "b",
        );
        check(
            &mut cluster,
            &affinity("hard", json!({})),
            "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector",
        );
    }

    #[test]
    fn a_port_of_the_host_is_given_once() {
        let nodes = [node("a", "x", json!({})), node("b", "x", json!({}))];
        let with_port = |name: &str, address: &str| {
            let mut pod = pod(name, "web", "1", json!({}));
            pod["spec"]["containers"][0]["ports"] =
                json!([{"containerPort": 80, "hostPort": 80, "hostIP": address}]);
            pod
        };
        let mut cluster = cluster(&nodes, &[("a", with_port("one", ""))]);
        check(&mut cluster, &with_port("new", "10.0.0.1"), "b");
        cluster.place(Arc::new(parse(&with_port("two", "10.0.0.2"))), "b");
        check(&mut cluster, &with_port("new", "10.0.0.1"), "b");
        check(
            &mut cluster,
            &with_port("new", "0.0.0.0"),
            "0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports",
        );
    }

    #[test]
    fn pods_seek_and_shun_each_other_by_domain() {
        let nodes = [
            node("a", "x", json!({})),
            node("b", "x", json!({})),
            node("c", "y", json!({})),
        ];
        let term = |app: &str, key: &str| json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key});
        let rule = |kind: &str, term: Value| json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}});
        let mut cluster = cluster(&nodes, &[("c", pod("db", "db", "1", json!({})))]);
        check(
            &mut cluster,
            &pod("new", "web", "1", rule("podAffinity", term("db", "zone"))),
            "c",
        );
        // The first of a kind that seeks its own kind may go anywhere.
        let own = pod("new", "web", "3", rule("podAffinity", term("web", "zone")));
        assert!(matches!(
            decide(&mut cluster, &parse(&own)),
            Decision::Place(_)
        ));
        check(
            &mut cluster,
            &pod("new", "web", "1", rule("podAffinity", term("none", "zone"))),
            "0/3 nodes are available: 3 node(s) didn't match pod affinity rules",
        );
        let lonely = rule("podAntiAffinity", term("web", "kubernetes.io/hostname"));
        for (name, place) in [("one", "a"), ("two", "b"), ("three", "c")] {
            cluster.place(
                Arc::new(parse(&pod(name, "web", "1", lonely.clone()))),
                place,
            );
        }
        check(
            &mut cluster,
            &pod("new", "web", "1", lonely),
            "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules",
        );
        check(
            &mut cluster,
            &pod("new", "web", "1", json!({})),
            "0/3 nodes are available: 3 node(s) didn't satisfy existing pods anti-affinity rules",
        );
    }

    #[test]
    fn spread_keeps_the_skew_and_prefers_the_emptier_domain() {
        let nodes = [node("a", "x", json!({})), node("b", "y", json!({}))];
        let spread = |hard: &str, key: &str| {
            json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": hard,
                "labelSelector": {"matchLabels": {"app": "web"}}}]})
        };
        let placed = [
            ("a", pod("one", "web", "100m", json!({}))),
            ("b", pod("other", "db", "3", json!({}))),
        ];
        let mut cluster = cluster(&nodes, &placed);
        // Node b has less room, but none of its kind.
        check(
            &mut cluster,
            &pod("new", "web", "500m", spread("DoNotSchedule", "zone")),
            "b",
        );
        check(
            &mut cluster,
            &pod("new", "web", "2", spread("DoNotSchedule", "zone")),
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match pod topology spread constraints",
        );
        check(
            &mut cluster,
            &pod("new", "web", "1", spread("DoNotSchedule", "rack")),
            "0/2 nodes are available: 2 node(s) didn't match pod topology spread constraints (missing required label)",
        );
    }

    #[test]
    fn a_burst_fills_the_nodes_evenly_and_no_further() {
        let nodes: Vec<_> = (0..3)
            .map(|index| node(&format!("n{index}"), "x", json!({})))
            .collect();
        let mut cluster = cluster(&nodes, &[]);
        let mut placed = std::collections::BTreeMap::new();
        for index in 0..40 {
            let pod = parse(&pod(&format!("p{index}"), "web", "100m", json!({})));
            if let Decision::Place(node) = decide(&mut cluster, &pod) {
                cluster.place(Arc::new(pod), &node);
                *placed.entry(node).or_insert(0) += 1;
            }
        }
        // Eight gigabytes hold eight of them.
        assert_eq!(placed.into_values().collect::<Vec<_>>(), [8, 8, 8]);
    }

    #[test]
    fn in_a_large_cluster_a_share_is_looked_at() {
        for (count, share) in [
            (1, 1),
            (100, 100),
            (150, 100),
            (1000, 420),
            (5000, 500),
            (20_000, 1000),
        ] {
            assert_eq!(candidates(count), share, "{count}");
        }
    }
}
