//! Secrets of the type `kubernetes.io/service-account-token` hold a token of their ServiceAccount, the
//! certificates by which it may be used, and the namespace; they go with the account.
//!
//! The token is one that the server issues on request, bound to the Secret and good for as long as one
//! may be (136 years): it ends with the Secret. (Upstream's controller signs one of an older kind itself,
//! and needs the server's key for that.)

use std::collections::BTreeMap;
use std::sync::Arc;

use informer::{Action, Change, Index, Informer, Key, Queue};
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::Api;

use crate::work::{Reconcile, work};
use crate::writes::{self, message_of};
use crate::{Context, follow};

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// The longest that the API takes, in seconds.
const GOOD_FOR: i64 = 1 << 32;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("could not look for the account of secret {secret}: {}", message_of(.source))]
    Look { secret: Key, source: kube::Error },
    #[error("could not get a token for secret {secret}: {}", message_of(.source))]
    Token { secret: Key, source: kube::Error },
    #[error("the server answered the request for a token of secret {secret} with none")]
    NoToken { secret: Key },
    #[error("could not write secret {secret}: {}", message_of(.source))]
    Write { secret: Key, source: kube::Error },
    #[error("could not delete secret {secret}: {}", message_of(.source))]
    Delete { secret: Key, source: kube::Error },
}

struct Controller {
    client: kube::Client,
    accounts: Informer<ServiceAccount>,
    secrets: Informer<Secret>,
    certificates: String,
}

pub(crate) async fn run(context: Context) {
    let secrets = context
        .informers
        .of_fields::<Secret>(&format!("type={TYPE}"));
    let by_account: Index<Secret> = secrets.index_by("account", |secret| {
        let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
        let account = annotation(secret, ACCOUNT_NAME);
        account
            .map(|account| format!("{namespace}/{account}"))
            .into_iter()
            .collect()
    });
    let controller = Arc::new(Controller {
        // As upstream: no controller's own role may do this, the manager of all of them may.
        client: context.informers.client().clone(),
        accounts: context.informers.of(),
        secrets: secrets.clone(),
        certificates: context.config.root_certificates.clone(),
    });
    controller.accounts.synced().await;
    controller.secrets.synced().await;
    let queue = Queue::new();
    tokio::join!(
        follow(secrets, |change| queue.add(Key::of(&**change.object()))),
        follow(controller.accounts.clone(), |change| {
            // An account that changes is the same account; only one that comes or goes matters.
            if matches!(change, Change::Applied { old: Some(_), .. }) {
                return;
            }
            let account = Key::of(&**change.object()).to_string();
            for secret in by_account.get(&account) {
                queue.add(Key::of(&*secret));
            }
        }),
        work(&controller, &queue, &context.drain),
    );
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> Option<&'a str> {
    let annotations = secret.metadata.annotations.as_ref()?;
    let value = annotations.get(name).map(String::as_str);
    value.filter(|value| !value.is_empty())
}

impl Reconcile for Controller {
    type Key = Key;
    type Error = Error;
    const NAME: &'static str = "tokens";
    const WORKERS: usize = 5;

    async fn reconcile(&self, key: &Key) -> Result<Action, Error> {
        let secret = self.secrets.get(Some(&key.namespace), &key.name);
        let Some(secret) = secret.filter(|secret| secret.metadata.deletion_timestamp.is_none())
        else {
            return Ok(Action::Done);
        };
        let Some(account) = annotation(&secret, ACCOUNT_NAME) else {
            return Ok(Action::Done);
        };
        match self.find_account(key, &secret, account).await? {
            Some(account) => self.fill(key, &secret, &account).await?,
            None => {
                let api: Api<Secret> = Api::namespaced(self.client.clone(), &key.namespace);
                let outcome = api
                    .delete(&key.name, &writes::delete(&secret.metadata))
                    .await;
                writes::deleted(outcome).map_err(|source| Error::Delete {
                    secret: key.clone(),
                    source,
                })?;
            }
        }
        Ok(Action::Done)
    }
}

impl Controller {
    /// The account that the Secret is for, asked of the server before it is taken for gone.
    async fn find_account(
        &self,
        key: &Key,
        secret: &Secret,
        name: &str,
    ) -> Result<Option<ObjectMeta>, Error> {
        let uid = annotation(secret, ACCOUNT_UID);
        let is_it = |account: &ObjectMeta| uid.is_none() || account.uid.as_deref() == uid;
        if let Some(account) = self.accounts.get(Some(&key.namespace), name)
            && is_it(&account.metadata)
        {
            return Ok(Some(account.metadata.clone()));
        }
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &key.namespace);
        let live = api.get_metadata_opt(name).await;
        let live = live.map_err(|source| Error::Look {
            secret: key.clone(),
            source,
        })?;
        Ok(live.map(|live| live.metadata).filter(is_it))
    }

    /// Writes into the Secret what is missing in it or wrong.
    async fn fill(&self, key: &Key, secret: &Secret, account: &ObjectMeta) -> Result<(), Error> {
        let mut data = secret.data.clone().unwrap_or_default();
        let certificates = ByteString(self.certificates.clone().into_bytes());
        data.insert("ca.crt".to_owned(), certificates);
        let namespace = ByteString(key.namespace.as_bytes().to_vec());
        data.insert("namespace".to_owned(), namespace);
        if data.get("token").is_none_or(|token| token.0.is_empty()) {
            let token = self.token(key, secret, account).await?;
            data.insert("token".to_owned(), ByteString(token.into_bytes()));
        }
        let mut filled = secret.clone();
        filled.data = Some(data);
        let annotations: &mut BTreeMap<_, _> = filled.metadata.annotations.get_or_insert_default();
        let uid = account.uid.clone().unwrap_or_default();
        annotations.insert(ACCOUNT_UID.to_owned(), uid);
        if filled == *secret {
            return Ok(());
        }
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &key.namespace);
        match api.replace(&key.name, &writes::post(), &filled).await {
            Ok(written) => self.secrets.caught_up_with(&written).await,
            // It is gone, or its namespace is going.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {}
            Err(source) => {
                let secret = key.clone();
                return Err(Error::Write { secret, source });
            }
        }
        Ok(())
    }

    async fn token(
        &self,
        key: &Key,
        secret: &Secret,
        account: &ObjectMeta,
    ) -> Result<String, Error> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &key.namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: None,
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Secret".to_owned()),
                    name: secret.metadata.name.clone(),
                    uid: secret.metadata.uid.clone(),
                }),
                expiration_seconds: Some(GOOD_FOR),
            }),
            ..TokenRequest::default()
        };
        let name = account.name.as_deref().unwrap_or_default();
        let answer = api
            .create_token_request(name, &writes::post(), &request)
            .await;
        let answer = answer.map_err(|source| Error::Token {
            secret: key.clone(),
            source,
        })?;
        answer
            .status
            .and_then(|status| status.token)
            .ok_or_else(|| Error::NoToken {
                secret: key.clone(),
            })
    }
}
