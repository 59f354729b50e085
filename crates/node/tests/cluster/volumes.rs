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
    let (_, container) = house.engine.containers("c").pop().expect("a container");
    let write = |target: &str, bytes: usize| {
        let mut mounts = container.mounts.iter();
        let mount = mounts.find(|mount| mount.target.as_os_str() == target);
        let file = mount.expect("it is mounted").source.join("file");
        std::fs::write(file, vec![1; bytes]).expect("written");
    };
    write("/f", 3 << 20);
    write("/e", 2 << 20);
    let pod = house.until_phase("web", "Failed").await;
    let message = "Usage of EmptyDir volume \"e\" exceeds the limit \"1Mi\". ";
    assert_eq!(pod["status"]["reason"], "Evicted");
    assert_eq!(pod["status"]["message"], message);
    let disrupted = crate::condition(&pod, "DisruptionTarget");
    assert_eq!(disrupted["reason"], "TerminationByKubelet");
    house.until_said("web", "Evicted", message).await;
}
