//! Reads a container's log for a client: from where it wants, and on while the container runs.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use engine::{ContainerId, ContainerState, Engine, Event};
use jiff::Timestamp;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::logs::{self, Record, Stream};

/// Bytes that are read and sent at once.
const PIECE: usize = 64 * 1024;

/// What a client wants of a log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// Only the last lines.
    pub(crate) tail: Option<u64>,
    /// Only what was written from then on.
    pub(crate) since: Option<Timestamp>,
    /// Each line with its time before it.
    pub(crate) timestamps: bool,
    /// No more than that.
    pub(crate) bytes_max: Option<u64>,
    /// Only one stream.
    pub(crate) stream: Option<Stream>,
}

/// Tells when a container has ended.
pub(crate) struct Follow {
    engine: Arc<dyn Engine>,
    id: ContainerId,
    events: mpsc::Receiver<Event>,
}

impl Follow {
    pub(crate) fn new(engine: &Arc<dyn Engine>, id: ContainerId) -> Follow {
        Follow {
            events: engine.events(),
            engine: engine.clone(),
            id,
        }
    }

    async fn has_ended(&self) -> bool {
        let running = |state: &ContainerState| matches!(state, ContainerState::Running { .. });
        match self.engine.container(&self.id).await {
            Ok(container) => !running(&container.state),
            Err(_) => true,
        }
    }

    /// Resolves when something may have ended it.
    async fn changed(&mut self) {
        loop {
            match self.events.recv().await {
                Some(Event::Container { container, .. }) if container == self.id => return,
                Some(Event::Container { .. }) => {}
                Some(Event::SandboxGone(_) | Event::Missed) => return,
                None => {
                    self.events = self.engine.events();
                    return;
                }
            }
        }
    }
}

/// A log that is being read.
pub(crate) struct LogReader {
    log: PathBuf,
    wanted: Wanted,
    sent: u64,
    /// The beginning of a line that has not been written whole yet.
    partial: Vec<u8>,
    /// The last record was a part: the next one goes on with its line.
    within_line: bool,
}

/// Nobody wants the rest.
struct Enough;

type Sender = mpsc::Sender<Result<Bytes, io::Error>>;

impl LogReader {
    pub(crate) fn new(log: PathBuf, wanted: Wanted) -> LogReader {
        LogReader {
            log,
            wanted,
            sent: 0,
            partial: Vec::new(),
            within_line: false,
        }
    }

    /// Sends what is wanted; with `follow`, until the container has ended. Ends early when the
    /// receiver is dropped.
    pub(crate) async fn send(mut self, follow: Option<Follow>, sender: &Sender) -> io::Result<()> {
        // Before the first read, so that nothing is written unseen.
        let watch = match follow {
            Some(_) => Some(DirectoryWatch::new(&self.log)?),
            None => None,
        };
        let mut files = self.open()?;
        let last = files.pop();
        for mut file in files {
            if self.drain(&mut file, sender).await?.is_err() {
                return Ok(());
            }
        }
        let mut file = match last {
            Some(file) => file,
            None => return Ok(()),
        };
        let (Some(mut follow), Some(mut watch)) = (follow, watch) else {
            // Only an error of the disk matters here: there is nothing more to come.
            let _ = self.drain(&mut file, sender).await?;
            return Ok(());
        };
        loop {
            // Asked before the read: what was written until then is in the file.
            let has_ended = follow.has_ended().await;
            if self.drain(&mut file, sender).await?.is_err() {
                return Ok(());
            }
            if let Some(next) = self.rotated(&file)? {
                file = next;
                continue;
            }
            if has_ended {
                return Ok(());
            }
            tokio::select! {
                () = sender.closed() => return Ok(()),
                result = watch.changed() => result?,
                () = follow.changed() => {}
            }
        }
    }

