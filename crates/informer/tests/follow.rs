//! A cache against a scripted server: what is listed and watched ends up in the cache and in the feed,
//! whatever happens to the connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use informer::{Change, Informer, Informers};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// What the server does with the next request of its kind.
enum Answer {
    List(Value),
    Status(u16, &'static str),
    /// These events, and then the end, or nothing more for ever.
    Watch {
        events: Vec<Value>,
        ends: bool,
    },
}

#[derive(Clone, Default)]
struct Server {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn client(&self, answers: Vec<Answer>) -> kube::Client {
        self.answers.lock().extend(answers);
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(&request)) }
        });
        kube::Client::new(service, "default")
    }

    fn answer(&self, request: &Request<Body>) -> Response<BoxBody<Bytes, Infallible>> {
        let uri = request.uri().to_string();
        let watched = uri.contains("watch=true");
        let place = uri
            .split(['?', '&'])
            .find(|part| part.starts_with("resourceVersion="));
        self.requests.lock().push(match (watched, place) {
            (true, Some(place)) => format!("watch {place}"),
            (true, None) => "watch".to_owned(),
            (false, _) => "list".to_owned(),
        });
        let answer = self.answers.lock().pop_front();
        let whole = |code: u16, body: &Value| {
            let body = http_body_util::Full::from(body.to_string()).boxed();
            Response::builder()
                .status(code)
                .body(body)
                .expect("is complete")
        };
        match answer {
            Some(Answer::List(list)) => whole(200, &list),
            Some(Answer::Status(code, reason)) => whole(code, &status(code, reason)),
            Some(Answer::Watch { events, ends }) => stream(events, ends),
            None => stream(Vec::new(), false),
        }
    }
}

fn stream(events: Vec<Value>, ends: bool) -> Response<BoxBody<Bytes, Infallible>> {
    let frames = events
        .into_iter()
        .map(|event| Ok(http_body::Frame::data(Bytes::from(format!("{event}\n")))));
    let frames = futures::stream::iter(frames);
    let body = match ends {
        true => StreamBody::new(frames).boxed_unsync_to_sync(),
        false => StreamBody::new(frames.chain(futures::stream::pending())).boxed_unsync_to_sync(),
    };
    Response::new(body)
}

trait Boxed {
    fn boxed_unsync_to_sync(self) -> BoxBody<Bytes, Infallible>;
}

impl<B> Boxed for B
where
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + Sync + 'static,
{
    fn boxed_unsync_to_sync(self) -> BoxBody<Bytes, Infallible> {
        self.boxed()
    }
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason})
}

fn object(name: &str, revision: u64) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {
        "name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": revision.to_string(),
        "managedFields": [{"manager": "test"}],
        "labels": {"app": name.split('-').next()},
    }})
}

fn list(revision: u64, objects: &[(&str, u64)]) -> Answer {
    let items: Vec<Value> = objects
        .iter()
        .map(|(name, revision)| object(name, *revision))
        .collect();
    Answer::List(json!({"kind": "ConfigMapList", "apiVersion": "v1",
        "metadata": {"resourceVersion": revision.to_string()}, "items": items}))
}

fn event(kind: &str, name: &str, revision: u64) -> Value {
    json!({"type": kind, "object": object(name, revision)})
}

fn bookmark(revision: u64) -> Value {
    json!({"type": "BOOKMARK", "object": {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"resourceVersion": revision.to_string()}}})
}

fn watch(events: Vec<Value>) -> Answer {
    Answer::Watch {
        events,
        ends: false,
    }
}

fn ending(events: Vec<Value>) -> Answer {
    Answer::Watch { events, ends: true }
}

fn contents(informer: &Informer<ConfigMap>) -> Vec<String> {
    let text = |object: &Arc<ConfigMap>| {
        let meta = &object.metadata;
        format!(
            "{}@{}",
            meta.name.clone().unwrap_or_default(),
            meta.resource_version.clone().unwrap_or_default()
        )
    };
    informer.list().iter().map(text).collect()
}

/// Follows the script until the cache has reached `revision`; then the cache must hold `objects`, and
/// the server must have been asked for `requests`.
async fn check(script: Vec<Answer>, revision: u64, objects: &[&str], requests: &[&str]) {
    let server = Server::default();
    let (_stop, drain) = lifecycle::drain();
    let informers = Informers::new(server.client(script), drain);
    let informer = informers.of::<ConfigMap>();
    let reached = informer.until(|informer| (informer.revision() >= revision).then_some(()));
    tokio::time::timeout(Duration::from_secs(60), reached)
        .await
        .unwrap_or_else(|_| {
            panic!(
                "stopped at {}, asked for {:?}",
                informer.revision(),
                server.requests.lock()
            )
        });
    assert_eq!(contents(&informer), objects);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(*server.requests.lock(), requests);
}

