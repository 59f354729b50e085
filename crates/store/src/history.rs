//! The recent past, per space, and who waits for the next part of it.
//!
//! ```text
//!   space "pods":   [ e17 e18 e21 e22 ]      one ring of shared events
//!                         ▲       ▲
//!   watchers:      pending=e18  pending=e22, or nothing pending: asleep
//! ```
//!
//! A watcher has no queue of its own: it is a position in the ring of its space. So publishing costs
//! one push per event and one wake-up per watcher whose prefix matches, whatever the size of the
//! event; a slow watcher holds no memory, and it has lagged exactly when the ring has forgotten the
//! first event that it has not seen.

use std::collections::{BTreeMap, VecDeque};
use std::mem::size_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Waker};

use parking_lot::{Mutex, RwLock};

use crate::{Compacted, Entry, Event, EventKind, Options, Revision, Watch};

/// Events that a watcher takes at once, so that it does not take the lock for each.
const TAKE: usize = 64;

pub(crate) struct History<M> {
    shelf: Arc<Shelf<M>>,
    limit_events: usize,
    limit_bytes: usize,
}

/// The part that watches hold on to.
pub(crate) struct Shelf<M> {
    hubs: RwLock<BTreeMap<Arc<str>, Arc<Hub<M>>>>,
    /// The revision at which the store was opened; nothing before it is remembered.
    start: Revision,
    /// All events up to this revision are in their hubs.
    published: AtomicU64,
    bytes: AtomicUsize,
    closed: AtomicBool,
}

impl<M> Shelf<M> {
    pub(crate) fn published(&self) -> Revision {
        Revision(self.published.load(Ordering::Acquire))
    }
}

/// One space's ring and its watchers.
pub(crate) struct Hub<M>(Mutex<Ring<M>>);

struct Ring<M> {
    events: VecDeque<Arc<Event<M>>>,
    /// The sequence number of the first of `events`.
    first: u64,
    /// Events up to this revision may have been forgotten.
    compacted: Revision,
    watchers: BTreeMap<u64, Watcher>,
    next_watcher: u64,
    closed: bool,
}

struct Watcher {
    prefix: Box<str>,
    after: Revision,
    /// The sequence number of the first event that it wants and has not taken.
    pending: Option<u64>,
    waker: Option<Waker>,
}

impl Watcher {
    fn wants<M>(&self, event: &Event<M>) -> bool {
        event.revision > self.after && event.entry.key.name.starts_with(&*self.prefix)
    }
}

/// What a watcher found.
pub(crate) enum Taken {
    Events,
    Nothing,
    Lagged,
    Closed,
}

/// The memory that only the history keeps alive for an event: the value that it replaced, since the
/// new one is part of the present state until the next event pays for it.
fn cost<M>(event: &Event<M>) -> usize {
    let replaced = event.previous.as_ref().map_or(0, |entry| entry.bytes.len());
    let last = match event.kind {
        EventKind::Put => 0,
        EventKind::Delete => event.entry.bytes.len(),
    };
    size_of::<Event<M>>() + size_of::<Entry<M>>() + replaced + last
}

impl<M> History<M> {
    pub(crate) fn new(start: Revision, options: &Options) -> Self {
        History {
            shelf: Arc::new(Shelf {
                hubs: RwLock::default(),
                start,
                published: AtomicU64::new(start.0),
                bytes: AtomicUsize::new(0),
                closed: AtomicBool::new(false),
            }),
            limit_events: options.history_events.max(1),
            limit_bytes: options.history_bytes,
        }
    }

    fn hub(&self, space: &str) -> Arc<Hub<M>> {
        if let Some(hub) = self.shelf.hubs.read().get(space) {
            return hub.clone();
        }
        let mut hubs = self.shelf.hubs.write();
        // Asked under the lock that `close` takes, so that no open hub comes after it.
        let closed = self.shelf.closed.load(Ordering::Relaxed);
        hubs.entry(space.into())
            .or_insert_with(|| Arc::new(Hub::new(self.shelf.start, closed)))
            .clone()
    }

    pub(crate) fn watch(
        &self,
        space: &str,
        name_prefix: &str,
        after: Revision,
    ) -> Result<Watch<M>, Compacted> {
        let hub = self.hub(space);
        let id = hub.join(name_prefix, after)?;
        Ok(Watch::new(self.shelf.clone(), hub, id, after))
    }

