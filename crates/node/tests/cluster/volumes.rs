//! What pods mount.

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
