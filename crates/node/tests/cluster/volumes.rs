//! What pods mount.

use std::time::Duration;

use serde_json::json;

use crate::House;

#[tokio::test(flavor = "multi_thread")]
async fn volumes_that_nobody_mounts_may_be_missing() {
    let house = House::new().await;
    let spec = json!({
        "containers": [{"name": "c", "image": "app:1"}],
        "volumes": [
            {"name": "v", "secret": {"secretName": "nosuch"}},
            {"name": "w", "hostPath": {"path": "/no/such/place", "type": "Directory"}},
        ],
    });
    house.run("web", spec).await;
    house.until_ready("web").await;
    let said = house.said("web").await;
    assert!(
        !said.iter().any(|(reason, _)| reason == "FailedMount"),
        "{said:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_an_image() {
    let house = House::new().await;
    let spec = json!({
        "containers": [{
            "name": "c", "image": "app:1",
            "volumeMounts": [{"name": "files", "mountPath": "/files"}],
        }],
        "volumes": [{"name": "files", "image": {"reference": "late:1"}}],
    });
    house.run("web", spec).await;
    let failed =
        "MountVolume.SetUp failed for volume \"files\" : image late:1 is not on this machine";
    house.until_said("web", "FailedMount", failed).await;
    house.engine.load("late:1");
    house.agent.images_changed();
    house.until_ready("web").await;
    assert_eq!(
        house.engine.read("c", "/files/image").as_deref(),
        Some("late:1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_puts_too_much_on_the_disk_is_ended() {
    let house = House::with_heartbeat(Duration::from_millis(50)).await;
    let spec = json!({
        "containers": [{
            "name": "c", "image": "app:1",
            "volumeMounts": [{"name": "e", "mountPath": "/e"}, {"name": "f", "mountPath": "/f"}],
        }],
        "volumes": [
            {"name": "e", "emptyDir": {"sizeLimit": "1Mi"}},
            {"name": "f", "emptyDir": {}},
        ],
    });
    house.run("web", spec).await;
    house.until_ready("web").await;
    house.engine.write_bytes("c", "/f", 3 << 20);
    house.engine.write_bytes("c", "/e", 2 << 20);
    let pod = house.until_phase("web", "Failed").await;
    let message = "Usage of EmptyDir volume \"e\" exceeds the limit \"1Mi\". ";
    assert_eq!(pod["status"]["reason"], "Evicted");
    assert_eq!(pod["status"]["message"], message);
    let disrupted = crate::condition(&pod, "DisruptionTarget");
    assert_eq!(disrupted["reason"], "TerminationByKubelet");
    house.until_said("web", "Evicted", message).await;
}

/// Runs containers with these limits of the disk until they are ready, lets `fill` write, and waits for
/// the message with which the pod is evicted.
async fn evicted(limits: &[(&str, Option<&str>)], fill: impl AsyncFnOnce(&House)) -> String {
    let house = House::with_heartbeat(Duration::from_millis(50)).await;
    let containers = limits.iter().map(|(name, limit)| {
        let limits = limit.map_or(json!({}), |limit| json!({"ephemeral-storage": limit}));
        json!({
            "name": name, "image": "app:1", "resources": {"limits": limits},
            "volumeMounts": [{"name": "e", "mountPath": "/e"}],
        })
    });
    let spec = json!({
        "containers": containers.collect::<Vec<_>>(),
        "volumes": [{"name": "e", "emptyDir": {}}],
    });
    house.run("web", spec).await;
    house.until_ready("web").await;
    fill(&house).await;
    let pod = house.until_phase("web", "Failed").await;
    assert_eq!(pod["status"]["reason"], "Evicted");
    let message = pod["status"]["message"].as_str().expect("a message");
    house.until_said("web", "Evicted", message).await;
    message.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_write_more_than_their_limit_are_ended() {
    let limits = [("a", Some("1Mi")), ("b", Some("3Mi"))];
    let of_one = evicted(&limits, async |house| {
        house.engine.set_written("b", 1 << 20);
        house.engine.set_written("a", 2 << 20);
    });
    let message = "Container a exceeded its local ephemeral storage limit \"1Mi\". ";
    assert_eq!(of_one.await, message);
    // Logs count, rotated ones, too.
    let of_logs = evicted(&limits, async |house| {
        let (_, container) = house.engine.containers("a").pop().expect("a container");
        let old = container.log_path.with_extension("log.20261121-094803.123");
        std::fs::write(old, vec![1; 2 << 20]).expect("written");
    });
    assert_eq!(of_logs.await, message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_may_write_as_much_as_its_containers_together() {
    let all = evicted(&[("a", Some("1Mi")), ("b", Some("3Mi"))], async |house| {
        house.engine.set_written("a", 1 << 20);
        house.engine.set_written("b", 1 << 20);
        house.engine.write_bytes("a", "/e", 3 << 20);
    });
    let message = |limit| {
        format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ")
    };
    assert_eq!(all.await, message("4Mi"));
    // As upstream: who has no limit has no part in the sum, and counts.
    let without = evicted(&[("a", Some("1Mi")), ("b", None)], async |house| {
        house.engine.set_written("b", 2 << 20);
    });
    assert_eq!(without.await, message("1Mi"));
}
