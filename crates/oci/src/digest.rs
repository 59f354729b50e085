//! Content digests (OCI image spec, descriptor.md#digests).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// How a digest is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// The one that everybody uses.
    Sha256,
    /// Registered, rarely seen.
    Sha384,
    /// Registered, rarely seen.
    Sha512,
}

impl Algorithm {
    /// Its name as it stands before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha384 => "sha384",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn hex_length(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha384 => 96,
            Algorithm::Sha512 => 128,
        }
    }

    fn from_name(name: &str) -> Option<Algorithm> {
        [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512]
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }
}

/// `algorithm:hex`, of a supported algorithm, of the right length, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

/// Why a text is no digest; the texts are those of `opencontainers/go-digest`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No colon, or other characters than hexadecimal digits in lower case.
    #[error("invalid checksum digest format")]
    Format,
    /// Not as many digits as the algorithm makes.
    #[error("invalid checksum digest length")]
    Length,
    /// An algorithm that nothing here can compute.
    #[error("unsupported digest algorithm")]
    Unsupported,
}

/// Content that is not what its digest says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("digest is {actual}, expected {expected}")]
pub struct DigestMismatch {
    /// What was promised.
    pub expected: Digest,
    /// What the content has.
    pub actual: Digest,
}

impl Digest {
    /// The SHA-256 of `content`.
    pub fn of(content: &[u8]) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(content);
        hasher.finish()
    }

    /// A SHA-256 digest from its 64 hexadecimal digits.
    pub fn from_sha256_hex(hex: &str) -> Result<Digest, DigestError> {
        Digest::from_parts(Algorithm::Sha256, hex)
    }

    /// How it was made.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The part after the colon.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The first twelve digits, as people see them.
    pub fn short(&self) -> &str {
        &self.hex[..12]
    }

    /// Whether `content` is what this digest is of.
    pub fn verify(&self, content: &[u8]) -> Result<(), DigestMismatch> {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(content);
        hasher.verify(self)
    }

    fn from_parts(algorithm: Algorithm, hex: &str) -> Result<Digest, DigestError> {
        if hex.len() != algorithm.hex_length() {
            return Err(DigestError::Length);
        }
        if !hex
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        {
            return Err(DigestError::Format);
        }
        Ok(Digest {
            algorithm,
            hex: hex.into(),
        })
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let (name, hex) = text.split_once(':').ok_or(DigestError::Format)?;
        if name.is_empty() || hex.is_empty() {
            return Err(DigestError::Format);
        }
        let algorithm = Algorithm::from_name(name).ok_or(DigestError::Unsupported)?;
        Digest::from_parts(algorithm, hex)
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Digest, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.algorithm.name(), self.hex)
    }
}

/// Makes a digest while content goes by. It is a [`std::io::Write`], so that a copy can feed it.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha384(sha2::Sha384),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// Nothing has gone by yet.
    pub fn new(algorithm: Algorithm) -> Hasher {
        Hasher(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha384 => State::Sha384(sha2::Sha384::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        })
    }

    /// Takes the next piece of content.
    pub fn update(&mut self, content: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(content),
            State::Sha384(state) => state.update(content),
            State::Sha512(state) => state.update(content),
        }
    }

    /// The digest of all that went by.
    pub fn finish(self) -> Digest {
        let (algorithm, hex) = match self.0 {
            State::Sha256(state) => (Algorithm::Sha256, hex(&state.finalize())),
            State::Sha384(state) => (Algorithm::Sha384, hex(&state.finalize())),
            State::Sha512(state) => (Algorithm::Sha512, hex(&state.finalize())),
        };
        Digest {
            algorithm,
            hex: hex.into(),
        }
    }

    /// Whether all that went by is what `expected` is of.
    pub fn verify(self, expected: &Digest) -> Result<(), DigestMismatch> {
        let actual = self.finish();
        if actual == *expected {
            return Ok(());
        }
        Err(DigestMismatch {
            expected: expected.clone(),
            actual,
        })
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.0 {
            State::Sha256(_) => "Hasher(sha256)",
            State::Sha384(_) => "Hasher(sha384)",
            State::Sha512(_) => "Hasher(sha512)",
        })
    }
}

impl std::io::Write for Hasher {
    fn write(&mut self, content: &[u8]) -> std::io::Result<usize> {
        self.update(content);
        Ok(content.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_what_it_is_of() {
        let empty = Digest::of(b"");
        assert_eq!(
            empty.to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(empty.short(), "e3b0c44298fc");
        assert_eq!(empty.verify(b""), Ok(()));
        let mismatch = empty.verify(b"x").expect_err("x is not nothing");
        assert_eq!(mismatch.actual, Digest::of(b"x"));
        assert!(mismatch.to_string().contains("expected sha256:e3b0c4"));
    }

    #[test]
    fn all_registered_algorithms_verify() {
        for text in [
            "sha384:38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b",
            "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
        ] {
            let digest: Digest = text.parse().expect("a digest");
            assert_eq!(digest.verify(b""), Ok(()));
            assert_eq!(digest.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_digest_says_why() {
        #[track_caller]
        fn check(text: &str, expected: DigestError) {
            assert_eq!(text.parse::<Digest>(), Err(expected), "{text}");
        }
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        check("", DigestError::Format);
        check(hex, DigestError::Format);
        check("sha256:", DigestError::Format);
        check(&format!(":{hex}"), DigestError::Format);
        check("sha256:abc", DigestError::Length);
        check(
            &format!("sha256:{}", hex.to_uppercase()),
            DigestError::Format,
        );
        check(&format!("sha256:{}/", &hex[1..]), DigestError::Format);
        check(&format!("md5:{hex}"), DigestError::Unsupported);
        // Of the right length in bytes, but not of digits.
        check(&format!("sha256:{}", "é".repeat(32)), DigestError::Format);
    }
}
