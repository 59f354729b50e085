//! Requests whose work takes long: large bodies, large objects, long lists for people.
//!
//! Handlers compute without a pause, and the threads they do it on are those that the scheduler, the
//! node agents and the name server live on. So what is heavy is done on a thread of its own, and
//! only a few such at a time; the rest goes on as if nothing were.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;

/// Bytes of a body or an object from which on a request is heavy.
const HEAVY_BYTES: usize = 64 * 1024;
/// Objects of a list from which on it is, if each has to be parsed.
const HEAVY_OBJECTS: usize = 256;

/// The places for heavy requests.
pub(crate) struct Heavy(Semaphore);

/// What a request has to handle.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Bytes of its body, or of the object that it is about.
    pub(crate) bytes: usize,
    /// Objects that it parses.
    pub(crate) objects: usize,
}

impl Heavy {
    pub(crate) fn new() -> Heavy {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Heavy(Semaphore::new(cores))
    }

    /// Runs a handler, where it does no harm.
    pub(crate) async fn run<T>(&self, load: Load, handler: impl Future<Output = T>) -> T {
        if load.bytes < HEAVY_BYTES && load.objects < HEAVY_OBJECTS {
            return handler.await;
        }
        // The semaphore is never closed; an error would only mean that there is no limit.
        let _place = self.0.acquire().await.ok();
        let handle = Handle::current();
        if handle.runtime_flavor() == RuntimeFlavor::CurrentThread {
            // There is no other thread that this one's work could go to.
            return handler.await;
        }
        tokio::task::block_in_place(|| handle.block_on(handler))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    #[test]
    fn heavy_work_leaves_the_threads_to_others() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let heavy = Arc::new(Heavy::new());
        let (told, tells) = channel();
        let load = Load {
            bytes: HEAVY_BYTES,
            objects: 0,
        };
        runtime.block_on(async move {
            // It holds its thread until somebody else has run, on a runtime that has but one.
            let held = tokio::spawn(async move {
                heavy
                    .run(
                        load,
                        async move { tells.recv().expect("somebody else ran") },
                    )
                    .await
            });
            let other = tokio::spawn(async move { told.send(7).expect("it waits") });
            other.await.expect("the other ran");
            assert_eq!(held.await.expect("it ended"), 7);
        });
    }
}
