//! The file that `wharf up` gives a server as its standard error, kept from growing without end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// A longer file is put aside; one old one is kept.
const BYTES_MAX: u64 = 10 << 20;

/// A log file that is put aside when it is long. Every write is a whole line.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    bytes_max: u64,
    /// Standard error goes where this log goes: panics are written there.
    is_standard_error: bool,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    length: u64,
}

impl LogFile {
    /// The log at `path`, if that is what standard error leads to. It is not where a service manager
    /// keeps the log, or somebody looks on.
    pub(crate) fn of_standard_error(path: &Path) -> Option<LogFile> {
        let own = rustix::fs::fstat(rustix::stdio::stderr()).ok()?;
        let log = fs::metadata(path).ok()?;
        if (own.st_dev, own.st_ino) != (log.dev(), log.ino()) {
            return None;
        }
        LogFile::open(path, BYTES_MAX, true).ok()
    }

    fn open(path: &Path, bytes_max: u64, is_standard_error: bool) -> io::Result<LogFile> {
        let file = append_to(path)?;
        let length = file.metadata()?.len();
        Ok(LogFile {
            path: path.to_owned(),
            bytes_max,
            is_standard_error,
            open: Mutex::new(Open { file, length }),
        })
    }

    /// Goes on with an empty file; with the same one, emptied, if there can be no other.
    fn begin_anew(&self, open: &mut Open) -> io::Result<()> {
        let begun = fs::rename(&self.path, self.path.with_extension("log.1"))
            .and_then(|()| append_to(&self.path));
        match begun {
            Ok(file) => {
                if self.is_standard_error {
                    rustix::stdio::dup2_stderr(&file)?;
                }
                open.file = file;
            }
            Err(_) => open.file.set_len(0)?,
        }
        open.length = 0;
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

impl Write for &LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut open = self.open.lock();
        if open.length > 0 && open.length + line.len() as u64 > self.bytes_max {
            self.begin_anew(&mut open)?;
        }
        let written = open.file.write(line)?;
        open.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> PathBuf {
        let place = std::env::temp_dir().join(format!("wharf-log-{name}-{}", std::process::id()));
        fs::create_dir(&place).expect("made");
        place
    }

    #[test]
    fn it_is_bounded_while_it_is_written_to() {
        let place = place("bounded");
        let path = place.join("wharf.log");
        fs::write(&path, "from before\n").expect("written");
        let log = LogFile::open(&path, 100, false).expect("opened");
        for number in 0..50 {
            writeln!(&log, "this is line {number}").expect("written");
        }
        let mut names: Vec<_> = fs::read_dir(&place)
            .expect("listed")
            .map(|entry| entry.expect("listed").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["wharf.log", "wharf.log.1"]);
        let read = |name: &str| fs::read_to_string(place.join(name)).expect("readable");
        let (old, new) = (read("wharf.log.1"), read("wharf.log"));
        assert!(old.len() <= 100 && new.len() <= 100, "{old}{new}");
        // The last lines, none of them torn or lost between the two.
        let lines = format!("{old}{new}");
        let first = 50 - lines.lines().count();
        assert!(first < 45, "{lines}");
        for (line, number) in lines.lines().zip(first..) {
            assert_eq!(line, format!("this is line {number}"));
        }
        fs::remove_dir_all(place).expect("removed");
    }

    #[test]
    fn one_that_cannot_be_put_aside_is_bounded_as_well() {
        let place = place("stuck");
        let path = place.join("wharf.log");
        fs::create_dir_all(place.join("wharf.log.1/in the way")).expect("made");
        let log = LogFile::open(&path, 100, false).expect("opened");
        for number in 0..50 {
            writeln!(&log, "this is line {number}").expect("written");
        }
        let left = fs::read_to_string(&path).expect("readable");
        assert!(left.len() <= 100 && left.ends_with("line 49\n"), "{left}");
        fs::remove_dir_all(place).expect("removed");
    }

    #[test]
    fn another_standard_error_is_none() {
        let place = place("other");
        let path = place.join("wharf.log");
        assert!(LogFile::of_standard_error(&path).is_none());
        fs::write(&path, "").expect("written");
        assert!(LogFile::of_standard_error(&path).is_none());
        fs::remove_dir_all(place).expect("removed");
    }
}
