//! Watching.

use apiserver::{Body, Caller};
use http::Request;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::house::House;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A watch that is read event by event.
struct Watching {
    body: Body,
    buffer: String,
}

impl Watching {
    async fn begin(house: &House, query: &str) -> Watching {
        Watching::begin_as(house, query, "application/json").await
    }

    async fn begin_as(house: &House, query: &str, accept: &str) -> Watching {
        let request = Request::builder()
            .uri(format!("{MAPS}?watch=1&{query}"))
            .header("accept", accept)
            .body(Body::empty())
            .expect("a request");
        let response = house
            .server
            .service(Some(Caller::system_masters()))
            .oneshot(request)
            .await
            .unwrap_or_else(|never| match never {});
        assert_eq!(response.status(), 200);
        Watching {
            body: response.into_body(),
            buffer: String::new(),
        }
    }

    /// The next event; `None` at the end of the watch.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((line, rest)) = self.buffer.split_once('\n') {
                let event = serde_json::from_str(line).expect("a line is an event");
                self.buffer = rest.to_owned();
                return Some(event);
            }
            let frame = self.body.frame().await?.expect("a watch does not fail");
            if let Ok(data) = frame.into_data() {
                self.buffer
                    .push_str(std::str::from_utf8(&data).expect("text"));
            }
        }
    }

    async fn expect(&mut self, kind: &str, name: &str) -> Value {
        let event = self.next().await.expect("an event");
        assert_eq!(event["type"], kind, "{event}");
        assert_eq!(event["object"]["metadata"]["name"], name, "{event}");
        event["object"].clone()
    }
}

#[tokio::test]
async fn a_watch_begins_with_the_state_and_goes_on_with_changes() {
    let house = House::new().await;
    house.config_map("a", json!({})).await;
    let mut watching = Watching::begin(&house, "").await;
    watching.expect("ADDED", "a").await;
    house.config_map("b", json!({})).await;
    watching.expect("ADDED", "b").await;
    house
        .merge(&format!("{MAPS}/a"), json!({"data": {"x": "y"}}))
        .await
        .expect_code(200);
    assert_eq!(watching.expect("MODIFIED", "a").await["data"]["x"], "y");
    let deleted = house
        .delete(&format!("{MAPS}/a"), json!(null))
        .await
        .expect_code(200);
    assert_eq!(deleted.body["status"], "Success");
    let last = watching.expect("DELETED", "a").await;
    assert_eq!(last["data"]["x"], "y");
    let list = house.get(MAPS).await;
    assert_eq!(last["metadata"]["resourceVersion"], list.revision());
}

#[tokio::test]
async fn a_watch_from_a_revision_has_no_gap() {
    let house = House::new().await;
    house.config_map("a", json!({})).await;
    let from = house.get(MAPS).await.revision().to_owned();
    house.config_map("b", json!({})).await;
    let mut watching = Watching::begin(&house, &format!("resourceVersion={from}")).await;
    watching.expect("ADDED", "b").await;
    house.config_map("c", json!({})).await;
    watching.expect("ADDED", "c").await;
}

#[tokio::test]
async fn entering_and_leaving_a_selection() {
    let house = House::new().await;
    house.config_map("a", json!({"on": "no"})).await;
    let mut watching = Watching::begin(&house, "labelSelector=on%3Dyes").await;
    let set = async |value: &str| {
        let patch = json!({"metadata": {"labels": {"on": value}}});
        house
            .merge(&format!("{MAPS}/a"), patch)
            .await
            .expect_code(200)
    };
    set("yes").await;
    watching.expect("ADDED", "a").await;
    let left = set("no").await;
    let last = watching.expect("DELETED", "a").await;
    assert_eq!(last["metadata"]["labels"]["on"], "yes");
    assert_eq!(last["metadata"]["resourceVersion"], left.revision());
    house
        .delete(&format!("{MAPS}/a"), json!(null))
        .await
        .expect_code(200);
    house.config_map("b", json!({"on": "yes"})).await;
    watching.expect("ADDED", "b").await;
}

#[tokio::test]
async fn the_state_ends_with_a_bookmark_if_asked() {
    let house = House::new().await;
    house.config_map("a", json!({})).await;
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watching = Watching::begin(&house, query).await;
    watching.expect("ADDED", "a").await;
    let bookmark = watching.next().await.expect("a bookmark");
    assert_eq!(bookmark["type"], "BOOKMARK");
    let object = &bookmark["object"];
    assert_eq!(
        object["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(
        (&object["kind"], &object["apiVersion"]),
        (&json!("ConfigMap"), &json!("v1"))
    );
    assert_eq!(
        object["metadata"]["resourceVersion"],
        house.get(MAPS).await.revision()
    );
}

#[tokio::test(start_paused = true)]
async fn bookmarks_tell_progress_and_timeouts_end_the_watch() {
    let house = House::new().await;
    let mut watching = Watching::begin(&house, "allowWatchBookmarks=true&timeoutSeconds=100").await;
    // A change of something else moves the revision on.
    let other = json!({"metadata": {"name": "other"}});
    house
        .post("/api/v1/namespaces", other)
        .await
        .expect_code(201);
    let bookmark = watching.next().await.expect("a bookmark");
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(
        bookmark["object"]["metadata"]["resourceVersion"],
        house.get(MAPS).await.revision()
    );
    assert!(watching.next().await.is_none());
}

#[tokio::test]
async fn a_forgotten_past_is_an_error_event() {
    let house = House::with(|_config| {}).await;
    // The history is bounded: write more than it holds.
    for _ in 0..2 {
        house.config_map("a", json!({})).await;
        house
            .delete(&format!("{MAPS}/a"), json!(null))
            .await
            .expect_code(200);
    }
    let mut watching = Watching::begin(&house, "resourceVersion=1").await;
    let event = watching.next().await.expect("an event");
    let known = ["ADDED", "ERROR"];
    assert!(
        known.contains(&event["type"].as_str().unwrap_or_default()),
        "{event}"
    );
}

#[tokio::test]
async fn rows_for_people() {
    let house = House::new().await;
    house.config_map("a", json!({})).await;
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let mut watching = Watching::begin_as(&house, "", accept).await;
    let first = watching.next().await.expect("an event");
    assert_eq!(first["object"]["kind"], "Table");
    assert_eq!(first["object"]["columnDefinitions"][0]["name"], "Name");
    assert_eq!(first["object"]["rows"][0]["cells"][0], "a");
    house.config_map("b", json!({})).await;
    let second = watching.next().await.expect("an event");
    assert_eq!(second["object"]["rows"][0]["cells"][0], "b");
}

#[tokio::test]
async fn a_kube_watcher_follows() {
    use futures::StreamExt as _;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::runtime::watcher::{self, Event};
    let house = House::new().await;
    house.config_map("a", json!({})).await;
    let maps: kube::Api<ConfigMap> = kube::Api::namespaced(house.client.clone(), "default");
    for config in [
        watcher::Config::default(),
        watcher::Config::default().streaming_lists(),
    ] {
        let mut stream = std::pin::pin!(watcher::watcher(maps.clone(), config));
        let mut seen = Vec::new();
        while let Some(event) = stream.next().await {
            match event.expect("a healthy watch") {
                Event::InitApply(map) => seen.push(map.metadata.name.unwrap_or_default()),
                Event::InitDone => break,
                _ => {}
            }
        }
        assert_eq!(seen, ["a"]);
    }
}
