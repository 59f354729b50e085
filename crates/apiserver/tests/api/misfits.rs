//! Bodies of the wrong shape: what has the wrong type is told, and is never taken for absent.

use serde_json::{Value, json};

use crate::house::{House, pod};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn deployment(house: &House) {
    let labels = json!({"a": "b"});
    let body = json!({"metadata": {"name": "d"}, "spec": {
        "replicas": 3,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }});
    house.post(DEPLOYMENTS, body).await.expect_code(201);
}

#[tokio::test]
async fn a_scale_that_is_none_scales_nothing() {
    let house = House::new().await;
    deployment(&house).await;
    let path = format!("{DEPLOYMENTS}/d/scale");
    let unread = "Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal ";
    let check = async |body: Value, expected: &str| {
        let answer = house.put(&path, body).await;
        answer.expect_failure(400, "BadRequest", expected);
    };
    let field = "into Go struct field ScaleSpec.spec.replicas of type int32";
    check(
        json!({"metadata": {"name": "d"}, "spec": {"replicas": "5"}}),
        &format!("{unread}string {field}"),
    )
    .await;
    check(
        json!({"metadata": {"name": "d"}, "spec": {"replicas": 9_999_999_999_u64}}),
        &format!("{unread}number 9999999999 {field}"),
    )
    .await;
    check(
        json!({}),
        "the name of the object (d based on URL) was undeterminable: name must be provided",
    )
    .await;
    check(json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "d"}, "spec": {"replicas": 7}}), "ConfigMap in version \"v1\" cannot be handled as a Scale: converting (v1.ConfigMap) to (autoscaling.Scale): unknown conversion").await;
    check(
        json!({"metadata": {"name": "d", "namespace": "x"}}),
        "the namespace of the provided object does not match the namespace sent on the request",
    )
    .await;
    let answer = house.merge(&path, json!({"spec": {"replicas": "x"}})).await;
    assert_eq!(answer.code, 422, "{}", answer.text);
    let message = answer.body["message"].as_str().expect("a message");
    assert!(
        message.ends_with(&format!("json: cannot unmarshal string {field}")),
        "{message}"
    );
    let now = house.get(&path).await;
    assert_eq!(now.body["spec"]["replicas"], 3);
    house
        .merge(&path, json!({"spec": {"replicas": 2}}))
        .await
        .expect_code(200);
    house
        .put(
            &path,
            json!({"metadata": {"name": "d"}, "spec": {"replicas": 1}}),
        )
        .await
        .expect_code(200);
    assert_eq!(house.get(&path).await.body["spec"]["replicas"], 1);
}

#[tokio::test]
async fn a_delete_with_unreadable_options_deletes_nothing() {
    let house = House::new().await;
    house.config_map("a", json!({})).await;
    let check = async |options: Value, expected: &str| {
        for path in [MAPS.to_owned(), format!("{MAPS}/a")] {
            let text = format!("json: cannot unmarshal {expected}");
            let answer = house.delete(&path, options.clone()).await;
            answer.expect_failure(400, "BadRequest", &text);
        }
    };
    let field = "into Go struct field DeleteOptions";
    check(
        json!({"dryRun": "All"}),
        &format!("string {field}.dryRun of type []string"),
    )
    .await;
    check(
        json!({"dryRun": [5]}),
        &format!("number {field}.dryRun of type string"),
    )
    .await;
    check(
        json!({"preconditions": "x"}),
        &format!("string {field}.preconditions of type v1.Preconditions"),
    )
    .await;
    check(
        json!({"preconditions": {"uid": 5}}),
        "number into Go struct field Preconditions.preconditions.uid of type types.UID",
    )
    .await;
    check(
        json!({"orphanDependents": "true"}),
        &format!("string {field}.orphanDependents of type bool"),
    )
    .await;
    check(
        json!({"gracePeriodSeconds": 1.5}),
        &format!("number 1.5 {field}.gracePeriodSeconds of type int64"),
    )
    .await;
    let policy = house
        .delete(&format!("{MAPS}/a"), json!({"propagationPolicy": 5}))
        .await;
    assert_eq!(policy.code, 400);
    let empty = json!({"preconditions": {"uid": ""}});
    house
        .delete(&format!("{MAPS}/a"), empty)
        .await
        .expect_code(409);
    house.get(&format!("{MAPS}/a")).await.expect_code(200);
}

