//! What callers may not do, however they ask.

use apiserver::{Body, Caller};
use futures::FutureExt as _;
use http::{Method, Request};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::house::{Answer, House};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";

fn user(name: &str) -> Caller {
    Caller::authenticated(name, &[])
}

fn request(method: Method, path: &str, body: &Value) -> Request<Body> {
    let body = match body {
        Value::Null => Body::empty(),
        body => Body::from(body.to_string()),
    };
    Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .body(body)
        .expect("a request")
}

async fn get_as(house: &House, name: &str, path: &str) -> Answer {
    let request = request(Method::GET, path, &Value::Null);
    house.send_as(user(name), request).await
}

/// Gives a user what `rules` say, in the whole cluster.
async fn allow(house: &House, name: &str, rules: Value) {
    let role = json!({"metadata": {"name": name}, "rules": rules});
    let path = format!("{RBAC}/clusterroles");
    house.post(&path, role).await.expect_code(201);
    let binding = json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"}],
    });
    let path = format!("{RBAC}/clusterrolebindings");
    house.post(&path, binding).await.expect_code(201);
}

#[tokio::test]
async fn a_right_ends_with_its_binding_though_nobody_waits_for_the_answer() {
    let house = House::new().await;
    let binding = json!({
        "metadata": {"name": "eve"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "User", "name": "eve", "apiGroup": "rbac.authorization.k8s.io"}],
    });
    let pods = "/api/v1/namespaces/default/pods";
    let path = format!("{BINDINGS}/eve");
    let mut given_up = false;
    // The writer may be so quick that there is nothing left to give up.
    while !given_up {
        house.post(BINDINGS, binding.clone()).await.expect_code(201);
        get_as(&house, "eve", pods).await.expect_code(200);
        let service = house.server.service(Some(Caller::system_masters()));
        given_up = service
            .oneshot(request(Method::DELETE, &path, &Value::Null))
            .now_or_never()
            .is_none();
        while house.get(&path).await.code != 404 {
            tokio::task::yield_now().await;
        }
        get_as(&house, "eve", pods).await.expect_code(403);
    }
}

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

async fn secrets(house: &House) {
    for name in ["foo", "bar"] {
        let secret = json!({"metadata": {"name": name}});
        house.post(SECRETS, secret).await.expect_code(201);
    }
}

#[tokio::test]
async fn a_right_on_one_name_shows_no_other() {
    let house = House::new().await;
    secrets(&house).await;
    let verbs = ["get", "list", "watch"];
    let rule = json!([{"verbs": verbs, "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["foo"]}]);
    allow(&house, "joe", rule).await;
    let check = async |query: &str, code: u16, names: &[&str]| {
        let answer = get_as(&house, "joe", &format!("{SECRETS}?{query}")).await;
        assert_eq!(answer.code, code, "{query}");
        assert_eq!(answer.names(), names, "{query}");
    };
    check("fieldSelector=metadata.name=foo", 200, &["foo"]).await;
    check("fieldSelector=metadata.name==foo,type!=x", 200, &["foo"]).await;
    check(
        "fieldSelector=metadata.name=foo,metadata.name=bar",
        200,
        &[],
    )
    .await;
    check("", 403, &[]).await;
    // No comma ends the first comparison: what looks like a name is a part of its value.
    check("fieldSelector=type!=x\\,metadata.name=foo", 403, &[]).await;
    check("fieldSelector=type!=x%5C,metadata.name=foo", 403, &[]).await;
}

#[tokio::test]
async fn a_watch_of_one_name_is_of_no_other() {
    let house = House::new().await;
    secrets(&house).await;
    let check = async |path: &str, code: u16, shown: &[&str]| {
        let path = format!("/api/v1/watch/namespaces/default/{path}timeoutSeconds=1");
        let answer = house.get(&path).await.expect_code(code);
        for name in ["foo", "bar"] {
            let text = format!("\"name\":\"{name}\"");
            assert_eq!(answer.text.contains(&text), shown.contains(&name), "{path}");
        }
        answer
    };
    check("secrets/foo?", 200, &["foo"]).await;
    check(
        "secrets/foo?fieldSelector=metadata.name=foo&",
        200,
        &["foo"],
    )
    .await;
    check("secrets?", 200, &["foo", "bar"]).await;
    for other in ["metadata.name!=zzz", "metadata.name=bar", "type!=x"] {
        let path = format!("secrets/foo?fieldSelector={other}&");
        check(&path, 400, &[]).await.expect_failure(
            400,
            "BadRequest",
            "fieldSelector metadata.name doesn't match requested name",
        );
    }
}

#[tokio::test]
async fn a_watch_may_be_meant_to_last_for_ever() {
    let house = House::new().await;
    let path = format!("{SECRETS}?watch=true&timeoutSeconds=9223372036854775807");
    let service = house.server.service(Some(Caller::system_masters()));
    let response = service
        .oneshot(request(Method::GET, &path, &Value::Null))
        .await
        .unwrap_or_else(|never| match never {});
    assert_eq!(response.status(), 200);
    let path = format!("{SECRETS}?watch=true&timeoutSeconds=99999999999999999999");
    house.get(&path).await.expect_failure(
        400,
        "BadRequest",
        "strconv.ParseInt: parsing \"99999999999999999999\": value out of range",
    );
}

#[tokio::test]
async fn who_reads_pods_does_not_act_in_them() {
    let house = House::new().await;
    let pods = "/api/v1/namespaces/default/pods";
    house
        .post(pods, crate::house::pod("a"))
        .await
        .expect_code(201);
    let read = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["*"]}]);
    allow(&house, "joe", read).await;
    let act = json!([{"verbs": ["get", "create"], "apiGroups": [""], "resources": ["pods/exec", "pods/attach", "pods/portforward"]}]);
    allow(&house, "jim", act).await;
    for sub in [
        "exec?command=ls&stdout=1",
        "attach?stdout=1",
        "portforward?ports=80",
    ] {
        let path = format!("{pods}/a/{sub}");
        let answer = get_as(&house, "joe", &path).await;
        answer.expect_failure(403, "Forbidden", "pods \"a\" is forbidden: ");
        let answer = get_as(&house, "jim", &path).await;
        answer.expect_failure(400, "BadRequest", "pod a does not have a host assigned");
    }
}

