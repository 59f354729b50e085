//! Patching and applying.

use http::Method;
use serde_json::{Value, json};

use crate::house::{Answer, House};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

async fn patch(house: &House, path: &str, media: &str, body: Value) -> Answer {
    house
        .call(Method::PATCH, path, media, body.to_string())
        .await
}

async fn apply(house: &House, path: &str, manager: &str, body: Value) -> Answer {
    let separator = if path.contains('?') { '&' } else { '?' };
    patch(
        house,
        &format!("{path}{separator}fieldManager={manager}"),
        "application/apply-patch+yaml",
        body,
    )
    .await
}

fn deployment(image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "main", "image": image}]},
            },
        },
    })
}

/// A server with the deployment `web` of image `a:1`.
async fn deployed() -> House {
    let house = House::new().await;
    let posted = house.post(DEPLOYMENTS, deployment("a:1")).await;
    posted.expect_code(201);
    house
}

#[tokio::test]
async fn a_strategic_patch_merges_containers_by_name() {
    let house = deployed().await;
    let path = format!("{DEPLOYMENTS}/web");
    let change =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "s"}]}}}});
    let patched = patch(
        &house,
        &path,
        "application/strategic-merge-patch+json",
        change,
    )
    .await
    .expect_code(200);
    let containers = patched.body["spec"]["template"]["spec"]["containers"]
        .as_array()
        .expect("a list")
        .len();
    assert_eq!(containers, 2);
    assert_eq!(patched.body["metadata"]["generation"], 2);
}

#[tokio::test]
async fn a_json_patch_tests_and_replaces() {
    let house = House::new().await;
    house.config_map("a", json!({})).await;
    let path = format!("{MAPS}/a");
    let media = "application/json-patch+json";
    let good = json!([{"op": "test", "path": "/data/a", "value": "b"}, {"op": "replace", "path": "/data/a", "value": "c"}]);
    let patched = patch(&house, &path, media, good.clone())
        .await
        .expect_code(200);
    assert_eq!(patched.body["data"]["a"], "c");
    patch(&house, &path, media, good).await.expect_failure(
        422,
        "Invalid",
        "the server rejected our request due to an error in our request",
    );
    patch(&house, &path, media, json!({"op": "test"})).await.expect_failure(
        400,
        "BadRequest",
        "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
    );
}

#[tokio::test]
async fn patches_that_make_no_object_are_refused() {
    let house = House::new().await;
    house.config_map("a", json!({})).await;
    let path = format!("{MAPS}/a");
    house
        .merge(&path, json!({"metadata": {"name": "b"}}))
        .await
        .expect_failure(
            400,
            "BadRequest",
            "the name of the object (b) does not match the name on the URL (a)",
        );
    house.merge(&path, json!({"metadata": {"resourceVersion": "1"}})).await.expect_failure(
        409,
        "Conflict",
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again",
    );
    let broken = house
        .call(
            Method::PATCH,
            &path,
            "application/merge-patch+json",
            "{\"metadata",
        )
        .await;
    broken.expect_failure(
        400,
        "BadRequest",
        "error decoding patch: unexpected end of JSON input",
    );
    let unknown = house
        .call(Method::PATCH, &path, "application/foo+json", "{}")
        .await;
    unknown.expect_failure(415, "UnsupportedMediaType", "415: Unsupported Media Type");
    let mistyped = house.merge(&path, json!({"metadata": {"labels": 3}})).await;
    assert_eq!(
        (mistyped.code, mistyped.body["reason"].as_str()),
        (422, Some("Invalid"))
    );
}

#[tokio::test]
async fn apply_makes_owns_and_conflicts() {
    let house = House::new().await;
    let path = format!("{MAPS}/a");
    let config = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": value}});
    let made = apply(&house, &path, "one", config("1"))
        .await
        .expect_code(201);
    assert_eq!(
        made.body["metadata"]["managedFields"][0]["operation"],
        "Apply"
    );
    let again = apply(&house, &path, "one", config("1"))
        .await
        .expect_code(200);
    assert_eq!(again.revision(), made.revision());
    let conflict = apply(&house, &path, "two", config("2")).await;
    conflict.expect_failure(
        409,
        "Conflict",
        "Apply failed with 1 conflict: conflict with \"one\": .data.x",
    );
    assert_eq!(
        conflict.body["details"]["causes"][0]["reason"],
        "FieldManagerConflict"
    );
    let forced = apply(&house, &format!("{path}?force=true"), "two", config("2"))
        .await
        .expect_code(200);
    assert_eq!(forced.body["data"]["x"], "2");
    house.call(Method::PATCH, &path, "application/apply-patch+yaml", "{}").await.expect_failure(
        422,
        "Invalid",
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
    );
    apply(&house, &path, "one", json!({"foo": 1}))
        .await
        .expect_failure(400, "BadRequest", "invalid object type: /, Kind=");
}

#[tokio::test]
async fn writes_are_accounted_to_their_managers() {
    let house = House::new().await;
    let made = house.config_map("a", json!({})).await;
    let fields = &made.body["metadata"]["managedFields"][0];
    assert_eq!(
        (&fields["manager"], &fields["operation"]),
        (&json!("tester"), &json!("Update"))
    );
    assert_eq!(fields["fieldsV1"]["f:data"], json!({".": {}, "f:a": {}}));
}

