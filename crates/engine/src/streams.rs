//! Descriptors of pipes and terminals as asynchronous streams.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use runtime::StreamEnds;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;

use crate::api::{Reader, Streams};

/// Makes streams of what a keeper handed over. With `wants_stdin` false a terminal is not written to.
pub(crate) fn streams(ends: StreamEnds, wants_stdin: bool) -> io::Result<Streams> {
    let StreamEnds {
        stdin,
        stdout,
        stderr,
        tty,
        verdict,
    } = ends;
    let verdict = verdict.map(Verdict::new).transpose()?;
    if !tty {
        return Ok(Streams {
            stdin: match stdin {
                Some(end) => Some(Box::pin(pipe::Sender::from_owned_fd(end)?)),
                None => None,
            },
            stdout: checked(
                Box::pin(pipe::Receiver::from_owned_fd(stdout)?),
                verdict.clone(),
            ),
            stderr: match stderr {
                Some(end) => Some(checked(
                    Box::pin(pipe::Receiver::from_owned_fd(end)?),
                    verdict,
                )),
                None => None,
            },
            resize: None,
        });
    }
    // The first end is the terminal itself; the second may be, too, or a pipe with a copy of what
    // it says.
    let terminal = match stdin {
        Some(end) => Terminal::new(end)?,
        None => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let output: Reader = if rustix::termios::isatty(&stdout) {
        Box::pin(Terminal::new(stdout)?)
    } else {
        Box::pin(pipe::Receiver::from_owned_fd(stdout)?)
    };
    let window = terminal.clone();
    Ok(Streams {
        stdin: match wants_stdin {
            true => Some(Box::pin(terminal)),
            false => None,
        },
        stdout: checked(output, verdict),
        stderr: None,
        resize: Some(Arc::new(move |columns, rows| window.resize(columns, rows))),
    })
}

/// Whether all of the output of a container was passed on to one who is attached to it.
struct Verdict {
    pipe: OwnedFd,
    heard: OnceLock<bool>,
}

impl Verdict {
    fn new(pipe: OwnedFd) -> io::Result<Arc<Verdict>> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Arc::new(Verdict {
            pipe,
            heard: OnceLock::new(),
        }))
    }

    /// To be asked when an output has ended: by then it stands.
    fn is_whole(&self) -> bool {
        *self
            .heard
            .get_or_init(|| rustix::io::read(&self.pipe, &mut [0]) == Ok(1))
    }
}

fn checked(reader: Reader, verdict: Option<Arc<Verdict>>) -> Reader {
    match verdict {
        Some(verdict) => Box::pin(Checked { reader, verdict }),
        None => reader,
    }
}

/// An output whose end is an error if something is missing.
struct Checked {
    reader: Reader,
    verdict: Arc<Verdict>,
}

impl AsyncRead for Checked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(self.reader.as_mut().poll_read(context, buffer))?;
        let is_end = buffer.filled().len() == before && buffer.remaining() > 0;
        Poll::Ready(match is_end && !self.verdict.is_whole() {
            true => Err(io::Error::other(
                "output is missing: it was not taken for minutes, or not before all of it was removed",
            )),
            false => Ok(()),
        })
    }
}

/// The far side of a terminal.
#[derive(Clone)]
struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    fn new(end: OwnedFd) -> io::Result<Terminal> {
        rustix::io::ioctl_fionbio(&end, true)?;
        #[expect(
            unsafe_code,
            reason = "registering a descriptor by trait has no safe form"
        )]
        // SAFETY: an OwnedFd gives the same open descriptor as long as it lives.
        let registered = unsafe { AsyncFd::register(end) };
        Ok(Terminal(Arc::new(registered.map_err(io::Error::from)?)))
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = rustix::termios::Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // The command may have ended; then nobody looks at the window.
        let _ = rustix::termios::tcsetwinsize(self.0.get_ref(), size);
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            let result = ready.try_io(|end| {
                Ok(rustix::io::read(
                    end.get_ref(),
                    buffer.initialize_unfilled(),
                )?)
            });
            match result {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // The last process has closed its side: the end.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(context))?;
            match ready.try_io(|end| Ok(rustix::io::write(end.get_ref(), bytes)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    // A terminal has no end of input; who is done typing says so by typing.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
