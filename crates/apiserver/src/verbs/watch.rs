//! Following objects as they change.
//!
//! A watch is a stream of frames `{"type":…,"object":…}`, each round the bytes that are stored.
//! Everything that is ready goes out in one frame of the connection.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use futures::Stream;
use http::{Response, StatusCode};
use kinds::Kind;
use serde_json::{Value, json};
use store::{Entry, Event, EventKind, Revision, Watch};
use tokio::time::{Instant, Sleep};

use super::answer;
use super::select::Selection;
use crate::handle::{Call, Core, Resource};
use crate::meta::Meta;
use crate::options::{Accept, ListOptions, Notation, Shown, Wanted};
use crate::status::Failure;
use crate::table;

/// How often a watcher that wants to is told how far it has seen.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long a watch lasts that does not say; upstream: between 30 and 60 minutes, so that the
/// watches of one client do not all end at once.
const TIMEOUT_LEAST: Duration = Duration::from_secs(1800);
/// What is longer than a year never ends, and clocks cannot count it.
const TIMEOUT_MOST: Duration = Duration::from_secs(365 * 24 * 3600);
/// Bytes that are collected before they go out in one piece.
const FRAME_BYTES: usize = 64 * 1024;

/// Answers with a stream of events.
pub(crate) fn watch(call: &Call) -> Result<Response<Body>, Failure> {
    let options = ListOptions::parse(&call.query, true)?;
    if call.accept.notation == Notation::Yaml {
        return Err(Failure::not_acceptable(true));
    }
    let selection = Selection::parse(call, &options)?;
    let frames = Frames {
        core: call.core.clone(),
        resource: call.resource.clone(),
        accept: call.accept,
        selection,
        include_object: table::Include::parse(&call.query)?,
        headed: false,
    };
    let prefix = call.prefix();
    let store = call.core.store();
    let snapshot = store.snapshot();
    let current = snapshot.revision();
    let with_state = match options.initial_events {
        Some(wanted) => wanted,
        None => matches!(options.wanted, Wanted::Newest | Wanted::Any),
    };
    let after = match options.wanted {
        Wanted::NotOlderThan(revision) | Wanted::Exact(revision) => {
            if with_state && revision > current.0 {
                return Err(Failure::revision_too_large(revision, current.0));
            }
            if with_state {
                current
            } else {
                Revision(revision)
            }
        }
        Wanted::Newest | Wanted::Any => current,
    };
    let watch = match store.watch(&call.resource.space, &prefix, after) {
        Ok(watch) => Some(watch),
        Err(compacted) => {
            let failure = Failure::expired(format!(
                "too old resource version: {} ({})",
                after.0, compacted.oldest.0
            ));
            return Ok(stream_answer(futures::stream::iter([Ok::<
                _,
                std::convert::Infallible,
            >(
                error_frame(&failure),
            )])));
        }
    };
    let initial: Vec<Arc<Entry<Meta>>> = if with_state {
        snapshot
            .range(&call.resource.space, &prefix, None, usize::MAX)
            .filter(|entry| frames.selection.takes(&call.resource, entry))
            .cloned()
            .collect()
    } else {
        Vec::new()
    };
    drop(snapshot);
    let timeout = options.timeout_seconds.map_or_else(
        || TIMEOUT_LEAST.mul_f64(1.0 + rand::random::<f64>()),
        |seconds| Duration::from_secs(seconds).min(TIMEOUT_MOST),
    );
    let drain = call.drain.clone();
    let following = Following {
        frames,
        initial: initial.into_iter(),
        end_of_initial: (options.initial_events == Some(true) && options.bookmarks)
            .then_some(current),
        watch,
        bookmarks: options.bookmarks,
        bookmark_at: Box::pin(tokio::time::sleep(BOOKMARK_EVERY)),
        last_bookmark: after,
        end_at: Box::pin(tokio::time::sleep_until(Instant::now() + timeout)),
        drained: Box::pin(async move { drain.signaled().await }),
    };
    Ok(stream_answer(following.into_stream()))
}

fn stream_answer(
    stream: impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static,
) -> Response<Body> {
    answer::with_type(
        StatusCode::OK,
        Body::from_stream(stream),
        "application/json",
    )
}

/// Makes frames for one watcher.
struct Frames {
    core: Arc<Core>,
    resource: Arc<Resource>,
    accept: Accept,
    selection: Selection,
    include_object: table::Include,
    /// Whether the columns of a table were sent already.
    headed: bool,
}

impl Frames {
    /// Writes the frame of an event, if it concerns the watcher.
    fn event(&mut self, out: &mut BytesMut, event: &Event<Meta>) {
        let resource = self.resource.clone();
        let before = event
            .previous
            .as_ref()
            .is_some_and(|previous| self.selection.takes(&resource, previous));
        let now = event.kind == EventKind::Put && self.selection.takes(&resource, &event.entry);
        match (before, now) {
            (false, true) => self.frame(out, "ADDED", &event.entry.bytes),
            (true, true) => self.frame(out, "MODIFIED", &event.entry.bytes),
            (true, false) if event.kind == EventKind::Delete => {
                self.frame(out, "DELETED", &event.entry.bytes);
            }
            (true, false) => {
                // It left the selection: the state that was selected, at the new revision.
                if let Some(previous) = &event.previous {
                    let bytes = resource
                        .stored_head
                        .restamp(&previous.bytes)
                        .at(event.revision);
                    self.frame(out, "DELETED", &bytes);
                }
            }
            (false, false) => {}
        }
    }

