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
/// The longest pause between two tries of a key, unless the queue has its own. Upstream's is a thousand
/// seconds, and what failed while the server was in trouble then stands still for a quarter of an hour
/// after it; a try costs next to nothing here.
const RETRY_MAX: Duration = Duration::from_secs(60);
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
    retry_max: Duration,
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
                    retry_max: RETRY_MAX,
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

    /// An empty queue that never pauses longer than this after a failure.
    pub fn retrying_within(longest: Duration) -> Self {
        let queue = Queue::default();
        queue.shared.state.lock().retry_max = longest;
        queue
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

    /// Has the key looked at after a pause that grows with each failure: 5 ms, 10 ms … a minute,
    /// or the longest that the queue was made with.
    pub fn add_rate_limited(&self, key: Key) {
        let mut state = self.shared.state.lock();
        let longest = state.retry_max;
        let failures = state.failures.entry(key.clone()).or_default();
        let pause = RETRY_MIN
            .saturating_mul(1 << (*failures).min(20))
            .min(longest);
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
                error!(
                    queue = name,
                    ?key,
                    panic = text,
                    "panicked, will be tried again"
                );
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Runs a queue of `workers` until `stop` is signaled by the test.
    macro_rules! running {
        ($queue:expr, $workers:expr, $reconcile:expr) => {{
            let (stop, drain) = lifecycle::drain();
            let task = tokio::spawn($queue.clone().run("test", $workers, $reconcile, drain));
            (stop, task)
        }};
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_never_worked_on_twice_at_once_and_not_forgotten_while_busy() {
        let queue = Queue::new();
        let (now, most, runs) = (
            AtomicUsize::new(0),
            AtomicUsize::new(0),
            AtomicUsize::new(0),
        );
        let counts = Arc::new((now, most, runs));
        let (stop, task) = running!(queue, 4, {
            let counts = counts.clone();
            move |_: &'static str| {
                let counts = counts.clone();
                async move {
                    let now = counts.0.fetch_add(1, Ordering::SeqCst) + 1;
                    counts.1.fetch_max(now, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    counts.0.fetch_sub(1, Ordering::SeqCst);
                    counts.2.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, Infallible>(Action::Done)
                }
            }
        });
        queue.add("a");
        queue.add("a");
        tokio::time::sleep(Duration::from_millis(500)).await;
        // Busy now: both of these together are one more look, after this one.
        queue.add("a");
        queue.add("a");
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(counts.1.load(Ordering::SeqCst), 1);
        assert_eq!(counts.2.load(Ordering::SeqCst), 2);
        stop.signal();
        task.await.expect("the queue ends in order");
    }

    #[tokio::test(start_paused = true)]
    async fn different_keys_run_side_by_side_up_to_the_number_of_workers() {
        let queue = Queue::new();
        let most = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
        let (stop, task) = running!(queue, 3, {
            let most = most.clone();
            move |_: u32| {
                let most = most.clone();
                async move {
                    let now = most.0.fetch_add(1, Ordering::SeqCst) + 1;
                    most.1.fetch_max(now, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    most.0.fetch_sub(1, Ordering::SeqCst);
                    Ok::<_, Infallible>(Action::Done)
                }
            }
        });
        (0..10).for_each(|key| queue.add(key));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(most.1.load(Ordering::SeqCst), 3);
        stop.signal();
        task.await.expect("the queue ends in order");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_and_an_error_are_tried_again_after_growing_pauses() {
        let queue = Queue::new();
        let times = Arc::new(Mutex::new(Vec::new()));
        let start = Instant::now();
        let (stop, task) = running!(queue, 1, {
            let times = times.clone();
            move |_: ()| {
                let times = times.clone();
                async move {
                    let count = {
                        let mut times = times.lock();
                        times.push(start.elapsed().as_millis());
                        times.len()
                    };
                    match count {
                        1 => panic!("the first time"),
                        2..5 => Err("not yet"),
                        _ => Ok(Action::Done),
                    }
                }
            }
        });
        queue.add(());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let pauses: Vec<_> = times
            .lock()
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .collect();
        assert_eq!(pauses, [5, 10, 20, 40]);
        assert_eq!(queue.panics(), 1);
        assert!(queue.shared.state.lock().failures.is_empty());
        stop.signal();
        task.await.expect("the queue ends in order");
    }

    #[tokio::test(start_paused = true)]
    async fn no_pause_is_longer_than_the_queue_allows() {
        for (queue, longest) in [
            (Queue::new(), 60),
            (Queue::retrying_within(Duration::from_secs(10)), 10),
        ] {
            let times = Arc::new(Mutex::new(Vec::new()));
            let start = Instant::now();
            let (stop, task) = running!(queue, 1, {
                let times = times.clone();
                move |()| {
                    times.lock().push(start.elapsed());
                    async { Err::<Action, _>("never") }
                }
            });
            queue.add(());
            tokio::time::sleep(Duration::from_secs(3600)).await;
            stop.signal();
            task.await.expect("the queue ends in order");
            let times = times.lock();
            let pauses = times.windows(2).map(|pair| pair[1] - pair[0]);
            assert_eq!(pauses.max(), Some(Duration::from_secs(longest)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_several_timers_the_earliest_counts_and_a_plain_add_takes_them_back() {
        let queue = Queue::new();
        let times = Arc::new(Mutex::new(Vec::new()));
        let start = Instant::now();
        let (stop, task) = running!(queue, 1, {
            let times = times.clone();
            move |key: &'static str| {
                times.lock().push((key, start.elapsed().as_secs()));
                async { Ok::<_, Infallible>(Action::Done) }
            }
        });
        queue.add_after("a", Duration::from_secs(30));
        queue.add_after("a", Duration::from_secs(10));
        queue.add_after("a", Duration::from_secs(20));
        queue.add_after("b", Duration::from_secs(5));
        queue.add("b");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(*times.lock(), [("b", 0), ("a", 10)]);
        stop.signal();
        task.await.expect("the queue ends in order");
    }

    #[tokio::test(start_paused = true)]
    async fn the_work_in_hand_is_finished_before_the_queue_ends() {
        let queue = Queue::new();
        let finished = Arc::new(AtomicUsize::new(0));
        let (stop, task) = running!(queue, 2, {
            let finished = finished.clone();
            move |seconds: u64| {
                let finished = finished.clone();
                async move {
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                    finished.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, Infallible>(Action::Done)
                }
            }
        });
        queue.add(2);
        queue.add(3600);
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.signal();
        task.await.expect("the queue ends in order");
        assert_eq!(finished.load(Ordering::SeqCst), 1);
    }
}
