//! Which compression a stream has, told by its first bytes, and how to undo it.

use std::io::{self, Read};

/// How many first bytes [`Compression::detect`] wants to see.
pub(crate) const MAGIC_LENGTH: usize = 6;

/// The largest window that a zstd frame may ask for, as a power of two (128 MiB, zstd's own default).
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// A compression that archives and layers come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    /// Known by sight, but not read here: the name of the program that undoes it.
    Foreign(&'static str),
}

impl Compression {
    /// Looks at the first bytes of a stream, fewer if the stream is shorter.
    pub(crate) fn detect(first: &[u8]) -> Compression {
        match first {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // A skippable frame, as seekable zstd writers may put first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Foreign("xz"),
            [b'B', b'Z', b'h', ..] => Compression::Foreign("bzip2"),
            _ => Compression::None,
        }
    }

    /// The plain stream. Frames and members that follow each other are one stream.
    pub(crate) fn decode<'a>(
        self,
        compressed: impl Read + Send + 'a,
    ) -> io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Compression::None => Box::new(compressed),
            Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(compressed)),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::new(compressed)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
            Compression::Foreign(program) => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("compressed with {program}: decompress it with `{program} -d` first"),
                ));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn streams_are_told_apart_and_undone() {
        #[track_caller]
        fn check(compressed: &[u8], expected: Compression) {
            let compression =
                Compression::detect(&compressed[..compressed.len().min(MAGIC_LENGTH)]);
            assert_eq!(compression, expected);
            let mut plain = String::new();
            compression
                .decode(compressed)
                .and_then(|mut reader| reader.read_to_string(&mut plain))
                .expect("it was compressed here");
            assert_eq!(plain, "onetwo");
        }
        let gzip = |text: &str| {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text.as_bytes()).expect("memory");
            encoder.finish().expect("memory")
        };
        check(b"onetwo", Compression::None);
        check(&gzip("onetwo"), Compression::Gzip);
        check(&[gzip("one"), gzip("two")].concat(), Compression::Gzip);
        let zstd = |text: &str| zstd::encode_all(text.as_bytes(), 1).expect("memory");
        check(&[zstd("one"), zstd("two")].concat(), Compression::Zstd);
        let skippable = [&b"\x50\x2a\x4d\x18\x02\0\0\0xx"[..], &zstd("onetwo")].concat();
        check(&skippable, Compression::Zstd);
    }

    #[test]
    fn what_is_not_read_here_names_the_next_step() {
        let compression = Compression::detect(b"\xfd7zXZ\0");
        let error = compression
            .decode(io::empty())
            .err()
            .expect("xz is not read");
        assert!(error.to_string().contains("`xz -d`"), "{error}");
    }
}
