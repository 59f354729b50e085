//! What the node says of itself.

use std::time::Duration;

use serde_json::Value;

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
