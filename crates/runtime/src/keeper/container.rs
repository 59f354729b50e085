//! A container under its keeper: its record, its streams, and those who are attached to them.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use jiff::Timestamp;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use super::clients::{CLIENTS_MAX, Clients};
use super::log::{Lines, LogFile, log_time};
use super::process::Reports;
use crate::protocol::{Refusal, RefusalKind};
use crate::record::ContainerRecord;

/// How much an attached client may lag behind before it holds the container back: the pipe's size in
/// bytes.
const CLIENT_BUFFER: usize = 256 << 10;

/// What is read at once when a container has ended, at most.
const DRAIN_MAX: usize = 4 << 20;

#[derive(Debug)]
pub(super) struct Container {
    pub(super) record: ContainerRecord,
    /// Being started.
    pub(super) launch: Option<Launching>,
    /// Its standard output and error, or its terminal, as long as they are open.
    pub(super) outputs: Vec<Output>,
    log: LogFile,
    /// The log could not be written; said once until it can be again.
    log_fails: bool,
    /// The keeper's end of its standard input, as long as another attach may write to it.
    stdin: Option<OwnedFd>,
    /// The keeper's side of its terminal.
    terminal: Option<OwnedFd>,
    pub(super) clients: Clients,
}

#[derive(Debug)]
pub(super) struct Launching {
    pub(super) connection: u64,
    pub(super) request: u64,
    pub(super) launcher: i32,
    pub(super) reports: Reports,
    pub(super) failure: Option<Refusal>,
    /// What libcontainer logged first.
    pub(super) cause: Option<String>,
    pub(super) begun: Instant,
    pub(super) deadline: Instant,
}

#[derive(Debug)]
pub(super) struct Output {
    pub(super) source: OwnedFd,
    lines: Lines,
    is_error: bool,
}

/// The near ends, for the container's process.
pub(super) struct NearEnds(pub(super) Option<[OwnedFd; 3]>);

/// What an attach gets.
pub(super) struct FarEnds {
    pub(super) stdin: Option<OwnedFd>,
    /// With the pipe that tells whether all was passed on as the last one.
    pub(super) outputs: Vec<OwnedFd>,
}

impl Container {
    pub(super) fn new(record: ContainerRecord) -> io::Result<Container> {
        Ok(Container {
            record,
            launch: None,
            outputs: Vec::new(),
            log: LogFile::open(None)?,
            log_fails: false,
            stdin: None,
            terminal: None,
            clients: Clients::default(),
        })
    }

    /// Opens the log and makes the pipes, unless there is to be a terminal.
    pub(super) fn open_streams(&mut self) -> Result<NearEnds, Refusal> {
        let spec = &self.record.spec;
        self.log = LogFile::open(spec.log_path.clone()).map_err(|error| {
            let path = spec.log_path.clone().unwrap_or_default();
            machine(&format!("open the log {}", path.display()), &error)
        })?;
        if spec.tty {
            return Ok(NearEnds(None));
        }
        let failed = |error: Errno| machine("make a pipe", &error.into());
        let input = if spec.stdin {
            let (near, far) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
            self.stdin = Some(far);
            near
        } else {
            null().map_err(|error| machine("open /dev/null", &error))?
        };
        let (far_output, output) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
        let (far_error, error) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
        for (source, stream, is_error) in
            [(far_output, "stdout", false), (far_error, "stderr", true)]
        {
            rustix::io::ioctl_fionbio(&source, true).map_err(failed)?;
            self.outputs.push(Output {
                source,
                lines: Lines::new(stream),
                is_error,
            });
        }
        Ok(NearEnds(Some([input, output, error])))
    }

