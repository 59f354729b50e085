//! The scheduler against the real API server, in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use apiserver::{ApiServer, Caller};
use informer::{Informer, Informers};
use k8s_openapi::api::core::v1::{Event, Node, Pod, PodCondition, ServiceAccount};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// What the tests wait for at most. They wait for conditions, so this is only how long a failure takes.
const PATIENCE: Duration = Duration::from_secs(30);

struct House {
    client: kube::Client,
    pods: Informer<Pod>,
    events: Informer<Event>,
    _stop: lifecycle::DrainTrigger,
}

fn parse<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("is of the kind")
}

impl House {
    async fn new() -> House {
        let engine = Box::new(store::Memory);
        let store = store::Store::open(engine, apiserver::extract(), store::Options::default());
        let store = store.await.expect("a store in memory opens");
        let authority = Arc::new(pki::Authority::in_memory().expect("keys can be made"));
        let token_key = Arc::new(pki::TokenKey::in_memory().expect("keys can be made"));
        let config = apiserver::Config::new(store, authority, token_key);
        let server = ApiServer::new(config).await.expect("the server starts");
        let (stop, drain) = lifecycle::drain();
        let client = server.client(Caller::system_masters());
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
        let account = parse(json!({"metadata": {"name": "default"}}));
        accounts
            .create(&PostParams::default(), &account)
            .await
            .expect("is created");
        let informers = Informers::new(client.clone(), drain.clone());
        let acting = server.client(Caller::scheduler());
        let house = House {
            client,
            pods: informers.of(),
            events: informers.of(),
            _stop: stop,
        };
        tokio::spawn(async move { scheduler::run(informers, acting, "here", drain).await });
        house
    }

    async fn node(&self, name: &str, cpu: &str) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = parse(json!({"metadata": {"name": name}}));
        nodes
            .create(&PostParams::default(), &node)
            .await
            .expect("is created");
        let status =
            json!({"status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}});
        let status = Patch::Merge(&status);
        nodes
            .patch_status(name, &PatchParams::default(), &status)
            .await
            .expect("is patched");
        // New nodes are tainted until a controller takes that back, which does not run here.
        let taints = json!({"spec": {"taints": null}});
        let taints = Patch::Merge(&taints);
        nodes
            .patch(name, &PatchParams::default(), &taints)
            .await
            .expect("is patched");
    }

    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn pod(&self, name: &str, cpu: &str, spec: Value) {
        let mut pod = json!({"metadata": {"name": name}, "spec": {
            "containers": [{"name": "c", "image": "a", "resources": {"requests": {"cpu": cpu}}}]}});
        for (field, value) in spec.as_object().into_iter().flatten() {
            pod["spec"][field] = value.clone();
        }
        self.api()
            .create(&PostParams::default(), &parse(pod))
            .await
            .expect("is created");
    }

    async fn wait<T>(&self, what: &str, probe: impl Fn(&Informer<Pod>) -> Option<T>) -> T {
        match tokio::time::timeout(PATIENCE, self.pods.until(|pods| probe(pods))).await {
            Ok(found) => found,
            Err(_) => panic!("{what}: {:?}", self.pods.list()),
        }
    }

    async fn wait_bound(&self, name: &str) -> String {
        self.wait("is bound", |pods| {
            node_of(&*pods.get(Some("default"), name)?)
        })
        .await
    }

    async fn wait_refused(&self, name: &str, message: &str) -> PodCondition {
        self.wait(message, |pods| {
            let pod = pods.get(Some("default"), name)?;
            let conditions = pod.status.as_ref()?.conditions.as_ref()?;
            let known = conditions
                .iter()
                .find(|condition| condition.type_ == "PodScheduled")?;
            (known.message.as_deref() == Some(message)).then(|| known.clone())
        })
        .await
    }

    async fn wait_event(&self, reason: &str, message: &str) -> Arc<Event> {
        let found = self.events.until(|events| {
            events.list().into_iter().find(|event| {
                event.reason.as_deref() == Some(reason) && event.message.as_deref() == Some(message)
            })
        });
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(event) => event,
            Err(_) => panic!("{reason} {message}: {:?}", self.events.list()),
        }
    }
}

fn node_of(pod: &Pod) -> Option<String> {
    pod.spec
        .as_ref()?
        .node_name
        .clone()
        .filter(|name| !name.is_empty())
}

