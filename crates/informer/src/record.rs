//! Telling people what happened: Events, without drowning them.
//!
//! A [`Recorder`] never makes its caller wait: events go through a bounded queue to one task, and
//! when that queue is full they are dropped and counted, for an event is a remark, not a fact that
//! anything may depend on. The same remark again raises the count of the first one; the tenth of
//! similar ones, and those after it, become one "(combined from similar events)", until none has come
//! for ten minutes; and an object that keeps on chattering is let through once in five minutes. These
//! are the rules of upstream's recorder.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSeries, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use lifecycle::Drain;
use serde_json::json;
use tokio::sync::mpsc;
use tracing::debug;

/// Events that wait to be written; more are dropped.
const WAITING_MAX: usize = 1000;
/// Remarks that are remembered to count them.
const REMEMBERED_MAX: usize = 1024;
/// From so many similar remarks on, differing in their message only, they are combined.
const SIMILAR_MAX: usize = 10;
/// Remarks that are further apart than this are not similar any more.
const SIMILAR_WITHIN: Duration = Duration::from_secs(600);
/// What one object may say at once, and how often after that.
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
/// The longest message that the API takes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// How an event is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// Things go their way.
    Normal,
    /// Somebody should look at this.
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// In whose name events are written, and in which of the two forms that the API has for them.
#[derive(Clone, Debug)]
enum Reporter {
    /// `count`, `firstTimestamp`, `lastTimestamp`, `source`: what the kubelet and most controllers do.
    Counting { component: String, host: String },
    /// `eventTime`, `series`, `action`: what the scheduler does.
    Series {
        controller: String,
        instance: String,
    },
}

/// Writes Events about objects. Clones share one queue and one memory of what was said.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Remark>,
    dropped: Arc<AtomicU64>,
}

struct Remark {
    regarding: ObjectReference,
    event_type: EventType,
    reason: String,
    action: Option<String>,
    message: String,
    at: Timestamp,
}

impl Recorder {
    /// A recorder for `component` (such as `replicaset-controller`), on `host` if it is tied to one.
    /// Must be called within a tokio runtime.
    pub fn new(client: kube::Client, component: &str, host: Option<&str>, drain: Drain) -> Self {
        let reporter = Reporter::Counting {
            component: component.to_owned(),
            host: host.unwrap_or_default().to_owned(),
        };
        Recorder::start(client, reporter, drain)
    }

    /// A recorder that writes events of the newer form, with `eventTime` and `series`.
    /// Must be called within a tokio runtime.
    pub fn with_series(
        client: kube::Client,
        controller: &str,
        instance: &str,
        drain: Drain,
    ) -> Self {
        let reporter = Reporter::Series {
            controller: controller.to_owned(),
            instance: instance.to_owned(),
        };
        Recorder::start(client, reporter, drain)
    }

    fn start(client: kube::Client, reporter: Reporter, drain: Drain) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        tokio::spawn(write_all(client, reporter, receiver, drain));
        Recorder {
            sender,
            dropped: Arc::default(),
        }
    }

    /// Says something about an object.
    pub fn event<K>(&self, object: &K, event_type: EventType, reason: &str, message: String)
    where
        K: kube::Resource<DynamicType = ()>,
    {
        self.event_on(reference_to(object), event_type, reason, None, message);
    }

    /// Says something about what `regarding` points to, which may be a part of an object
    /// (`fieldPath`). `action` is written by recorders with series.
    pub fn event_on(
        &self,
        regarding: ObjectReference,
        event_type: EventType,
        reason: &str,
        action: Option<&str>,
        mut message: String,
    ) {
        if message.len() > MESSAGE_BYTES_MAX {
            message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX - 3));
            message.push_str("...");
        }
        let remark = Remark {
            regarding,
            event_type,
            reason: reason.to_owned(),
            action: action.map(str::to_owned),
            message,
            at: Timestamp::now(),
        };
        if self.sender.try_send(remark).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many events were dropped because too many waited.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// A reference to an object as events carry it.
pub fn reference_to<K: kube::Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

async fn write_all(
    client: kube::Client,
    reporter: Reporter,
    mut remarks: mpsc::Receiver<Remark>,
    drain: Drain,
) {
    let mut memory = Memory::default();
    loop {
        let remark = tokio::select! {
            remark = remarks.recv() => remark,
            () = drain.signaled() => return,
        };
        let Some(remark) = remark else { return };
        let Some(verdict) = memory.weigh(&remark) else {
            continue;
        };
        let namespace = remark.regarding.namespace.as_deref().unwrap_or("default");
        let events: Api<Event> = Api::namespaced(client.clone(), namespace);
        let writing = write(&events, &reporter, &remark, &verdict);
        tokio::select! {
            result = writing => if let Err(error) = result {
                debug!(%error, reason = remark.reason, "an event was not written");
            },
            () = drain.signaled() => return,
        }
    }
}

