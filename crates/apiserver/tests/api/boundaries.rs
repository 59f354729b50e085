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
