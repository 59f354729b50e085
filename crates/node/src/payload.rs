//! The files of a volume that is made of objects: configMap, secret, downwardAPI, projected.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Volume, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use volume::{File, Files};

use crate::downward::{self, Addresses, FieldError};
use crate::pod;
use crate::sources::{Data, SourceError, SourceKey, SourceKind, Sources, Subscription};
use crate::tokens::{TokenError, Tokens};

/// Mode of files where nothing else is said.
const MODE_DEFAULT: i32 = 0o644;

/// Why the files cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PayloadError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("{kind} references non-existent config key: {key}")]
    NoConfigKey { kind: &'static str, key: String },
    #[error("references non-existent secret key: {key}")]
    NoSecretKey { key: String },
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("projected source {0} is not available on this node")]
    Unsupported(&'static str),
}

/// Makes payloads of one pod, and keeps subscribed to what they were made from.
pub(crate) struct Maker<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) addresses: &'a Addresses,
    pub(crate) allocatable: &'a BTreeMap<String, Quantity>,
    pub(crate) sources: &'a Sources,
    pub(crate) tokens: &'a Tokens,
    pub(crate) now: Timestamp,
    /// What must be watched for changes.
    pub(crate) subscriptions: Vec<Subscription>,
    /// When a token in here must be renewed.
    pub(crate) renew_at: Option<Timestamp>,
}

impl Maker<'_> {
    /// The files of `volume`; nothing for a volume that is not made of objects.
    pub(crate) async fn payload(&mut self, volume: &Volume) -> Result<Option<Files>, PayloadError> {
        let mut payload = Files::new();
        if let Some(config_map) = &volume.config_map {
            let mode = config_map.default_mode.unwrap_or(MODE_DEFAULT);
            let object = Object::config_map(&config_map.name, config_map.optional);
            self.object(&object, config_map.items.as_deref(), mode, &mut payload)
                .await?;
        } else if let Some(secret) = &volume.secret {
            let mode = secret.default_mode.unwrap_or(MODE_DEFAULT);
            let name = secret.secret_name.as_deref().unwrap_or_default();
            let object = Object::secret(name, secret.optional);
            self.object(&object, secret.items.as_deref(), mode, &mut payload)
                .await?;
        } else if let Some(downward) = &volume.downward_api {
            let mode = downward.default_mode.unwrap_or(MODE_DEFAULT);
            self.downward(
                downward.items.as_deref().unwrap_or_default(),
                mode,
                &mut payload,
            )?;
        } else if let Some(projected) = &volume.projected {
            self.projected(projected, &mut payload).await?;
        } else {
            return Ok(None);
        }
        Ok(Some(payload))
    }

    async fn projected(
        &mut self,
        projected: &ProjectedVolumeSource,
        payload: &mut Files,
    ) -> Result<(), PayloadError> {
        let mode = projected.default_mode.unwrap_or(MODE_DEFAULT);
        for source in projected.sources.iter().flatten() {
            self.source(source, mode, payload).await?;
        }
        Ok(())
    }

    async fn source(
        &mut self,
        source: &VolumeProjection,
        mode: i32,
        payload: &mut Files,
    ) -> Result<(), PayloadError> {
        if let Some(config_map) = &source.config_map {
            let object = Object::config_map(&config_map.name, config_map.optional);
            self.object(&object, config_map.items.as_deref(), mode, payload)
                .await?;
        } else if let Some(secret) = &source.secret {
            let object = Object::secret(&secret.name, secret.optional);
            self.object(&object, secret.items.as_deref(), mode, payload)
                .await?;
        } else if let Some(downward) = &source.downward_api {
            self.downward(downward.items.as_deref().unwrap_or_default(), mode, payload)?;
        } else if let Some(projection) = &source.service_account_token {
            let token = self.tokens.token(self.pod, projection, self.now).await?;
            let renew_at = token.renew_at;
            self.renew_at = Some(self.renew_at.map_or(renew_at, |known| known.min(renew_at)));
            let file = token_file(self.pod, token.text.as_bytes(), mode);
            payload.insert(projection.path.clone(), file);
        } else if source.cluster_trust_bundle.is_some() {
            return Err(PayloadError::Unsupported("clusterTrustBundle"));
        } else if source.pod_certificate.is_some() {
            return Err(PayloadError::Unsupported("podCertificate"));
        }
        Ok(())
    }

    async fn object(
        &mut self,
        object: &Object<'_>,
        items: Option<&[KeyToPath]>,
        mode: i32,
        payload: &mut Files,
    ) -> Result<(), PayloadError> {
        let key = SourceKey {
            kind: object.kind,
            namespace: pod::namespace(self.pod).to_owned(),
            name: object.name.to_owned(),
        };
        let mut subscription = self.sources.subscribe(&key);
        let answer = subscription.data().await;
        self.subscriptions.push(subscription);
        let data: Arc<Data> = match answer {
            Ok(data) => data,
            Err(SourceError::NotFound(_)) if object.optional => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            for (name, bytes) in data.iter() {
                payload.insert(name.clone(), entry(bytes, mode));
            }
            return Ok(());
        };
        for item in items {
            match data.get(&item.key) {
                Some(bytes) => {
                    let entry = entry(bytes, item.mode.unwrap_or(mode));
                    payload.insert(item.path.clone(), entry);
                }
                None if object.optional => {}
                None => return Err(object.no_key(&item.key)),
            }
        }
        Ok(())
    }

    fn downward(
        &self,
        items: &[DownwardAPIVolumeFile],
        mode: i32,
        payload: &mut Files,
    ) -> Result<(), PayloadError> {
        for item in items {
            let text = if let Some(selector) = &item.field_ref {
                downward::field(self.pod, self.addresses, selector)?
            } else if let Some(selector) = &item.resource_field_ref {
                let spec = self.pod.spec.clone().unwrap_or_default();
                let containers: Vec<_> = pod::members(&spec)
                    .into_iter()
                    .map(|member| member.container)
                    .collect();
                downward::resource(&containers, None, selector, self.allocatable)?
            } else {
                continue;
            };
            let entry = entry(&Bytes::from(text), item.mode.unwrap_or(mode));
            payload.insert(item.path.clone(), entry);
        }
        Ok(())
    }
}

