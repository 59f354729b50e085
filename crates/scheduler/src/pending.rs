//! The pods that have no place yet, and whose turn it is.
//!
//! ```text
//!   new, changed ──► ready ──turn──► decided ──► bound
//!                     ▲ ▲              │
//!    a change helps   │ │ its pause    ├─ no node will do ──► waiting (for a change of those rules)
//!    ─────────────────┘ └──────────────┴─ the server failed ─► paused (1 s, 2 s … 10 s)
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use informer::Key;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use crate::filter::Rules;

const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Higher priority first, then the older pod; the key makes it unique.
type Turn = (Reverse<i32>, Option<Timestamp>, Key);

#[derive(Debug)]
enum Stage {
    Ready(Turn),
    Paused(Instant),
    Waiting(Rules),
    /// Its binding is on the way.
    Leaving,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    stage: Stage,
    failures: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    entries: HashMap<Key, Entry>,
    ready: BTreeSet<Turn>,
    paused: BTreeSet<(Instant, Key)>,
}

impl Pending {
    /// Takes in a pod, or its new state. A change of what decides over it makes it ready again.
    pub(crate) fn set(&mut self, pod: Arc<Pod>) {
        let key = Key::of(&*pod);
        match self.entries.get_mut(&key) {
            Some(entry) => {
                let same = decides(&entry.pod) == decides(&pod);
                entry.pod = pod;
                if !same && matches!(entry.stage, Stage::Waiting(_)) {
                    self.make_ready(&key);
                }
            }
            None => {
                let turn = turn_of(&key, &pod);
                self.ready.insert(turn.clone());
                let stage = Stage::Ready(turn);
                let entry = Entry {
                    pod,
                    stage,
                    failures: 0,
                };
                self.entries.insert(key, entry);
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.unlist(key, &entry.stage);
        }
    }

    /// The pod whose turn it is. Where it goes from there is told by one of `leave` and `wait`.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Arc<Pod>> {
        while let Some((due, key)) = self.paused.first().filter(|(due, _)| *due <= now).cloned() {
            self.paused.remove(&(due, key.clone()));
            self.make_ready(&key);
        }
        let (_, _, key) = self.ready.pop_first()?;
        let entry = self.entries.get_mut(&key)?;
        entry.stage = Stage::Leaving;
        Some(entry.pod.clone())
    }

    /// Whether the pod is known to have no place.
    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    /// Whether it is somebody's turn.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When the next pause ends.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.paused.first().map(|(due, _)| *due)
    }

    /// No node would do; a change of these rules may help.
    pub(crate) fn wait(&mut self, key: &Key, rules: Rules) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.stage = Stage::Waiting(rules);
        }
    }

    /// The server failed: to be tried again after a pause.
    pub(crate) fn pause(&mut self, key: &Key, now: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            let pause = PAUSE_MIN
                .saturating_mul(1 << entry.failures.min(10))
                .min(PAUSE_MAX);
            entry.failures += 1;
            entry.stage = Stage::Paused(now + pause);
            self.paused.insert((now + pause, key.clone()));
        }
    }

    /// Something has changed that these rules depend on.
    pub(crate) fn changed(&mut self, rules: Rules) {
        let concerned = self.entries.iter().filter(|(_, entry)| {
            matches!(entry.stage, Stage::Waiting(waits_for) if waits_for.overlap(rules))
        });
        let keys: Vec<Key> = concerned.map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.make_ready(&key);
        }
    }

    fn make_ready(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key) {
            let turn = turn_of(key, &entry.pod);
            entry.stage = Stage::Ready(turn.clone());
            self.ready.insert(turn);
        }
    }

    fn unlist(&mut self, key: &Key, stage: &Stage) {
        match stage {
            Stage::Ready(turn) => drop(self.ready.remove(turn)),
            Stage::Paused(due) => drop(self.paused.remove(&(*due, key.clone()))),
            Stage::Waiting(_) | Stage::Leaving => {}
        }
    }
}

fn turn_of(key: &Key, pod: &Pod) -> Turn {
    let priority = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.priority)
        .unwrap_or_default();
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (Reverse(priority), created, key.clone())
}

/// What of a pod decides over where it can go. Its status does not, which is written here.
fn decides(pod: &Pod) -> impl PartialEq + '_ {
    (&pod.metadata.uid, &pod.metadata.labels, &pod.spec)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, priority: i32, second: i64) -> Arc<Pod> {
        let created = Timestamp::from_second(1_700_000_000 + second).expect("in range");
        let pod = json!({"metadata": {"name": name, "namespace": "default", "creationTimestamp": created},
            "spec": {"priority": priority, "containers": []}});
        Arc::new(serde_json::from_value(pod).expect("is a pod"))
    }

    fn take_all(pending: &mut Pending, now: Instant) -> Vec<String> {
        let taken = std::iter::from_fn(|| pending.next(now));
        taken.filter_map(|pod| pod.metadata.name.clone()).collect()
    }

    #[tokio::test]
    async fn important_ones_first_then_the_oldest() {
        let now = Instant::now();
        let mut pending = Pending::default();
        for pod in [
            pod("young", 0, 9),
            pod("old", 0, 1),
            pod("important", 10, 20),
            pod("gone", 50, 0),
        ] {
            pending.set(pod);
        }
        pending.remove(&Key::new("default", "gone"));
        assert_eq!(take_all(&mut pending, now), ["important", "old", "young"]);
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_a_change_that_could_help_only() {
        let now = Instant::now();
        let mut pending = Pending::default();
        for name in ["room", "node"] {
            pending.set(pod(name, 0, 0));
        }
        take_all(&mut pending, now);
        pending.wait(&Key::new("default", "room"), Rules::ROOM);
        pending.wait(&Key::new("default", "node"), Rules::NODE);
        pending.changed(Rules::PODS);
        assert!(take_all(&mut pending, now).is_empty());
        pending.changed(Rules::ROOM);
        assert_eq!(take_all(&mut pending, now), ["room"]);
        // Its own status is no change, its labels are.
        let mut status = (*pod("node", 0, 0)).clone();
        status.status.get_or_insert_default().phase = Some("Pending".to_owned());
        pending.set(Arc::new(status.clone()));
        assert!(take_all(&mut pending, now).is_empty());
        status
            .metadata
            .labels
            .get_or_insert_default()
            .insert("a".to_owned(), "b".to_owned());
        pending.set(Arc::new(status));
        assert_eq!(take_all(&mut pending, now), ["node"]);
    }

    #[tokio::test]
    async fn a_failure_of_the_server_pauses_longer_each_time() {
        let mut now = Instant::now();
        let mut pending = Pending::default();
        let key = Key::new("default", "web");
        pending.set(pod("web", 0, 0));
        for seconds in [1, 2, 4, 8, 10, 10] {
            assert_eq!(take_all(&mut pending, now).len(), 1);
            pending.pause(&key, now);
            assert_eq!(pending.next_due(), Some(now + Duration::from_secs(seconds)));
            pending.changed(Rules::NODE.with(Rules::ROOM));
            assert!(take_all(&mut pending, now).is_empty());
            now += Duration::from_secs(seconds);
        }
        pending.remove(&key);
        assert!(pending.paused.is_empty() && pending.ready.is_empty());
    }
}
