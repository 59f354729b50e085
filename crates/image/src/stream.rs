//! Readers that watch what goes by: digests, progress, cancellation, and a bound on what is read
//! between two members of an archive.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use oci::{Algorithm, Digest, DigestMismatch, Hasher};

/// Set when nobody waits for the result any more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

/// Cancels when it is dropped, as the future that holds it is.
pub(crate) struct CancelOnDrop(pub(crate) Cancel);

impl Cancel {
    /// Fails with [`io::ErrorKind::Interrupted`]'s less retried sibling once cancelled.
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "given up by the caller",
            ));
        }
        Ok(())
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Called with the number of bytes of each piece that goes by.
pub(crate) type Watch<'a> = &'a (dyn Fn(u64) + Sync);

/// A part of a file, read at positions of its own, so that several can be read side by side.
pub(crate) struct Part<'a> {
    file: &'a File,
    position: u64,
    end: u64,
    cancel: &'a Cancel,
    watch: Option<Watch<'a>>,
}

impl<'a> Part<'a> {
    pub(crate) fn new(file: &'a File, start: u64, length: u64, cancel: &'a Cancel) -> Part<'a> {
        Part {
            file,
            position: start,
            end: start.saturating_add(length),
            cancel,
            watch: None,
        }
    }

    pub(crate) fn watched(self, watch: Watch<'a>) -> Part<'a> {
        Part {
            watch: Some(watch),
            ..self
        }
    }
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel.check()?;
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..wanted], self.position)?;
        self.position += read as u64;
        if let Some(watch) = self.watch {
            watch(read as u64);
        }
        Ok(read)
    }
}

impl Seek for Part<'_> {
    /// Relative only to the start of the file or the position: all that the tar reader asks for.
    fn seek(&mut self, target: SeekFrom) -> io::Result<u64> {
        let position = match target {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
            SeekFrom::End(distance) => self.end.checked_add_signed(distance),
        };
        self.position = position
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek out of bounds"))?
            .min(self.end);
        Ok(self.position)
    }
}

/// Ends with an error once cancelled.
pub(crate) struct Cancellable<R> {
    reader: R,
    cancel: Cancel,
}

impl<R> Cancellable<R> {
    pub(crate) fn new(reader: R, cancel: Cancel) -> Cancellable<R> {
        Cancellable { reader, cancel }
    }
}

impl<R: Read> Read for Cancellable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel.check()?;
        self.reader.read(buffer)
    }
}

/// Makes the digest of what goes by.
pub(crate) struct Hashing<R> {
    reader: R,
    hasher: Hasher,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(reader: R, algorithm: Algorithm) -> Hashing<R> {
        Hashing {
            reader,
            hasher: Hasher::new(algorithm),
        }
    }

    /// Reads what nobody wanted, so that the digest is of all of it; more than `limit` bytes are an
    /// error.
    pub(crate) fn drain(&mut self, limit: u64) -> io::Result<()> {
        let drained = io::copy(&mut self.by_ref().take(limit), &mut io::sink())?;
        if drained == limit && self.read(&mut [0])? > 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "too much follows the end of the tar",
            ));
        }
        Ok(())
    }

    pub(crate) fn verify(self, expected: &Digest) -> Result<(), DigestMismatch> {
        self.hasher.verify(expected)
    }

    pub(crate) fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

/// What may still be read before somebody says that more is wanted.
///
/// The tar reader keeps long names and extended headers in memory, however long they say they are.
/// It reads them between two members, where this allowance is short.
#[derive(Clone, Debug)]
pub(crate) struct Allowance(Rc<Cell<u64>>);

impl Allowance {
    pub(crate) fn new() -> Allowance {
        Allowance(Rc::new(Cell::new(u64::MAX)))
    }

    pub(crate) fn limit(&self, bytes: u64) {
        self.0.set(bytes);
    }

    pub(crate) fn lift(&self) {
        self.0.set(u64::MAX);
    }
}

/// A reader under an [`Allowance`].
pub(crate) struct Allowed<R> {
    reader: R,
    allowance: Allowance,
}

impl<R> Allowed<R> {
    pub(crate) fn new(reader: R, allowance: Allowance) -> Allowed<R> {
        Allowed { reader, allowance }
    }
}

impl<R: Read> Read for Allowed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.allowance.0.get();
        if left == 0 && !buffer.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a header is longer than any archiver writes",
            ));
        }
        let wanted = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.reader.read(&mut buffer[..wanted])?;
        self.allowance.0.set(left.saturating_sub(read as u64));
        Ok(read)
    }
}

impl<R: Seek> Seek for Allowed<R> {
    fn seek(&mut self, target: SeekFrom) -> io::Result<u64> {
        self.reader.seek(target)
    }
}
