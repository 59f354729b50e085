//! Brings pods to their workers: one per uid, for as long as the pod is in the API or on this machine.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use engine::{Engine, Event, SandboxStatus};
use informer::{Change, Informer};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::context::Context;
use crate::observed::label;
use crate::pod;
use crate::record::remembered;
use crate::sweep::sweep;
use crate::worker::{self, Feed};

struct Worker {
    feed: watch::Sender<Feed>,
    wake: Arc<Notify>,
}

/// Runs until the program drains. `pods` is synced. All sandboxes that no pod of the API owns are ended first.
pub(crate) async fn dispatch(context: Arc<Context>, pods: Informer<Pod>) {
    let mut events = context.engine.events();
    // Before the pods are told: what is listed here was there before this daemon.
    let sandboxes = context.engine.sandboxes().await;
    let mut dispatcher = Dispatcher {
        context: context.clone(),
        workers: HashMap::new(),
        tasks: JoinSet::new(),
        uids: HashMap::new(),
    };
    dispatcher.sweep(&pods, &sandboxes);
    dispatcher.end_orphans(&pods, sandboxes);
    let mut changes = pods.changes();
    loop {
        tokio::select! {
            () = context.drain.signaled() => break,
            change = changes.next() => match change {
                Some(change) => dispatcher.hear(change),
                None => break,
            },
            event = next(&mut events, &context.engine) => dispatcher.wake(&event),
            Some(ended) = dispatcher.tasks.join_next_with_id(), if !dispatcher.tasks.is_empty() => {
                dispatcher.ended(ended);
            }
        }
    }
    // The workers hear the drain as well; their containers go on.
    while dispatcher.tasks.join_next().await.is_some() {}
}

/// The engine's next event; when the engine has closed the channel, a new one.
async fn next(events: &mut mpsc::Receiver<Event>, engine: &Arc<dyn Engine>) -> Event {
    match events.recv().await {
        Some(event) => event,
        None => {
            *events = engine.events();
            Event::Missed
        }
    }
}

struct Dispatcher {
    context: Arc<Context>,
    workers: HashMap<String, Worker>,
    tasks: JoinSet<()>,
    uids: HashMap<tokio::task::Id, String>,
}

impl Dispatcher {
    fn hear(&mut self, change: Change<Pod>) {
        match change {
            Change::Applied { new, old } => {
                if let Some(old) = old.filter(|old| pod::uid(old) != pod::uid(&new)) {
                    self.forget(&old);
                }
                self.update(new);
            }
            Change::Deleted(pod) => self.forget(&pod),
        }
    }

    fn update(&mut self, pod: Arc<Pod>) {
        let uid = pod::uid(&pod).to_owned();
        match self.workers.get(&uid) {
            Some(worker) => {
                worker.feed.send_modify(|feed| feed.pod = pod);
            }
            None => self.start(uid, Feed { pod, gone: false }),
        }
    }

    fn forget(&mut self, pod: &Pod) {
        if let Some(worker) = self.workers.get(pod::uid(pod)) {
            worker.feed.send_modify(|feed| feed.gone = true);
        }
    }

    fn start(&mut self, uid: String, feed: Feed) {
        let (sender, receiver) = watch::channel(feed);
        let wake = Arc::new(Notify::new());
        let run = worker::run(self.context.clone(), receiver, wake.clone());
        let task = self.tasks.spawn(run);
        self.uids.insert(task.id(), uid.clone());
        self.workers.insert(uid, Worker { feed: sender, wake });
    }

    fn wake(&self, event: &Event) {
        let id = match event {
            Event::Container { sandbox, .. } | Event::SandboxGone(sandbox) => sandbox,
            Event::Missed => {
                for worker in self.workers.values() {
                    worker.wake.notify_one();
                }
                return;
            }
        };
        if let Some(worker) = self.workers.get(&id.0) {
            worker.wake.notify_one();
        }
    }

    fn ended(&mut self, ended: Result<(tokio::task::Id, ()), tokio::task::JoinError>) {
        let task = match &ended {
            Ok((task, ())) => *task,
            Err(error) => error.id(),
        };
        let Some(uid) = self.uids.remove(&task) else {
            return;
        };
        let worker = self.workers.remove(&uid);
        if let (Err(error), Some(worker)) = (ended, worker) {
            // A pod must not be left alone because of a bug in what tends it.
            tracing::error!(uid, "a pod's worker panicked and is started anew: {error}");
            let feed = worker.feed.borrow().clone();
            self.start(uid, feed);
        }
    }

    /// Removes the directories of pods that neither the API nor the engine knows. They are looked for
    /// before any worker makes one.
    fn sweep(&self, pods: &Informer<Pod>, sandboxes: &[SandboxStatus]) {
        let mut known = uids(pods);
        let labels = sandboxes.iter().map(|sandbox| &sandbox.labels);
        known.extend(labels.filter_map(|labels| labels.get(label::POD_UID).cloned()));
        let config = &self.context.config;
        sweep(&config.data_dir.join("pods"), &config.log_dir, &known);
    }

    /// Ends sandboxes whose pods were deleted while no daemon ran.
    fn end_orphans(&mut self, pods: &Informer<Pod>, sandboxes: Vec<SandboxStatus>) {
        let known = uids(pods);
        for sandbox in sandboxes {
            let Some(uid) = sandbox.labels.get(label::POD_UID) else {
                // Not a pod's: somebody else's on the same engine.
                continue;
            };
            if known.contains(uid) {
                continue;
            }
            tracing::info!(uid, "the pod of a sandbox is gone: the sandbox is ended");
            let pod = Arc::new(remembered(&sandbox));
            self.start(uid.clone(), Feed { pod, gone: true });
        }
    }
}

fn uids(pods: &Informer<Pod>) -> HashSet<String> {
    let pods = pods.list();
    pods.iter().map(|pod| pod::uid(pod).to_owned()).collect()
}
