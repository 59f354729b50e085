//! Cgroups of containers that have ended, until the kernel lets go of them.
//!
//! A process that was killed leaves its cgroup a little after its end was told, and on version 1 the
//! kernel tells nobody when. So removing is tried again, more and more seldom, while the keeper tends
//! everything else.

use std::time::{Duration, Instant};

use super::complain;
use crate::cgroup::Cgroups;

/// Before the second try. Each pause is twice as long as the one before.
const PAUSE_FIRST: Duration = Duration::from_micros(200);
/// The last one, ten seconds after the first try. What is still there then goes with the sandbox.
const PAUSE_MAX: Duration = Duration::from_secs(6);

#[derive(Debug)]
struct Leftover {
    cgroup: String,
    pause: Duration,
    again: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Leftovers(Vec<Leftover>);

impl Leftovers {
    /// Removes a cgroup in which everything has ended, now or soon.
    pub(super) fn remove(&mut self, cgroups: &Cgroups, cgroup: String) {
        let leftover = Leftover {
            cgroup,
            pause: PAUSE_FIRST,
            again: Instant::now(),
        };
        self.0.extend(leftover.try_again(cgroups));
    }

    /// When it is time for another try.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.iter().map(|leftover| leftover.again).min()
    }

    pub(super) fn expire(&mut self, cgroups: &Cgroups, now: Instant) {
        let due = self.0.extract_if(.., |leftover| leftover.again <= now);
        let left: Vec<Leftover> = due
            .filter_map(|leftover| leftover.try_again(cgroups))
            .collect();
        self.0.extend(left);
    }
}

impl Leftover {
    /// Itself, if it has to be tried once more.
    fn try_again(mut self, cgroups: &Cgroups) -> Option<Leftover> {
        match cgroups.try_remove(&self.cgroup) {
            Ok(()) => None,
            Err(error) if error.is_busy() && self.pause < PAUSE_MAX => {
                self.again = Instant::now() + self.pause;
                self.pause *= 2;
                Some(self)
            }
            Err(error) => {
                complain(&error);
                None
            }
        }
    }
}
