//! Whether the engine answers: a node whose engine is silent is not ready.
//!
//! It is asked when the node says that it lives, so nothing wakes for this alone. A question that is
//! not answered stays open, and no second one is asked.

use std::sync::Arc;
use std::time::Duration;

use engine::{Engine, Error, SandboxStatus};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::handler;

/// Heartbeats without an answer after which the engine counts as down (upstream: 30 s).
const DOWN_AFTER: u32 = 3;
/// Heartbeats without an answer after which its events count as lost, too (upstream: 3 minutes).
const LOST_AFTER: u32 = 18;

/// What has been heard of the engine.
pub(crate) struct Health {
    heartbeat: Duration,
    heard: Instant,
    question: Option<JoinHandle<Result<Vec<SandboxStatus>, Error>>>,
}

impl Health {
    /// `heartbeat`: how often [`Health::ask`] will be called.
    pub(crate) fn new(heartbeat: Duration) -> Health {
        Health {
            heartbeat,
            heard: Instant::now(),
            question: None,
        }
    }

    /// Asks, unless a question is open.
    pub(crate) fn ask(&mut self, engine: &Arc<dyn Engine>) {
        if self.question.is_none() {
            let engine = engine.clone();
            self.question = Some(tokio::spawn(async move {
                engine.health().await?;
                Ok(engine.sandboxes().await)
            }));
        }
    }

    /// Resolves with all sandboxes when the open question is answered. A question that panicked was
    /// none, and one that those who keep the containers did not answer is as good as none.
    pub(crate) async fn answered(&mut self) -> Vec<SandboxStatus> {
        let Some(question) = &mut self.question else {
            return std::future::pending().await;
        };
        let result = question.await;
        self.question = None;
        match result {
            Ok(Ok(sandboxes)) => {
                self.heard = Instant::now();
                sandboxes
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the engine does not answer");
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }

    /// What is wrong now.
    pub(crate) fn complaint(&self) -> Option<String> {
        complaint(self.heard.elapsed(), self.heartbeat)
    }
}

/// In upstream's words.
fn complaint(silence: Duration, heartbeat: Duration) -> Option<String> {
    const DOWN: &str = "container runtime is down";
    if silence <= heartbeat * DOWN_AFTER {
        return None;
    }
    let threshold = heartbeat * LOST_AFTER;
    if silence <= threshold {
        return Some(DOWN.to_owned());
    }
    Some(format!(
        "[{DOWN}, PLEG is not healthy: pleg was last seen active {} ago; threshold is {}]",
        handler::seconds(silence),
        handler::seconds(threshold)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_told_in_the_words_of_kubernetes() {
        let check = |seconds, expected: Option<&str>| {
            let seen = complaint(Duration::from_secs(seconds), Duration::from_secs(10));
            assert_eq!(seen.as_deref(), expected);
        };
        check(0, None);
        check(30, None);
        check(31, Some("container runtime is down"));
        check(180, Some("container runtime is down"));
        check(
            190,
            Some(
                "[container runtime is down, PLEG is not healthy: pleg was last seen active 3m10s ago; threshold is 3m0s]",
            ),
        );
    }
}
