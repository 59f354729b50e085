//! One daemon's connection: bytes in until a request is whole, messages out as fast as they are taken.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use crate::descriptors;
use crate::protocol::{Answer, Event, Message, Refusal, Request, frame, take_frame};

/// What a peer may leave unread before it is dropped.
const BACKLOG_MAX: usize = 32 << 20;

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    input: Vec<u8>,
    output: VecDeque<Frame>,
    backlog: usize,
    broken: bool,
}

#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    sent: usize,
    attached: Vec<OwnedFd>,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Connection {
        Connection {
            socket,
            input: Vec::new(),
            output: VecDeque::new(),
            backlog: 0,
            broken: false,
        }
    }

    /// Whether it is to be dropped.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether messages wait for the peer.
    pub(super) fn is_waiting(&self) -> bool {
        !self.output.is_empty()
    }

    /// Reads what is there and returns the requests that became whole.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Vec<Request> {
        // Requests carry no descriptors; what comes is closed.
        let mut ignored = VecDeque::new();
        match descriptors::receive(&self.socket, buffer, &mut ignored) {
            Ok(0) => self.broken = true,
            Ok(length) => self.input.extend_from_slice(&buffer[..length]),
            Err(error) if would_block(&error) => {}
            Err(_) => self.broken = true,
        }
        let mut requests = Vec::new();
        loop {
            match take_frame(&mut self.input) {
                Ok(Some(text)) => match serde_json::from_slice(&text) {
                    Ok(request) => requests.push(request),
                    // A call of a newer daemon: say so, if at least its number can be read.
                    Err(error) => self.refuse_unreadable(&text, &error),
                },
                Ok(None) => return requests,
                Err(_) => {
                    self.broken = true;
                    return requests;
                }
            }
        }
    }

    fn refuse_unreadable(&mut self, text: &[u8], error: &serde_json::Error) {
        #[derive(serde::Deserialize)]
        struct Numbered {
            id: u64,
        }
        match serde_json::from_slice::<Numbered>(text) {
            Ok(Numbered { id }) => {
                let message = format!("this keeper does not understand the request: {error}");
                let refusal = Refusal::new(crate::protocol::RefusalKind::Invalid, message);
                self.reply(id, Err(refusal), Vec::new());
            }
            Err(_) => self.broken = true,
        }
    }

    pub(super) fn reply(
        &mut self,
        id: u64,
        result: Result<Answer, Refusal>,
        attached: Vec<OwnedFd>,
    ) {
        let message = Message::Reply {
            id,
            result,
            descriptors: attached.len(),
        };
        self.push(&message, attached);
    }

    pub(super) fn tell(&mut self, event: &Event) {
        self.push(&Message::Event(event.clone()), Vec::new());
    }

    fn push(&mut self, message: &Message, attached: Vec<OwnedFd>) {
        let Ok(bytes) = frame(message) else {
            self.broken = true;
            return;
        };
        self.backlog += bytes.len();
        if self.backlog > BACKLOG_MAX {
            self.broken = true;
            return;
        }
        self.output.push_back(Frame {
            bytes,
            sent: 0,
            attached,
        });
        self.flush();
    }

    /// Sends what the peer takes.
    pub(super) fn flush(&mut self) {
        while let Some(next) = self.output.front_mut() {
            match descriptors::send(&self.socket, &next.bytes[next.sent..], &next.attached) {
                Ok(length) => {
                    // They went with the first byte.
                    next.attached.clear();
                    next.sent += length;
                    self.backlog -= length;
                    if next.sent == next.bytes.len() {
                        self.output.pop_front();
                    }
                }
                Err(error) if would_block(&error) => return,
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        }
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
