//! SPDY/3 header blocks: pairs of names and values, compressed by one zlib stream per direction.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::dictionary::dictionary;

/// The longest block, uncompressed, that is taken.
const BLOCK_BYTES_MAX: usize = 64 * 1024;

/// Names in lower case with their values, in the order of the wire. A name with several values stands
/// several times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Headers {
    fn from(pairs: [(&str, &str); N]) -> Headers {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Headers(pairs.into_iter().map(owned).collect())
    }
}

/// A header block that cannot be read. The connection cannot go on: its compression is lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderBlockError {
    /// No zlib data with the dictionary of SPDY/3.
    #[error("a header block that cannot be decompressed: {0}")]
    Compression(String),
    /// More than is taken.
    #[error("a header block of more than {BLOCK_BYTES_MAX} bytes")]
    TooLong,
    /// The pairs inside are not whole.
    #[error("a header block that ends within a pair")]
    Truncated,
    /// A name or value that is no text.
    #[error("a header block with a name or value that is not UTF-8")]
    Text,
}

/// Reads the header blocks of one direction, in their order.
pub(crate) struct HeaderReader {
    zlib: Decompress,
}

/// Writes the header blocks of one direction.
pub(crate) struct HeaderWriter {
    zlib: Compress,
}

impl HeaderReader {
    pub(crate) fn new() -> HeaderReader {
        HeaderReader {
            zlib: Decompress::new(true),
        }
    }

    pub(crate) fn read(&mut self, block: &[u8]) -> Result<Headers, HeaderBlockError> {
        parse(self.inflate(block)?)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Bytes, HeaderBlockError> {
        let fail = |error: &dyn std::fmt::Display| HeaderBlockError::Compression(error.to_string());
        let mut output = Vec::new();
        loop {
            if output.len() > BLOCK_BYTES_MAX {
                return Err(HeaderBlockError::TooLong);
            }
            output.reserve(1024);
            let (read_before, written_before) = (self.zlib.total_in(), output.len());
            let result = self
                .zlib
                .decompress_vec(input, &mut output, FlushDecompress::Sync);
            let read = usize::try_from(self.zlib.total_in() - read_before).unwrap_or(input.len());
            input = input.get(read..).unwrap_or_default();
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.zlib
                        .set_dictionary(&dictionary())
                        .map_err(|error| fail(&error))?;
                }
                Err(error) => return Err(fail(&error)),
                Ok(Status::StreamEnd) => return Ok(output.into()),
                Ok(Status::Ok | Status::BufError) => {
                    let is_done = input.is_empty() && output.len() < output.capacity();
                    let is_stuck = read == 0 && output.len() == written_before;
                    if is_done || is_stuck {
                        return Ok(output.into());
                    }
                }
            }
        }
    }
}

fn parse(mut block: Bytes) -> Result<Headers, HeaderBlockError> {
    let number = |block: &mut Bytes| -> Result<usize, HeaderBlockError> {
        let number = block
            .try_get_u32()
            .map_err(|_| HeaderBlockError::Truncated)?;
        usize::try_from(number).map_err(|_| HeaderBlockError::Truncated)
    };
    let text = |block: &mut Bytes| -> Result<String, HeaderBlockError> {
        let length = number(block)?;
        if length > block.len() {
            return Err(HeaderBlockError::Truncated);
        }
        String::from_utf8(block.split_to(length).to_vec()).map_err(|_| HeaderBlockError::Text)
    };
    let count = number(&mut block)?;
    let mut pairs = Vec::new();
    for _ in 0..count {
        let name = text(&mut block)?;
        let values = text(&mut block)?;
        for value in values.split('\0') {
            pairs.push((name.clone(), value.to_owned()));
        }
    }
    Ok(Headers(pairs))
}

impl HeaderWriter {
    pub(crate) fn new() -> HeaderWriter {
        let mut zlib = Compress::new(Compression::default(), true);
        zlib.set_dictionary(&dictionary())
            .expect("nothing has been compressed yet");
        HeaderWriter { zlib }
    }

    pub(crate) fn write(&mut self, headers: &Headers) -> Bytes {
        let mut plain = BytesMut::new();
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in &headers.0 {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        let length = |length: usize| u32::try_from(length).expect("callers' headers are short");
        plain.put_u32(length(names.len()));
        for name in names {
            let values = headers.0.iter().filter(|(known, _)| known == name);
            let values: Vec<&str> = values.map(|(_, value)| value.as_str()).collect();
            let values = values.join("\0");
            plain.put_u32(length(name.len()));
            plain.put_slice(name.as_bytes());
            plain.put_u32(length(values.len()));
            plain.put_slice(values.as_bytes());
        }
        self.deflate(&plain)
    }

    fn deflate(&mut self, mut input: &[u8]) -> Bytes {
        let mut output = Vec::with_capacity(input.len() + 64);
        loop {
            let read_before = self.zlib.total_in();
            self.zlib
                .compress_vec(input, &mut output, FlushCompress::Sync)
                .expect("the stream has not been finished");
            let read = usize::try_from(self.zlib.total_in() - read_before).unwrap_or(input.len());
            input = input.get(read..).unwrap_or_default();
            // With room left, all of it has been flushed.
            if input.is_empty() && output.len() < output.capacity() {
                return output.into();
            }
            output.reserve(256);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_block_as_every_implementation_begins_it() {
        let headers = Headers::from([("streamtype", "error"), ("port", "80")]);
        let block = HeaderWriter::new().write(&headers);
        // zlib with a preset dictionary (FDICT), and the checksum of SPDY/3's.
        assert_eq!(block[1] & 0x20, 0x20);
        assert_eq!(&block[2..6], [0xe3, 0xc6, 0xa7, 0xc2]);
        assert_eq!(HeaderReader::new().read(&block), Ok(headers));
    }

    #[test]
    fn several_values_of_a_name() {
        let headers = Headers::from([("a", "1"), ("b", "x"), ("a", "2")]);
        let block = HeaderWriter::new().write(&headers);
        let seen = HeaderReader::new().read(&block).expect("well formed");
        assert_eq!(seen, Headers::from([("a", "1"), ("a", "2"), ("b", "x")]));
        assert_eq!(seen.get("a"), Some("1"));
    }

    #[test]
    fn a_block_that_inflates_without_end_is_refused() {
        let long = "x".repeat(BLOCK_BYTES_MAX);
        let block =
            HeaderWriter::new().write(&Headers::from([("a", long.as_str()), ("b", long.as_str())]));
        assert_eq!(
            HeaderReader::new().read(&block),
            Err(HeaderBlockError::TooLong)
        );
    }

    proptest! {
        #[test]
        fn blocks_in_a_row(
            blocks in proptest::collection::vec(
                proptest::collection::btree_map("[a-z-]{1,20}", "[ -~]{0,60}", 0..5), 1..8),
        ) {
            let (mut writer, mut reader) = (HeaderWriter::new(), HeaderReader::new());
            for block in blocks {
                let headers = Headers(block.into_iter().collect());
                let bytes = writer.write(&headers);
                prop_assert_eq!(reader.read(&bytes), Ok(headers));
            }
        }

        #[test]
        fn any_bytes_are_an_error_or_headers(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = HeaderReader::new().read(&bytes);
            let _ = parse(bytes.into());
        }
    }
}
