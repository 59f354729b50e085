//! The connections that are open, so that they can be ended, and their end be waited for.

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// At the same time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 512;

/// All that are open.
#[derive(Default)]
pub(crate) struct Connections {
    open: Mutex<Open>,
    fewer: Condvar,
}

#[derive(Default)]
struct Open {
    streams: HashMap<u64, TcpStream>,
    last: u64,
}

/// One of them.
#[derive(Clone, Copy)]
pub(crate) struct Guest(u64);

impl Connections {
    /// Takes one in, as soon as there is room.
    pub(crate) fn enter(&self, stream: &TcpStream) -> io::Result<Guest> {
        let stream = stream.try_clone()?;
        let mut open = self
            .fewer
            .wait_while(self.open(), |open| open.streams.len() >= CONNECTIONS_MAX)
            .unwrap_or_else(PoisonError::into_inner);
        open.last += 1;
        let guest = Guest(open.last);
        open.streams.insert(guest.0, stream);
        Ok(guest)
    }

    /// It has ended.
    pub(crate) fn leave(&self, guest: Guest) {
        self.open().streams.remove(&guest.0);
        self.fewer.notify_all();
    }

    /// Those that are waiting for a request wait no more; a request that is here already is still
    /// answered.
    pub(crate) fn end_idle(&self) {
        for stream in self.open().streams.values() {
            // It may have ended on its own.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    /// Waits until all have ended, so long at most.
    pub(crate) fn wait_until_none(&self, time: Duration) {
        let _ = self
            .fewer
            .wait_timeout_while(self.open(), time, |open| !open.streams.is_empty());
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
