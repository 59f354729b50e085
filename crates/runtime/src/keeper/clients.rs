//! Those who are attached to a container's outputs.
//!
//! Each has a pipe. One that is full holds the container back, as everybody else's pipe would: the
//! output is not read on until there is room again. So nothing is lost, little has to be kept here,
//! and a client that has gone away (its pipe is closed) holds up nobody. One that takes nothing for
//! minutes without going away is given up and gets to know it: only who got all is told so.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// How long a client may take nothing of what is there for it.
const PATIENCE: Duration = Duration::from_mins(5);

/// How many may be attached to one container.
pub(super) const CLIENTS_MAX: usize = 32;

/// All clients of one container.
#[derive(Debug, Default)]
pub(super) struct Clients(Vec<Client>);

/// One of them. The order is that in which they are closed.
#[derive(Debug)]
struct Client {
    /// Written to before all is closed, if all has been passed on.
    verdict: OwnedFd,
    output: Pipe,
    error: Option<Pipe>,
    /// Since when it has taken nothing, while there is something for it.
    stalled: Option<Instant>,
    /// Nothing more will come.
    ended: bool,
}

#[derive(Debug)]
struct Pipe {
    end: OwnedFd,
    /// What did not fit, shared with the other clients.
    waiting: VecDeque<Rc<[u8]>>,
    /// Bytes of the first piece that are through.
    sent: usize,
}

impl Clients {
    /// Forgets those who have gone away, and says whether one more may come.
    pub(super) fn has_room(&mut self) -> bool {
        self.0.retain(Client::is_there);
        self.0.len() < CLIENTS_MAX
    }

    /// One more, from now on: writing ends of pipes, which never block. `verdict` gets one byte when
    /// everything has been passed on.
    pub(super) fn add(&mut self, verdict: OwnedFd, output: OwnedFd, error: Option<OwnedFd>) {
        self.0.push(Client {
            verdict,
            output: Pipe::new(output),
            error: error.map(Pipe::new),
            stalled: None,
            ended: false,
        });
    }

    /// Passes on what came from standard output or error.
    pub(super) fn pass(&mut self, is_error: bool, chunk: &[u8]) {
        let mut shared = None;
        self.0
            .retain_mut(|client| client.ended || client.pass(is_error, chunk, &mut shared));
    }

    /// Whether somebody must take what there is before more is read.
    pub(super) fn hold_back(&self, is_error: bool) -> bool {
        self.0
            .iter()
            .filter_map(|client| client.pipe(is_error))
            .any(Pipe::is_full)
    }

    /// The pipes that are waited for.
    pub(super) fn full(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0
            .iter()
            .flat_map(|client| [Some(&client.output), client.error.as_ref()])
            .flatten()
            .filter(|pipe| pipe.is_full())
            .map(|pipe| pipe.end.as_fd())
    }

    /// Passes on what waits, as far as it is taken.
    pub(super) fn flush(&mut self) {
        self.0.retain_mut(|client| client.flush() && !client.done());
    }

    /// Nothing more will come: who has all of it is told, the others when they have taken it.
    pub(super) fn end(&mut self) {
        for client in &mut self.0 {
            client.ended = true;
        }
        self.0.retain(|client| !client.done());
    }

    /// When the first of them is to be given up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0
            .iter()
            .filter_map(|client| client.stalled)
            .min()
            .map(|since| since + PATIENCE)
    }

    /// Gives up who has taken nothing for too long, and says how many that were.
    pub(super) fn expire(&mut self, now: Instant) -> usize {
        let before = self.0.len();
        self.0
            .retain(|client| client.stalled.is_none_or(|since| since + PATIENCE > now));
        before - self.0.len()
    }
}

impl Client {
    /// Whether the far end is still open.
    fn is_there(&self) -> bool {
        let mut asked = [PollFd::new(&self.output.end, PollFlags::empty())];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let _ = poll(&mut asked, Some(&now));
        !asked[0].revents().contains(PollFlags::ERR)
    }

    fn pipe(&self, is_error: bool) -> Option<&Pipe> {
        match is_error {
            true => self.error.as_ref(),
            false => Some(&self.output),
        }
    }

    /// False when the client is gone.
    fn pass(&mut self, is_error: bool, chunk: &[u8], shared: &mut Option<Rc<[u8]>>) -> bool {
        let pipe = match (is_error, &mut self.error) {
            (true, None) => return true,
            (true, Some(error)) => error,
            (false, _) => &mut self.output,
        };
        let is_there = pipe.pass(chunk, shared);
        if pipe.is_full() {
            self.stalled.get_or_insert_with(Instant::now);
        }
        is_there
    }

    /// False when the client is gone.
    fn flush(&mut self) -> bool {
        let mut moved = 0;
        for pipe in [Some(&mut self.output), self.error.as_mut()]
            .into_iter()
            .flatten()
        {
            match pipe.flush() {
                Some(count) => moved += count,
                None => return false,
            }
        }
        if !self.is_waiting() {
            self.stalled = None;
        } else if moved > 0 {
            self.stalled = Some(Instant::now());
        }
        true
    }