#[tokio::test]
async fn a_scale_is_read_and_written() {
    let house = deployed().await;
    let path = format!("{DEPLOYMENTS}/web/scale");
    let scale = house.get(&path).await.expect_code(200);
    assert_eq!(
        (&scale.body["kind"], &scale.body["spec"]["replicas"]),
        (&json!("Scale"), &json!(2))
    );
    assert_eq!(scale.body["status"]["selector"], "app=web");
    let patched = house
        .merge(&path, json!({"spec": {"replicas": 5}}))
        .await
        .expect_code(200);
    assert_eq!(patched.body["spec"]["replicas"], 5);
    let deployment = house
        .get(&format!("{DEPLOYMENTS}/web"))
        .await
        .expect_code(200);
    assert_eq!(deployment.body["spec"]["replicas"], 5);
    assert_eq!(deployment.body["metadata"]["generation"], 2);
    let mut scale = scale.body;
    scale["spec"]["replicas"] = 1.into();
    house.put(&path, scale).await.expect_code(409);
}

/// What a configuration of a scale meets, as the genuine server answers the same requests.
#[tokio::test]
async fn a_scale_can_be_applied() {
    let house = deployed().await;
    let path = format!("{DEPLOYMENTS}/web/scale");
    let forced = format!("{path}?force=true");
    let scale = |spec: Value| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": spec});
    let replicas = |count: i64| scale(json!({"replicas": count}));
    let owners = async || {
        let deployment = house.get(&format!("{DEPLOYMENTS}/web")).await.body;
        let mut owners = Vec::new();
        for entry in deployment["metadata"]["managedFields"]
            .as_array()
            .expect("entries")
        {
            if entry["fieldsV1"]["f:spec"]["f:replicas"].is_object() {
                let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
                assert_eq!(entry["apiVersion"], "apps/v1");
                owners.push([text("manager"), text("operation"), text("subresource")].join(" "));
            }
        }
        (deployment["spec"]["replicas"].clone(), owners)
    };
    let refused = apply(&house, &path, "x", replicas(1)).await;
    let why = "Apply failed with 1 conflict: conflict with \"tester\" using autoscaling/v1: .spec.replicas";
    refused.expect_failure(409, "Conflict", why);
    let taken = apply(&house, &forced, "x", replicas(1)).await;
    assert_eq!(taken.expect_code(200).body["spec"]["replicas"], 1);
    assert_eq!(owners().await, (json!(1), vec!["x Apply scale".to_owned()]));
    let refused = apply(&house, &path, "y", replicas(2)).await;
    let why = "Apply failed with 1 conflict: conflict with \"x\" with subresource \"scale\": .spec.replicas";
    refused.expect_failure(409, "Conflict", why);
    apply(&house, &path, "y", replicas(1))
        .await
        .expect_code(200);
    let both = vec!["x Apply scale".to_owned(), "y Apply scale".to_owned()];
    assert_eq!(owners().await, (json!(1), both));
    apply(&house, &path, "x", scale(json!({})))
        .await
        .expect_code(200);
    assert_eq!(owners().await, (json!(1), vec!["y Apply scale".to_owned()]));
    let refused = apply(&house, &forced, "x", scale(json!({"replicas": "5"}))).await;
    let why = "failed to create typed patch object (/web; autoscaling/v1, Kind=Scale): .spec.replicas: expected numeric (int or float), got string";
    assert_eq!(
        (refused.code, refused.body["message"].as_str()),
        (500, Some(why))
    );
    let refused = apply(&house, &forced, "x", deployment("a:1")).await;
    refused.expect_failure(
        400,
        "BadRequest",
        "invalid object type: apps/v1, Kind=Deployment",
    );
}

#[tokio::test]
async fn status_is_written_through_its_own_door() {
    let house = deployed().await;
    let path = format!("{DEPLOYMENTS}/web");
    let ignored = house
        .merge(&path, json!({"status": {"replicas": 7}}))
        .await
        .expect_code(200);
    assert!(ignored.body["status"].get("replicas").is_none());
    let change =
        json!({"status": {"replicas": 7, "observedGeneration": 1}, "spec": {"replicas": 9}});
    let written = house
        .merge(&format!("{path}/status"), change)
        .await
        .expect_code(200);
    assert_eq!(written.body["status"]["replicas"], 7);
    assert_eq!(written.body["spec"]["replicas"], 2);
    assert_eq!(written.body["metadata"]["generation"], 1);
}

#[tokio::test]
async fn an_object_grows_no_larger_than_one_may_be() {
    let house = House::new().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let labels = json!({"a": "b"});
    let body = json!({"metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i", "args": ["a"]}]}},
    }});
    house.post(path, body).await.expect_code(201);
    let path = format!("{path}/d");
    let arguments = vec!["x".repeat(1000); 900];
    let grow: Vec<Value> = arguments
        .iter()
        .map(|argument| json!({"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": argument}))
        .collect();
    let grow = Value::from(grow).to_string();
    let patch = async || {
        let media = "application/json-patch+json";
        house.call(Method::PATCH, &path, media, grow.clone()).await
    };
    patch().await.expect_code(200);
    let last = patch().await.expect_code(200);
    let refused = patch().await.expect_code(500);
    assert_eq!(refused.body["message"], "etcdserver: request is too large");
    assert_eq!(house.get(&path).await.revision(), last.revision());
}

#[tokio::test]
async fn a_patch_that_moves_too_much_is_refused() {
    let house = House::new().await;
    house.config_map("a", json!({})).await;
    let mut operations = vec![json!({"op": "add", "path": "/list", "value": vec![""; 100_000]})];
    operations.extend(vec![
        json!({"op": "add", "path": "/list/0", "value": ""});
        9000
    ]);
    let answer = house
        .call(
            Method::PATCH,
            &format!("{MAPS}/a"),
            "application/json-patch+json",
            Value::from(operations).to_string(),
        )
        .await;
    answer.expect_failure(
        413,
        "RequestEntityTooLarge",
        "Request entity too large: operation 199 of the JSON patch would move more values than one patch may",
    );
}
