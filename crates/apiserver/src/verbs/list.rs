//! Reading many objects, page by page if asked.
//!
//! A list is the stored bytes of its items, joined. All pages of a paged list are read from the
//! snapshot that the first page was read from: a snapshot costs nothing to keep but the objects
//! that were changed since, so a bounded number of them is kept for a bounded time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use serde_json::{Value, json};
use store::{Entry, Snapshot};

use super::answer;
use super::select::Selection;
use crate::handle::Call;
use crate::meta::Meta;
use crate::options::{ListOptions, Notation, Shown, Wanted};
use crate::status::Failure;
use crate::{encode, table};

/// Snapshots kept for the next page; the oldest is dropped for a new one.
const PAGED: usize = 64;
/// How long the next page may be asked for; upstream compacts after five minutes.
const PAGE_AGE: Duration = Duration::from_secs(300);
/// Bytes of one frame of a list.
const FRAME_BYTES: usize = 128 * 1024;

/// Snapshots that lists were begun on.
#[derive(Default)]
pub(crate) struct Pages(Mutex<VecDeque<(Instant, Snapshot<Meta>)>>);

impl Pages {
    fn keep(&self, snapshot: &Snapshot<Meta>) {
        let now = Instant::now();
        let mut kept = self.0.lock();
        kept.retain(|(since, _)| now.duration_since(*since) < PAGE_AGE);
        if kept
            .iter()
            .any(|(_, known)| known.revision() == snapshot.revision())
        {
            return;
        }
        if kept.len() >= PAGED {
            kept.pop_front();
        }
        kept.push_back((now, snapshot.clone()));
    }

    fn find(&self, revision: u64) -> Option<Snapshot<Meta>> {
        let mut kept = self.0.lock();
        let now = Instant::now();
        kept.retain(|(since, _)| now.duration_since(*since) < PAGE_AGE);
        kept.iter()
            .find(|(_, known)| known.revision().0 == revision)
            .map(|(_, known)| known.clone())
    }
}

/// One page of objects.
pub(crate) struct Page {
    pub(crate) revision: u64,
    pub(crate) entries: Vec<Arc<Entry<Meta>>>,
    next: Option<String>,
    remaining: Option<usize>,
}

/// Answers with a list.
pub(crate) fn list(call: &Call) -> Result<Response<Body>, Failure> {
    let options = ListOptions::parse(&call.query, false)?;
    let page = read(call, &options)?;
    let metadata = page.metadata();
    let resource = &call.resource;
    if call.accept.shown == Shown::Table {
        let objects = parsed(call, &page)?;
        let table = table::of_objects(call, &objects, metadata)?;
        return Ok(answer::value(call, &table, StatusCode::OK));
    }
    if call.accept.shown == Shown::Partial {
        let items: Vec<Value> = parsed(call, &page)?.iter().map(answer::partial).collect();
        let list = json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "items": items,
        });
        return Ok(answer::value(call, &list, StatusCode::OK));
    }
    let as_stored = page
        .entries
        .iter()
        .all(|entry| resource.head.is_head_of(&entry.bytes));
    if call.accept.notation == Notation::Yaml || call.accept.pretty || !as_stored {
        let mut items = parsed(call, &page)?;
        for item in &mut items {
            if let Some(item) = item.as_object_mut() {
                item.remove("kind");
                item.remove("apiVersion");
            }
        }
        let list = json!({
            "kind": resource.kind.list_kind(),
            "apiVersion": resource.api_version,
            "metadata": metadata,
            "items": items,
        });
        return Ok(answer::value(call, &list, StatusCode::OK));
    }
    let opening = format!(
        "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{metadata},\"items\":[",
        Value::from(resource.kind.list_kind()),
        Value::from(resource.api_version.as_str()),
    );
    let body = Joined::new(opening, page.entries, resource.head.clone());
    Ok(answer::with_type(
        StatusCode::OK,
        Body::new(body),
        "application/json",
    ))
}

fn parsed(call: &Call, page: &Page) -> Result<Vec<Value>, Failure> {
    page.entries
        .iter()
        .map(|entry| answer::parse(call, entry))
        .collect()
}