    /// The files in which what is wanted begins and goes on, each at its place, the newest last.
    fn open(&self) -> io::Result<Vec<File>> {
        let mut opened = Vec::new();
        let mut left = self.wanted.tail;
        for path in logs::files(&self.log).into_iter().rev() {
            let mut file = match File::open(&path) {
                Ok(file) => file,
                // Rotated away meanwhile, or nothing was ever written.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let stream = self.wanted.stream;
            if let Some(lines) = left {
                let counts = |record: &Record<'_>| stream.is_none_or(|only| only == record.stream);
                let (offset, found) = logs::tail_offset(&mut file, lines, counts)?;
                file.seek(SeekFrom::Start(offset))?;
                left = Some(lines - found.min(lines));
            }
            opened.push(file);
            if left == Some(0) {
                break;
            }
        }
        opened.reverse();
        Ok(opened)
    }

    /// The log's new file, when it is no longer the one that is open.
    fn rotated(&self, file: &File) -> io::Result<Option<File>> {
        use std::os::unix::fs::MetadataExt as _;
        let next = match File::open(&self.log) {
            Ok(next) => next,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let (old, new) = (file.metadata()?, next.metadata()?);
        Ok(Some(next).filter(|_| (old.dev(), old.ino()) != (new.dev(), new.ino())))
    }

    /// Sends all that a file has now.
    async fn drain(&mut self, file: &mut File, sender: &Sender) -> io::Result<Result<(), Enough>> {
        let mut piece = vec![0; PIECE];
        loop {
            let count = file.read(&mut piece)?;
            if count == 0 {
                return Ok(Ok(()));
            }
            self.partial.extend_from_slice(&piece[..count]);
            let mut output = Vec::with_capacity(count);
            let is_enough = self.take_lines(&mut output).is_err();
            if !output.is_empty() && sender.send(Ok(output.into())).await.is_err() || is_enough {
                return Ok(Err(Enough));
            }
        }
    }

    fn take_lines(&mut self, output: &mut Vec<u8>) -> Result<(), Enough> {
        let bytes = std::mem::take(&mut self.partial);
        let mut rest = bytes.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            if let Some(record) = logs::parse(&rest[..end]) {
                self.take(&record, output)?;
            }
            rest = &rest[end + 1..];
        }
        self.partial = rest.to_vec();
        Ok(())
    }

    fn take(&mut self, record: &Record<'_>, output: &mut Vec<u8>) -> Result<(), Enough> {
        if self.wanted.stream.is_some_and(|only| only != record.stream) {
            return Ok(());
        }
        if let Some(since) = self.wanted.since
            && record.timestamp().is_none_or(|time| time < since)
        {
            return Ok(());
        }
        let before = output.len();
        if self.wanted.timestamps && !self.within_line {
            output.extend_from_slice(record.time.as_bytes());
            output.push(b' ');
        }
        output.extend_from_slice(record.text);
        if record.is_full {
            output.push(b'\n');
        }
        self.within_line = !record.is_full;
        let Some(most) = self.wanted.bytes_max else {
            return Ok(());
        };
        let added = u64::try_from(output.len() - before).unwrap_or(u64::MAX);
        if self.sent + added >= most {
            let room = usize::try_from(most - self.sent).unwrap_or(usize::MAX);
            output.truncate(before.saturating_add(room));
            return Err(Enough);
        }
        self.sent += added;
        Ok(())
    }
}

/// Tells when a log was written to, or moved away and begun anew.
struct DirectoryWatch(AsyncFd<OwnedFd>);

impl DirectoryWatch {
    fn new(log: &Path) -> io::Result<DirectoryWatch> {
        let directory = log.parent().unwrap_or(log);
        let descriptor =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(
            &descriptor,
            directory,
            inotify::WatchFlags::MODIFY
                | inotify::WatchFlags::CREATE
                | inotify::WatchFlags::MOVED_FROM
                | inotify::WatchFlags::DELETE_SELF,
        )?;
        #[expect(
            unsafe_code,
            reason = "registering a descriptor needs a promise about it"
        )]
        // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives.
        let descriptor = unsafe { AsyncFd::register(descriptor) };
        Ok(DirectoryWatch(descriptor.map_err(io::Error::from)?))
    }

    async fn changed(&mut self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        // All that has happened so far is answered by one look.
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.0.get_ref(), &mut buffer);
        loop {
            match reader.next() {
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        Ok(())
    }
}
