//! Log files in the CRI form: one line per write, `<RFC 3339 time> stdout|stderr F|P <text>`.
//!
//! `P` marks a part of a line that was too long for one record; the record that completes it has `F`.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// Which stream a record came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// One line of a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// As written: shown by `--timestamps` without another conversion.
    pub(crate) time: &'a str,
    pub(crate) stream: Stream,
    /// A line feed follows the text.
    pub(crate) is_full: bool,
    pub(crate) text: &'a [u8],
}

impl Record<'_> {
    /// When it was written.
    pub(crate) fn timestamp(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }
}

/// Reads a line (without its line feed). Nothing for one that is not of this form.
pub(crate) fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let tags = parts.next()?;
    let tag = tags.split(|byte| *byte == b':').next()?;
    let is_full = match tag {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Record {
        time,
        stream,
        is_full,
        text: parts.next().unwrap_or_default(),
    })
}

/// The rotated files of a log, oldest first, then the log itself.
pub(crate) fn files(log: &Path) -> Vec<PathBuf> {
    let mut rotated = rotated(log);
    rotated.push(log.to_owned());
    rotated
}

/// `0.log.20261121-094803.123`: sorted by name is sorted by time.
pub(crate) fn rotated(log: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (log.parent(), log.file_name()) else {
        return Vec::new();
    };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut found: Vec<PathBuf> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// Bytes that are read at once when looking for line feeds from the end.
const BLOCK: u64 = 64 * 1024;

/// Where the last `lines` complete lines of a file begin (all of it, if there are fewer). Records that
/// are parts of one line count as one; `counts` says which records count at all.
pub(crate) fn tail_offset(
    file: &mut File,
    lines: u64,
    counts: impl Fn(&Record<'_>) -> bool,
) -> io::Result<(u64, u64)> {
    let length = file.metadata()?.len();
    let mut found = 0_u64;
    let mut start = length;
    // What lies before `carry` in the file has not been read; it begins in the middle of a line.
    let mut carry: Vec<u8> = Vec::new();
    let mut position = length;
    let mut best = length;
    while position > 0 && found <= lines {
        let take = BLOCK.min(position);
        position -= take;
        file.seek(SeekFrom::Start(position))?;
        let mut block = vec![0_u8; usize::try_from(take).unwrap_or(0)];
        file.read_exact(&mut block)?;
        block.extend_from_slice(&carry);
        let first_line = match position {
            0 => 0,
            _ => match block.iter().position(|byte| *byte == b'\n') {
                Some(at) => at + 1,
                None => {
                    carry = block;
                    continue;
                }
            },
        };
        let mut offset = position + u64::try_from(block.len()).unwrap_or(0);
        for line in block[first_line..]
            .split_inclusive(|byte| *byte == b'\n')
            .rev()
        {
            offset -= u64::try_from(line.len()).unwrap_or(0);
            let text = line.strip_suffix(b"\n").unwrap_or(line);
            let Some(record) = parse(text).filter(|record| counts(record)) else {
                continue;
            };
            // A full record ends a line; the parts before it belong to it.
            if record.is_full || found == 0 {
                if found == lines {
                    return Ok((best, found));
                }
                found += 1;
            }
            best = offset;
        }
        start = best;
        carry = block[..first_line].to_vec();
    }
    Ok((start, found))
}

/// The end of a log as plain text: at most so many lines and bytes.
pub(crate) fn tail_text(log: &Path, lines_max: usize, bytes_max: usize) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let lines = u64::try_from(lines_max).unwrap_or(u64::MAX);
        let (offset, _) = tail_offset(&mut file, lines, |_| true)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(1 << 20).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // A log that is gone has nothing to say.
    let bytes = read().unwrap_or_default();
    let mut text = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(record) = parse(line) else { continue };
        text.extend_from_slice(record.text);
        if record.is_full {
            text.push(b'\n');
        }
    }
    let start = text.len().saturating_sub(bytes_max);
    String::from_utf8_lossy(&text[start..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn records() {
        let line = b"2026-11-21T09:48:03.5+01:00 stderr P half a line";
        let record = parse(line).expect("a record");
        assert_eq!(record.stream, Stream::Stderr);
        assert!(!record.is_full);
        assert_eq!(record.text, b"half a line");
        assert!(record.timestamp().is_some());
        let empty = parse(b"2026-11-21T09:48:03Z stdout F ").expect("an empty line");
        assert_eq!(empty.text, b"");
        for bad in [&b""[..], b"x", b"t stdin F x", b"t stdout X x", b"t stdout"] {
            assert_eq!(parse(bad), None);
        }
    }

    fn file(lines: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("0.log");
        let mut file = File::create(&path).expect("a file");
        for line in lines {
            writeln!(file, "2026-11-21T09:48:03Z {line}").expect("written");
        }
        (directory, path)
    }

    #[track_caller]
    fn check_tail(lines: &[&str], wanted: u64, expected: &str) {
        let (_directory, path) = file(lines);
        let mut opened = File::open(&path).expect("opened");
        let (offset, _) = tail_offset(&mut opened, wanted, |_| true).expect("read");
        let text = std::fs::read_to_string(&path).expect("read");
        let start = usize::try_from(offset).expect("small");
        let seen: String = text[start..]
            .lines()
            .filter_map(|line| parse(line.as_bytes()))
            .map(|record| {
                let text = String::from_utf8_lossy(record.text);
                format!("{text}{}", if record.is_full { "|" } else { "" })
            })
            .collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_last_lines() {
        let lines = ["stdout F a", "stdout P b", "stdout F c", "stderr F d"];
        check_tail(&lines, 0, "");
        check_tail(&lines, 1, "d|");
        check_tail(&lines, 2, "bc|d|");
        check_tail(&lines, 3, "a|bc|d|");
        check_tail(&lines, 9, "a|bc|d|");
        check_tail(&[], 5, "");
        check_tail(&["stdout F a", "stdout P unfinished"], 1, "unfinished");
    }

    #[test]
    fn the_last_lines_of_a_log_longer_than_a_block() {
        let long = format!("stdout F {}", "x".repeat(50_000));
        let (_directory, path) = file(&[&long, "stdout F y", &long, "stdout F z"]);
        let mut opened = File::open(&path).expect("opened");
        let (offset, found) = tail_offset(&mut opened, 3, |_| true).expect("read");
        assert_eq!(found, 3);
        let text = std::fs::read_to_string(&path).expect("read");
        let rest = &text[usize::try_from(offset).expect("small")..];
        assert!(rest.starts_with("2026-11-21T09:48:03Z stdout F y\n"));
    }

    #[test]
    fn tail_as_text() {
        let (_directory, path) = file(&["stdout F line1", "stderr F line2"]);
        assert_eq!(tail_text(&path, 80, 2048), "line1\nline2\n");
        assert_eq!(tail_text(&path, 1, 2048), "line2\n");
        assert_eq!(tail_text(&path, 80, 3), "e2\n");
        assert_eq!(tail_text(Path::new("/no/such/log"), 80, 2048), "");
    }
}
