//! What all controllers have in common: keys of what is to be looked at, and workers that look.

use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use informer::{Action, Queue};
use lifecycle::Drain;

/// A controller, as its workers see it.
pub(crate) trait Reconcile: Send + Sync + 'static {
    /// Names what is to be looked at: the name of an object, mostly.
    type Key: Hash + Ord + Clone + Debug + Send + Sync + 'static;
    type Error: Display + Send + 'static;

    /// Its name in the log.
    const NAME: &'static str;
    /// Keys that are worked on at once.
    const WORKERS: usize;

    /// Looks at what the key names, and makes the next few writes. An error is logged, and the key comes
    /// again after a while.
    fn reconcile(
        &self,
        key: &Self::Key,
    ) -> impl Future<Output = Result<Action, Self::Error>> + Send;
}

/// Has a controller look at the keys of a queue, until the drain.
pub(crate) async fn work<Controller: Reconcile>(
    controller: &Arc<Controller>,
    queue: &Queue<Controller::Key>,
    drain: &Drain,
) {
    let reconcile = |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    };
    let queue = queue.clone();
    queue
        .run(
            Controller::NAME,
            Controller::WORKERS,
            reconcile,
            drain.clone(),
        )
        .await;
}