    /// Takes over the terminal that the container's process opened.
    pub(super) fn adopt_terminal(&mut self, terminal: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&terminal, true)?;
        self.outputs.push(Output {
            source: rustix::io::fcntl_dupfd_cloexec(&terminal, 3)?,
            lines: Lines::new("stdout"),
            is_error: false,
        });
        self.terminal = Some(terminal);
        Ok(())
    }

    /// Reads once from an output, logs it and passes it on. An output that has ended is dropped.
    /// A log that begins to fail is returned as an error, once.
    pub(super) fn pump(&mut self, index: usize, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(output) = self.outputs.get_mut(index) else {
            return Ok(0);
        };
        let mut text = Vec::new();
        let length = match rustix::io::read(&output.source, &mut *buffer) {
            Err(Errno::AGAIN | Errno::INTR) => return Ok(0),
            // A terminal whose other side has been closed says EIO.
            Ok(0) | Err(_) => {
                let mut ended = self.outputs.remove(index);
                ended.lines.finish(&log_time(Timestamp::now()), &mut text);
                0
            }
            Ok(length) => {
                let chunk = &buffer[..length];
                output
                    .lines
                    .feed(&log_time(Timestamp::now()), chunk, &mut text);
                let is_error = output.is_error;
                self.clients.pass(is_error, chunk);
                length
            }
        };
        self.write_log(&text).map(|()| length)
    }

    /// Whether an output is not to be read for now, as somebody who is attached has not taken what
    /// came before.
    pub(super) fn is_held_back(&self, output: &Output) -> bool {
        self.clients.hold_back(output.is_error)
    }

    fn write_log(&mut self, text: &[u8]) -> io::Result<()> {
        let result = self.log.write(text);
        let failed_before = std::mem::replace(&mut self.log_fails, result.is_err());
        if failed_before { Ok(()) } else { result }
    }

    /// Reads what is left after the container's process has ended.
    pub(super) fn drain(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let mut result = Ok(());
        let mut index = 0;
        while index < self.outputs.len() {
            let (before, mut total) = (self.outputs.len(), 0);
            loop {
                match self.pump(index, buffer) {
                    Ok(0) => break,
                    Ok(length) => total += length,
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
                if total > DRAIN_MAX {
                    break;
                }
            }
            if self.outputs.len() == before {
                index += 1;
            }
        }
        result
    }

    /// Lets go of everything but the outputs that somebody else still holds open.
    pub(super) fn close(&mut self) {
        self.stdin = None;
        self.terminal = None;
        self.clients.end();
    }

    pub(super) fn reopen_log(&mut self) -> io::Result<()> {
        self.log.reopen()
    }

    /// Connects a client to the streams, from now on.
    pub(super) fn attach(&mut self) -> Result<FarEnds, Refusal> {
        let spec = &self.record.spec;
        if !self.clients.has_room() {
            let message = format!("{CLIENTS_MAX} clients are attached already; detach one first");
            return Err(Refusal::new(RefusalKind::Invalid, message));
        }
        let failed = |error: Errno| machine("attach", &error.into());
        let copy = |end: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(end, 3).map_err(failed);
        let stdin = match (&self.terminal, &self.stdin) {
            // The terminal also takes the window's size, so it goes out in any case.
            (Some(terminal), _) => Some(copy(terminal)?),
            // Handed over for good, the pipe ends with the client.
            (None, Some(_)) if spec.stdin_once => self.stdin.take(),
            (None, Some(stdin)) => Some(copy(stdin)?),
            (None, None) => None,
        };
        let mut ends = FarEnds {
            stdin,
            outputs: Vec::new(),
        };
        let mut pipe = |size: Option<usize>| {
            let (far, end) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
            rustix::io::ioctl_fionbio(&end, true).map_err(failed)?;
            if let Some(size) = size {
                // Less, if the machine's limit for pipes is lower, only makes the client lag sooner.
                let _ = fcntl_setpipe_size(&end, size);
            }
            ends.outputs.push(far);
            Ok(end)
        };
        let output = pipe(Some(CLIENT_BUFFER))?;
        let error = match spec.tty {
            true => None,
            false => Some(pipe(Some(CLIENT_BUFFER))?),
        };
        let verdict = pipe(None)?;
        self.clients.add(verdict, output, error);
        Ok(ends)
    }
}

pub(super) fn null() -> io::Result<OwnedFd> {
    Ok(std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?
        .into())
}

pub(super) fn machine(step: &str, error: &io::Error) -> Refusal {
    Refusal::new(RefusalKind::Machine, format!("{step}: {error}"))
}
