//! Ends of children whose numbers nobody has told us yet.
//!
//! A start is told of its process's number by a message, and the process may have ended before the
//! message came. A keeper is also given processes by the kernel that nobody will ever tell of, and
//! numbers are used again: the end of one of these must not be taken for that of a later process.

use std::time::Instant;

/// More than one start can have at a time.
const EXITS_MAX: usize = 4096;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exit {
    /// 128 + signal for one that was killed.
    pub(super) code: i32,
    pub(super) signal: Option<i32>,
}

#[derive(Debug, Default)]
pub(super) struct UnknownExits(Vec<(i32, Exit, Instant)>);

impl UnknownExits {
    /// Notes the end of a process, heard of just now.
    pub(super) fn note(&mut self, pid: i32, exit: Exit, now: Instant) {
        if self.0.len() < EXITS_MAX {
            self.0.push((pid, exit, now));
        }
    }

    /// How a process ended that belongs to a start which began then, if it has.
    pub(super) fn take(&mut self, pid: i32, begun: Instant) -> Option<Exit> {
        let mut found = None;
        self.0.retain(|&(one, exit, heard)| {
            if one == pid && heard >= begun {
                found = Some(exit);
            }
            one != pid
        });
        found
    }

    /// Forgets what no start can ask for: none is under way that began before `begun`; `None` if there
    /// is none at all.
    pub(super) fn forget_before(&mut self, begun: Option<Instant>) {
        self.0
            .retain(|(_, _, heard)| begun.is_some_and(|begun| *heard >= begun));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn exit(code: i32) -> Exit {
        Exit { code, signal: None }
    }

    #[test]
    fn an_end_belongs_to_a_start_that_had_begun() {
        let mut exits = UnknownExits::default();
        let at = |seconds: u64| Instant::now() + Duration::from_secs(seconds);
        let times: Vec<Instant> = (0..5).map(at).collect();
        exits.note(7, exit(1), times[1]);
        exits.note(8, exit(2), times[1]);
        // A stranger had the number before.
        assert_eq!(exits.take(7, times[2]), None);
        assert_eq!(exits.take(8, times[0]), Some(exit(2)));
        assert_eq!(exits.take(8, times[0]), None, "it was taken");
        // A stranger, and then the one.
        exits.note(9, exit(3), times[1]);
        exits.note(9, exit(4), times[3]);
        assert_eq!(exits.take(9, times[0]), Some(exit(4)));
    }

    #[test]
    fn what_nobody_can_ask_for_is_forgotten() {
        let mut exits = UnknownExits::default();
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        exits.note(7, exit(1), now);
        exits.note(8, exit(2), later);
        exits.forget_before(Some(later));
        assert_eq!(exits.0.len(), 1);
        exits.forget_before(None);
        assert!(exits.0.is_empty());
    }
}