async fn patch_as(house: &House, name: &str, path: &str, patch: Value) -> Answer {
    let mut request = request(Method::PATCH, path, &patch);
    let media = http::HeaderValue::from_static("application/merge-patch+json");
    request.headers_mut().insert("content-type", media);
    house.send_as(user(name), request).await
}

#[tokio::test]
async fn an_aggregation_needs_every_right() {
    let house = House::new().await;
    let verbs = ["get", "create", "update", "patch"];
    let roles = json!([{"verbs": verbs, "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"]}]);
    allow(&house, "joe", roles).await;
    let own = format!("{RBAC}/clusterroles/joe");
    let gathering = json!({"clusterRoleSelectors": [{"matchLabels": {"kubernetes.io/bootstrapping": "rbac-defaults"}}]});
    let refused = |answer: Answer, name: &str| {
        let text = format!(
            "clusterroles.rbac.authorization.k8s.io \"{name}\" is forbidden: must have cluster-admin privileges to use the aggregationRule"
        );
        answer.expect_failure(403, "Forbidden", &text);
    };
    let patch = json!({"aggregationRule": gathering});
    refused(patch_as(&house, "joe", &own, patch.clone()).await, "joe");
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    patch_as(&house, "joe", &own, labels).await.expect_code(200);
    let path = format!("{RBAC}/clusterroles");
    let role = json!({"metadata": {"name": "new"}, "aggregationRule": gathering});
    let answer = house
        .send_as(user("joe"), request(Method::POST, &path, &role))
        .await;
    refused(answer, "new");
    house.post(&path, role).await.expect_code(201);
    let path = format!("{path}/new");
    let patch = json!({"aggregationRule": null});
    refused(patch_as(&house, "joe", &path, patch).await, "new");
    house
        .merge(&own, json!({"aggregationRule": gathering}))
        .await
        .expect_code(200);
}

#[tokio::test]
async fn verbs_may_be_any_word() {
    let house = House::new().await;
    let rules = json!([
        {"verbs": ["frobnicate", "unknown"], "apiGroups": [""], "resources": ["pods"]},
        {"verbs": ["knock"], "nonResourceURLs": ["/door"]},
    ]);
    allow(&house, "joe", rules).await;
    let check = async |what: &str, attributes: Value, expected: bool| {
        let review = json!({"spec": {"user": "joe", what: attributes}});
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let answer = house.post(path, review).await.expect_code(201);
        assert_eq!(
            answer.body["status"]["allowed"], expected,
            "{}",
            answer.text
        );
    };
    for (verb, expected) in [("frobnicate", true), ("unknown", true), ("other", false)] {
        let attributes = json!({"verb": verb, "resource": "pods"});
        check("resourceAttributes", attributes, expected).await;
    }
    for (verb, expected) in [("knock", true), ("ring", false)] {
        let attributes = json!({"verb": verb, "path": "/door"});
        check("nonResourceAttributes", attributes, expected).await;
    }
}
