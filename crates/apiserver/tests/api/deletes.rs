//! Deleting.

use serde_json::{Value, json};

use crate::house::{House, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn preconditions_name_the_object() {
    let house = House::new().await;
    let made = house.config_map("a", json!({})).await;
    let path = format!("{MAPS}/a");
    let uid = made.body["metadata"]["uid"].as_str().expect("a uid");
    house.delete(&path, json!({"preconditions": {"uid": "x"}})).await.expect_failure(
        409,
        "Conflict",
        &format!("Operation cannot be fulfilled on ConfigMap \"a\": the UID in the precondition (x) does not match the UID in record ({uid}). The object might have been deleted and then recreated"),
    );
    let answer = house
        .delete(&path, json!({"preconditions": {"uid": uid}}))
        .await
        .expect_code(200);
    assert_eq!(answer.body["status"], "Success");
    assert_eq!(
        answer.body["details"],
        json!({"name": "a", "kind": "configmaps", "uid": uid})
    );
    house.delete(&path, Value::Null).await.expect_failure(
        404,
        "NotFound",
        "configmaps \"a\" not found",
    );
}

#[tokio::test]
async fn finalizers_hold_an_object() {
    let house = House::new().await;
    let path = format!("{MAPS}/a");
    house
        .post(
            MAPS,
            json!({"metadata": {"name": "a", "finalizers": ["example.com/hold"]}}),
        )
        .await
        .expect_code(201);
    let marked = house.delete(&path, Value::Null).await.expect_code(200);
    assert!(marked.body["metadata"]["deletionTimestamp"].is_string());
    let again = house.delete(&path, Value::Null).await.expect_code(200);
    assert_eq!(again.revision(), marked.revision());
    house
        .merge(&path, json!({"metadata": {"finalizers": null}}))
        .await
        .expect_code(200);
    house.get(&path).await.expect_code(404);
}

#[tokio::test]
async fn propagation_becomes_a_finalizer() {
    let house = House::new().await;
    let check = async |policy: &str, finalizer: &str| {
        house.config_map("a", json!({})).await;
        let path = format!("{MAPS}/a");
        let marked = house
            .delete(&path, json!({"propagationPolicy": policy}))
            .await
            .expect_code(200);
        assert_eq!(marked.body["metadata"]["finalizers"], json!([finalizer]));
        house
            .merge(&path, json!({"metadata": {"finalizers": []}}))
            .await
            .expect_code(200);
        house.get(&path).await.expect_code(404);
    };
    check("Foreground", "foregroundDeletion").await;
    check("Orphan", "orphan").await;
}

#[tokio::test]
async fn a_pod_on_a_node_gets_its_grace() {
    let house = House::new().await;
    house.post(PODS, pod("free")).await.expect_code(201);
    house
        .delete(&format!("{PODS}/free"), Value::Null)
        .await
        .expect_code(200);
    house.get(&format!("{PODS}/free")).await.expect_code(404);

    house.post(PODS, pod("bound")).await.expect_code(201);
    let path = format!("{PODS}/bound");
    let binding = json!({"metadata": {"name": "bound"}, "target": {"kind": "Node", "name": "n"}});
    house
        .post(&format!("{path}/binding"), binding.clone())
        .await
        .expect_code(201);
    house.post(&format!("{path}/binding"), binding).await.expect_failure(
        409,
        "Conflict",
        "Operation cannot be fulfilled on pods/binding \"bound\": pod bound is already assigned to node \"n\"",
    );
    let marked = house.delete(&path, Value::Null).await.expect_code(200);
    assert_eq!(marked.body["metadata"]["deletionGracePeriodSeconds"], 30);
    let shorter = house
        .delete(&path, json!({"gracePeriodSeconds": 5}))
        .await
        .expect_code(200);
    assert_eq!(shorter.body["metadata"]["deletionGracePeriodSeconds"], 5);
    let longer = house
        .delete(&path, json!({"gracePeriodSeconds": 50}))
        .await
        .expect_code(200);
    assert_eq!(longer.body["metadata"]["deletionGracePeriodSeconds"], 5);
    // The node, when the containers have ended.
    let uid = marked.body["metadata"]["uid"].clone();
    let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
    house.delete(&path, options).await.expect_code(200);
    house.get(&path).await.expect_code(404);
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let house = House::new().await;
    for (name, tier) in [("a", "web"), ("b", "web"), ("c", "db")] {
        house.config_map(name, json!({"tier": tier})).await;
    }
    let gone = house
        .delete(&format!("{MAPS}?labelSelector=tier%3Dweb"), Value::Null)
        .await
        .expect_code(200);
    assert_eq!(gone.names(), ["a", "b"]);
    assert_eq!(house.get(MAPS).await.names(), ["c"]);
}

#[tokio::test]
async fn a_large_collection_is_deleted_whole_and_told_in_order() {
    let house = House::new().await;
    let mut names: Vec<String> = (0..150).map(|number| format!("map-{number}")).collect();
    for name in &names {
        house.config_map(name, json!({})).await;
    }
    names.sort();
    let held = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    let path = format!("{MAPS}/{}", names[70]);
    house.merge(&path, held).await.expect_code(200);
    let gone = house.delete(MAPS, Value::Null).await.expect_code(200);
    assert_eq!(gone.names(), names);
    assert_eq!(house.get(MAPS).await.names(), [names[70].as_str()]);
}

#[tokio::test]
async fn a_namespace_is_emptied_before_it_goes() {
    let house = House::new().await;
    house
        .post("/api/v1/namespaces", json!({"metadata": {"name": "n"}}))
        .await
        .expect_code(201);
    let marked = house
        .delete("/api/v1/namespaces/n", Value::Null)
        .await
        .expect_code(200);
    assert_eq!(marked.body["status"]["phase"], "Terminating");
    let refused = house
        .post(
            "/api/v1/namespaces/n/configmaps",
            json!({"metadata": {"name": "a"}}),
        )
        .await;
    refused.expect_failure(
        403,
        "Forbidden",
        "configmaps \"a\" is forbidden: unable to create new content in namespace n because it is being terminated",
    );
    assert_eq!(
        refused.body["details"]["causes"][0]["reason"],
        "NamespaceTerminating"
    );
    let mut namespace = house
        .get("/api/v1/namespaces/n")
        .await
        .expect_code(200)
        .body;
    namespace["spec"]["finalizers"] = json!([]);
    house
        .put("/api/v1/namespaces/n/finalize", namespace)
        .await
        .expect_code(200);
    house.get("/api/v1/namespaces/n").await.expect_code(404);
    house
        .delete("/api/v1/namespaces/default", Value::Null)
        .await
        .expect_failure(
            403,
            "Forbidden",
            "namespaces \"default\" is forbidden: this namespace may not be deleted",
        );
}

#[tokio::test]
async fn an_eviction_deletes_its_pod() {
    let house = House::new().await;
    house.post(PODS, pod("a")).await.expect_code(201);
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"}});
    house
        .post(&format!("{PODS}/a/eviction"), eviction.clone())
        .await
        .expect_code(201);
    house.get(&format!("{PODS}/a")).await.expect_code(404);
    house
        .post(&format!("{PODS}/a/eviction"), eviction)
        .await
        .expect_code(404);
}
