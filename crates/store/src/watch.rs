//! Following the changes of a space.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};

use crate::history::{Hub, Shelf, Taken};
use crate::{Event, Revision};

/// The past that was asked for is no longer remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("changes up to revision {oldest} are no longer remembered")]
pub struct Compacted {
    /// The oldest revision that a watch of this space can begin after.
    pub oldest: Revision,
}

/// A watcher was so slow that changes it has not seen were forgotten. It must read the state anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the watcher was too slow: changes after revision {seen} are no longer remembered")]
pub struct Lagged {
    /// Up to here it has seen everything.
    pub seen: Revision,
}

/// The changes of one space, in revision order, from one revision on without a gap.
///
/// Ends (`None`) after [`Lagged`], and when the store is closed and all has been taken.
pub struct Watch<M> {
    shelf: Arc<Shelf<M>>,
    hub: Arc<Hub<M>>,
    id: u64,
    buffer: VecDeque<Arc<Event<M>>>,
    seen: Revision,
    ended: bool,
}

impl<M> Watch<M> {
    pub(crate) fn new(shelf: Arc<Shelf<M>>, hub: Arc<Hub<M>>, id: u64, after: Revision) -> Self {
        Watch {
            shelf,
            hub,
            id,
            buffer: VecDeque::new(),
            seen: after,
            ended: false,
        }
    }

    /// The next change; waits for it. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Arc<Event<M>>, Lagged>> {
        StreamExt::next(&mut Pin::new(self)).await
    }

    /// The newest revision up to which this watch has yielded everything. It moves on with the
    /// store even if nothing that is watched changes, so it can be told as a bookmark.
    pub fn progress(&self) -> Revision {
        // Read first: events up to here were in the hub before we look whether any are pending.
        let published = self.shelf.published();
        if self.buffer.is_empty() && self.hub.is_up_to_date(self.id) {
            self.seen.max(published)
        } else {
            self.seen
        }
    }
}

impl<M> Drop for Watch<M> {
    fn drop(&mut self) {
        self.hub.leave(self.id);
    }
}

impl<M> Stream for Watch<M> {
    type Item = Result<Arc<Event<M>>, Lagged>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        if this.buffer.is_empty() {
            match this.hub.take(this.id, &mut this.buffer, context) {
                Taken::Events => {}
                Taken::Nothing => return Poll::Pending,
                Taken::Lagged => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(Lagged { seen: this.seen })));
                }
                Taken::Closed => {
                    this.ended = true;
                    return Poll::Ready(None);
                }
            }
        }
        match this.buffer.pop_front() {
            Some(event) => {
                this.seen = event.revision;
                Poll::Ready(Some(Ok(event)))
            }
            None => Poll::Pending,
        }
    }
}
