//! How long to wait before a container is restarted, or an image is looked for again.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

/// First delay.
const INITIAL: SignedDuration = SignedDuration::from_secs(10);
/// Longest delay.
const MAX: SignedDuration = SignedDuration::from_secs(300);
/// Calm for this long, and the next failure counts as the first.
const RESET: SignedDuration = SignedDuration::from_secs(600);

/// The delays of one pod, by what is being retried.
///
/// As upstream counts them: the first retry is free, the second waits 10 s after the failure, then
/// twice as long each time up to 300 s; ten minutes without a retry begin the count anew.
#[derive(Clone, Debug, Default)]
pub(crate) struct BackOffs(HashMap<String, Delay>);

#[derive(Clone, Copy, Debug)]
struct Delay {
    length: SignedDuration,
    last_retry: Timestamp,
}

/// The answer to "may it be tried again?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Now; the retry has been counted.
    Now,
    /// Not before `until`; `length` is the delay to be named in messages.
    Wait {
        length: SignedDuration,
        until: Timestamp,
    },
}

impl BackOffs {
    /// Asks for a retry of `key`, which failed at `failed_at`.
    pub(crate) fn ask(&mut self, key: &str, failed_at: Timestamp, now: Timestamp) -> Turn {
        let Some(delay) = self.0.get_mut(key) else {
            self.0.insert(
                key.to_owned(),
                Delay {
                    length: INITIAL,
                    last_retry: now,
                },
            );
            return Turn::Now;
        };
        if failed_at.duration_since(delay.last_retry) > RESET {
            *delay = Delay {
                length: INITIAL,
                last_retry: now,
            };
            return Turn::Now;
        }
        let until = failed_at
            .saturating_add(delay.length)
            .unwrap_or(Timestamp::MAX);
        if now < until {
            return Turn::Wait {
                length: delay.length,
                until,
            };
        }
        *delay = Delay {
            length: doubled(delay.length),
            last_retry: now,
        };
        Turn::Now
    }

    /// Takes up the count of something that an earlier daemon retried `retries` times, last at `last_retry`.
    pub(crate) fn adopt(&mut self, key: &str, retries: u32, last_retry: Timestamp) {
        if retries == 0 {
            return;
        }
        let length = (1..retries.min(16)).fold(INITIAL, |length, _| doubled(length));
        self.0
            .entry(key.to_owned())
            .or_insert(Delay { length, last_retry });
    }
}

fn doubled(length: SignedDuration) -> SignedDuration {
    length.saturating_mul(2).min(MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).expect("in range")
    }

    fn waits(turn: Turn) -> i64 {
        match turn {
            Turn::Now => 0,
            Turn::Wait { length, .. } => length.as_secs(),
        }
    }

    #[test]
    fn a_container_that_always_fails_at_once() {
        let mut delays = BackOffs::default();
        let mut now = 0;
        let mut seen = Vec::new();
        for _ in 0..8 {
            let turn = delays.ask("c", at(now), at(now));
            let wait = waits(turn);
            seen.push(wait);
            if wait > 0 {
                assert_ne!(delays.ask("c", at(now), at(now + wait - 1)), Turn::Now);
                now += wait;
                assert_eq!(delays.ask("c", at(now - wait), at(now)), Turn::Now);
            }
        }
        assert_eq!(seen, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ten_minutes_of_calm_begin_anew() {
        let mut delays = BackOffs::default();
        assert_eq!(delays.ask("c", at(0), at(0)), Turn::Now);
        assert_eq!(waits(delays.ask("c", at(1), at(1))), 10);
        assert_eq!(delays.ask("c", at(1), at(11)), Turn::Now);
        assert_eq!(delays.ask("c", at(612), at(612)), Turn::Now);
        assert_eq!(waits(delays.ask("c", at(613), at(613))), 10);
    }

    #[test]
    fn a_new_daemon_goes_on_counting() {
        let mut delays = BackOffs::default();
        delays.adopt("c", 3, at(0));
        assert_eq!(waits(delays.ask("c", at(1), at(1))), 40);
        delays.adopt("d", 0, at(0));
        assert_eq!(delays.ask("d", at(1), at(1)), Turn::Now);
    }
}
