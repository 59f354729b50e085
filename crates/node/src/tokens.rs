//! Service account tokens for pods: asked for, kept, and renewed before they expire.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use kube::api::{Api, PostParams};
use parking_lot::Mutex;

use crate::pod;

/// Lifetime where the projection names none, in seconds.
const LIFETIME_DEFAULT: i64 = 3600;
/// A token is renewed when it is this old, however long it lives.
const AGE_MAX: SignedDuration = SignedDuration::from_hours(24);
/// When a renewal fails, it is tried again after this.
const RETRY: SignedDuration = SignedDuration::from_secs(30);

/// A token could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("failed to fetch token: {0}")]
    Request(#[source] Box<kube::Error>),
    #[error("failed to fetch token: the answer holds none")]
    Empty,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    pod_uid: String,
    audience: Option<String>,
    lifetime: i64,
}

/// A token and when to ask for the next one.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) text: Arc<str>,
    pub(crate) renew_at: Timestamp,
}

/// The tokens of the pods of this node. Clones share them.
#[derive(Clone)]
pub(crate) struct Tokens {
    client: kube::Client,
    held: Arc<Mutex<HashMap<Key, Token>>>,
}

impl Tokens {
    pub(crate) fn new(client: kube::Client) -> Tokens {
        Tokens {
            client,
            held: Arc::default(),
        }
    }

    /// The token for a projection of `pod`: the one that is held until it is time to renew it. While a
    /// renewal fails, the old one is given as long as it lives.
    pub(crate) async fn token(
        &self,
        pod: &Pod,
        projection: &ServiceAccountTokenProjection,
        now: Timestamp,
    ) -> Result<Token, TokenError> {
        let key = Key {
            pod_uid: pod::uid(pod).to_owned(),
            audience: projection.audience.clone().filter(|text| !text.is_empty()),
            lifetime: projection.expiration_seconds.unwrap_or(LIFETIME_DEFAULT),
        };
        let held = self.held.lock().get(&key).cloned();
        if let Some(token) = held.as_ref().filter(|token| now < token.renew_at) {
            return Ok(token.clone());
        }
        match (self.request(pod, &key, now).await, held) {
            (Ok(token), _) => {
                self.held.lock().insert(key, token.clone());
                Ok(token)
            }
            (Err(error), Some(old)) => {
                tracing::warn!(%error, pod = pod::formatted(pod), "token not renewed yet");
                let renew_at = now.saturating_add(RETRY).unwrap_or(Timestamp::MAX);
                Ok(Token { renew_at, ..old })
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Forgets the tokens of a pod.
    pub(crate) fn forget(&self, pod_uid: &str) {
        self.held.lock().retain(|key, _| key.pod_uid != pod_uid);
    }

    async fn request(&self, pod: &Pod, key: &Key, now: Timestamp) -> Result<Token, TokenError> {
        let account = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.service_account_name.as_deref())
            .filter(|name| !name.is_empty())
            .unwrap_or("default");
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: key.audience.clone().map(|audience| vec![audience]),
                expiration_seconds: Some(key.lifetime),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
            }),
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> =
            Api::namespaced(self.client.clone(), pod::namespace(pod));
        let answer = accounts
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .map_err(|error| TokenError::Request(Box::new(error)))?;
        let status = answer.status.ok_or(TokenError::Empty)?;
        let text = status.token.ok_or(TokenError::Empty)?;
        let lifetime = match status.expiration_timestamp {
            Some(at) => at.0.duration_since(now),
            None => SignedDuration::from_secs(key.lifetime),
        };
        Ok(Token {
            text: text.into(),
            renew_at: renewal(now, lifetime),
        })
    }
}

/// At four fifths of its life, and once a day.
fn renewal(now: Timestamp, lifetime: SignedDuration) -> Timestamp {
    let fifths = lifetime.checked_mul(4).map_or(lifetime, |four| four / 5);
    now.saturating_add(fifths.min(AGE_MAX))
        .unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewed_at_four_fifths_or_daily() {
        let check = |lifetime: i64, after: i64| {
            let now = Timestamp::UNIX_EPOCH;
            let at = renewal(now, SignedDuration::from_secs(lifetime));
            assert_eq!(at.as_second(), after);
        };
        check(3600, 2880);
        check(365 * 24 * 3600, 24 * 3600);
    }
}
