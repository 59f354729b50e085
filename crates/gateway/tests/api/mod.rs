//! As much of an API server as the gateway needs: list, watch, create, merge patch.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

#[derive(Clone, Default)]
pub(crate) struct Api(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    revision: u64,
    /// By plural, then namespace and name.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    /// Every event of a plural, for watches that begin later.
    history: BTreeMap<String, Vec<(u64, Value)>>,
    watchers: Vec<(String, UnboundedSender<Value>)>,
}

impl Api {
    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Makes the object, or replaces it.
    pub(crate) fn put(&self, object: Value) -> Value {
        self.0.lock().put(object)
    }

    /// Removes the object.
    pub(crate) fn delete(&self, object: Value) {
        let mut state = self.0.lock();
        let (plural, key) = place(&object);
        let Some(mut last) = state
            .objects
            .entry(plural.clone())
            .or_default()
            .remove(&key)
        else {
            return;
        };
        state.revision += 1;
        last["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        state.tell(&plural, "DELETED", &last);
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let bytes = body
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        let sent: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let query = parts.uri.query().unwrap_or_default();
        let known = ["services", "endpointslices", "namespaces"];
        let segments: Vec<&str> = parts.uri.path().split('/').collect();
        let plural = segments
            .iter()
            .rev()
            .find(|segment| known.contains(*segment));
        let plural = plural.expect("the gateway asks for these only").to_string();
        if parts.method == Method::GET && query.contains("watch=true") {
            let after = query
                .split('&')
                .find_map(|part| part.strip_prefix("resourceVersion="));
            return self.watch(
                &plural,
                after.and_then(|text| text.parse().ok()).unwrap_or(0),
            );
        }
        let mut state = self.0.lock();
        match parts.method {
            Method::GET => {
                let items: Vec<_> = state
                    .objects
                    .entry(plural)
                    .or_default()
                    .values()
                    .cloned()
                    .collect();
                let metadata = json!({"resourceVersion": state.revision.to_string()});
                whole(
                    200,
                    &json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}),
                )
            }
            Method::POST => {
                let (plural, key) = place(&sent);
                if state.objects.entry(plural).or_default().contains_key(&key) {
                    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 409,
                        "reason": "AlreadyExists", "message": "exists"});
                    return whole(409, &status);
                }
                whole(201, &state.put(sent))
            }
            // The patches of the gateway are whole objects.
            Method::PATCH => whole(200, &state.put(sent)),
            other => panic!("the gateway does not {other}"),
        }
    }

    fn watch(&self, plural: &str, after: u64) -> Answer {
        let (sender, receiver) = unbounded();
        let mut state = self.0.lock();
        let missed = state.history.entry(plural.to_owned()).or_default().iter();
        for (_, event) in missed.filter(|(revision, _)| *revision > after) {
            let _ = sender.unbounded_send(event.clone());
        }
        state.watchers.push((plural.to_owned(), sender));
        let frames =
            receiver.map(|event| Ok(http_body::Frame::data(Bytes::from(format!("{event}\n")))));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

impl State {
    fn put(&mut self, mut object: Value) -> Value {
        let (plural, key) = place(&object);
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        object["metadata"]["uid"] = json!(format!("uid-{key}"));
        let known = self.objects.entry(plural.clone()).or_default();
        let kind = if known.insert(key, object.clone()).is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        self.tell(&plural, kind, &object);
        object
    }

    fn tell(&mut self, plural: &str, kind: &str, object: &Value) {
        let event = json!({"type": kind, "object": object});
        self.history
            .entry(plural.to_owned())
            .or_default()
            .push((self.revision, event.clone()));
        self.watchers.retain(|(watched, sender)| {
            watched != plural || sender.unbounded_send(event.clone()).is_ok()
        });
    }
}

fn place(object: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let plural = format!("{}s", text(&object["kind"]).to_lowercase());
    let metadata = &object["metadata"];
    (
        plural,
        format!(
            "{}/{}",
            text(&metadata["namespace"]),
            text(&metadata["name"])
        ),
    )
}

fn whole(code: u16, body: &Value) -> Answer {
    let body = Full::from(body.to_string()).boxed_unsync();
    Response::builder()
        .status(code)
        .body(body)
        .expect("is complete")
}