/// Finds the objects that the options are about.
pub(crate) fn read(call: &Call, options: &ListOptions) -> Result<Page, Failure> {
    let selection = Selection::parse(call, options)?;
    let token = options
        .continue_token
        .as_deref()
        .map(Token::parse)
        .transpose()?;
    let store = call.core.store();
    let newest = store.snapshot();
    let current = newest.revision().0;
    let (snapshot, after) = match token {
        Some(token) => {
            let snapshot = match token.revision {
                // The caller gave up consistency to go on.
                None => newest,
                Some(revision) if revision == current => newest,
                Some(revision) => call
                    .core
                    .pages
                    .find(revision)
                    .ok_or_else(|| expired_token(&token.after))?,
            };
            (snapshot, Some(token.after))
        }
        None => (at(call, newest, options.wanted)?, None),
    };
    let limit = match (options.limit, options.wanted) {
        // Upstream answers these from a cache that does not page.
        (0, _) | (_, Wanted::Any) => usize::MAX,
        (limit, _) => limit,
    };
    let prefix = call.prefix();
    let space = &call.resource.space;
    let mut entries = Vec::new();
    let mut more = false;
    for entry in snapshot.range(space, &prefix, after.as_deref(), usize::MAX) {
        if !selection.takes(&call.resource, entry) {
            continue;
        }
        if entries.len() == limit {
            more = true;
            break;
        }
        entries.push(entry.clone());
    }
    let revision = snapshot.revision().0;
    let next = entries
        .last()
        .filter(|_| more)
        .map(|last| Token::text(Some(revision), &last.key.name));
    let remaining = (more && selection.is_all()).then(|| {
        let last = entries.last().map(|last| last.key.name.clone());
        snapshot
            .range(space, &prefix, last.as_deref(), usize::MAX)
            .count()
    });
    if more {
        call.core.pages.keep(&snapshot);
    }
    Ok(Page {
        revision,
        entries,
        next,
        remaining,
    })
}

/// The state at the revision that a list without a token wants.
fn at(call: &Call, newest: Snapshot<Meta>, wanted: Wanted) -> Result<Snapshot<Meta>, Failure> {
    let current = newest.revision().0;
    match wanted {
        Wanted::Newest | Wanted::Any => Ok(newest),
        Wanted::NotOlderThan(revision) | Wanted::Exact(revision) if revision > current => {
            Err(Failure::revision_too_large(revision, current))
        }
        Wanted::NotOlderThan(_) => Ok(newest),
        Wanted::Exact(revision) if revision == current => Ok(newest),
        Wanted::Exact(revision) => call.core.pages.find(revision).ok_or_else(|| {
            Failure::expired("The resourceVersion for the provided list is too old.")
        }),
    }
}

impl Page {
    fn metadata(&self) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if let Some(next) = &self.next {
            metadata["continue"] = next.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        metadata
    }
}

/// Where the next page begins, as upstream writes it.
struct Token {
    /// The snapshot to go on in; the newest if none.
    revision: Option<u64>,
    /// The last name of the page before.
    after: String,
}

impl Token {
    fn text(revision: Option<u64>, after: &str) -> String {
        let revision = revision.map_or(json!(-1), |revision| json!(revision));
        let token = json!({
            "v": "meta.k8s.io/v1",
            "rv": revision,
            "start": format!("{after}\u{0}"),
        });
        URL_SAFE_NO_PAD.encode(token.to_string())
    }

    fn parse(text: &str) -> Result<Token, Failure> {
        let not_valid = |why: &str| {
            Failure::bad_request(format!(
                "invalid continue token: continue key is not valid: {why}"
            ))
        };
        let bytes = URL_SAFE_NO_PAD
            .decode(text.trim_end_matches('='))
            .map_err(|error| not_valid(&go_base64_error(text, &error)))?;
        let token: Value = serde_json::from_slice(&bytes)
            .map_err(|error| not_valid(&super::body::go_syntax_error(&bytes, &error)))?;
        if token["v"] != "meta.k8s.io/v1" {
            let version = token["v"].as_str().unwrap_or_default();
            return Err(not_valid(&format!(
                "server does not recognize this encoded version {}",
                kinds::quote(version)
            )));
        }
        let start = token["start"].as_str().unwrap_or_default();
        if start.is_empty() {
            return Err(not_valid(
                "encoded start key empty (version meta.k8s.io/v1)",
            ));
        }
        let revision = match token["rv"].as_i64() {
            Some(-1) => None,
            Some(revision) if revision > 0 => Some(revision.unsigned_abs()),
            _ => {
                return Err(not_valid(
                    "incorrect encoded start resourceVersion (version meta.k8s.io/v1)",
                ));
            }
        };
        Ok(Token {
            revision,
            after: start.trim_end_matches('\u{0}').to_owned(),
        })
    }
}

/// Where a text stops being base64, as Go says it.
fn go_base64_error(text: &str, error: &base64::DecodeError) -> String {
    let offset = match error {
        base64::DecodeError::InvalidByte(offset, _)
        | base64::DecodeError::InvalidLastSymbol(offset, _) => *offset,
        _ => text.len() / 4 * 4,
    };
    format!("illegal base64 data at input byte {offset}")
}

/// 410 that shows how to go on without consistency.
fn expired_token(after: &str) -> Failure {
    Failure::expired("The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.")
        .with_continue(Token::text(None, after))
}

