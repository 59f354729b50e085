//! Manifests, indexes and descriptors (OCI image spec; Docker image manifest V2, schema 2), and the
//! `manifest.json` of `docker save`.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Deserializer, Serialize};

use crate::Digest;

/// Media types that Wharf reads or writes.
pub mod media_type {
    /// OCI image manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image configuration.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// OCI layer, plain tar.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// Docker image manifest V2, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker manifest list.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

    /// Whether a document of this type lists manifests.
    pub fn is_index(media_type: &str) -> bool {
        media_type == INDEX || media_type == DOCKER_INDEX
    }

    /// Whether a document of this type describes one image.
    pub fn is_manifest(media_type: &str) -> bool {
        media_type == MANIFEST || media_type == DOCKER_MANIFEST
    }
}

/// Free text, some keys of which are conventions (`org.opencontainers.image.ref.name`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Annotations(pub BTreeMap<String, String>);

impl Annotations {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        null_is_empty(deserializer).map(Annotations)
    }
}

impl Deref for Annotations {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Annotations {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

/// What is known of a blob by whoever refers to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What kind of content it is.
    #[serde(default)]
    pub media_type: String,
    /// What its content hashes to.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// For which machines, where the referrer offers a choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// More about it.
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
}

/// A kind of machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// As Go names it: `amd64`, `arm64`.
    pub architecture: String,
    /// As Go names it: `linux`.
    pub os: String,
    /// Of the architecture: `v7`, `v8`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// One image: its configuration and its layers, lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// OCI allows it to be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Where the configuration is.
    pub config: Descriptor,
    /// Where the layers are, lowest first.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub layers: Vec<Descriptor>,
    /// More about it.
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
}

/// Several manifests: one image for several platforms, or the table of contents of a layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u32,
    /// OCI allows it to be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What it lists.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub manifests: Vec<Descriptor>,
    /// More about it.
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
}

/// One element of the `manifest.json` of `docker save`: paths inside of the archive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DockerManifest {
    /// Of the configuration.
    pub config: String,
    /// Names with tags; none for an image that was saved by its id.
    #[serde(deserialize_with = "null_is_empty")]
    pub repo_tags: Vec<String>,
    /// Of the layers, lowest first.
    #[serde(deserialize_with = "null_is_empty")]
    pub layers: Vec<String>,
}

/// Go writes a nil slice or map as `null`.
pub(crate) fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn manifests_of_go_programs_are_read() {
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{}","digest":"sha256:{HEX}","size":7,"urls":["x"]}},"layers":null,"annotations":null,"subject":{{}}}}"#,
            media_type::CONFIG
        );
        let manifest: Manifest = serde_json::from_str(&text).expect("a manifest");
        assert_eq!(manifest.config.size, 7);
        assert!(manifest.layers.is_empty());
        let saved: Vec<DockerManifest> = serde_json::from_str(
            r#"[{"Config":"a.json","RepoTags":null,"Layers":["b/layer.tar"],"LayerSources":{}}]"#,
        )
        .expect("a manifest.json");
        assert_eq!(saved[0].layers, ["b/layer.tar"]);
    }

    #[test]
    fn a_descriptor_without_a_true_digest_is_refused() {
        for digest in ["", "sha256:12", "../../etc/passwd", "md5:00"] {
            let text = format!(r#"{{"mediaType":"x","digest":"{digest}","size":1}}"#);
            assert!(
                serde_json::from_str::<Descriptor>(&text).is_err(),
                "{digest}"
            );
        }
        let negative = format!(r#"{{"mediaType":"x","digest":"sha256:{HEX}","size":-1}}"#);
        assert!(serde_json::from_str::<Descriptor>(&negative).is_err());
    }
}