async fn write(
    events: &Api<Event>,
    reporter: &Reporter,
    remark: &Remark,
    verdict: &Verdict,
) -> Result<(), kube::Error> {
    let event = event_of(reporter, remark, verdict);
    if verdict.count > 1 {
        let name = event.metadata.name.as_deref().unwrap_or_default();
        let patch = match reporter {
            Reporter::Counting { .. } => json!({
                "count": event.count,
                "lastTimestamp": event.last_timestamp,
                "message": event.message,
            }),
            Reporter::Series { .. } => json!({ "series": event.series }),
        };
        let params = PatchParams::default();
        match events.patch(name, &params, &Patch::Merge(&patch)).await {
            // It has expired meanwhile: say it afresh, with the count it has come to.
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            result => return result.map(drop),
        }
    }
    events
        .create(&PostParams::default(), &event)
        .await
        .map(drop)
}

/// What is to be written of a remark.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    name: String,
    message: String,
    /// Whether it stands for several that differ in their message.
    combined: bool,
    /// The how manieth time it is said; from the second on the first one is patched.
    count: i32,
    first: Timestamp,
}

fn event_of(reporter: &Reporter, remark: &Remark, verdict: &Verdict) -> Event {
    let whole_second = |time: Timestamp| {
        let second = Timestamp::from_second(time.as_second());
        Time(second.unwrap_or(time))
    };
    let namespace = remark.regarding.namespace.clone();
    let mut event = Event {
        metadata: ObjectMeta {
            name: Some(verdict.name.clone()),
            namespace: Some(namespace.unwrap_or_else(|| "default".to_owned())),
            ..ObjectMeta::default()
        },
        involved_object: remark.regarding.clone(),
        reason: Some(remark.reason.clone()),
        message: Some(verdict.message.clone()),
        type_: Some(remark.event_type.as_str().to_owned()),
        ..Event::default()
    };
    match reporter {
        Reporter::Counting { component, host } => {
            event.count = Some(verdict.count);
            event.first_timestamp = Some(whole_second(verdict.first));
            event.last_timestamp = Some(whole_second(remark.at));
            event.source = Some(EventSource {
                component: Some(component.clone()),
                host: (!host.is_empty()).then(|| host.clone()),
            });
            // Upstream makes combined ones anew, without these.
            let reporter = |name: &String| match verdict.combined {
                true => String::new(),
                false => name.clone(),
            };
            event.reporting_component = Some(reporter(component));
            event.reporting_instance = Some(reporter(host));
        }
        Reporter::Series {
            controller,
            instance,
        } => {
            event.event_time = Some(MicroTime(verdict.first));
            event.action.clone_from(&remark.action);
            event.reporting_component = Some(controller.clone());
            event.reporting_instance = Some(instance.clone());
            event.source = Some(EventSource::default());
            event.series = (verdict.count > 1).then_some(EventSeries {
                count: Some(verdict.count),
                last_observed_time: Some(MicroTime(remark.at)),
            });
        }
    }
    event
}

/// What was said lately. All of it is bounded; the oldest is forgotten first.
#[derive(Default)]
struct Memory {
    said: Bounded<Said>,
    similar: Bounded<Similar>,
    allowance: Bounded<Allowance>,
}

struct Said {
    name: String,
    count: i32,
    first: Timestamp,
}

struct Similar {
    messages: HashSet<u64>,
    last: Timestamp,
}

struct Allowance {
    left: f64,
    at: Timestamp,
}

impl Memory {
    /// What to write of a remark; `None` if it is to be passed over.
    fn weigh(&mut self, remark: &Remark) -> Option<Verdict> {
        let object = hash(&(
            &remark.regarding.kind,
            &remark.regarding.namespace,
            &remark.regarding.name,
            &remark.regarding.uid,
        ));
        let group = hash(&(
            object,
            &remark.regarding.field_path,
            remark.event_type.as_str(),
            &remark.reason,
        ));
        let similar = self.similar.entry(group, || Similar {
            messages: HashSet::new(),
            last: remark.at,
        });
        if elapsed(similar.last, remark.at) > SIMILAR_WITHIN {
            similar.messages.clear();
        }
        similar.last = remark.at;
        let message_hash = hash(&remark.message);
        let is_new = !similar.messages.contains(&message_hash);
        let combined = is_new && similar.messages.len() + 1 >= SIMILAR_MAX;
        let (key, message) = if combined {
            (
                group,
                format!("(combined from similar events): {}", remark.message),
            )
        } else {
            similar.messages.insert(message_hash);
            (hash(&(group, message_hash)), remark.message.clone())
        };
        let allowance = self.allowance.entry(object, || Allowance {
            left: BURST,
            at: remark.at,
        });
        let refilled = elapsed(allowance.at, remark.at).as_secs_f64() / REFILL.as_secs_f64();
        allowance.left = (allowance.left + refilled).min(BURST);
        allowance.at = remark.at;
        if allowance.left < 1.0 {
            return None;
        }
        allowance.left -= 1.0;
        let said = self.said.entry(key, || Said {
            name: format!(
                "{}.{:x}",
                remark.regarding.name.as_deref().unwrap_or_default(),
                remark.at.as_nanosecond()
            ),
            count: 0,
            first: remark.at,
        });
        said.count = said.count.saturating_add(1);
        Some(Verdict {
            name: said.name.clone(),
            message,
            combined,
            count: said.count,
            first: said.first,
        })
    }
}

fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// A map that forgets what came first when it is full.
struct Bounded<V> {
    values: HashMap<u64, V>,
    order: VecDeque<u64>,
}

impl<V> Default for Bounded<V> {
    fn default() -> Self {
        Bounded {
            values: HashMap::new(),
            order: VecDeque::new(),
        }
    }
}

impl<V> Bounded<V> {
    fn entry(&mut self, key: u64, new: impl FnOnce() -> V) -> &mut V {
        if !self.values.contains_key(&key) {
            if self.order.len() == REMEMBERED_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.values.remove(&oldest);
            }
            self.order.push_back(key);
        }
        self.values.entry(key).or_insert_with(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remark(name: &str, message: &str, second: i64) -> Remark {
        Remark {
            regarding: ObjectReference {
                kind: Some("Pod".to_owned()),
                name: Some(name.to_owned()),
                ..ObjectReference::default()
            },
            event_type: EventType::Warning,
            reason: "BackOff".to_owned(),
            action: None,
            message: message.to_owned(),
            at: Timestamp::from_second(1_700_000_000 + second).expect("in range"),
        }
    }

    #[test]
    fn the_same_remark_again_raises_the_count_of_the_first() {
        let mut memory = Memory::default();
        let first = memory.weigh(&remark("web", "down", 0)).expect("said");
        let second = memory.weigh(&remark("web", "down", 5)).expect("said");
        let other = memory.weigh(&remark("api", "down", 6)).expect("said");
        assert_eq!((first.count, second.count, other.count), (1, 2, 1));
        assert_eq!(first.name, second.name);
        assert_eq!(second.first, first.first);
        assert_ne!(first.name, other.name);
    }

    #[test]
    fn many_similar_remarks_become_one() {
        let mut memory = Memory::default();
        let messages: Vec<_> = (0..12)
            .filter_map(|number| memory.weigh(&remark("web", &format!("try {number}"), number)))
            .collect();
        assert_eq!(messages[8].message, "try 8");
        for (index, count) in [(9, 1), (10, 2), (11, 3)] {
            let message = format!("(combined from similar events): try {index}");
            let said = &messages[index];
            assert_eq!((&said.message, said.count), (&message, count));
        }
        let again = memory.weigh(&remark("web", "try 8", 12)).expect("said");
        assert_eq!((again.message.as_str(), again.count), ("try 8", 2));
        let soon = memory.weigh(&remark("web", "try 99", 611)).expect("said");
        assert_eq!(soon.message, "(combined from similar events): try 99");
        let later = memory.weigh(&remark("web", "try 99", 1212)).expect("said");
        assert_eq!(later.message, "try 99");
    }

    #[test]
    fn an_object_that_chatters_is_let_through_once_in_five_minutes() {
        let mut memory = Memory::default();
        let said =
            |memory: &mut Memory, second| memory.weigh(&remark("web", "down", second)).is_some();
        assert_eq!((0..100).filter(|_| said(&mut memory, 0)).count(), 25);
        assert_eq!(
            (1..900).filter(|second| said(&mut memory, *second)).count(),
            2
        );
        assert!(memory.weigh(&remark("api", "down", 1)).is_some());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut memory = Memory::default();
        for number in 0..3 * REMEMBERED_MAX {
            memory.weigh(&remark(&format!("web-{number}"), "down", 0));
        }
        assert_eq!(memory.said.values.len(), REMEMBERED_MAX);
        assert_eq!(memory.allowance.values.len(), REMEMBERED_MAX);
        assert_eq!(memory.similar.order.len(), REMEMBERED_MAX);
    }

    #[test]
    fn a_node_s_event_goes_to_the_default_namespace_in_the_form_of_its_reporter() {
        let mut memory = Memory::default();
        let remark = remark("node-1", "Starting kubelet.", 0);
        let verdict = memory.weigh(&remark).expect("said");
        let counting = Reporter::Counting {
            component: "kubelet".to_owned(),
            host: "node-1".to_owned(),
        };
        let event = serde_json::to_value(event_of(&counting, &remark, &verdict)).expect("is JSON");
        assert_eq!(event["metadata"]["namespace"], "default");
        assert_eq!(event["count"], 1);
        assert_eq!(event["firstTimestamp"], "2023-11-14T22:13:20Z");
        assert_eq!(
            event["source"],
            json!({"component": "kubelet", "host": "node-1"})
        );
        let series = Reporter::Series {
            controller: "default-scheduler".to_owned(),
            instance: "default-scheduler-node-1".to_owned(),
        };
        let event = serde_json::to_value(event_of(&series, &remark, &verdict)).expect("is JSON");
        assert_eq!(event["eventTime"], "2023-11-14T22:13:20.000000Z");
        assert_eq!(event.get("count"), None);
        assert_eq!(event["reportingComponent"], "default-scheduler");
    }
}
