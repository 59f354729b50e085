//! `proxy` of pods, services and nodes: where it leads, and where it does not.

use std::sync::Arc;

use apiserver::{Body, Nodes, Service};
use http::{Method, Request, Response};
use serde_json::json;
use tower::util::BoxCloneSyncService;

use crate::house::{House, pod};

const NAMESPACE: &str = "/api/v1/namespaces/default";

/// A node that tells what it was asked.
struct Teller;

impl Nodes for Teller {
    fn node(&self, name: &str) -> Option<Service> {
        (name == "n").then(|| BoxCloneSyncService::new(tower::service_fn(tell)))
    }
}

async fn tell(request: Request<Body>) -> Result<Response<Body>, std::convert::Infallible> {
    let headers = request.headers();
    let text = format!(
        "{} {} {} {}",
        request.method(),
        request.uri(),
        headers.contains_key("authorization"),
        headers["x-forwarded-uri"].to_str().unwrap_or_default(),
    );
    Ok(Response::new(Body::from(text)))
}

#[tokio::test]
async fn a_node_answers_for_itself() {
    let house = House::with(|config| config.nodes = Arc::new(Teller)).await;
    let node = json!({"metadata": {"name": "n"}, "status": {
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}});
    house.post("/api/v1/nodes", node).await.expect_code(201);
    let check = async |method: Method, path: &str, expected: &str| {
        let answer = house.call(method, path, "", "").await;
        assert_eq!(answer.text, expected, "{path}");
    };
    check(
        Method::GET,
        "/api/v1/nodes/n/proxy/stats/summary?a=b",
        "GET /stats/summary?a=b false /api/v1/nodes/n/proxy/stats/summary",
    )
    .await;
    check(
        Method::HEAD,
        "/api/v1/nodes/n:10250/proxy/a//b/",
        "HEAD /a//b/ false /api/v1/nodes/n:10250/proxy/a//b/",
    )
    .await;
    check(
        Method::OPTIONS,
        "/api/v1/nodes/n/proxy",
        "OPTIONS / false /api/v1/nodes/n/proxy/",
    )
    .await;
    house.get("/api/v1/nodes/n:22/proxy/").await.expect_failure(
        400,
        "BadRequest",
        "address not allowed",
    );
    house
        .get("/api/v1/nodes/a:b:c/proxy/")
        .await
        .expect_failure(400, "BadRequest", "invalid node request \"a:b:c\"");
}

#[tokio::test]
async fn what_cannot_be_reached_is_told() {
    let house = House::new().await;
    house
        .post(&format!("{NAMESPACE}/pods"), pod("a"))
        .await
        .expect_code(201);
    let service =
        json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80, "name": "web"}]}});
    house
        .post(&format!("{NAMESPACE}/services"), service)
        .await
        .expect_code(201);
    let check = async |what: &str, code, reason, message: &str| {
        house
            .get(&format!("{NAMESPACE}/{what}/proxy/"))
            .await
            .expect_failure(code, reason, message);
    };
    check("pods/a", 400, "BadRequest", "address not allowed").await;
    check(
        "pods/x:a:1",
        400,
        "BadRequest",
        "invalid pod request \"x:a:1\"",
    )
    .await;
    check("pods/none:80", 404, "NotFound", "pods \"none\" not found").await;
    check(
        "services/none",
        404,
        "NotFound",
        "services \"none\" not found",
    )
    .await;
    let unavailable = "ServiceUnavailable";
    let nothing = "no endpoints available for service \"s\"";
    check("services/s", 503, unavailable, nothing).await;
    check("services/s:80", 503, unavailable, nothing).await;
    let no_port = "no service port 90 found for service \"s\"";
    check("services/s:90", 503, unavailable, no_port).await;
    // Whoever may write Endpoints must not thereby reach what the API server reaches.
    let endpoints = json!({"metadata": {"name": "s"}, "subsets": [{
        "addresses": [
            {"ip": "10.1.2.3"},
            {"ip": "10.1.2.3", "targetRef": {"kind": "Pod", "namespace": "default", "name": "a"}},
        ],
        "ports": [{"name": "web", "port": 80}],
    }]});
    house
        .post(&format!("{NAMESPACE}/endpoints"), endpoints)
        .await
        .expect_code(201);
    let nothing = "no endpoints available for service \"s:web\"";
    check("services/s:web", 503, unavailable, nothing).await;
    house
        .get(&format!("{NAMESPACE}/configmaps/a/proxy/"))
        .await
        .expect_code(404);
}
