//! Descriptors of pipes and terminals as asynchronous streams.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use runtime::StreamEnds;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;

use crate::api::Streams;

/// Makes streams of what a keeper handed over. With `wants_stdin` false a terminal is not written to.
pub(crate) fn streams(ends: StreamEnds, wants_stdin: bool) -> io::Result<Streams> {
    let StreamEnds {
        stdin,
        stdout,
        stderr,
        tty,
        ..
    } = ends;
    if !tty {
        return Ok(Streams {
            stdin: match stdin {
                Some(end) => Some(Box::pin(pipe::Sender::from_owned_fd(end)?)),
                None => None,
            },
            stdout: Box::pin(pipe::Receiver::from_owned_fd(stdout)?),
            stderr: match stderr {
                Some(end) => Some(Box::pin(pipe::Receiver::from_owned_fd(end)?)),
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
    let output: Pin<Box<dyn AsyncRead + Send>> = if rustix::termios::isatty(&stdout) {
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
        stdout: output,
        stderr: None,
        resize: Some(Arc::new(move |columns, rows| window.resize(columns, rows))),
    })
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
