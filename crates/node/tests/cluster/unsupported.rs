//! Pods that ask for what this node does not have.

use serde_json::{Value, json};

use crate::{House, container};

async fn run(house: &House, name: &str, mut spec: Value) {
    spec["containers"] = json!([{"name": "c", "image": "app:1"}]);
    house.run(name, spec).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn some_fail_for_good_and_say_why() {
    let house = House::new().await;
    let sysctls = json!([{"name": "kernel.msgmax", "value": "65000"}]);
    let spec = json!({"securityContext": {"sysctls": sysctls}});
    run(&house, "sysctl", spec).await;
    let pod = house.until_phase("sysctl", "Failed").await;
    let message = "forbidden sysctl: \"kernel.msgmax\" not allowlisted";
    let status = &pod["status"];
    assert_eq!(status["reason"], "SysctlForbidden");
    assert_eq!(status["message"], format!("Pod was rejected: {message}"));
    assert_eq!(status["containerStatuses"], Value::Null);
    house.until_said("sysctl", "SysctlForbidden", message).await;
    assert_eq!(house.engine.sandbox_count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn others_wait_and_say_why() {
    let house = House::new().await;
    run(&house, "users", json!({"hostUsers": false})).await;
    house
        .until_said(
            "users",
            "FailedCreatePodSandBox",
            "Failed to create pod sandbox: can't set `spec.hostUsers: false`, runtime does not support user namespaces",
        )
        .await;
    let waits =
        |pod: &Value| container(pod, "c")["state"]["waiting"]["reason"] == "ContainerCreating";
    let pod = house.until("users", "waiting", waits).await;
    assert_eq!(pod["status"]["phase"], "Pending");
    assert_eq!(house.engine.sandbox_count(), 0);
    house.delete("users").await;
    house.until_gone("users").await;
}
