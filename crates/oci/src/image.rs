//! Image configurations (OCI image spec, config.md; Docker image spec v1.2).

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

use crate::Digest;
use crate::manifest::null_is_empty;

/// The document whose digest is the image's id.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Image {
    /// As Go names it: `amd64`.
    pub architecture: String,
    /// As Go names it: `linux`.
    pub os: String,
    /// Of the architecture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// When it was made; absent if the document says nothing that is a time.
    #[serde(
        deserialize_with = "lenient_time",
        skip_serializing_if = "Option::is_none"
    )]
    pub created: Option<Timestamp>,
    /// Who made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// How to run it.
    #[serde(deserialize_with = "null_is_empty")]
    pub config: ImageConfig,
    /// What it is made of.
    pub rootfs: RootFs,
    /// How it was made, lowest first.
    #[serde(
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub history: Vec<History>,
}

/// How to run an image: what a container gets that asks for nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// `user`, `uid`, `user:group`; empty for root.
    #[serde(
        deserialize_with = "null_is_empty",
        skip_serializing_if = "String::is_empty"
    )]
    pub user: String,
    /// `80/tcp`, in order.
    #[serde(with = "set_of_keys", skip_serializing_if = "Vec::is_empty")]
    pub exposed_ports: Vec<String>,
    /// `NAME=value`.
    #[serde(
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub env: Vec<String>,
    /// What is always run.
    #[serde(deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Its arguments, or the program if there is no entrypoint.
    #[serde(deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Paths that want a volume, in order.
    #[serde(with = "set_of_keys", skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// Where the program starts; empty for `/`.
    #[serde(
        deserialize_with = "null_is_empty",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
    /// Free text.
    #[serde(
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    /// `SIGTERM`, `15`; empty for the default.
    #[serde(
        deserialize_with = "null_is_empty",
        skip_serializing_if = "String::is_empty"
    )]
    pub stop_signal: String,
    /// Docker's own check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// What runs the shell form of a command in a build.
    #[serde(
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub shell: Vec<String>,
    /// What a build on top of this image begins with.
    #[serde(
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub on_build: Vec<String>,
}

/// Docker's `HEALTHCHECK`; times in nanoseconds, 0 for the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["CMD", …]`, `["CMD-SHELL", …]` or `["NONE"]`.
    #[serde(deserialize_with = "null_is_empty")]
    pub test: Vec<String>,
    /// Between two checks.
    pub interval: i64,
    /// For one check.
    pub timeout: i64,
    /// In which failures do not count.
    pub start_period: i64,
    /// Between checks in the start period.
    pub start_interval: i64,
    /// Failures in a row that make it unhealthy.
    pub retries: i64,
}

/// What an image's root file system is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the plain tar streams, lowest first.
    #[serde(deserialize_with = "null_is_empty")]
    pub diff_ids: Vec<Digest>,
}

impl Default for RootFs {
    fn default() -> RootFs {
        RootFs {
            kind: "layers".to_owned(),
            diff_ids: Vec::new(),
        }
    }
}

/// One step of how an image was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// When.
    #[serde(
        deserialize_with = "lenient_time",
        skip_serializing_if = "Option::is_none"
    )]
    pub created: Option<Timestamp>,
    /// By which command.
    #[serde(
        deserialize_with = "null_is_empty",
        skip_serializing_if = "String::is_empty"
    )]
    pub created_by: String,
    /// Free text.
    #[serde(
        deserialize_with = "null_is_empty",
        skip_serializing_if = "String::is_empty"
    )]
    pub comment: String,
    /// It made no layer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// Names a stack of layers (OCI image spec, config.md#layer-chainid): the lowest layer's diff id,
/// and from there up the digest of "what is below, a blank, diff id".
pub fn chain_id(below: Option<&Digest>, diff_id: &Digest) -> Digest {
    match below {
        None => diff_id.clone(),
        Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
    }
}

/// A time that cannot be read is no reason to refuse an image: it is only shown.
fn lenient_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let text = Option::<serde_json::Value>::deserialize(deserializer)?;
    Ok(text
        .as_ref()
        .and_then(serde_json::Value::as_str)
        .and_then(|text| text.parse().ok()))
}

