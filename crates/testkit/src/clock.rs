//! The time of day, made from tokio's clock, so that who stops the one stops the other.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

/// Tells the time. Clones tell the same.
#[derive(Clone, Debug)]
pub struct Clock {
    began: Timestamp,
    zero: Instant,
}

impl Clock {
    /// A clock that shows `began` now. Needs a running tokio runtime.
    pub fn starting_at(began: Timestamp) -> Clock {
        Clock {
            began,
            zero: Instant::now(),
        }
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        let passed = self.zero.elapsed();
        self.began.saturating_add(passed).unwrap_or(Timestamp::MAX)
    }

    /// The clock in the form in which the parts of the cluster take it.
    pub fn reader(&self) -> Arc<dyn Fn() -> Timestamp + Send + Sync> {
        let clock = self.clone();
        Arc::new(move || clock.now())
    }
}
