//! ConfigMaps and Secrets that pods of this node use: fetched when asked for, watched while mounted.
//!
//! The node never lists the cluster's Secrets. What a volume projects is watched by name, one watch
//! for all pods that mount the same object, for as long as one of them does.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// How long a pod waits for the first answer about an object that it mounts.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// Which of the two kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum SourceKind {
    ConfigMap,
    Secret,
}

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SourceKey {
    pub(crate) kind: SourceKind,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl SourceKey {
    /// `configmap "x" not found`, as upstream says it.
    pub(crate) fn not_found(&self) -> String {
        let kind = match self.kind {
            SourceKind::ConfigMap => "configmap",
            SourceKind::Secret => "secret",
        };
        format!("{kind} \"{}\" not found", self.name)
    }
}

/// The data of a ConfigMap (`data` and `binaryData`) or Secret.
pub(crate) type Data = BTreeMap<String, Bytes>;

/// What is known of an object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// Not answered yet.
    Unknown,
    Absent,
    Present(Arc<Data>),
}

/// An object could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("{}", .0.not_found())]
    NotFound(SourceKey),
    #[error("read {:?} {}/{}: {source}", key.kind, key.namespace, key.name)]
    Read {
        key: SourceKey,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("timed out waiting for {:?} {}/{}", .0.kind, .0.namespace, .0.name)]
    TimedOut(SourceKey),
}

/// The objects in use. Clones share them.
#[derive(Clone)]
pub(crate) struct Sources {
    client: kube::Client,
    watched: Arc<Mutex<HashMap<SourceKey, Weak<Watched>>>>,
}

struct Watched {
    content: watch::Receiver<Content>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps an object watched, and tells when it changes.
#[derive(Clone)]
pub(crate) struct Subscription {
    content: watch::Receiver<Content>,
    key: SourceKey,
    _watched: Arc<Watched>,
}

impl Sources {
    pub(crate) fn new(client: kube::Client) -> Sources {
        Sources {
            client,
            watched: Arc::default(),
        }
    }

    /// Asks once for what of an object can be environment variables: `binaryData` cannot.
    ///
    /// # Errors
    ///
    /// The object does not exist, or the API cannot be asked.
    pub(crate) async fn read(&self, key: &SourceKey) -> Result<Data, SourceError> {
        let (client, namespace) = (self.client.clone(), &key.namespace);
        let found = match key.kind {
            SourceKind::ConfigMap => Api::<ConfigMap>::namespaced(client, namespace)
                .get_opt(&key.name)
                .await
                .map(|found| found.map(config_map_text)),
            SourceKind::Secret => Api::<Secret>::namespaced(client, namespace)
                .get_opt(&key.name)
                .await
                .map(|found| found.map(secret_data)),
        };
        match found {
            Ok(Some(data)) => Ok(data),
            Ok(None) => Err(SourceError::NotFound(key.clone())),
            Err(source) => Err(SourceError::Read {
                key: key.clone(),
                source: Box::new(source),
            }),
        }
    }

    /// Watches an object until the last subscription to it is dropped.
    pub(crate) fn subscribe(&self, key: &SourceKey) -> Subscription {
        let mut watched = self.watched.lock();
        let known = watched.get(key).and_then(Weak::upgrade);
        let watched = known.unwrap_or_else(|| {
            watched.retain(|_, entry| entry.strong_count() > 0);
            let (sender, content) = watch::channel(Content::Unknown);
            let (client, key_of_task) = (self.client.clone(), key.clone());
            let task = tokio::spawn(async move {
                match key_of_task.kind {
                    SourceKind::ConfigMap => {
                        follow(client, &key_of_task, sender, config_map_data).await;
                    }
                    SourceKind::Secret => follow(client, &key_of_task, sender, secret_data).await,
                }
            });
            let entry = Arc::new(Watched {
                content,
                task: task.abort_handle(),
            });
            watched.insert(key.clone(), Arc::downgrade(&entry));
            entry
        });
        Subscription {
            content: watched.content.clone(),
            key: key.clone(),
            _watched: watched,
        }
    }
}

impl Subscription {
    /// The content as of now, waiting for the first answer.
    ///
    /// # Errors
    ///
    /// The object does not exist, or there is no answer within ten seconds.
    pub(crate) async fn data(&mut self) -> Result<Arc<Data>, SourceError> {
        let known = |content: &Content| *content != Content::Unknown;
        let answer = tokio::time::timeout(FIRST_ANSWER, self.content.wait_for(known)).await;
        match answer {
            Ok(Ok(content)) => match &*content {
                Content::Present(data) => Ok(data.clone()),
                Content::Absent | Content::Unknown => Err(SourceError::NotFound(self.key.clone())),
            },
            Ok(Err(_)) | Err(_) => Err(SourceError::TimedOut(self.key.clone())),
        }
    }

    /// Resolves when the content is not what [`Self::data`] gave any more.
    pub(crate) async fn changed(&mut self) {
        if self.content.changed().await.is_err() {
            // The watch ended with the program: there will be no more news.
            std::future::pending::<()>().await;
        }
    }
}

fn config_map_data(mut object: ConfigMap) -> Data {
    let binary = object.binary_data.take().into_iter().flatten();
    let mut data = config_map_text(object);
    data.extend(binary.map(|(key, value)| (key, Bytes::from(value.0))));
    data
}

fn config_map_text(object: ConfigMap) -> Data {
    let text = object.data.into_iter().flatten();
    text.map(|(key, value)| (key, Bytes::from(value))).collect()
}

fn secret_data(object: Secret) -> Data {
    let data = object.data.into_iter().flatten();
    data.map(|(key, value)| (key, Bytes::from(value.0)))
        .collect()
}

async fn follow<K>(
    client: kube::Client,
    key: &SourceKey,
    sender: watch::Sender<Content>,
    data_of: fn(K) -> Data,
) where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let api: Api<K> = Api::namespaced(client, &key.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.name));
    let mut events = pin!(watcher(api, config).default_backoff());
    let mut seen = false;
    while let Some(event) = events.next().await {
        let content = match event {
            Ok(watcher::Event::Init) => {
                seen = false;
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                seen = true;
                Content::Present(Arc::new(data_of(object)))
            }
            Ok(watcher::Event::InitDone) if seen => continue,
            Ok(watcher::Event::InitDone | watcher::Event::Delete(_)) => Content::Absent,
            Ok(watcher::Event::Apply(object)) => Content::Present(Arc::new(data_of(object))),
            Err(error) => {
                tracing::debug!(%error, ?key, "watch interrupted");
                continue;
            }
        };
        sender.send_if_modified(|known| {
            let differs = *known != content;
            *known = content;
            differs
        });
    }
}
