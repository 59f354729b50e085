//! What the node says of itself.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::{House, PATIENCE};

async fn until_ready_is(house: &House, status: &str) -> Value {
    let waiting = async {
        loop {
            let node = house.node().await;
            let conditions = node["status"]["conditions"].as_array();
            let ready = conditions
                .into_iter()
                .flatten()
                .find(|condition| condition["type"] == "Ready");
            if let Some(ready) = ready.filter(|ready| ready["status"] == status) {
                return ready.clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let ready = tokio::time::timeout(PATIENCE, waiting).await;
    ready.unwrap_or_else(|_| panic!("the node does not become Ready={status}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_the_node_says_so_and_pods_run_again() {
    let mut house = House::new().await;
    let spec = json!({"containers": [{"name": "c", "image": "app:1", "command": ["run"]}]});
    house.run("web", spec).await;
    house.until_ready("web").await;
    let boot = house.node().await["status"]["nodeInfo"]["bootID"].clone();
    house
        .restart(async |house| {
            house.engine.reboot();
            let nodes: Api<Node> = Api::all(house.client.clone());
            let other = json!({"status": {"nodeInfo": {"bootID": "another"}}});
            let patch = Patch::Merge(other);
            let parameters = PatchParams::default();
            let patched = nodes.patch_status("n1", &parameters, &patch).await;
            patched.expect("patched");
        })
        .await;
    let boot = boot.as_str().expect("a boot id");
    let message = format!("Node n1 has been rebooted, boot id: {boot}");
    house.until_said("n1", "Rebooted", &message).await;
    let pod = house
        .until("web", "a restart", |pod| {
            let state = crate::container(pod, "c");
            state["restartCount"] == 1 && state["state"]["running"].is_object()
        })
        .await;
    let ended = &crate::container(&pod, "c")["lastState"]["terminated"];
    assert_eq!(ended["exitCode"], 255);
    let path = "/containerLogs/default/web/c?previous=true";
    let (status, text) = crate::streaming::get(&house, path).await;
    assert_eq!((status.as_u16(), text.as_str()), (200, "run 0\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_engine_is_silent_is_not_ready_until_it_answers() {
    let house = House::with_heartbeat(Duration::from_millis(50)).await;
    house.engine.set_silent(true);
    let ready = until_ready_is(&house, "False").await;
    assert_eq!(ready["reason"], "KubeletNotReady");
    let message = ready["message"].as_str().expect("a message");
    assert!(message.contains("container runtime is down"), "{message}");
    house
        .until_said("n1", "NodeNotReady", "Node n1 status is now: NodeNotReady")
        .await;
    house.engine.set_silent(false);
    let ready = until_ready_is(&house, "True").await;
    assert_eq!(ready["reason"], "KubeletReady");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_containers_nobody_reaches_is_not_ready() {
    let house = House::with_heartbeat(Duration::from_millis(50)).await;
    house.engine.set_unwell(true);
    let ready = until_ready_is(&house, "False").await;
    let message = ready["message"].as_str().expect("a message");
    assert!(message.contains("container runtime is down"), "{message}");
    house.engine.set_unwell(false);
    until_ready_is(&house, "True").await;
}
