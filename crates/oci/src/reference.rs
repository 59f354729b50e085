//! Names of images, normalised as Docker does (distribution/reference, `ParseNormalizedNamed`).
//!
//! ```text
//! reference = name [":" tag] ["@" digest]        name = [domain "/"] path
//! nginx            → docker.io/library/nginx:latest
//! me/app:1         → docker.io/me/app:1
//! localhost/app    → localhost/app:latest
//! host:5000/a/b@d  → host:5000/a/b@d
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Digest, DigestError};

/// The registry of a name that does not say one.
pub const DEFAULT_DOMAIN: &str = "docker.io";
/// The tag of a name that says neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";

const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const PATH_LENGTH_MAX: usize = 255;
const TAG_LENGTH_MAX: usize = 128;
/// Fewer digits than this are not even taken for a digest (distribution/reference, regexp.go).
const DIGEST_HEX_MIN: usize = 32;

/// A name of an image in full form: registry, repository, and a tag or a digest or both.
///
/// Two texts that Docker takes for the same image are equal as references.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    domain: Box<str>,
    path: Box<str>,
    tag: Option<Box<str>>,
    digest: Option<Digest>,
}

/// Why a text is no reference; the texts are upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// It does not follow the grammar.
    #[error("invalid reference format")]
    Format,
    /// Only a registry may have capital letters.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// It would be taken for an image id.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId(String),
    /// Longer than any registry takes.
    #[error("repository name must not be more than 255 characters")]
    TooLong,
    /// There is something like a digest after `@`.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl Reference {
    /// Reads a name, short or full. Without tag and digest the tag is `latest`.
    pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
        if text.len() == 64 && text.bytes().all(is_lower_hex) {
            return Err(ReferenceError::LooksLikeId(text.to_owned()));
        }
        let (domain, remainder) = split_domain(text);
        let official;
        let remainder = if domain == DEFAULT_DOMAIN && !remainder.contains('/') {
            official = format!("{OFFICIAL_PREFIX}{remainder}");
            official.as_str()
        } else {
            remainder
        };
        let repository = remainder.split(':').next().unwrap_or_default();
        if repository.to_lowercase() != repository {
            return Err(ReferenceError::Uppercase(repository.to_owned()));
        }
        let (name, digest) = match remainder.split_once('@') {
            Some((name, digest)) => (name, Some(parse_digest(digest)?)),
            None => (remainder, None),
        };
        let (path, tag) = match name.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (name, None),
        };
        if !is_domain(domain) || !is_path(path) || !tag.is_none_or(is_tag) {
            return Err(ReferenceError::Format);
        }
        if path.len() > PATH_LENGTH_MAX {
            return Err(ReferenceError::TooLong);
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG),
            (tag, _) => tag,
        };
        Ok(Reference {
            domain: domain.into(),
            path: path.into(),
            tag: tag.map(Into::into),
            digest,
        })
    }

    /// The registry: `docker.io`, `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within its registry: `library/nginx`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Absent only where there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The manifest that is meant, whatever the tag says.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository: `docker.io/library/nginx`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// Registry and repository as people see them: `nginx`.
    pub fn familiar_name(&self) -> String {
        if &*self.domain != DEFAULT_DOMAIN {
            return self.name();
        }
        let short = match self.path.strip_prefix(OFFICIAL_PREFIX) {
            Some(official) if !official.contains('/') => official,
            _ => &self.path,
        };
        // `docker.io/foo.bar/baz` without its registry would be a name in the registry `foo.bar`.
        if split_domain(short).0 != DEFAULT_DOMAIN {
            return self.name();
        }
        short.to_owned()
    }

    /// The name as people see it, with tag and digest: `nginx:latest`.
    pub fn familiar(&self) -> String {
        let mut text = self.familiar_name();
        self.push_suffix(&mut text);
        text
    }

    /// The same repository with another tag and no digest.
    pub fn with_tag(&self, tag: &str) -> Result<Reference, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::Format);
        }
        Ok(Reference {
            tag: Some(tag.into()),
            digest: None,
            ..self.clone()
        })
    }

    /// Whether both are names in the same repository of the same registry.
    pub fn same_repository(&self, other: &Reference) -> bool {
        self.domain == other.domain && self.path == other.path
    }

    fn push_suffix(&self, text: &mut String) {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        Reference::parse(text)
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Reference, ReferenceError> {
        Reference::parse(&text)
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> String {
        reference.to_string()
    }
}

/// The full form, which reads back as an equal reference.
impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.name();
        self.push_suffix(&mut text);
        formatter.write_str(&text)
    }
}