struct Object<'a> {
    kind: SourceKind,
    name: &'a str,
    optional: bool,
}

impl<'a> Object<'a> {
    fn config_map(name: &'a str, optional: Option<bool>) -> Object<'a> {
        Object {
            kind: SourceKind::ConfigMap,
            name,
            optional: optional == Some(true),
        }
    }

    fn secret(name: &'a str, optional: Option<bool>) -> Object<'a> {
        Object {
            kind: SourceKind::Secret,
            ..Object::config_map(name, optional)
        }
    }

    fn no_key(&self, key: &str) -> PayloadError {
        let key = key.to_owned();
        match self.kind {
            SourceKind::ConfigMap => PayloadError::NoConfigKey {
                kind: "configmap",
                key,
            },
            SourceKind::Secret => PayloadError::NoSecretKey { key },
        }
    }
}

fn entry(bytes: &Bytes, mode: i32) -> File {
    File {
        content: bytes.to_vec(),
        mode: permissions(mode),
        owner: None,
    }
}

fn permissions(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0o644) & 0o777
}

/// Upstream's rule: a group that shares the volume may read the token; else, where all containers run
/// as one user, only that user; else whoever the volume's mode lets.
fn token_file(pod: &Pod, token: &[u8], mode: i32) -> File {
    let spec = pod.spec.as_ref();
    let context = spec.and_then(|spec| spec.security_context.as_ref());
    let has_group = context.is_some_and(|context| context.fs_group.is_some());
    let of_pod = context.and_then(|context| context.run_as_user);
    let containers = spec.into_iter().flat_map(|spec| {
        let init = spec.init_containers.iter().flatten();
        init.chain(&spec.containers)
    });
    let users: HashSet<Option<i64>> = containers
        .map(|container| {
            let own = container.security_context.as_ref();
            own.and_then(|context| context.run_as_user).or(of_pod)
        })
        .collect();
    let only_user = match (users.len(), users.into_iter().next().flatten()) {
        (1, Some(user)) => u32::try_from(user).ok(),
        _ => None,
    };
    File {
        content: token.to_vec(),
        mode: match (has_group, only_user) {
            (true, _) => 0o640,
            (false, Some(_)) => 0o600,
            (false, None) => permissions(mode),
        },
        owner: only_user.filter(|_| !has_group),
    }
}
