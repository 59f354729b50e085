//! Containers whose keeper does not do what it is told to.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fake_engine::Stuck;
use crate::{House, PATIENCE};

fn spec(name: &str, grace: u32) -> Value {
    json!({
        "terminationGracePeriodSeconds": grace,
        "containers": [{
            "name": name, "image": "app:1",
            "lifecycle": {"preStop": {"exec": {"command": ["true"]}}},
        }],
    })
}

/// How often containers were told this.
fn count(house: &House, what: &str) -> usize {
    let told = house.engine.told();
    told.iter().filter(|line| *line == what).count()
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("{what} was waited for in vain"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_be_stopped_is_ended_with_its_sandbox_when_its_time_is_over() {
    let house = House::new().await;
    house.run("web", spec("c", 3)).await;
    house.until_ready("web").await;
    house.engine.set_stuck("c", Stuck::Refuses);
    house.delete("web").await;
    house.until_gone("web").await;
    let message = "error killing pod: it does not answer";
    house.until_said("web", "FailedKillPod", message).await;
    assert_eq!(count(&house, "c: true"), 1, "the hook runs once");
    // At once, and 1 s and 2 s after failures.
    let stops = count(&house, "c: stop");
    assert!((2..=4).contains(&stops), "{stops}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_hangs_is_not_waited_for_when_the_time_is_over() {
    let house = House::with_heartbeat(Duration::from_millis(50)).await;
    house.run("web", spec("c", 1)).await;
    house.run("other", spec("d", 1)).await;
    house.until_ready("web").await;
    house.until_ready("other").await;
    house.engine.set_stuck("c", Stuck::Hangs);
    house.delete("web").await;
    house.until_gone("web").await;
    assert_eq!(count(&house, "c: true"), 1);
    assert_eq!(count(&house, "c: stop"), 1);
    house.until_ready("other").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_be_replaced_is_not_told_all_the_time() {
    let house = House::new().await;
    house.run("web", spec("c", 1)).await;
    house.until_ready("web").await;
    house.engine.set_stuck("c", Stuck::Refuses);
    let other = json!({"spec": {"containers": [{"name": "c", "image": "app:2"}]}});
    house.patch("web", other).await;
    until("another attempt", || count(&house, "c: stop") > 1).await;
    let stops = count(&house, "c: stop");
    assert!(stops < 4, "{stops}");
    assert_eq!(count(&house, "c: true"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_hangs_holds_up_no_others_log() {
    const LONG: u64 = 11 << 20;
    let house = House::with_heartbeat(Duration::from_millis(50)).await;
    let mut pods = Vec::new();
    for name in ["a", "b"] {
        house.run(name, spec(name, 1)).await;
        let pod = house.until_ready(name).await;
        let uid = pod["metadata"]["uid"].as_str().expect("a uid").to_owned();
        pods.push((uid, name));
    }
    // The one that comes first.
    pods.sort();
    house.engine.set_stuck(pods[0].1, Stuck::Hangs);
    let logs = pods.iter().map(|(_, name)| {
        let (_, container) = house.engine.containers(name).pop().expect("a container");
        container.log_path
    });
    let logs: Vec<_> = logs.collect();
    for log in &logs {
        let log = std::fs::File::options().write(true).open(log);
        log.and_then(|log| log.set_len(LONG)).expect("grown");
    }
    let is_new =
        |log: &std::path::Path| std::fs::metadata(log).is_ok_and(|metadata| metadata.len() < LONG);
    until("a new log of the other", || is_new(&logs[1])).await;
    assert!(!is_new(&logs[0]));
}