/// Up to the first slash is a registry if it could not be part of a repository's name.
fn split_domain(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.to_lowercase() != first =>
        {
            match first {
                LEGACY_DEFAULT_DOMAIN => (DEFAULT_DOMAIN, rest),
                _ => (first, rest),
            }
        }
        _ => (DEFAULT_DOMAIN, text),
    }
}

fn parse_digest(text: &str) -> Result<Digest, ReferenceError> {
    let (algorithm, hex) = text.split_once(':').ok_or(ReferenceError::Format)?;
    let is_algorithm = algorithm.split(['-', '_', '+', '.']).all(|part| {
        part.starts_with(|first: char| first.is_ascii_alphabetic())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
    });
    if !is_algorithm
        || hex.len() < DIGEST_HEX_MIN
        || !hex.bytes().all(|byte| byte.is_ascii_hexdigit())
    {
        return Err(ReferenceError::Format);
    }
    Ok(text.parse()?)
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => return is_address(address),
            Some((address, after)) if is_address(address) => match after.strip_prefix(':') {
                Some(port) => return is_port(port),
                None => return false,
            },
            _ => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    let is_host = host.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    });
    is_host && port.is_none_or(is_port)
}

fn is_address(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b':')
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_path(path: &str) -> bool {
    path.split('/').all(is_path_component)
}

