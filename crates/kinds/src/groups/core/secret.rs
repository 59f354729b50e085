//! Secret.

use serde_json::Value;

use super::config_map;
use crate::base64;
use crate::fault::{Fault, Path};
use crate::metadata::{self, IMMUTABLE};
use crate::names;
use crate::read::{entries, fill, remove, text};
use crate::rules::Rules;
use crate::table::{Heading, age_cell};

const TYPE: &str = "io.k8s.api.core.v1.Secret";

pub(crate) const RULES: Rules = Rules {
    default,
    validate,
    validate_update: |new, old, _, faults| {
        if new["type"] != old["type"] {
            faults.push(Fault::invalid(
                Path::new("type"),
                new["type"].clone(),
                IMMUTABLE,
            ));
        }
        config_map::immutable(new, old, &["data"], faults);
        validate(new, faults);
    },
    columns: &[
        Heading::NAME,
        Heading::of("Type", TYPE, "type"),
        Heading::of("Data", TYPE, "data"),
        Heading::AGE,
    ],
    cells: |secret, now| {
        let count = entries(&secret["data"]).count();
        vec![
            metadata::name(secret).into(),
            secret["type"].clone(),
            count.into(),
            age_cell(secret, now),
        ]
    },
    fields: |secret| vec![("type", text(secret, "type").to_owned())],
    ..Rules::PLAIN
};

fn default(secret: &mut Value) {
    fill(secret, "type", "Opaque");
    // The readable form is only a way to write.
    let readable: Vec<(String, String)> = entries(&secret["stringData"])
        .map(|(key, value)| {
            (
                key.clone(),
                base64::encode(value.as_str().unwrap_or_default().as_bytes()),
            )
        })
        .collect();
    for (key, value) in readable {
        secret["data"][key] = value.into();
    }
    remove(secret, "stringData");
}

const DATA: Path<'static> = Path::new("data");
const ACCOUNT: &str = "kubernetes.io/service-account.name";

fn validate(secret: &Value, faults: &mut Vec<Fault>) {
    let mut size = 0;
    for (key, value) in entries(&secret["data"]) {
        faults.extend(
            names::config_key(key)
                .into_iter()
                .map(|problem| Fault::invalid(DATA.key(key), key.as_str(), problem)),
        );
        size += value.as_str().map_or(0, |text| text.len() / 4 * 3);
    }
    if size > config_map::SIZE_LIMIT {
        faults.push(Fault::too_long(DATA, config_map::SIZE_LIMIT));
    }
    let content = |key: &str| secret["data"][key].as_str().and_then(base64::decode);
    let required =
        |key: &str, faults: &mut Vec<Fault>| faults.push(Fault::required(DATA.key(key), ""));
    match text(secret, "type") {
        "kubernetes.io/service-account-token"
            if text(&secret["metadata"]["annotations"], ACCOUNT).is_empty() =>
        {
            let path = Path::new("metadata.annotations");
            faults.push(Fault::required(path.key(ACCOUNT), ""));
        }
        "kubernetes.io/dockercfg" | "kubernetes.io/dockerconfigjson" => {
            let key = if text(secret, "type").ends_with("json") {
                ".dockerconfigjson"
            } else {
                ".dockercfg"
            };
            match content(key) {
                None => required(key, faults),
                Some(content) => {
                    if let Err(error) = serde_json::from_slice::<Value>(&content) {
                        let detail = match content.iter().find(|byte| !byte.is_ascii_whitespace()) {
                            None => "unexpected end of JSON input".to_owned(),
                            // Go takes a byte for a character.
                            Some(byte) if error.column() <= 1 => {
                                format!(
                                    "invalid character '{}' looking for beginning of value",
                                    char::from(*byte)
                                )
                            }
                            Some(_) => error.to_string(),
                        };
                        faults.push(Fault::invalid(
                            DATA.key(key),
                            "<secret contents redacted>",
                            detail,
                        ));
                    }
                }
            }
        }
        "kubernetes.io/basic-auth"
            if content("username").is_none() && content("password").is_none() =>
        {
            required("username", faults);
            required("password", faults);
        }
        "kubernetes.io/ssh-auth"
            if content("ssh-privatekey").is_none_or(|content| content.is_empty()) =>
        {
            required("ssh-privatekey", faults);
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"] {
                if content(key).is_none() {
                    required(key, faults);
                }
            }
        }
        _ => {}
    }
}
