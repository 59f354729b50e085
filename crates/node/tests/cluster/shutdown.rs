//! How pods end when the whole cluster goes down.

use std::time::Duration;

use serde_json::{Value, json};

use crate::House;

fn main_container(name: &str) -> Value {
    json!({
        "name": name, "image": "app:1",
        "lifecycle": {"preStop": {"exec": {"command": ["true"]}}},
    })
}

/// Ends all pods, when their agent has ended; what they were told, and how long they had.
async fn end(limit: Duration, specs: &[(&str, Value)]) -> (Vec<String>, Vec<Duration>) {
    let mut house = House::new().await;
    for (name, spec) in specs {
        house.run(name, spec.clone()).await;
        house.until_ready(name).await;
    }
    let mut told = Vec::new();
    let mut graces = Vec::new();
    house
        .restart(async |house| {
            let host_ip = std::net::Ipv4Addr::new(192, 0, 2, 1).into();
            node::end_pods(&*house.engine, host_ip, limit).await;
            (told, graces) = (house.engine.told(), house.engine.graces());
        })
        .await;
    (told, graces)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_ends_as_on_deletion() {
    let spec = json!({
        "terminationGracePeriodSeconds": 5,
        "initContainers": [
            {"name": "first", "image": "app:1", "restartPolicy": "Always"},
            {"name": "second", "image": "app:1", "restartPolicy": "Always"},
        ],
        "containers": [main_container("c")],
    });
    let (told, graces) = end(Duration::from_secs(20), &[("web", spec)]).await;
    assert_eq!(told, ["c: true", "c: stop", "second: stop", "first: stop"]);
    for grace in graces {
        assert!(grace <= Duration::from_secs(5), "{grace:?}");
        assert!(grace > Duration::from_secs(1), "{grace:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_has_longer_than_the_limit() {
    let patient = |name: &str| json!({"terminationGracePeriodSeconds": 3600, "containers": [main_container(name)]});
    let hurried = |name: &str| json!({"terminationGracePeriodSeconds": 0, "containers": [main_container(name)]});
    let specs = [("patient", patient("p")), ("hurried", hurried("h"))];
    let (told, graces) = end(Duration::from_secs(20), &specs).await;
    let grace_of = |name: &str| {
        let stops = told.iter().filter(|line| line.ends_with(": stop"));
        let mut both = stops.zip(&graces);
        let found = both.find(|(line, _)| line.starts_with(name));
        *found.expect("it was told to end").1
    };
    let (patient, hurried) = (grace_of("p"), grace_of("h"));
    assert!(patient <= Duration::from_secs(20), "{patient:?}");
    assert!(patient > Duration::from_secs(10), "{patient:?}");
    // As on deletion, a hook buys two seconds.
    assert_eq!(hurried, Duration::from_secs(2));
}