/// Runs of letters and digits, joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !is_word(first) || !is_word(last) {
        return false;
    }
    bytes
        .split(|&byte| is_word(byte))
        .filter(|separator| !separator.is_empty())
        .all(|separator| {
            matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|&byte| byte == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= TAG_LENGTH_MAX
        && tag.bytes().next().is_some_and(is_word)
        && tag
            .bytes()
            .all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

fn is_lower_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_completed_and_shortened() {
        #[track_caller]
        fn check(text: &str, full: &str, familiar: &str) {
            let reference =
                Reference::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.familiar(), familiar);
        }
        check("nginx", "docker.io/library/nginx:latest", "nginx:latest");
        check("nginx:1.25", "docker.io/library/nginx:1.25", "nginx:1.25");
        check(
            "library/nginx",
            "docker.io/library/nginx:latest",
            "nginx:latest",
        );
        check(
            "docker.io/nginx",
            "docker.io/library/nginx:latest",
            "nginx:latest",
        );
        check(
            "index.docker.io/nginx",
            "docker.io/library/nginx:latest",
            "nginx:latest",
        );
        check("me/app", "docker.io/me/app:latest", "me/app:latest");
        check(
            "localhost/app",
            "localhost/app:latest",
            "localhost/app:latest",
        );
        check(
            "localhost:5000",
            "docker.io/library/localhost:5000",
            "localhost:5000",
        );
        check(
            "localhost:5000/app:v1",
            "localhost:5000/app:v1",
            "localhost:5000/app:v1",
        );
        check(
            "LOCALHOST/app",
            "LOCALHOST/app:latest",
            "LOCALHOST/app:latest",
        );
        check("Foo/bar", "Foo/bar:latest", "Foo/bar:latest");
        check(
            "[fd00::1]:5000/a",
            "[fd00::1]:5000/a:latest",
            "[fd00::1]:5000/a:latest",
        );
        check("[::1]/a", "[::1]/a:latest", "[::1]/a:latest");
        check(
            "k8s.gcr.io/a/b/c:V_1.2-x",
            "k8s.gcr.io/a/b/c:V_1.2-x",
            "k8s.gcr.io/a/b/c:V_1.2-x",
        );
        check(
            "a__b/c---d.e",
            "docker.io/a__b/c---d.e:latest",
            "a__b/c---d.e:latest",
        );
        check(
            "docker.io/foo.bar/baz",
            "docker.io/foo.bar/baz:latest",
            "docker.io/foo.bar/baz:latest",
        );
        check(
            "docker.io/library/a/b",
            "docker.io/library/a/b:latest",
            "library/a/b:latest",
        );
        check(
            "registry.cn-hangzhou.aliyuncs.com/ceyewan/hellok8s:v1",
            "registry.cn-hangzhou.aliyuncs.com/ceyewan/hellok8s:v1",
            "registry.cn-hangzhou.aliyuncs.com/ceyewan/hellok8s:v1",
        );
        let pinned = format!("nginx@{DIGEST}");
        check(&pinned, &format!("docker.io/library/{pinned}"), &pinned);
        let both = format!("nginx:1@{DIGEST}");
        check(&both, &format!("docker.io/library/{both}"), &both);
    }

    #[test]
    fn what_is_no_name_says_why() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let error = Reference::parse(text).expect_err(text);
            assert_eq!(error.to_string(), expected, "{text}");
        }
        let format = "invalid reference format";
        for text in [
            "",
            ":",
            "/",
            "@",
            "a:",
            "a@",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a._b",
            "a b",
            "a:b c",
            "a:-b",
            "a\n",
            "nginx:1:2",
            "é",
            "a/é",
            "http://a/b",
            "a@b",
            "_a.b/c",
            "-a.b/c",
            "a.b:x/c",
            "a.b:/c",
            "[::1/c",
            "[zz]/c",
            "[::1]x/c",
            "[]/c",
            ".../a",
        ] {
            check(text, format);
        }
        check(&format!("a:{}", "t".repeat(129)), format);
        check(
            "NGINX",
            "invalid reference format: repository name (library/NGINX) must be lowercase",
        );
        check(
            "me/App:Tag",
            "invalid reference format: repository name (me/App) must be lowercase",
        );
        check(
            &"a".repeat(256),
            "repository name must not be more than 255 characters",
        );
        check(
            &"a".repeat(64),
            &format!(
                "invalid repository name ({}), cannot specify 64-byte hexadecimal strings",
                "a".repeat(64)
            ),
        );
        check(
            &format!("a@sha256:{}", "a".repeat(40)),
            "invalid checksum digest length",
        );
        check(&format!("a@sha256:{}", "a".repeat(31)), format);
        check(
            &format!("a@md5:{}", "a".repeat(32)),
            "unsupported digest algorithm",
        );
        check(
            &format!("a@sha256:{}", "A".repeat(64)),
            "invalid checksum digest format",
        );
    }

    #[test]
    fn a_tag_can_be_replaced() {
        let reference = Reference::parse(&format!("me/app:1@{DIGEST}")).expect("a name");
        let other = reference.with_tag("2").expect("a tag");
        assert_eq!(other.to_string(), "docker.io/me/app:2");
        assert!(other.same_repository(&reference));
        assert_eq!(reference.with_tag("a/b"), Err(ReferenceError::Format));
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "\\PC{0,80}") {
            let _ = Reference::parse(&text);
        }

        #[test]
        fn what_is_printed_reads_back(
            text in "([A-Za-z0-9.-]{1,12}(:[0-9]{1,5})?/)?[a-z0-9._/-]{1,20}(:[A-Za-z0-9_.-]{1,10})?"
        ) {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference.clone()));
                prop_assert_eq!(Reference::parse(&reference.familiar()), Ok(reference));
            }
        }
    }
}
