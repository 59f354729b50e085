//! How daemon and keeper talk: frames of JSON over a unix stream socket, with descriptors beside.
//!
//! ```text
//! frame   = length (u32, little endian) · JSON text of that many bytes
//! daemon ─► keeper   Request  {"id":7,"call":{"start":{"container":"…"}}}
//! keeper ─► daemon   Message  {"reply":{"id":7,"result":{"Ok":…},"descriptors":3}}
//!                             {"event":{"container":{…}}}
//! ```
//!
//! Descriptors travel by SCM_RIGHTS with the first byte of the frame that announces their number;
//! as both are ordered, the reader pairs them by counting. Replies come in any order, as starts
//! and dials take their time; events come to every connection from its first moment on.

use serde::{Deserialize, Serialize};

use crate::record::{ContainerRecord, SandboxRecord};
use crate::spec::{ContainerSpec, ContainerState, ExecSpec};

/// The largest frame either side accepts. A request holds at most a container's spec, whose
/// environment the kernel itself limits to less than this.
pub(crate) const FRAME_MAX: usize = 8 << 20;

/// Descriptors of one frame at most.
pub(crate) const DESCRIPTORS_MAX: usize = 4;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) call: Call,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Call {
    /// → [`Answer::Sandbox`]
    List,
    /// → [`Answer::Done`]
    Create { spec: Box<ContainerSpec> },
    /// → [`Answer::Container`], when the command has been executed.
    Start { container: String },
    /// → [`Answer::Done`]
    Signal { container: String, signal: i32 },
    /// → [`Answer::Done`]; of an exited or never started one.
    Remove { container: String },
    /// → [`Answer::Exec`] with the far ends: stdin if asked for, stdout, stderr unless tty.
    Exec { container: String, spec: ExecSpec },
    /// → [`Answer::Done`]
    SignalExec { exec: u64, signal: i32 },
    /// → [`Answer::Attach`] with the far ends.
    Attach { container: String },
    /// → [`Answer::Done`] with a connected socket.
    Dial { port: u16 },
    /// → [`Answer::Done`]
    ReopenLog { container: String },
    /// → [`Answer::Done`], when every container has ended; then the keeper ends.
    End,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    Reply {
        id: u64,
        result: Result<Answer, Refusal>,
        /// How many descriptors belong to this frame.
        descriptors: usize,
    },
    Event(Event),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Done,
    Sandbox {
        sandbox: Box<SandboxRecord>,
        /// The keeper's process id: its `/proc/PID/ns` are the sandbox's namespaces.
        pid: i32,
        containers: Vec<ContainerRecord>,
    },
    Container {
        state: ContainerState,
    },
    Exec {
        exec: u64,
        /// Which of the descriptors is standard input, if there is one.
        stdin: bool,
        /// Whether the one descriptor is a terminal's.
        tty: bool,
    },
    Attach {
        stdin: bool,
        tty: bool,
        /// Whether the last descriptor tells, by one byte before its end, that all of the output was
        /// passed on.
        #[serde(default)]
        verdict: bool,
    },
}

/// Something that a keeper tells without being asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A container changed its state.
    Container {
        /// Which.
        container: String,
        /// Its new state.
        state: ContainerState,
    },
    /// A command that was run by exec ended.
    ExecExited {
        /// Which.
        exec: u64,
        /// Exit status; 128 + signal for one that was killed.
        code: i32,
    },
}

/// A keeper's refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Of which kind, for the program.
    pub kind: RefusalKind,
    /// Why, for people.
    pub message: String,
}

/// What a refusal means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// No such container or exec.
    NotFound,
    /// There is one already.
    Exists,
    /// It is in the wrong part of its life.
    WrongState,
    /// The command could not be executed; the message is for the user.
    Command,
    /// The request cannot be meant.
    Invalid,
    /// A step failed on this machine.
    Machine,
}

impl Refusal {
    pub(crate) fn new(kind: RefusalKind, message: impl Into<String>) -> Refusal {
        Refusal {
            kind,
            message: message.into(),
        }
    }
}

/// Takes the first whole frame out of `buffer`: its JSON text.
pub(crate) fn take_frame(buffer: &mut Vec<u8>) -> Result<Option<Vec<u8>>, FrameTooLong> {
    let Some(header) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_le_bytes(*header)).unwrap_or(usize::MAX);
    if length > FRAME_MAX {
        return Err(FrameTooLong(length));
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    let rest = buffer.split_off(4 + length);
    let mut frame = std::mem::replace(buffer, rest);
    frame.drain(..4);
    Ok(Some(frame))
}

/// Makes a frame of a value.
pub(crate) fn frame<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, value)?;
    let length = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// A peer announced a frame beyond [`FRAME_MAX`].
#[derive(Debug, thiserror::Error)]
#[error("a frame of {0} bytes is longer than this protocol allows")]
pub(crate) struct FrameTooLong(usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_in_any_slicing() {
        let request = Request {
            id: 7,
            call: Call::Dial { port: 80 },
        };
        let mut stream = frame(&request).expect("serializable");
        stream.extend(frame(&request).expect("serializable"));
        for cut in 0..=stream.len() {
            let mut buffer = stream[..cut].to_vec();
            let mut found = 0;
            for piece in [&stream[cut..], &[]] {
                while let Some(text) = take_frame(&mut buffer).expect("short enough") {
                    let request: Request = serde_json::from_slice(&text).expect("whole");
                    assert_eq!(request.id, 7);
                    found += 1;
                }
                buffer.extend_from_slice(piece);
            }
            assert_eq!(found, 2, "cut at {cut}");
        }
    }

    #[test]
    fn an_endless_frame_is_refused_before_it_is_read() {
        let mut buffer = u32::MAX.to_le_bytes().to_vec();
        assert!(take_frame(&mut buffer).is_err());
    }
}