    /// Takes over `events`, which are in revision order and end at `newest`, and wakes who wants
    /// them. Only the writer calls it.
    pub(crate) fn publish(&self, events: Vec<Arc<Event<M>>>, newest: Revision) {
        let mut by_space: BTreeMap<Arc<str>, Vec<Arc<Event<M>>>> = BTreeMap::new();
        let mut added = 0;
        for event in events {
            added += cost(&event);
            match by_space.get_mut(&event.entry.key.space) {
                Some(list) => list.push(event),
                None => {
                    by_space.insert(event.entry.key.space.clone(), vec![event]);
                }
            }
        }
        self.shelf.bytes.fetch_add(added, Ordering::Relaxed);
        let mut wakers = Vec::new();
        for (space, events) in by_space {
            let forgotten = self
                .hub(&space)
                .publish(events, self.limit_events, &mut wakers);
            self.shelf.bytes.fetch_sub(forgotten, Ordering::Relaxed);
        }
        self.forget_oldest();
        self.shelf.published.store(newest.0, Ordering::Release);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Forgets the oldest events of all spaces until the rest fits.
    fn forget_oldest(&self) {
        while self.shelf.bytes.load(Ordering::Relaxed) > self.limit_bytes {
            let hubs = self.shelf.hubs.read();
            let oldest = hubs
                .values()
                .filter_map(|hub| Some((hub.oldest()?, hub)))
                .min_by_key(|(revision, _)| *revision);
            let Some((_, hub)) = oldest else { return };
            let forgotten = hub.0.lock().forget_first();
            self.shelf.bytes.fetch_sub(forgotten, Ordering::Relaxed);
        }
    }

    /// Ends all watches after what they have not taken yet.
    pub(crate) fn close(&self) {
        let hubs = self.shelf.hubs.write();
        self.shelf.closed.store(true, Ordering::Relaxed);
        let mut wakers = Vec::new();
        for hub in hubs.values() {
            let mut ring = hub.0.lock();
            ring.closed = true;
            wakers.extend(
                ring.watchers
                    .values_mut()
                    .filter_map(|watcher| watcher.waker.take()),
            );
        }
        drop(hubs);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl<M> Hub<M> {
    fn new(start: Revision, closed: bool) -> Self {
        Hub(Mutex::new(Ring {
            events: VecDeque::new(),
            first: 0,
            compacted: start,
            watchers: BTreeMap::new(),
            next_watcher: 0,
            closed,
        }))
    }

    fn oldest(&self) -> Option<Revision> {
        self.0.lock().events.front().map(|event| event.revision)
    }

    fn join(&self, prefix: &str, after: Revision) -> Result<u64, Compacted> {
        let mut ring = self.0.lock();
        if after < ring.compacted {
            return Err(Compacted {
                oldest: ring.compacted,
            });
        }
        let mut watcher = Watcher {
            prefix: prefix.into(),
            after,
            pending: None,
            waker: None,
        };
        let unseen = ring.events.partition_point(|event| event.revision <= after);
        watcher.pending = ring.find(&watcher, ring.first + unseen as u64);
        let id = ring.next_watcher;
        ring.next_watcher += 1;
        ring.watchers.insert(id, watcher);
        Ok(id)
    }

    pub(crate) fn leave(&self, id: u64) {
        self.0.lock().watchers.remove(&id);
    }

    /// Whether the watcher has taken all that it wants of what is there.
    pub(crate) fn is_up_to_date(&self, id: u64) -> bool {
        self.0
            .lock()
            .watchers
            .get(&id)
            .is_some_and(|watcher| watcher.pending.is_none())
    }

    fn publish(&self, events: Vec<Arc<Event<M>>>, limit: usize, wakers: &mut Vec<Waker>) -> usize {
        let mut ring = self.0.lock();
        let begin = ring.first + ring.events.len() as u64;
        for watcher in ring.watchers.values_mut() {
            if watcher.pending.is_some() {
                continue;
            }
            let wanted = events.iter().position(|event| watcher.wants(event));
            if let Some(position) = wanted {
                watcher.pending = Some(begin + position as u64);
                wakers.extend(watcher.waker.take());
            }
        }
        ring.events.extend(events);
        let mut forgotten = 0;
        while ring.events.len() > limit {
            forgotten += ring.forget_first();
        }
        forgotten
    }

    /// Moves the next events that the watcher wants into `buffer`.
    pub(crate) fn take(
        &self,
        id: u64,
        buffer: &mut VecDeque<Arc<Event<M>>>,
        context: &Context<'_>,
    ) -> Taken {
        let mut ring = self.0.lock();
        let closed = ring.closed;
        let Some(watcher) = ring.watchers.get_mut(&id) else {
            return Taken::Closed;
        };
        let Some(pending) = watcher.pending else {
            if closed {
                return Taken::Closed;
            }
            watcher.waker = Some(context.waker().clone());
            return Taken::Nothing;
        };
        if pending < ring.first {
            return Taken::Lagged;
        }
        let begin = (pending - ring.first) as usize;
        let watcher = &ring.watchers[&id];
        let mut rest = None;
        for (offset, event) in ring.events.range(begin..).enumerate() {
            if !watcher.wants(event) {
                continue;
            }
            if buffer.len() == TAKE {
                rest = Some(pending + offset as u64);
                break;
            }
            buffer.push_back(event.clone());
        }
        if let Some(watcher) = ring.watchers.get_mut(&id) {
            watcher.pending = rest;
        }
        Taken::Events
    }
}

impl<M> Ring<M> {
    /// The first event at or after sequence number `from` that the watcher wants.
    fn find(&self, watcher: &Watcher, from: u64) -> Option<u64> {
        let begin = from.saturating_sub(self.first) as usize;
        self.events
            .iter()
            .skip(begin)
            .position(|event| watcher.wants(event))
            .map(|position| self.first + (begin + position) as u64)
    }

    /// Forgets the oldest event and returns what it cost.
    fn forget_first(&mut self) -> usize {
        let Some(event) = self.events.pop_front() else {
            return 0;
        };
        self.first += 1;
        self.compacted = event.revision;
        cost(&event)
    }
}