#[tokio::test]
async fn a_token_is_for_whom_it_was_meant_or_for_nobody() {
    let house = House::new().await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let check = async |body: Value, expected: &str| {
        let text = format!(
            "TokenRequest in version \"v1\" cannot be handled as a TokenRequest: json: cannot unmarshal {expected}"
        );
        house
            .post(path, body)
            .await
            .expect_failure(400, "BadRequest", &text);
    };
    let field = "into Go struct field TokenRequestSpec.spec";
    check(
        json!({"spec": {"audiences": "vault"}}),
        &format!("string {field}.audiences of type []string"),
    )
    .await;
    check(
        json!({"spec": {"expirationSeconds": "700"}}),
        &format!("string {field}.expirationSeconds of type int64"),
    )
    .await;
    check(
        json!({"spec": {"boundObjectRef": "x"}}),
        &format!("string {field}.boundObjectRef of type v1.BoundObjectReference"),
    )
    .await;
    house.post(path, json!({"metadata": {"name": "other"}})).await.expect_failure(
        422,
        "Invalid",
        "TokenRequest.authentication.k8s.io \"default\" is invalid: metadata.name: Invalid value: \"other\": must match the service account name if specified",
    );
    house
        .post(path, json!({"kind": "Pod", "apiVersion": "v1"}))
        .await
        .expect_code(400);
}

#[tokio::test]
async fn evictions_and_bindings_are_read_by_their_types() {
    let house = House::new().await;
    house
        .post("/api/v1/namespaces/default/pods", pod("a"))
        .await
        .expect_code(201);
    let check = async |sub: &str, body: Value, expected: &str| {
        let path = format!("/api/v1/namespaces/default/pods/a/{sub}");
        house
            .post(&path, body)
            .await
            .expect_failure(400, "BadRequest", expected);
    };
    check("eviction", json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}}), "Pod in version \"v1\" cannot be handled as a Eviction: converting (v1.Pod) to (policy.Eviction): unknown conversion").await;
    check("eviction", json!({"metadata": {"name": "a"}, "deleteOptions": {"dryRun": "All"}}), "Eviction in version \"v1\" cannot be handled as a Eviction: json: cannot unmarshal string into Go struct field DeleteOptions.deleteOptions.dryRun of type []string").await;
    check(
        "eviction",
        json!({"metadata": {"name": "a", "namespace": "b"}}),
        "the namespace of the provided object does not match the namespace sent on the request",
    )
    .await;
    check("binding", json!({"metadata": {"name": "a"}, "target": "x"}), "Binding in version \"v1\" cannot be handled as a Binding: json: cannot unmarshal string into Go struct field Binding.target of type v1.ObjectReference").await;
    check("binding", json!({"metadata": {"name": "a"}, "target": {"name": 5}}), "Binding in version \"v1\" cannot be handled as a Binding: json: cannot unmarshal number into Go struct field ObjectReference.target.name of type string").await;
    house
        .get("/api/v1/namespaces/default/pods/a")
        .await
        .expect_code(200);
}

#[tokio::test]
async fn a_patch_makes_an_object_or_nothing() {
    let house = House::new().await;
    house.config_map("a", json!({})).await;
    deployment(&house).await;
    for path in [format!("{MAPS}/a"), format!("{DEPLOYMENTS}/d/scale")] {
        let check = async |value: Value, expected: &str| {
            let patch = json!([{"op": "replace", "path": "", "value": value}]);
            let media = "application/json-patch+json";
            let answer = house
                .call(http::Method::PATCH, &path, media, patch.to_string())
                .await;
            answer.expect_failure(422, "Invalid", expected);
        };
        check(json!([]), " \"\" is invalid: patch: Invalid value: \"[]\": couldn't get version/kind; json parse error: json: cannot unmarshal array into Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }").await;
        for scalar in [json!("x"), json!(5), json!(null), json!(true)] {
            let text = "the server rejected our request due to an error in our request";
            check(scalar, text).await;
        }
    }
}
