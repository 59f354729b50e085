//! Staying in touch with keepers.
//!
//! A keeper that cannot be spoken with is not a dead one. To take it for one would be to kill all of
//! its containers because of a stopped process, a stuck disk, a crowd of callers or a message of a
//! newer program. So it is asked again until it answers, or until nobody listens any more.

use std::sync::Arc;
use std::time::Duration;

use runtime::Keeper;
use tokio::sync::mpsc;

use super::Inner;
use crate::api::{ContainerId, Event};
use crate::sandbox::{Link, Sandbox};

/// Before a keeper is asked a second time, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(30));

impl Inner {
    /// Notes what a keeper says until it has ended, and then puts things in order. Without `events`
    /// it has yet to be found.
    pub(super) async fn follow(
        self: Arc<Self>,
        sandbox: Arc<Sandbox>,
        mut events: Option<mpsc::Receiver<runtime::Event>>,
    ) {
        loop {
            let Some(mut heard) = events else {
                match self.find_again(&sandbox).await {
                    None => break,
                    found => events = found,
                }
                continue;
            };
            while let Some(event) = heard.recv().await {
                if let runtime::Event::Container { container, state } = event {
                    self.note_state(&sandbox, &ContainerId(container), &state);
                }
            }
            // The connection is over; mostly, because the keeper ended.
            sandbox.relink(Link::Silent);
            events = None;
        }
        if let Err(error) = self.tidy(&sandbox).await {
            tracing::warn!(sandbox = sandbox.id.0, %error, "what a keeper left is not in order");
        }
        self.listeners.tell(&Event::SandboxGone(sandbox.id.clone()));
    }

    /// What a keeper says from now on; `None` if it has ended.
    async fn find_again(&self, sandbox: &Sandbox) -> Option<mpsc::Receiver<runtime::Event>> {
        let (mut pause, longest) = PAUSES;
        let mut is_silent = false;
        while sandbox.is_alive() {
            // One connection that waits: each one that is given up stays in the keeper's queue, and a
            // keeper whose queue is full cannot even be found out and killed.
            let found = match is_silent {
                true => Keeper::connect_patiently(&sandbox.directory).await,
                false => Keeper::connect(&sandbox.directory).await,
            };
            match found {
                Ok((keeper, _, containers, events)) => {
                    if is_silent {
                        tracing::info!(sandbox = sandbox.id.0, "its keeper answers again");
                    }
                    let goes_on = sandbox.relink(Link::Connected(keeper));
                    for record in containers {
                        let id = ContainerId(record.spec.id);
                        self.note_state(sandbox, &id, &record.state);
                    }
                    return goes_on.then_some(events);
                }
                Err(error) if error.means_dead() => return None,
                // The second time: one that is just ending has ended by then.
                Err(error) if !is_silent && pause > PAUSES.0 => {
                    is_silent = true;
                    tracing::warn!(
                        sandbox = sandbox.id.0, %error,
                        "its keeper does not answer; its containers go on, and it is asked again"
                    );
                }
                Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = longest.min(pause * 2);
        }
        None
    }
}
