//! A work queue of keys: each waits at most once, and is never worked on twice at the same time.
//!
//! ```text
//!              add                    a worker takes it             done
//!   absent ──────────► waiting ──────────────────────► busy ──────────────► absent
//!                         ▲                             │  add: busy, and again after
//!                         └─────────────────────────────┘
//!   add_after: a timer per key, the earliest wins; when it fires, the key is added
//! ```
//!
//! Since a key only says "look again", waiting twice would say nothing more; so the queue is bounded
//! by the number of objects there are.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use lifecycle::Drain;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, error};

/// The first pause after a failure; it doubles with each further one.
const RETRY_MIN: Duration = Duration::from_millis(5);
/// The longest pause between two tries of a key.
const RETRY_MAX: Duration = Duration::from_secs(1000);
/// How long the work in hand may take after the order to stop, before it is dropped.
const FINISH_WITHIN: Duration = Duration::from_secs(3);

/// What a worker wants of the queue after it has dealt with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing, until the key is added again.
    Done,
    /// To look at the key again after this time.
    After(Duration),
}

/// See the module. Clones are the same queue.
pub struct Queue<Key> {
    shared: Arc<Shared<Key>>,
}

impl<Key> Clone for Queue<Key> {
    fn clone(&self) -> Self {
        Queue {
            shared: self.shared.clone(),
        }
    }
}

struct Shared<Key> {
    state: Mutex<State<Key>>,
    /// A key has begun to wait, or a timer has become the earliest.
    woken: Notify,
}

struct State<Key> {
    waiting: VecDeque<Key>,
    /// The keys of `waiting`, and the busy ones that are to wait again.
    dirty: HashSet<Key>,
    busy: HashSet<Key>,
    failures: HashMap<Key, u32>,
    timers: BTreeSet<(Instant, Key)>,
    timer_of: HashMap<Key, Instant>,
    panics: u64,
}

impl<Key> Default for Queue<Key> {
    fn default() -> Self {
        Queue {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    waiting: VecDeque::new(),
                    dirty: HashSet::new(),
                    busy: HashSet::new(),
                    failures: HashMap::new(),
                    timers: BTreeSet::new(),
                    timer_of: HashMap::new(),
                    panics: 0,
                }),
                woken: Notify::new(),
            }),
        }
    }
}