#[tokio::test(start_paused = true)]
async fn what_is_listed_and_watched_is_in_the_cache() {
    let events = vec![
        event("ADDED", "c", 6),
        event("MODIFIED", "a", 7),
        event("DELETED", "b", 8),
    ];
    let script = vec![list(5, &[("a", 1), ("b", 2)]), watch(events)];
    check(
        script,
        8,
        &["a@7", "c@6"],
        &["list", "watch resourceVersion=5"],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_goes_on_from_its_last_event_or_bookmark() {
    let script = vec![
        list(5, &[("a", 1)]),
        ending(vec![event("ADDED", "b", 7)]),
        ending(vec![bookmark(20)]),
        watch(vec![event("ADDED", "c", 21)]),
    ];
    let requests = [
        "list",
        "watch resourceVersion=5",
        "watch resourceVersion=7",
        "watch resourceVersion=20",
    ];
    check(script, 21, &["a@1", "b@7", "c@21"], &requests).await;
}

#[tokio::test(start_paused = true)]
async fn when_the_history_has_passed_by_the_list_is_taken_again() {
    let gone_in_stream = json!({"type": "ERROR", "object": status(410, "Expired")});
    let script = vec![
        list(5, &[("a", 1), ("b", 2)]),
        ending(vec![gone_in_stream]),
        list(30, &[("a", 1), ("c", 9)]),
        Answer::Status(410, "Expired"),
        list(40, &[("c", 9), ("d", 35)]),
        watch(vec![]),
    ];
    let requests = [
        "list",
        "watch resourceVersion=5",
        "list",
        "watch resourceVersion=30",
        "list",
        "watch resourceVersion=40",
    ];
    check(script, 40, &["c@9", "d@35"], &requests).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_there_yet_is_asked_again() {
    let script = vec![
        Answer::Status(503, "ServiceUnavailable"),
        Answer::Status(500, "InternalError"),
        list(5, &[("a", 1)]),
        Answer::Status(503, "ServiceUnavailable"),
        watch(vec![event("ADDED", "b", 6)]),
    ];
    let requests = [
        "list",
        "list",
        "list",
        "watch resourceVersion=5",
        "watch resourceVersion=5",
    ];
    check(script, 6, &["a@1", "b@6"], &requests).await;
}

#[tokio::test(start_paused = true)]
async fn one_object_that_cannot_be_read_stops_nobody() {
    let strange = |kind: &str, revision: u64| {
        let mut event = event(kind, "strange", revision);
        event["object"]["data"] = json!(5);
        event
    };
    let mut first = list(5, &[("a", 1), ("strange", 2)]);
    if let Answer::List(list) = &mut first {
        list["items"][1]["data"] = json!([1]);
    }
    let script = vec![
        first,
        watch(vec![
            strange("MODIFIED", 6),
            event("ADDED", "b", 7),
            strange("MODIFIED", 8),
        ]),
    ];
    check(
        script,
        8,
        &["a@1", "b@7"],
        &["list", "watch resourceVersion=5"],
    )
    .await;
    // Its name is enough to let it go.
    let script = vec![
        list(5, &[("a", 1), ("strange", 2)]),
        watch(vec![strange("DELETED", 6)]),
    ];
    check(script, 6, &["a@1"], &["list", "watch resourceVersion=5"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_hears_what_differs_between_two_lists_and_nothing_else() {
    let server = Server::default();
    let script = vec![
        list(5, &[("a", 1), ("b", 2), ("c", 3)]),
        Answer::Status(410, "Expired"),
        list(30, &[("a", 1), ("b", 20), ("d", 25)]),
    ];
    let (stop, drain) = lifecycle::drain();
    let informer = Informers::new(server.client(script), drain).of::<ConfigMap>();
    informer.synced().await;
    let mut changes = informer.changes();
    for _ in 0..3 {
        changes.next().await.expect("not draining");
    }
    informer
        .until(|informer| (informer.revision() >= 30).then_some(()))
        .await;
    let mut heard = Vec::new();
    while let Some(change) = changes.try_next() {
        let name = change.object().metadata.name.clone().unwrap_or_default();
        heard.push(match change {
            Change::Applied { old: None, .. } => format!("{name} is new"),
            Change::Applied { .. } => format!("{name} has changed"),
            Change::Deleted(_) => format!("{name} is gone"),
        });
    }
    assert_eq!(heard, ["b has changed", "d is new", "c is gone"]);
    assert!(changes.next().now_or_never().is_none());
    stop.signal();
    assert!(changes.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_index_follows_the_cache_and_managed_fields_are_not_kept() {
    let server = Server::default();
    let events = vec![
        event("ADDED", "web-3", 6),
        event("MODIFIED", "web-1", 7),
        event("DELETED", "web-2", 8),
    ];
    let script = vec![
        list(5, &[("api-1", 1), ("web-1", 2), ("web-2", 3)]),
        watch(events),
    ];
    let informers = Informers::new(server.client(script), lifecycle::Drain::never());
    let informer = informers.of::<ConfigMap>();
    let by_app = informer.index_by("app", |object| {
        let labels = object.metadata.labels.as_ref();
        labels
            .and_then(|labels| labels.get("app"))
            .cloned()
            .into_iter()
            .collect()
    });
    informer
        .until(|informer| (informer.revision() >= 8).then_some(()))
        .await;
    let mut found: Vec<_> = by_app
        .get("web")
        .iter()
        .map(|object| object.metadata.name.clone().unwrap_or_default())
        .collect();
    found.sort();
    assert_eq!(found, ["web-1", "web-3"]);
    assert_eq!(by_app.get("api").len(), 1);
    assert!(by_app.get("none").is_empty());
    let kept = informer.get(Some("default"), "web-1").expect("is there");
    assert_eq!(kept.metadata.resource_version.as_deref(), Some("7"));
    assert_eq!(kept.metadata.managed_fields, None);
    assert_eq!(informers.of::<ConfigMap>().count(), 3);
    assert_eq!(
        server.requests.lock().len(),
        2,
        "one list and watch for all readers"
    );
}

fn pod(name: &str, node: &str, revision: u64) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": revision.to_string()},
        "spec": {"nodeName": node, "containers": [{"name": "c", "command": ["run"]}]}})
}

/// Names and revisions, and an exclamation mark behind those that are whole.
fn pods(informer: &Informer<Pod>) -> Vec<String> {
    let text = |pod: &Arc<Pod>| {
        let (meta, spec) = (&pod.metadata, pod.spec.clone().unwrap_or_default());
        let name = meta.name.clone().unwrap_or_default();
        let revision = meta.resource_version.clone().unwrap_or_default();
        let mark = match spec.containers.iter().any(|one| one.command.is_some()) {
            true => "!",
            false => "",
        };
        format!("{name}@{revision}{mark}")
    };
    informer.list().iter().map(text).collect()
}

#[tokio::test(start_paused = true)]
async fn a_hosted_node_s_pods_are_whole_and_cached_once() {
    let server = Server::default();
    let event = |kind: &str, pod: Value| json!({"type": kind, "object": pod});
    let first = Answer::List(json!({"kind": "PodList", "apiVersion": "v1",
        "metadata": {"resourceVersion": "5"},
        "items": [pod("mine", "here", 1), pod("other", "there", 2), pod("pending", "", 3)]}));
    let events = vec![
        event("MODIFIED", pod("pending", "here", 6)),
        event("DELETED", pod("mine", "here", 7)),
        event("MODIFIED", pod("other", "there", 8)),
    ];
    let client = server.client(vec![first, watch(events)]);
    let informers = Informers::new(client, lifecycle::Drain::never()).hosting(["here".to_owned()]);
    let here = informers.of_fields::<Pod>("spec.nodeName=here");
    let mut changes = here.changes();
    here.until(|here| (here.revision() >= 8).then_some(()))
        .await;
    assert!(here.is_synced());
    assert_eq!(pods(&here), ["pending@6!"]);
    assert_eq!(pods(&informers.pods()), ["other@8", "pending@6!"]);
    let change = changes.next().await.expect("is told");
    assert_eq!(change.object().metadata.name.as_deref(), Some("pending"));
    assert!(changes.try_next().is_none());
    let again = informers.of_fields::<Pod>("spec.nodeName=here");
    assert_eq!(pods(&again), ["pending@6!"]);
    assert_eq!(server.requests.lock().len(), 2, "one list, one watch");
}

#[tokio::test(start_paused = true)]
async fn what_is_cached_as_a_whole_is_not_followed_again() {
    let server = Server::default();
    let script = vec![
        list(5, &[("a", 1), ("b", 2)]),
        watch(vec![event("MODIFIED", "a", 6), event("ADDED", "c", 7)]),
    ];
    let informers = Informers::new(server.client(script), lifecycle::Drain::never());
    let whole = informers.of::<ConfigMap>();
    let view = informers.of_fields::<ConfigMap>("metadata.name=a");
    view.until(|view| (view.revision() >= 7).then_some(()))
        .await;
    assert_eq!(contents(&view), ["a@6"]);
    assert_eq!(contents(&whole), ["a@6", "b@2", "c@7"]);
    assert_eq!(server.requests.lock().len(), 2);
}