/// Old images have a bare string where a list is meant.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Words;
    impl<'de> serde::de::Visitor<'de> for Words {
        type Value = Vec<String>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list of strings, a string or null")
        }

        fn visit_unit<E>(self) -> Result<Vec<String>, E> {
            Ok(Vec::new())
        }

        fn visit_str<E>(self, word: &str) -> Result<Vec<String>, E> {
            Ok(vec![word.to_owned()])
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(
            self,
            mut list: A,
        ) -> Result<Vec<String>, A::Error> {
            let mut found = Vec::new();
            while let Some(word) = list.next_element()? {
                found.push(word);
            }
            Ok(found)
        }
    }
    deserializer.deserialize_any(Words)
}

/// Go's `map[string]struct{}`: `{"80/tcp": {}}`.
mod set_of_keys {
    use std::collections::BTreeMap;

    use serde::de::IgnoredAny;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        keys: &[String],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let empty = BTreeMap::<(), ()>::new();
        serializer.collect_map(keys.iter().map(|key| (key, &empty)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<String>, D::Error> {
        let keys = Option::<BTreeMap<String, IgnoredAny>>::deserialize(deserializer)?;
        Ok(keys.unwrap_or_default().into_keys().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_docker_config_is_read() {
        let image: Image = serde_json::from_str(
            r#"{"architecture":"amd64","os":"linux","created":"2024-05-01T02:03:04.5Z","docker_version":"25",
                "container":"x","container_config":{"Cmd":["y"]},
                "config":{"User":"1000:0","ExposedPorts":{"80/tcp":{},"443/tcp":{}},"Env":["A=b"],"Entrypoint":null,
                          "Cmd":["nginx","-g"],"Volumes":null,"WorkingDir":"/srv","Labels":null,"StopSignal":"SIGQUIT","ArgsEscaped":true},
                "rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]},
                "history":[{"created":"2024-05-01T02:03:04Z","created_by":"/bin/sh","empty_layer":true}]}"#,
        )
        .expect("a config");
        assert_eq!(image.config.exposed_ports, ["443/tcp", "80/tcp"]);
        assert!(image.config.entrypoint.is_empty());
        assert_eq!(image.config.cmd, ["nginx", "-g"]);
        assert_eq!(image.config.stop_signal, "SIGQUIT");
        assert_eq!(image.rootfs.diff_ids.len(), 1);
        assert!(image.history[0].empty_layer);
        assert_eq!(
            image.created.map(|time| time.to_string()).as_deref(),
            Some("2024-05-01T02:03:04.5Z")
        );
    }

    #[test]
    fn what_is_odd_but_clear_is_read() {
        let image: Image = serde_json::from_str(
            r#"{"created":"yesterday","config":{"Entrypoint":"/run","ExposedPorts":{"80":null}},"rootfs":{"diff_ids":null},"history":null}"#,
        )
        .expect("a config");
        assert_eq!(image.created, None);
        assert_eq!(image.config.entrypoint, ["/run"]);
        assert_eq!(image.config.exposed_ports, ["80"]);
        let bare: Image = serde_json::from_str(r#"{"config":null}"#).expect("a config");
        assert_eq!(bare, Image::default());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let image = Image {
            architecture: "amd64".to_owned(),
            os: "linux".to_owned(),
            created: Some(Timestamp::UNIX_EPOCH),
            config: ImageConfig {
                exposed_ports: vec!["3000/tcp".to_owned()],
                entrypoint: vec!["/app".to_owned()],
                volumes: vec!["/data".to_owned()],
                ..ImageConfig::default()
            },
            ..Image::default()
        };
        let text = serde_json::to_string(&image).expect("plain data");
        assert!(text.contains(r#""ExposedPorts":{"3000/tcp":{}}"#), "{text}");
        assert_eq!(
            serde_json::from_str::<Image>(&text).expect("own text"),
            image
        );
    }

    #[test]
    fn chains_are_named_as_the_specification_says() {
        let (first, second) = (Digest::of(b"1"), Digest::of(b"2"));
        assert_eq!(chain_id(None, &first), first);
        assert_eq!(
            chain_id(Some(&first), &second),
            Digest::of(format!("{first} {second}").as_bytes())
        );
    }
}