impl<Key> Queue<Key>
where
    Key: Hash + Ord + Clone + Debug + Send + 'static,
{
    /// An empty queue.
    pub fn new() -> Self {
        Queue::default()
    }

    /// Has the key looked at, as soon as a worker is free. If it is being looked at right now, it will
    /// be again.
    pub fn add(&self, key: Key) {
        let mut state = self.shared.state.lock();
        state.add(key);
        drop(state);
        self.shared.woken.notify_one();
    }

    /// Has the key looked at after `delay`. Of several timers of a key the earliest counts.
    pub fn add_after(&self, key: Key, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let due = Instant::now() + delay;
        let mut state = self.shared.state.lock();
        match state.timer_of.get(&key) {
            Some(&earlier) if earlier <= due => return,
            Some(&later) => {
                state.timers.remove(&(later, key.clone()));
            }
            None => {}
        }
        state.timer_of.insert(key.clone(), due);
        state.timers.insert((due, key));
        drop(state);
        self.shared.woken.notify_one();
    }

    /// Has the key looked at after a pause that grows with each failure: 5 ms, 10 ms … 1,000 s.
    pub fn add_rate_limited(&self, key: Key) {
        let mut state = self.shared.state.lock();
        let failures = state.failures.entry(key.clone()).or_default();
        let pause = RETRY_MIN.saturating_mul(1 << (*failures).min(20)).min(RETRY_MAX);
        *failures = failures.saturating_add(1);
        drop(state);
        self.add_after(key, pause);
    }

    /// Forgets the key's failures.
    pub fn forget(&self, key: &Key) {
        self.shared.state.lock().failures.remove(key);
    }

    /// How many keys wait for a worker.
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().waiting.len()
    }

    /// How often a reconcile has panicked.
    pub fn panics(&self) -> u64 {
        self.shared.state.lock().panics
    }

    /// Works on the queue until `drain` is signaled, on at most `workers` keys at a time. A reconcile
    /// that fails or panics is logged under `name` and tried again later; the work in hand when the
    /// order to stop comes is given three seconds to finish.
    pub async fn run<Reconcile, Running, Error>(
        self,
        name: &'static str,
        workers: usize,
        reconcile: Reconcile,
        drain: Drain,
    ) where
        Reconcile: Fn(Key) -> Running,
        Running: Future<Output = Result<Action, Error>> + Send + 'static,
        Error: Display + Send + 'static,
    {
        let free = Arc::new(Semaphore::new(workers));
        let mut running = JoinSet::new();
        loop {
            let permit = tokio::select! {
                permit = free.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
                () = drain.signaled() => break,
            };
            let key = tokio::select! {
                key = self.next() => key,
                () = drain.signaled() => break,
            };
            while running.try_join_next().is_some() {}
            // The closure itself may panic too, before there is a future.
            let begun = std::panic::catch_unwind(AssertUnwindSafe(|| reconcile(key.clone())));
            let queue = self.clone();
            running.spawn(async move {
                let outcome = match begun {
                    Ok(future) => AssertUnwindSafe(future).catch_unwind().await,
                    Err(panic) => Err(panic),
                };
                queue.settle(name, key, outcome);
                drop(permit);
            });
        }
        let finish = async { while running.join_next().await.is_some() {} };
        if tokio::time::timeout(FINISH_WITHIN, finish).await.is_err() {
            debug!(queue = name, "the work in hand is dropped");
        }
    }

    fn settle<Error: Display>(
        &self,
        name: &'static str,
        key: Key,
        outcome: Result<Result<Action, Error>, Box<dyn std::any::Any + Send>>,
    ) {
        self.shared.state.lock().done(&key);
        self.shared.woken.notify_one();
        match outcome {
            Ok(Ok(Action::Done)) => self.forget(&key),
            Ok(Ok(Action::After(delay))) => {
                self.forget(&key);
                self.add_after(key, delay);
            }
            Ok(Err(error)) => {
                debug!(queue = name, ?key, %error, "will be tried again");
                self.add_rate_limited(key);
            }
            Err(panic) => {
                let text = panic
                    .downcast_ref::<&str>()
                    .map(|text| (*text).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_default();
                error!(queue = name, ?key, panic = text, "panicked, will be tried again");
                self.shared.state.lock().panics += 1;
                self.add_rate_limited(key);
            }
        }
    }

    /// The next key, which is busy from now on.
    async fn next(&self) -> Key {
        loop {
            let woken = self.shared.woken.notified();
            let due = {
                let mut state = self.shared.state.lock();
                state.fire(Instant::now());
                if let Some(key) = state.take() {
                    return key;
                }
                state.timers.first().map(|(due, _)| *due)
            };
            match due {
                Some(due) => tokio::select! {
                    () = woken => {}
                    () = tokio::time::sleep_until(due) => {}
                },
                None => woken.await,
            }
        }
    }
}

impl<Key: Hash + Ord + Clone> State<Key> {
    fn add(&mut self, key: Key) {
        if let Some(due) = self.timer_of.remove(&key) {
            self.timers.remove(&(due, key.clone()));
        }
        if self.dirty.insert(key.clone()) && !self.busy.contains(&key) {
            self.waiting.push_back(key);
        }
    }

    fn take(&mut self) -> Option<Key> {
        let key = self.waiting.pop_front()?;
        self.dirty.remove(&key);
        self.busy.insert(key.clone());
        Some(key)
    }

    fn done(&mut self, key: &Key) {
        self.busy.remove(key);
        if self.dirty.contains(key) {
            self.waiting.push_back(key.clone());
        }
    }

    fn fire(&mut self, now: Instant) {
        while self.timers.first().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, key)) = self.timers.pop_first() {
                self.add(key);
            }
        }
    }
}
