//! One node of the cluster: an agent that comes and goes, and the engine that stays.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::node::{Agent, Capacity, Config};
use informer::Informers;
use lifecycle::{Drain, DrainTrigger};

use crate::clock::Clock;
use crate::engine::FakeEngine;
use crate::script::Script;

/// How often an agent is started that cannot register, in bad weather.
const STARTS_MAX: u32 = 20;

/// A node, whether its agent runs or not.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) engine: FakeEngine,
    config: Config,
    running: Option<(Agent, DrainTrigger)>,
}

impl Node {
    /// The node of this number, from 1 on. Its agent's files lie in `directory`.
    pub(crate) fn new(
        number: u16,
        directory: PathBuf,
        capacity: Capacity,
        max_pods: u32,
        script: &Script,
        clock: &Clock,
    ) -> Node {
        let [high, low] = number.to_be_bytes();
        let name = format!("node-{number}");
        let address = IpAddr::V4(Ipv4Addr::new(192, 168, high, low));
        let network = Ipv4Addr::new(10, 244u8.wrapping_add(high), low, 0);
        let cluster_dns = Ipv4Addr::new(10, 96, 0, 10);
        let resolv_conf = directory.join("resolv.conf");
        let mut config = Config::new(&name, address, directory, cluster_dns);
        config.capacity = Some(capacity);
        config.max_pods = max_pods;
        config.resolv_conf = resolv_conf;
        config.now = clock.reader();
        Node {
            engine: FakeEngine::new(script.clone(), clock.clone(), network),
            name,
            config,
            running: None,
        }
    }

    /// Starts the agent; nothing if it runs.
    ///
    /// # Panics
    /// When it cannot be started however often.
    pub(crate) async fn start(&mut self, informers: Informers, drain: &Drain) {
        if self.running.is_some() {
            return;
        }
        let mut tries = 0;
        loop {
            let (stop, stopped) = drain.child();
            let engine = Arc::new(self.engine.clone());
            let started = Agent::start(informers.clone(), engine, self.config.clone(), stopped);
            match started.await {
                Ok(agent) => {
                    self.running = Some((agent, stop));
                    return;
                }
                Err(error) if tries == STARTS_MAX => panic!("{}: {error}", self.name),
                Err(_) => tries += 1,
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Ends the agent and waits for it; its containers go on.
    pub(crate) async fn stop(&mut self) {
        if let Some((agent, stop)) = self.running.take() {
            stop.signal();
            agent.ended().await;
        }
    }

    pub(crate) fn agent(&self) -> Option<&Agent> {
        self.running.as_ref().map(|(agent, _)| agent)
    }
}