    fn frame(&mut self, out: &mut BytesMut, what: &str, bytes: &Bytes) {
        let as_stored = self.accept.shown == Shown::Object && self.resource.head.is_head_of(bytes);
        if as_stored {
            put_frame(out, what, bytes);
            return;
        }
        // What is stored was written by this server and is JSON.
        let object: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let object = self.resource.view(object);
        let shown = match self.accept.shown {
            Shown::Object => object,
            Shown::Partial => answer::partial(&object),
            Shown::Table => {
                let revision = object["metadata"]["resourceVersion"].clone();
                let mut table = table::of(
                    self.resource.kind,
                    [&object],
                    json!({ "resourceVersion": revision }),
                    self.include_object,
                    self.core.now(),
                );
                if std::mem::replace(&mut self.headed, true) {
                    table["columnDefinitions"] = Value::Null;
                }
                table
            }
        };
        put_frame(out, what, &crate::encode::unstored(&shown));
    }

    fn bookmark(&self, out: &mut BytesMut, revision: Revision, end_of_initial: bool) {
        let mut metadata = json!({
            "resourceVersion": revision.to_string(),
            "creationTimestamp": null,
        });
        if end_of_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.accept.shown {
            Shown::Object => {
                bookmark_object(self.resource.kind, &self.resource.api_version, metadata)
            }
            Shown::Partial => json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata,
            }),
            Shown::Table => json!({
                "kind": "Table",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": {"resourceVersion": revision.to_string()},
                "columnDefinitions": null,
                "rows": [{"cells": [], "object": {
                    "kind": "PartialObjectMetadata",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata,
                }}],
            }),
        };
        put_frame(out, "BOOKMARK", &crate::encode::unstored(&object));
    }
}

/// An otherwise empty object of the kind.
fn bookmark_object(kind: &Kind, api_version: &str, metadata: Value) -> Value {
    json!({"kind": kind.kind(), "apiVersion": api_version, "metadata": metadata})
}

fn put_frame(out: &mut BytesMut, what: &str, object: &[u8]) {
    out.reserve(object.len() + 40);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(what.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object.trim_ascii_end());
    out.put_slice(b"}\n");
}

fn error_frame(failure: &Failure) -> Bytes {
    let mut out = BytesMut::new();
    put_frame(
        &mut out,
        "ERROR",
        &crate::encode::unstored(&failure.to_value()),
    );
    out.freeze()
}

/// The state of one watch.
struct Following {
    frames: Frames,
    initial: std::vec::IntoIter<Arc<Entry<Meta>>>,
    end_of_initial: Option<Revision>,
    /// `None` once it has ended.
    watch: Option<Watch<Meta>>,
    bookmarks: bool,
    bookmark_at: std::pin::Pin<Box<Sleep>>,
    last_bookmark: Revision,
    end_at: std::pin::Pin<Box<Sleep>>,
    /// The order to stop, listened to once for the whole watch: all watches of the server share what
    /// gives it.
    drained: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Following {
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
        futures::stream::unfold(self, |mut following| async move {
            let frame = following.next().await?;
            Some((Ok(frame), following))
        })
    }

    /// The next piece of the stream; `None` at its end.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::new();
        for entry in self.initial.by_ref() {
            self.frames.frame(&mut out, "ADDED", &entry.bytes);
            if out.len() >= FRAME_BYTES {
                return Some(out.freeze());
            }
        }
        if let Some(revision) = self.end_of_initial.take() {
            self.frames.bookmark(&mut out, revision, true);
            self.last_bookmark = revision;
        }
        if !out.is_empty() {
            return Some(out.freeze());
        }
        loop {
            let watch = self.watch.as_mut()?;
            tokio::select! {
                biased;
                () = &mut self.drained => return None,
                () = &mut self.end_at => return None,
                taken = watch.next() => {
                    let Some(taken) = taken else {
                        self.watch = None;
                        return None;
                    };
                    self.take(&mut out, taken);
                    self.take_ready(&mut out);
                    if !out.is_empty() {
                        return Some(out.freeze());
                    }
                }
                () = &mut self.bookmark_at => {
                    self.bookmark_at.as_mut().reset(Instant::now() + BOOKMARK_EVERY);
                    let progress = watch.progress();
                    if self.bookmarks && progress > self.last_bookmark {
                        self.last_bookmark = progress;
                        self.frames.bookmark(&mut out, progress, false);
                        return Some(out.freeze());
                    }
                }
            }
        }
    }

    fn take(&mut self, out: &mut BytesMut, taken: Result<Arc<Event<Meta>>, store::Lagged>) {
        match taken {
            Ok(event) => self.frames.event(out, &event),
            Err(lagged) => {
                let failure = Failure::expired(format!(
                    "too old resource version: {} ({})",
                    lagged.seen.0,
                    self.frames.core.store().revision().0
                ));
                out.put_slice(&error_frame(&failure));
                self.watch = None;
            }
        }
    }

    /// Adds what can be had without waiting, so that a burst costs few writes.
    fn take_ready(&mut self, out: &mut BytesMut) {
        while out.len() < FRAME_BYTES {
            let Some(watch) = self.watch.as_mut() else {
                return;
            };
            match futures::FutureExt::now_or_never(watch.next()) {
                Some(Some(taken)) => self.take(out, taken),
                Some(None) => {
                    self.watch = None;
                    return;
                }
                None => return,
            }
        }
    }
}