    fn is_waiting(&self) -> bool {
        self.output.is_full() || self.error.as_ref().is_some_and(Pipe::is_full)
    }

    /// Whether it has got all there was; if so it is told.
    fn done(&self) -> bool {
        let done = self.ended && !self.is_waiting();
        if done {
            // An empty pipe has room; a client that is gone does not want to know.
            let _ = rustix::io::write(&self.verdict, b"k");
        }
        done
    }
}

impl Pipe {
    fn new(end: OwnedFd) -> Pipe {
        Pipe {
            end,
            waiting: VecDeque::new(),
            sent: 0,
        }
    }

    fn is_full(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// False when the far end is closed.
    fn pass(&mut self, chunk: &[u8], shared: &mut Option<Rc<[u8]>>) -> bool {
        let mut sent = 0;
        if !self.is_full() {
            match write(&self.end, chunk) {
                Some(count) => sent = count,
                None => return false,
            }
        }
        if sent < chunk.len() {
            if !self.is_full() {
                self.sent = sent;
            }
            let piece = shared.get_or_insert_with(|| Rc::from(chunk));
            self.waiting.push_back(Rc::clone(piece));
        }
        true
    }

    /// Bytes that were taken; `None` when the far end is closed.
    fn flush(&mut self) -> Option<usize> {
        let mut moved = 0;
        while let Some(first) = self.waiting.front() {
            let count = write(&self.end, &first[self.sent..])?;
            if count == 0 {
                break;
            }
            (self.sent, moved) = (self.sent + count, moved + count);
            if self.sent == first.len() {
                self.waiting.pop_front();
                self.sent = 0;
            }
        }
        Some(moved)
    }
}

/// Bytes that fitted; `None` when the far end is closed.
fn write(end: &OwnedFd, bytes: &[u8]) -> Option<usize> {
    match rustix::io::write(end, bytes) {
        Ok(count) => Some(count),
        Err(Errno::AGAIN | Errno::INTR) => Some(0),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    struct Far {
        verdict: OwnedFd,
        output: OwnedFd,
    }

    fn attach(clients: &mut Clients) -> Far {
        let pipe = || pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
        let ((verdict, told), (output, end)) = (pipe(), pipe());
        clients.add(told, end, None);
        Far { verdict, output }
    }

    fn read(end: &OwnedFd) -> Result<Vec<u8>, Errno> {
        let mut buffer = vec![0; 1 << 20];
        let count = rustix::io::read(end, &mut buffer)?;
        buffer.truncate(count);
        Ok(buffer)
    }

    /// More than fits into a pipe.
    fn chunk() -> Vec<u8> {
        (0..100_000u32)
            .map(|number| number.to_le_bytes()[0])
            .collect()
    }

    #[test]
    fn who_is_slow_holds_back_and_gets_everything_in_order() {
        let mut clients = Clients::default();
        let (slow, fast) = (attach(&mut clients), attach(&mut clients));
        clients.pass(false, b"first ");
        assert!(!clients.hold_back(false));
        clients.pass(false, &chunk());
        clients.pass(false, b" last");
        assert!(clients.hold_back(false) && !clients.hold_back(true));
        clients.end();
        for far in [&fast, &slow] {
            let mut seen = Vec::new();
            while let Ok(bytes) = read(&far.output) {
                if bytes.is_empty() {
                    break;
                }
                seen.extend(bytes);
                clients.flush();
            }
            assert_eq!(seen, [b"first ", &chunk()[..], b" last"].concat());
            assert_eq!(read(&far.verdict).as_deref(), Ok(&b"k"[..]));
        }
        assert!(!clients.hold_back(false));
        assert_eq!(clients.full().count(), 0);
    }

    #[test]
    fn who_takes_nothing_for_minutes_is_given_up_and_not_told_that_it_got_all() {
        let mut clients = Clients::default();
        let (stuck, other) = (attach(&mut clients), attach(&mut clients));
        assert_eq!(clients.deadline(), None);
        clients.pass(false, &chunk());
        while clients.hold_back(false) && read(&other.output).is_ok() {
            clients.flush();
        }
        let deadline = clients.deadline().expect("somebody is waited for");
        assert_eq!(clients.expire(deadline - Duration::from_secs(1)), 0);
        assert_eq!(clients.expire(deadline), 1);
        assert!(!clients.hold_back(false));
        clients.end();
        while read(&stuck.output).is_ok_and(|bytes| !bytes.is_empty()) {}
        assert_eq!(read(&stuck.verdict).as_deref(), Ok(&b""[..]));
        assert_eq!(read(&other.verdict).as_deref(), Ok(&b"k"[..]));
    }

    #[test]
    fn who_has_gone_away_holds_up_nobody() {
        let mut clients = Clients::default();
        let gone = attach(&mut clients);
        clients.pass(false, &chunk());
        assert!(clients.hold_back(false));
        drop(gone);
        clients.flush();
        assert!(!clients.hold_back(false));
        for _ in 0..CLIENTS_MAX {
            assert!(clients.has_room());
            drop(attach(&mut clients));
        }
        assert!(clients.has_room());
    }
}
