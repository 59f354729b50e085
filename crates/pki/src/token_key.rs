//! The key that signs ServiceAccount tokens.

use std::path::Path;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};

use crate::{Error, file};

const KEY_FILE: &str = "sa.key";

/// An ECDSA P-256 key for JSON Web Tokens (ES256, RFC 7518 section 3.4).
#[derive(Clone)]
pub struct TokenKey {
    key_pem: String,
    public_pem: String,
    key_id: String,
}

impl TokenKey {
    /// Takes up the key in `directory`, or makes one there.
    pub fn load_or_create(directory: &Path) -> Result<TokenKey, Error> {
        let path = directory.join(KEY_FILE);
        if let Some(pem) = file::read(&path)? {
            let key = KeyPair::from_pem(&pem).map_err(|error| Error::Damaged {
                path,
                reason: error.to_string(),
            })?;
            return Ok(TokenKey::of(&key));
        }
        file::make_private_dir(directory)?;
        let key = TokenKey::in_memory()?;
        file::write(&path, &key.key_pem, 0o600)?;
        Ok(key)
    }

    /// Makes a key in memory, for tests.
    pub fn in_memory() -> Result<TokenKey, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|error| Error::MakeKey(error.to_string()))?;
        Ok(TokenKey::of(&key))
    }

    fn of(key: &KeyPair) -> TokenKey {
        let public = key.subject_public_key_info();
        TokenKey {
            key_pem: key.serialize_pem(),
            public_pem: key.public_key_pem(),
            // As upstream does: the digest of the public key names it.
            key_id: URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &public)),
        }
    }

    /// The private key, PKCS#8 PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// The public key, SubjectPublicKeyInfo PEM.
    pub fn public_pem(&self) -> &str {
        &self.public_pem
    }

    /// The `kid` of tokens signed with this key.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_key_is_taken_up_again_and_only_root_can_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("a directory");
        let first = TokenKey::load_or_create(directory.path()).expect("made");
        let second = TokenKey::load_or_create(directory.path()).expect("loaded");
        assert_eq!(first.key_id(), second.key_id());
        assert_eq!(first.public_pem(), second.public_pem());
        let metadata = std::fs::metadata(directory.path().join(KEY_FILE)).expect("there");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }
}
