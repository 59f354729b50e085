//! Who is asking, and may they.

use apiserver::{Body, Caller};
use http::Request;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::house::{House, pod};

async fn ask(house: &House, headers: &[(&str, &str)], path: &str) -> (u16, Value) {
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = house
        .server
        .service(None)
        .oneshot(request.body(Body::empty()).expect("a request"))
        .await
        .unwrap_or_else(|never| match never {});
    let code = response.status().as_u16();
    let bytes = response
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

async fn token(house: &House, body: Value) -> String {
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let answer = house.post(path, body).await.expect_code(201);
    answer.body["status"]["token"]
        .as_str()
        .expect("a token")
        .to_owned()
}

async fn review(house: &House, token: &str) -> Value {
    let body = json!({"spec": {"token": token}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    house.post(path, body).await.expect_code(201).body["status"].clone()
}

#[tokio::test]
async fn without_an_identity_only_health_is_told() {
    let house = House::new().await;
    assert_eq!(ask(&house, &[], "/readyz").await.0, 200);
    let (code, body) = ask(&house, &[], "/api/v1/pods").await;
    assert_eq!(code, 403);
    assert_eq!(
        body["message"],
        "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" at the cluster scope"
    );
    let (code, body) = ask(&house, &[("authorization", "Bearer nonsense")], "/readyz").await;
    assert_eq!(
        (code, body["message"].as_str()),
        (401, Some("Unauthorized"))
    );
}

#[tokio::test]
async fn a_browser_shows_its_token_with_its_websocket() {
    use base64::Engine as _;
    let house = House::new().await;
    let token = token(&house, json!({})).await;
    let check = async |token: &str, expected: (u16, &str)| {
        let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token);
        let protocols = format!("base64url.bearer.authorization.k8s.io.{token}, binary.k8s.io");
        let headers = [
            ("upgrade", "websocket"),
            ("sec-websocket-protocol", protocols.as_str()),
        ];
        let (code, body) = ask(&house, &headers, "/api/v1/pods?watch=1").await;
        let message = body["message"].as_str().unwrap_or_default();
        assert_eq!((code, message), expected);
    };
    check(
        &token,
        (
            403,
            "pods is forbidden: User \"system:serviceaccount:default:default\" cannot watch resource \"pods\" in API group \"\" at the cluster scope",
        ),
    )
    .await;
    check("nonsense", (401, "Unauthorized")).await;
}

#[tokio::test]
async fn a_bound_token_lives_as_long_as_its_pod() {
    let house = House::new().await;
    house
        .post("/api/v1/namespaces/default/pods", pod("a"))
        .await
        .expect_code(201);
    let token = token(&house, json!({"spec": {"expirationSeconds": 600, "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "a"}}})).await;
    let status = review(&house, &token).await;
    assert_eq!(status["authenticated"], true, "{status}");
    assert_eq!(
        status["user"]["username"],
        "system:serviceaccount:default:default"
    );
    assert_eq!(
        status["user"]["extra"]["authentication.kubernetes.io/pod-name"],
        json!(["a"])
    );
    house
        .delete("/api/v1/namespaces/default/pods/a", Value::Null)
        .await
        .expect_code(200);
    assert!(review(&house, &token).await.get("authenticated").is_none());
}

#[tokio::test]
async fn a_changed_or_foreign_token_is_refused() {
    let house = House::new().await;
    let good = token(&house, json!({"spec": {}})).await;
    assert_eq!(review(&house, &good).await["authenticated"], true);
    let mut parts: Vec<&str> = good.split('.').collect();
    let reversed: String = parts[2].chars().rev().collect();
    parts[2] = &reversed;
    for bad in [
        parts.join("."),
        format!("{good}x"),
        String::from("a.b.c"),
        "x".repeat(100_000),
    ] {
        assert!(review(&house, &bad).await.get("authenticated").is_none());
    }
    let other = token(&house, json!({"spec": {"audiences": ["elsewhere"]}})).await;
    assert!(review(&house, &other).await.get("authenticated").is_none());
}

#[tokio::test]
async fn token_requests_are_checked() {
    let house = House::new().await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    house.post(path, json!({"spec": {"expirationSeconds": 5}})).await.expect_failure(
        422,
        "Invalid",
        "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes",
    );
    house
        .post(
            "/api/v1/namespaces/default/serviceaccounts/nope/token",
            json!({}),
        )
        .await
        .expect_code(404);
}

#[tokio::test]
async fn whoami_and_can_i() {
    let house = House::new().await;
    let who = house
        .post(
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            json!({}),
        )
        .await
        .expect_code(201);
    assert_eq!(who.body["status"]["userInfo"]["username"], "system:admin");
    let body = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let may = house.post(path, body).await.expect_code(201);
    assert_eq!(may.body["status"]["allowed"], true);
    let body =
        json!({"spec": {"user": "joe", "resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let may = house
        .post("/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
        .await
        .expect_code(201);
    assert_eq!(may.body["status"]["allowed"], false);
}

#[tokio::test]
async fn administrators_may_be_somebody_else() {
    let house = House::new().await;
    let request = Request::builder()
        .uri("/api/v1/pods")
        .header("impersonate-user", "joe")
        .body(Body::empty())
        .expect("a request");
    let answer = house.send(request).await;
    answer.expect_failure(403, "Forbidden", "pods is forbidden: User \"joe\" cannot list resource \"pods\" in API group \"\" at the cluster scope");
    let request = Request::builder()
        .uri("/api/v1/pods")
        .header("impersonate-user", "root")
        .body(Body::empty())
        .expect("a request");
    let answer = house
        .send_as(Caller::authenticated("joe", &[]), request)
        .await;
    answer.expect_failure(403, "Forbidden", "users \"root\" is forbidden: User \"joe\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope");
}
