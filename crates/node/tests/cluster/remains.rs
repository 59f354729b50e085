//! What a daemon leaves that is killed midway, and what the next one makes of it.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams};
use serde_json::json;

use crate::{House, PATIENCE};

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
async fn directories_of_pods_that_nobody_knows_are_removed() {
    let mut house = House::new().await;
    let spec = json!({"containers": [{"name": "c", "image": "app:1"}]});
    house.run("web", spec).await;
    let pod = house.until_ready("web").await;
    let uid = pod["metadata"]["uid"].as_str().expect("a uid").to_owned();
    let (pods, logs) = ("pods", "log/pods");
    house
        .restart(async |house| {
            let place = house.directory.path();
            for left in ["pods/gone/volumes/x", "log/pods/default_old_gone/c"] {
                std::fs::create_dir_all(place.join(left)).expect("a directory");
            }
        })
        .await;
    let place = house.directory.path();
    until("the end of what was left", || {
        !place.join(pods).join("gone").exists()
            && !place.join(logs).join("default_old_gone").exists()
    })
    .await;
    assert!(place.join(pods).join(&uid).exists());
    assert!(place.join(logs).join(format!("default_web_{uid}")).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_object_went_unseen_is_ended_as_it_asked() {
    let mut house = House::new().await;
    let spec = json!({
        "terminationGracePeriodSeconds": 3,
        "containers": [{"name": "c", "image": "app:1"}],
    });
    house.run("web", spec).await;
    house.until_ready("web").await;
    house
        .restart(async |house| {
            let pods: Api<Pod> = house.api();
            let now = DeleteParams::default().grace_period(0);
            pods.delete("web", &now).await.expect("is deleted");
        })
        .await;
    let engine = house.engine.clone();
    until("the end of the sandbox", || engine.sandbox_count() == 0).await;
    let grace = *house.engine.graces().last().expect("it was stopped");
    assert!(
        grace <= Duration::from_secs(3) && grace > Duration::from_secs(1),
        "{grace:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_moved_away_is_begun_anew() {
    let house = House::with_heartbeat(Duration::from_millis(50)).await;
    let spec = json!({"containers": [{"name": "c", "image": "app:1", "command": ["run"]}]});
    house.run("web", spec).await;
    house.until_ready("web").await;
    let (_, container) = house.engine.containers("c").pop().expect("a container");
    let log = container.log_path;
    let moved = log.with_extension("log.20260101-000000.000");
    std::fs::rename(&log, &moved).expect("moved");
    until("a new log", || log.exists()).await;
    assert!(moved.exists());
}
