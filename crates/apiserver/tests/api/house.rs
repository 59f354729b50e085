//! A server for one test.

use std::sync::Arc;

use apiserver::{ApiServer, Caller, Config};
use http::{Method, Request};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// A server on a store that forgets, and the words to ask it with.
pub(crate) struct House {
    pub(crate) server: ApiServer,
    pub(crate) client: kube::Client,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) warnings: Vec<String>,
    pub(crate) body: Value,
    pub(crate) text: String,
}

impl House {
    pub(crate) async fn new() -> House {
        House::with(|_config| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> House {
        let store = store::Store::open(
            Box::new(store::Memory),
            apiserver::extract(),
            store::Options::default(),
        )
        .await
        .expect("a store in memory opens");
        let mut config = Config::new(
            store,
            Arc::new(pki::Authority::in_memory().expect("an authority")),
            Arc::new(pki::TokenKey::in_memory().expect("a key")),
        );
        change(&mut config);
        let server = ApiServer::new(config).await.expect("the server starts");
        let client = server.client(Caller::system_masters());
        let house = House { server, client };
        house.account("default").await;
        house
    }

    /// What a controller does in a real cluster: the default account of a namespace.
    pub(crate) async fn account(&self, namespace: &str) {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        let body = json!({"metadata": {"name": "default"}});
        self.post(&path, body).await.expect_code(201);
    }

    pub(crate) async fn send(&self, request: Request<apiserver::Body>) -> Answer {
        self.send_as(Caller::system_masters(), request).await
    }

    pub(crate) async fn send_as(
        &self,
        caller: Caller,
        request: Request<apiserver::Body>,
    ) -> Answer {
        let response = self
            .server
            .service(Some(caller))
            .oneshot(request)
            .await
            .unwrap_or_else(|never| match never {});
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a whole body").to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Answer {
            code: parts.status.as_u16(),
            warnings: parts
                .headers
                .get_all("warning")
                .iter()
                .filter_map(|value| value.to_str().ok().map(str::to_owned))
                .collect(),
            body: serde_json::from_str(&text).unwrap_or_default(),
            text,
        }
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        media_type: &str,
        body: impl Into<apiserver::Body>,
    ) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", media_type)
            .header("user-agent", "tester/1.0")
            .body(body.into())
            .expect("a request");
        self.send(request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, "", "").await
    }

    pub(crate) async fn get_as(&self, path: &str, accept: &str) -> Answer {
        let request = Request::builder()
            .uri(path)
            .header("accept", accept)
            .body(apiserver::Body::empty())
            .expect("a request");
        self.send(request).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, "application/json", body.to_string())
            .await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PUT, path, "application/json", body.to_string())
            .await
    }

    pub(crate) async fn delete(&self, path: &str, body: Value) -> Answer {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.call(Method::DELETE, path, "application/json", body)
            .await
    }

    pub(crate) async fn merge(&self, path: &str, body: Value) -> Answer {
        let media = "application/merge-patch+json";
        self.call(Method::PATCH, path, media, body.to_string())
            .await
    }

    /// Makes a ConfigMap in `default`.
    pub(crate) async fn config_map(&self, name: &str, labels: Value) -> Answer {
        self.post(
            "/api/v1/namespaces/default/configmaps",
            json!({"metadata": {"name": name, "labels": labels}, "data": {"a": "b"}}),
        )
        .await
        .expect_code(201)
    }
}

impl Answer {
    #[track_caller]
    pub(crate) fn expect_code(self, code: u16) -> Answer {
        assert_eq!(self.code, code, "{}", self.text);
        self
    }

    /// A refusal with this code, reason and text.
    #[track_caller]
    pub(crate) fn expect_failure(&self, code: u16, reason: &str, message: &str) {
        let got = (
            self.code,
            self.body["reason"].as_str().unwrap_or_default(),
            self.body["message"].as_str().unwrap_or_default(),
        );
        assert_eq!(got, (code, reason, message), "{}", self.text);
        assert_eq!(self.body["kind"], "Status");
        assert_eq!(self.body["status"], "Failure");
        assert_eq!(self.body["code"], code);
    }

    pub(crate) fn name(&self) -> &str {
        self.body["metadata"]["name"].as_str().unwrap_or_default()
    }

    pub(crate) fn revision(&self) -> &str {
        self.body["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or_default()
    }

    /// The names of the items of a list.
    pub(crate) fn names(&self) -> Vec<String> {
        self.body["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned))
            .collect()
    }
}

/// A pod with one container.
pub(crate) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "main", "image": "hello"}]},
    })
}
