//! Tar streams, entry by entry.

use tar::Header;

/// Writes tar streams that no archiver would: names are put in as they are.
#[derive(Default)]
pub(super) struct Stream(pub(super) Vec<u8>);

pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) kind: u8,
    pub(super) link: &'a [u8],
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) modified: u64,
    pub(super) device: (u32, u32),
    pub(super) content: &'a [u8],
    /// Instead of the content's.
    pub(super) size: Option<u64>,
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Entry {
            name: b"",
            kind: b'0',
            link: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            modified: 1_000_000_000,
            device: (0, 0),
            content: b"",
            size: None,
        }
    }
}

impl Stream {
    pub(super) fn entry(mut self, entry: Entry<'_>) -> Stream {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..entry.name.len()].copy_from_slice(entry.name);
        header.as_old_mut().linkname[..entry.link.len()].copy_from_slice(entry.link);
        header.as_old_mut().linkflag = [entry.kind];
        header.set_mode(entry.mode);
        header.set_uid(entry.uid);
        header.set_gid(entry.gid);
        header.set_mtime(entry.modified);
        header
            .set_device_major(entry.device.0)
            .expect("a GNU header");
        header
            .set_device_minor(entry.device.1)
            .expect("a GNU header");
        header.set_size(entry.size.unwrap_or(entry.content.len() as u64));
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(entry.content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn file(self, name: &str, content: &str) -> Stream {
        self.entry(Entry {
            name: name.as_bytes(),
            content: content.as_bytes(),
            ..Entry::default()
        })
    }

    pub(super) fn directory(self, name: &str, mode: u32) -> Stream {
        self.entry(Entry {
            name: name.as_bytes(),
            kind: b'5',
            mode,
            ..Entry::default()
        })
    }

    pub(super) fn link(self, kind: u8, name: &str, target: &str) -> Stream {
        self.entry(Entry {
            name: name.as_bytes(),
            kind,
            link: target.as_bytes(),
            ..Entry::default()
        })
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> Stream {
        self.link(b'2', name, target)
    }

    pub(super) fn hard_link(self, name: &str, target: &str) -> Stream {
        self.link(b'1', name, target)
    }

    /// Extended headers for what comes next.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Stream {
        let mut content = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            content.extend_from_slice(format!("{length} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.entry(Entry {
            name: b"pax",
            kind: b'x',
            content: &content,
            ..Entry::default()
        })
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}
