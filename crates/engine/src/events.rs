//! Telling whoever listens what happened.

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::api::Event;

/// Events that a listener may leave unread before it is told that it missed some.
const UNREAD_MAX: usize = 1024;

/// All listeners.
#[derive(Debug, Default)]
pub(crate) struct Listeners(Mutex<Vec<Listener>>);

#[derive(Debug)]
struct Listener {
    sender: mpsc::Sender<Event>,
    missed: bool,
}

impl Listeners {
    pub(crate) fn listen(&self) -> mpsc::Receiver<Event> {
        let (sender, receiver) = mpsc::channel(UNREAD_MAX);
        self.0.lock().push(Listener {
            sender,
            missed: false,
        });
        receiver
    }

    pub(crate) fn tell(&self, event: &Event) {
        self.0.lock().retain_mut(|listener| listener.tell(event));
    }
}

impl Listener {
    /// False when nobody listens any more.
    fn tell(&mut self, event: &Event) -> bool {
        // The last place is kept for the news that there was no place.
        if self.sender.capacity() > 1 {
            self.missed = false;
            return self.sender.try_send(event.clone()).is_ok();
        }
        if !self.missed {
            self.missed = true;
            return self.sender.try_send(Event::Missed).is_ok();
        }
        !self.sender.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::SandboxId;

    #[test]
    fn a_slow_listener_is_told_once_that_it_missed_something() {
        let listeners = Listeners::default();
        let mut receiver = listeners.listen();
        let gone = |number: usize| Event::SandboxGone(SandboxId(number.to_string()));
        for number in 0..UNREAD_MAX + 10 {
            listeners.tell(&gone(number));
        }
        for number in 0..UNREAD_MAX - 1 {
            let event = receiver.try_recv().expect("kept");
            assert!(matches!(event, Event::SandboxGone(SandboxId(id)) if id == number.to_string()));
        }
        assert!(matches!(receiver.try_recv(), Ok(Event::Missed)));
        assert!(receiver.try_recv().is_err());
        listeners.tell(&gone(1));
        assert!(matches!(receiver.try_recv(), Ok(Event::SandboxGone(_))));
        drop(receiver);
        listeners.tell(&gone(2));
        assert!(listeners.0.lock().is_empty());
    }
}
