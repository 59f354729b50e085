//! Keeping a cache like the server: list, then watch, then watch on from where it stopped.
//!
//! ```text
//!         ┌────────── 410 Gone: the place is no longer in the history ─────────┐
//!         ▼                                                                    │
//!       list ──► watch after revision ──► event, bookmark ──► … ──► end, error ┘
//!                      ▲                                             │
//!                      └───────────── again, after a pause ◄─────────┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use futures::AsyncBufReadExt;
use http::HeaderValue;
use http::header::ACCEPT_ENCODING;
use kube::api::{ListParams, WatchParams};
use kube::core::watch::Bookmark;
use kube::core::{Request, Status};
use lifecycle::Drain;
use serde_json::value::RawValue;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::cache::Cache;
use crate::decode::{self, Frame, List};
use crate::informers::Object;

/// Objects per page of the list: bounds what is in flight on top of the cache.
const PAGE: u32 = 500;
/// How long the server is asked to keep one watch, in seconds.
const WATCH_SECONDS: u32 = 290;
/// After this long a watch is taken for dead: the server should have ended it.
const WATCH_DEAD_AFTER: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 30);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Letters of a line that is no event, for the log.
const EXCERPT_MAX: usize = 200;
/// A watch that lived this long was a good one: the next pause begins small again.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// How much of each object is asked for.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    Whole,
    Metadata,
}

/// Where the objects come from.
pub(crate) struct Source<K> {
    pub(crate) client: kube::Client,
    pub(crate) path: String,
    pub(crate) field_selector: Option<String>,
    pub(crate) form: Form,
    /// Takes out of each object what nobody here reads.
    pub(crate) trim: Option<Trim<K>>,
}

