//! How much a tree takes on the disk.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes that the tree at `path` takes on its disk; a file with several names counts once.
pub(crate) fn disk_usage(path: &Path) -> io::Result<u64> {
    const BLOCK: u64 = 512;
    let mut linked = std::collections::BTreeSet::new();
    let mut bytes = 0;
    for entry in walkdir::WalkDir::new(path) {
        let metadata = match entry.and_then(|entry| entry.metadata()) {
            Ok(metadata) => metadata,
            // Somebody works in the tree while it is measured.
            Err(error)
                if error.io_error().map(io::Error::kind) == Some(io::ErrorKind::NotFound) =>
            {
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if metadata.nlink() > 1 && !metadata.is_dir() && !linked.insert(metadata.ino()) {
            continue;
        }
        bytes += metadata.blocks() * BLOCK;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn usage_counts_a_file_once() {
        let place = tempfile::tempdir().expect("a temporary directory");
        fs::write(place.path().join("a"), vec![1; 1 << 20]).expect("a file");
        let once = disk_usage(place.path()).expect("usage");
        assert!(once >= 1 << 20, "{once}");
        fs::hard_link(place.path().join("a"), place.path().join("b")).expect("a second name");
        assert_eq!(disk_usage(place.path()).expect("usage"), once);
    }
}
