//! Starting, being ready, and draining.
//!
//! A part that needs time to become useful holds a [`BlockReady`] guard and drops it when it is;
//! a part that must end in an orderly way listens to a [`Drain`]. Both are values that are handed
//! down, so that a test can start and stop any subset of the program in one process.
//!
//! What to do while draining, and for how long, is left to each part.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The receiving end of an order to stop. Clones hear the same order.
#[derive(Clone, Debug)]
pub struct Drain(CancellationToken);

/// The sending end of an order to stop.
#[derive(Clone, Debug)]
pub struct DrainTrigger(CancellationToken);

/// A connected pair; dropping the trigger does not signal.
pub fn drain() -> (DrainTrigger, Drain) {
    let token = CancellationToken::new();
    (DrainTrigger(token.clone()), Drain(token))
}

impl Drain {
    /// A drain that is never signaled, for tests and one-shot commands.
    pub fn never() -> Drain {
        Drain(CancellationToken::new())
    }

    /// Resolves when the order is given; at once if it already was.
    pub async fn signaled(&self) {
        self.0.cancelled().await;
    }

    /// Whether the order was given.
    pub fn is_signaled(&self) -> bool {
        self.0.is_cancelled()
    }

    /// A pair below this drain: it hears this drain's order, and can be signaled on its own.
    pub fn child(&self) -> (DrainTrigger, Drain) {
        let token = self.0.child_token();
        (DrainTrigger(token.clone()), Drain(token))
    }
}

impl DrainTrigger {
    /// Gives the order. Idempotent.
    pub fn signal(&self) {
        self.0.cancel();
    }
}

/// What is still being waited for, by name.
#[derive(Clone, Debug)]
pub struct Ready(Arc<State>);

#[derive(Debug)]
struct State {
    pending: Mutex<BTreeMap<&'static str, usize>>,
    changed: watch::Sender<()>,
}

/// A reason not to be ready yet. Dropping it takes the reason back.
#[derive(Debug)]
pub struct BlockReady {
    ready: Ready,
    name: &'static str,
}

impl Default for Ready {
    fn default() -> Self {
        Ready(Arc::new(State {
            pending: Mutex::default(),
            changed: watch::Sender::new(()),
        }))
    }
}

impl Ready {
    /// Registers a reason to wait, under a name that `wharf status` can show.
    pub fn block(&self, name: &'static str) -> BlockReady {
        *self.pending().entry(name).or_default() += 1;
        BlockReady {
            ready: self.clone(),
            name,
        }
    }

    /// The names of what is still being waited for, sorted.
    pub fn waiting_for(&self) -> Vec<&'static str> {
        self.pending().keys().copied().collect()
    }

    /// Resolves when nothing is being waited for.
    pub async fn wait(&self) {
        let mut changed = self.0.changed.subscribe();
        while !self.pending().is_empty() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, usize>> {
        // The map is consistent after every statement that holds the lock.
        self.0
            .pending
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for BlockReady {
    fn drop(&mut self) {
        let mut pending = self.ready.pending();
        if let Some(count) = pending.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                pending.remove(self.name);
            }
        }
        drop(pending);
        self.ready.0.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_the_last_guard_is_dropped() {
        let ready = Ready::default();
        let (store, dns) = (ready.block("store"), ready.block("dns"));
        assert_eq!(ready.waiting_for(), ["dns", "store"]);
        drop(store);
        assert_eq!(ready.waiting_for(), ["dns"]);
        let waiting = tokio::spawn({
            let ready = ready.clone();
            async move { ready.wait().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(dns);
        waiting.await.expect("the waiter does not panic");
    }

    #[tokio::test]
    async fn a_child_drain_hears_its_parent_but_not_the_other_way_round() {
        let (trigger, parent) = drain();
        let (child_trigger, child) = parent.child();
        child_trigger.signal();
        child.signaled().await;
        assert!(!parent.is_signaled());
        let (_other_trigger, other) = parent.child();
        trigger.signal();
        other.signaled().await;
    }
}
