//! What the kernel lists: `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Mount points at and below a directory, in the order in which they were made. The kernel lists true
/// paths: `directory` has no link in it.
pub fn below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let list = std::fs::read("/proc/self/mountinfo")?;
    let mounts = list
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(unescape)
        .filter(|mount| mount.starts_with(directory));
    Ok(mounts.collect())
}

/// A path as it was before the kernel wrote blank, tab, newline and backslash as `\040` and so on.
pub fn unescape(field: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(escaped) => {
                plain.push(escaped);
                rest = &after[3..];
            }
            None => {
                plain.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_in_mount_points_are_read() {
        assert_eq!(unescape(br"/a\040b\134c"), Path::new("/a b\\c"));
        assert_eq!(unescape(br"/a\04"), Path::new(r"/a\04"));
    }
}