/// See [`Source::trim`].
pub(crate) type Trim<K> = Arc<dyn Fn(&mut K) + Send + Sync>;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("could not build the request")]
    Build(#[source] kube::core::request::Error),
    #[error("could not list")]
    List(#[source] kube::Error),
    #[error("could not start to watch after revision {revision}")]
    WatchStart {
        revision: String,
        #[source]
        source: kube::Error,
    },
    #[error("the list is not one")]
    NoList(#[source] serde_json::Error),
    #[error("the watch broke")]
    Watch(#[source] std::io::Error),
    #[error("the watch said what is no event: {0}")]
    NoEvent(String),
    #[error("the server ended the watch: {0}")]
    Ended(Box<Status>),
    #[error("nothing was heard of the watch for {} s", WATCH_DEAD_AFTER.as_secs())]
    Silent,
}

impl Error {
    /// Whether the server no longer knows the place to go on from.
    fn is_expired(&self) -> bool {
        let status = match self {
            Error::WatchStart {
                source: kube::Error::Api(status),
                ..
            } => status,
            Error::List(kube::Error::Api(status)) | Error::Ended(status) => status,
            _ => return false,
        };
        status.code == 410 || matches!(status.reason.as_str(), "Expired" | "Gone")
    }
}

/// Runs until `drain` is signaled.
pub(crate) async fn run<K: Object>(source: Source<K>, cache: Arc<Cache<K>>, drain: Drain) {
    let mut revision = None;
    let mut pause = PAUSE_MIN;
    loop {
        let started = Instant::now();
        let result = tokio::select! {
            result = source.follow(&cache, &mut revision) => result,
            () = drain.signaled() => return,
        };
        let healthy = started.elapsed() >= HEALTHY_AFTER;
        if healthy {
            pause = PAUSE_MIN;
        }
        match result {
            Ok(()) if healthy => continue,
            Ok(()) => debug!(path = source.path, "the watch ended early"),
            Err(error) if error.is_expired() => {
                debug!(
                    path = source.path,
                    "the history was passed by, listing again"
                );
                revision = None;
            }
            // Someone who starts at the same time as the server need not read of its first moments.
            Err(error) if pause > Duration::from_millis(500) => {
                warn!(
                    path = source.path,
                    error = &error as &dyn std::error::Error,
                    "cannot follow, will try again"
                );
            }
            Err(error) => debug!(
                path = source.path,
                error = &error as &dyn std::error::Error,
                "cannot follow"
            ),
        }
        let jittered = pause.mul_f64(rand::random_range(0.75..1.25));
        tokio::select! {
            () = tokio::time::sleep(jittered) => {}
            () = drain.signaled() => return,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

impl<K: Object> Source<K> {
    /// One list, if there is no place to go on from, and one watch.
    async fn follow(&self, cache: &Cache<K>, revision: &mut Option<String>) -> Result<(), Error> {
        let mut place = match revision.take() {
            Some(place) => place,
            None => self.list(cache).await?,
        };
        let result = tokio::time::timeout(WATCH_DEAD_AFTER, self.watch(cache, &mut place))
            .await
            .unwrap_or(Err(Error::Silent));
        *revision = Some(place);
        result
    }

    async fn list(&self, cache: &Cache<K>) -> Result<String, Error> {
        let mut objects = Vec::new();
        let mut params = ListParams {
            field_selector: self.field_selector.clone(),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        loop {
            let request = Request::new(&self.path);
            let request = match self.form {
                Form::Whole => request.list(&params),
                Form::Metadata => request.list_metadata(&params),
            };
            let text = self.client.request_text(request.map_err(Error::Build)?);
            let text = text.await.map_err(Error::List)?;
            let page: List<'_> = serde_json::from_str(&text).map_err(Error::NoList)?;
            let items = page.items.unwrap_or_default();
            objects.extend(items.into_iter().filter_map(|item| self.read(item)));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => {
                    let revision = page.metadata.resource_version.unwrap_or_default();
                    cache.replace(objects, &revision);
                    return Ok(revision);
                }
            }
        }
    }

    async fn watch(&self, cache: &Cache<K>, place: &mut String) -> Result<(), Error> {
        let params = WatchParams {
            field_selector: self.field_selector.clone(),
            timeout: Some(WATCH_SECONDS),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = Request::new(&self.path);
        let request = match self.form {
            Form::Whole => request.watch(&params, place),
            Form::Metadata => request.watch_metadata(&params, place),
        };
        let mut request = request.map_err(Error::Build)?;
        // Servers from 1.37 on would compress each event on its own, which the client cannot read.
        let identity = HeaderValue::from_static("identity");
        request.headers_mut().insert(ACCEPT_ENCODING, identity);
        let events = self.client.request_stream(request).await;
        let events = events.map_err(|source| Error::WatchStart {
            revision: place.clone(),
            source,
        })?;
        let mut events = std::pin::pin!(events);
        let mut line = String::new();
        loop {
            line.clear();
            let length = events.read_line(&mut line).await.map_err(Error::Watch)?;
            // What does not end like a line was cut off: it comes again.
            if length == 0 || !line.ends_with('\n') {
                return Ok(());
            }
            self.take(&line, cache, place)?;
        }
    }

    /// Takes one event of a watch.
    fn take(&self, line: &str, cache: &Cache<K>, place: &mut String) -> Result<(), Error> {
        let no_event = || Error::NoEvent(line.chars().take(EXCERPT_MAX).collect());
        let frame: Frame<'_> = serde_json::from_str(line).map_err(|_| no_event())?;
        match frame.event {
            "ADDED" | "MODIFIED" => match decode::object::<K>(frame.object) {
                Ok(object) => {
                    advance(place, object.meta().resource_version.as_deref());
                    cache.apply(self.compact(object));
                }
                Err(unreadable) => {
                    self.complain(&unreadable);
                    let revision = unreadable.metadata.resource_version.as_deref();
                    advance(place, revision);
                    cache.reach(place.parse().unwrap_or_default());
                }
            },
            "DELETED" => match decode::object::<K>(frame.object) {
                Ok(object) => {
                    advance(place, object.meta().resource_version.as_deref());
                    cache.delete(self.compact(object));
                }
                Err(unreadable) => {
                    advance(place, unreadable.metadata.resource_version.as_deref());
                    cache.delete_named(&unreadable.metadata);
                }
            },
            "BOOKMARK" => {
                let bookmark = serde_json::from_str::<Bookmark>(frame.object.get());
                let bookmark = bookmark.map_err(|_| no_event())?;
                let revision = bookmark.metadata.resource_version;
                cache.reach(revision.parse().unwrap_or_default());
                *place = revision;
            }
            "ERROR" => {
                let status = serde_json::from_str::<Status>(frame.object.get());
                return Err(Error::Ended(Box::new(status.map_err(|_| no_event())?)));
            }
            _ => return Err(no_event()),
        }
        Ok(())
    }

    fn read(&self, text: &RawValue) -> Option<Arc<K>> {
        match decode::object(text) {
            Ok(object) => Some(self.compact(object)),
            Err(unreadable) => {
                self.complain(&unreadable);
                None
            }
        }
    }

    fn complain(&self, unreadable: &decode::Unreadable) {
        warn!(
            path = self.path,
            namespace = unreadable.metadata.namespace,
            name = unreadable.metadata.name,
            error = %unreadable.error,
            "an object is left out, for it cannot be read"
        );
    }

    /// What the cache keeps of an object: without managed fields, which are a third of a pod and read
    /// by nobody here; and cloned, because a decoded vector has room for more than it holds and its
    /// clone has not.
    fn compact(&self, mut object: K) -> Arc<K> {
        object.meta_mut().managed_fields = None;
        if let Some(trim) = &self.trim {
            trim(&mut object);
        }
        Arc::new(object.clone())
    }
}

fn advance(place: &mut String, revision: Option<&str>) {
    if let Some(revision) = revision {
        revision.clone_into(place);
    }
}
