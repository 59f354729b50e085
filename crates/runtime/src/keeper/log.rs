//! Container output on its way to the log file.
//!
//! ```text
//! 2026-01-01T00:00:00.123456789Z stdout F a whole line
//! 2026-01-01T00:00:00.123456789Z stderr P the first 16 KiB of a long one, or a last one without newline
//! ```
//!
//! This is the format of the Kubernetes Container Runtime Interface. A line is written when it is
//! whole; what comes together is written together. A log that cannot be written (a full disk) costs
//! its lines, never the container its time: the pipe is emptied in any case.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use jiff::Timestamp;

/// The longest piece of a line; containerd's default.
const PIECE_MAX: usize = 16 << 10;

/// Cuts one stream into log lines.
#[derive(Debug)]
pub(super) struct Lines {
    stream: &'static str,
    pending: Vec<u8>,
}

impl Lines {
    pub(super) fn new(stream: &'static str) -> Lines {
        Lines {
            stream,
            pending: Vec::new(),
        }
    }

    /// Appends the log lines that `chunk` completes to `log`.
    pub(super) fn feed(&mut self, time: &str, mut chunk: &[u8], log: &mut Vec<u8>) {
        while !chunk.is_empty() {
            let room = PIECE_MAX - self.pending.len();
            let window = &chunk[..chunk.len().min(room)];
            if let Some(end) = window.iter().position(|&byte| byte == b'\n') {
                self.put(time, b'F', &window[..end], log);
                chunk = &chunk[end + 1..];
            } else if window.len() == room {
                self.put(time, b'P', window, log);
                chunk = &chunk[room..];
            } else {
                self.pending.extend_from_slice(window);
                return;
            }
        }
    }

    /// Appends what is left when the stream has ended.
    pub(super) fn finish(&mut self, time: &str, log: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.put(time, b'P', &[], log);
        }
    }

    fn put(&mut self, time: &str, tag: u8, rest: &[u8], log: &mut Vec<u8>) {
        log.extend_from_slice(time.as_bytes());
        log.push(b' ');
        log.extend_from_slice(self.stream.as_bytes());
        log.extend_from_slice(&[b' ', tag, b' ']);
        log.extend_from_slice(&self.pending);
        log.extend_from_slice(rest);
        log.push(b'\n');
        // Give a long line's memory back: a keeper is small when nothing happens.
        self.pending = Vec::new();
    }
}

/// The time as it stands in a log: always nine digits, so that lines sort as text.
pub(super) fn log_time(now: Timestamp) -> String {
    format!("{now:.9}")
}

/// The file.
#[derive(Debug)]
pub(super) struct LogFile {
    path: Option<PathBuf>,
    file: Option<File>,
    /// The last write stopped in the middle of a line.
    torn: bool,
}

impl LogFile {
    /// Opens the file for appending; without a path everything is thrown away.
    pub(super) fn open(path: Option<PathBuf>) -> io::Result<LogFile> {
        let mut log = LogFile {
            path,
            file: None,
            torn: false,
        };
        log.reopen()?;
        Ok(log)
    }

    /// Goes on in the file that is now at the path, made if absent.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o640)
                .open(path)?;
            self.file = Some(file);
            self.torn = false;
        }
        Ok(())
    }

    /// Writes whole lines. On failure what does not fit is lost, and the next write begins on a
    /// line of its own.
    pub(super) fn write(&mut self, mut lines: &[u8]) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        if self.torn {
            // The newline that the torn line lacks.
            match rustix::io::write(file, b"\n") {
                Ok(1) => self.torn = false,
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) => return Err(error.into()),
            }
        }
        while !lines.is_empty() {
            match rustix::io::write(file, lines) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.torn = lines[written - 1] != b'\n';
                    lines = &lines[written..];
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(chunks: &[&str], expected: &[(&str, usize)]) {
        let mut lines = Lines::new("stdout");
        let mut log = Vec::new();
        for chunk in chunks {
            lines.feed("T", chunk.as_bytes(), &mut log);
        }
        lines.finish("T", &mut log);
        let log = String::from_utf8(log).expect("ASCII");
        let found: Vec<_> = log
            .split_terminator('\n')
            .map(|line| {
                let mut parts = line.splitn(4, ' ');
                assert_eq!(parts.next(), Some("T"));
                assert_eq!(parts.next(), Some("stdout"));
                (
                    parts.next().expect("a tag"),
                    parts.next().expect("text").len(),
                )
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn lines_are_cut_as_containerd_cuts_them() {
        check(&["a\nbc\n"], &[("F", 1), ("F", 2)]);
        check(&["a", "b", "c\n", "\n"], &[("F", 3), ("F", 0)]);
        check(&["tail"], &[("P", 4)]);
        check(&[], &[]);
        let long = "x".repeat(40_006);
        check(
            &[&long, "\n"],
            &[("P", 16_384), ("P", 16_384), ("F", 7_238)],
        );
        check(
            &["abc", &long, "\n"],
            &[("P", 16_384), ("P", 16_384), ("F", 7_241)],
        );
        let exact = "x".repeat(16_384);
        check(&[&exact, "\n"], &[("P", 16_384), ("F", 0)]);
    }

    #[test]
    fn times_have_nine_digits() {
        assert_eq!(
            log_time(Timestamp::UNIX_EPOCH),
            "1970-01-01T00:00:00.000000000Z"
        );
    }

    #[test]
    fn a_log_goes_on_in_a_new_file_after_the_old_one_was_moved() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let path = directory.path().join("new/0.log");
        let mut log = LogFile::open(Some(path.clone())).expect("the file can be made");
        log.write(b"one\n").expect("written");
        std::fs::rename(&path, directory.path().join("old")).expect("moved");
        log.write(b"two\n").expect("written");
        log.reopen().expect("reopened");
        log.write(b"three\n").expect("written");
        let read = |path| std::fs::read_to_string(path).expect("readable");
        assert_eq!(read(directory.path().join("old")), "one\ntwo\n");
        assert_eq!(read(path), "three\n");
    }

    #[test]
    fn a_full_disk_is_an_error_and_not_a_wait() {
        let mut log = LogFile::open(Some("/dev/full".into())).expect("opened");
        let error = log.write(b"line\n").expect_err("no space");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }
}