/// A list as a body of known length that copies its items only when they are sent.
struct Joined {
    opening: Option<Bytes>,
    entries: std::vec::IntoIter<Arc<Entry<Meta>>>,
    head: encode::Head,
    first: bool,
    left: u64,
}

const CLOSING: &[u8] = b"]}\n";

impl Joined {
    fn new(opening: String, entries: Vec<Arc<Entry<Meta>>>, head: encode::Head) -> Joined {
        let items: usize = entries
            .iter()
            .map(|entry| 1 + head.item(&entry.bytes).len())
            .sum();
        let commas = entries.len().saturating_sub(1);
        let left = opening.len() + items + commas + CLOSING.len();
        Joined {
            opening: Some(opening.into()),
            entries: entries.into_iter(),
            head,
            first: true,
            left: left as u64,
        }
    }

    /// How many entries go into the next frame, and its length: no frame grows after it was made.
    fn next_frame(&self) -> (usize, usize) {
        let mut length = self.opening.as_ref().map_or(0, Bytes::len);
        let mut count = 0;
        for entry in self.entries.as_slice() {
            let comma = usize::from(!(self.first && count == 0));
            let item = comma + 1 + self.head.item(&entry.bytes).len();
            if count > 0 && length + item > FRAME_BYTES {
                return (count, length);
            }
            length += item;
            count += 1;
        }
        (count, length + CLOSING.len())
    }
}

impl http_body::Body for Joined {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left == 0 {
            return std::task::Poll::Ready(None);
        }
        let this = &mut *self;
        let (count, length) = this.next_frame();
        let mut frame = BytesMut::with_capacity(length);
        if let Some(opening) = this.opening.take() {
            frame.put_slice(&opening);
        }
        for entry in this.entries.by_ref().take(count) {
            frame.put_slice(if this.first { b"{" } else { b",{" });
            this.first = false;
            frame.put_slice(this.head.item(&entry.bytes));
        }
        if this.entries.as_slice().is_empty() {
            frame.put_slice(CLOSING);
        }
        this.left -= frame.len() as u64;
        std::task::Poll::Ready(Some(Ok(Frame::data(frame.freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_list_is_as_long_as_it_says_however_large_its_items_are() {
        let check = async |sizes: &[usize]| {
            let head = encode::Head::new("ConfigMap", "v1");
            let entries: Vec<Arc<Entry<Meta>>> = sizes
                .iter()
                .map(|size| {
                    let object = json!({"metadata": {"name": "x".repeat(*size)}});
                    Arc::new(Entry {
                        key: store::Key::new("configmaps", "default/x"),
                        revision: store::Revision(1),
                        bytes: head.body(&object).at(store::Revision(1)),
                        meta: Meta::default(),
                    })
                })
                .collect();
            let items: Vec<String> = sizes
                .iter()
                .map(|size| {
                    let name = "x".repeat(*size);
                    format!(r#"{{"metadata":{{"resourceVersion":"1","name":"{name}"}}}}"#)
                })
                .collect();
            let expected = format!("[{}]}}\n", items.join(","));
            let mut body = Joined::new("[".into(), entries, head);
            let length = http_body::Body::size_hint(&body).exact();
            assert_eq!(length, Some(expected.len() as u64), "{sizes:?}");
            let mut whole = Vec::new();
            while let Some(frame) = body.frame().await {
                let data = frame
                    .map(Frame::into_data)
                    .expect("cannot fail")
                    .expect("data");
                // Only what cannot be divided makes a frame larger.
                let largest = sizes.iter().max().copied().unwrap_or_default();
                assert!(
                    data.len() <= FRAME_BYTES.max(largest + 100),
                    "{}",
                    data.len()
                );
                whole.extend_from_slice(&data);
            }
            assert!(whole == expected.as_bytes(), "{sizes:?}");
        };
        check(&[]).await;
        check(&[1]).await;
        check(&[700; 500]).await;
        check(&[FRAME_BYTES, 1, 2 * FRAME_BYTES, 3, FRAME_BYTES - 1]).await;
    }

    #[test]
    fn a_token_is_read_back_and_garbage_is_refused() {
        let token = Token::parse(&Token::text(Some(7), "default/web")).expect("our own");
        assert_eq!(
            (token.revision, token.after.as_str()),
            (Some(7), "default/web")
        );
        let token = Token::parse(&Token::text(None, "a")).expect("our own");
        assert_eq!(token.revision, None);
        for garbage in ["abc", "", "e30", "eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ"] {
            assert_eq!(
                Token::parse(garbage).err().map(|failure| failure.code()),
                Some(400),
                "{garbage}"
            );
        }
    }
}
