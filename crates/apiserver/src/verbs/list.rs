//! Reading many objects, page by page if asked.
//!
//! A list is the stored bytes of its items, joined. All pages of a paged list are read from the
//! state that the first page was read from.

use std::ops::Bound;
use std::sync::Arc;

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body::{Frame, SizeHint};
use serde_json::{Value, json};
use store::{Entry, Revision};

use super::answer;
use super::pages::{State, Token};
use super::select::Selection;
use crate::handle::Call;
use crate::meta::Meta;
use crate::options::{ListOptions, Notation, Shown, Wanted};
use crate::status::Failure;
use crate::{encode, table};

/// Bytes of one frame of a list.
const FRAME_BYTES: usize = 128 * 1024;

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
    let prefix = call.prefix();
    let begins = token.is_none();
    let (state, from) = match token {
        Some(token) => {
            if !matches!(options.wanted, Wanted::Newest | Wanted::Any) {
                return Err(Failure::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let from = format!("{prefix}{}", token.start());
            (begun(call, &token)?, Some(from))
        }
        None => (at(call, options.wanted)?, None),
    };
    let limit = match (options.limit, options.wanted) {
        // Upstream answers these from a cache that does not page.
        (0, _) | (_, Wanted::Any) => usize::MAX,
        (limit, _) => limit,
    };
    let from = from.as_deref().map_or(Bound::Unbounded, Bound::Included);
    let mut entries = Vec::new();
    let mut more = false;
    for entry in state.entries.range(&prefix, from) {
        if !selection.takes(&call.resource, entry) {
            continue;
        }
        if entries.len() == limit {
            more = true;
            break;
        }
        entries.push(entry.clone());
    }
    let last = entries.last().filter(|_| more);
    let last = last.map(|last: &Arc<Entry<Meta>>| last.key.name.clone());
    let next = last.as_deref().map(|last| {
        call.core
            .pages
            .keep(&call.caller.name, &call.resource.space, &state, begins);
        let last = last.strip_prefix(&*prefix).unwrap_or(last);
        Token::after(last, state.revision).text()
    });
    let remaining = last.as_deref().filter(|_| selection.is_all()).map(|last| {
        let rest = state.entries.range(&prefix, Bound::Excluded(last));
        rest.count()
    });
    Ok(Page {
        revision: state.revision.0,
        entries,
        next,
        remaining,
    })
}

/// The state in which a list that goes on was begun.
fn begun(call: &Call, token: &Token) -> Result<State, Failure> {
    match token.revision {
        // The caller gave up consistency to go on.
        None => Ok(newest(call)),
        Some(revision) => past(call, revision)?.ok_or_else(|| token.expired()),
    }
}

/// The state that a list without a token wants.
fn at(call: &Call, wanted: Wanted) -> Result<State, Failure> {
    match wanted {
        Wanted::Newest | Wanted::Any => Ok(newest(call)),
        Wanted::NotOlderThan(revision) => {
            let newest = newest(call);
            not_ahead(revision, newest.revision.0)?;
            Ok(newest)
        }
        Wanted::Exact(revision) => past(call, Revision(revision))?.ok_or_else(|| {
            Failure::expired("The resourceVersion for the provided list is too old.")
        }),
    }
}

fn newest(call: &Call) -> State {
    State::of(&call.core.store().snapshot(), &call.resource.space)
}

/// The state at a revision, if it is known still.
fn past(call: &Call, revision: Revision) -> Result<Option<State>, Failure> {
    let newest = newest(call);
    not_ahead(revision.0, newest.revision.0)?;
    if revision == newest.revision {
        return Ok(Some(newest));
    }
    Ok(call.core.pages.find(&call.resource.space, revision))
}

fn not_ahead(revision: u64, current: u64) -> Result<(), Failure> {
    if revision > current {
        return Err(Failure::revision_too_large(revision, current));
    }
    Ok(())
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
}