#[tokio::test]
async fn a_burst_is_spread_and_never_over_commits() {
    let house = House::new().await;
    for name in ["a", "b", "c"] {
        house.node(name, "4").await;
    }
    for number in 0..30 {
        house.pod(&format!("p{number}"), "500m", Value::Null).await;
    }
    let counts = house
        .wait("24 of 30 are bound", |pods| {
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            for node in pods.list().iter().filter_map(|pod| node_of(pod)) {
                *counts.entry(node).or_default() += 1;
            }
            (counts.values().sum::<usize>() == 24).then_some(counts)
        })
        .await;
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [8, 8, 8]);
    let waiting = house.wait("six wait", |pods| {
        let mut waiting = pods.list();
        waiting.retain(|pod| node_of(pod).is_none());
        let told = |pod: &Arc<Pod>| {
            let conditions = pod
                .status
                .as_ref()
                .and_then(|status| status.conditions.as_ref());
            conditions
                .into_iter()
                .flatten()
                .any(|condition| condition.reason.as_deref() == Some("Unschedulable"))
        };
        (waiting.len() == 6 && waiting.iter().all(told)).then_some(waiting)
    });
    let waiting = waiting.await;
    // Room for one more, and exactly one more comes.
    let gone = house
        .wait("one is bound", |pods| {
            pods.list().into_iter().find(|pod| node_of(pod).is_some())
        })
        .await;
    let gone = gone.metadata.name.clone().unwrap_or_default();
    house
        .api()
        .delete(&gone, &DeleteParams::default().grace_period(0))
        .await
        .expect("is deleted");
    house
        .wait("one of them is bound", |pods| {
            let bound = waiting.iter().filter(|pod| {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                pods.get(Some("default"), name)
                    .is_some_and(|pod| node_of(&pod).is_some())
            });
            (bound.count() == 1).then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_pod_says_why_it_waits_and_goes_when_it_can() {
    let house = House::new().await;
    house
        .pod("web", "1", json!({"nodeSelector": {"disk": "ssd"}}))
        .await;
    house
        .wait_refused("web", "no nodes available to schedule pods")
        .await;
    house.node("a", "4").await;
    let message = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. no new claims to \
        deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    let condition = house.wait_refused("web", message).await;
    assert_eq!(
        (
            condition.status.as_str(),
            condition.reason.as_deref(),
            condition.observed_generation
        ),
        ("False", Some("Unschedulable"), Some(1))
    );
    let event = house.wait_event("FailedScheduling", message).await;
    assert_eq!(
        (event.type_.as_deref(), event.action.as_deref()),
        (Some("Warning"), Some("Scheduling"))
    );
    let nodes: Api<Node> = Api::all(house.client.clone());
    let label = json!({"metadata": {"labels": {"disk": "ssd"}}});
    nodes
        .patch("a", &PatchParams::default(), &Patch::Merge(&label))
        .await
        .expect("is patched");
    assert_eq!(house.wait_bound("web").await, "a");
    let event = house
        .wait_event("Scheduled", "Successfully assigned default/web to a")
        .await;
    assert_eq!(
        (event.type_.as_deref(), event.action.as_deref()),
        (Some("Normal"), Some("Binding"))
    );
    assert_eq!(
        event.reporting_component.as_deref(),
        Some("default-scheduler")
    );
    assert_eq!(
        event.reporting_instance.as_deref(),
        Some("default-scheduler-here")
    );
}

#[tokio::test]
async fn pods_of_other_schedulers_and_gated_ones_are_left_alone() {
    let house = House::new().await;
    house.node("a", "4").await;
    house
        .pod("other", "1", json!({"schedulerName": "mine"}))
        .await;
    house
        .pod(
            "gated",
            "1",
            json!({"schedulingGates": [{"name": "example.com/wait"}]}),
        )
        .await;
    house.pod("plain", "1", Value::Null).await;
    house.wait_bound("plain").await;
    for name in ["other", "gated"] {
        let pod = house.api().get(name).await.expect("is there");
        assert_eq!(node_of(&pod), None, "{name}");
    }
    let open = json!({"spec": {"schedulingGates": null}});
    house
        .api()
        .patch("gated", &PatchParams::default(), &Patch::Merge(&open))
        .await
        .expect("is patched");
    assert_eq!(house.wait_bound("gated").await, "a");
}

#[tokio::test]
async fn what_others_have_bound_counts() {
    let house = House::new().await;
    house.node("a", "2").await;
    house.node("b", "4").await;
    house.pod("fixed", "3", json!({"nodeName": "b"})).await;
    house.wait_bound("fixed").await;
    house.pod("web", "1500m", Value::Null).await;
    assert_eq!(house.wait_bound("web").await, "a");
    house.pod("more", "1500m", Value::Null).await;
    house
        .wait_refused(
            "more",
            "0/2 nodes are available: 2 Insufficient cpu. no new claims to deallocate, preemption: \
             0/2 nodes are available: 2 No preemption victims found for incoming pod.",
        )
        .await;
}
