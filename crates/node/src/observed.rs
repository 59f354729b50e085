//! What the engine shows of a pod, sorted by container and attempt.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use engine::{ContainerId, ContainerState, Labels, SandboxStatus};
use jiff::Timestamp;

/// Labels on sandboxes and containers, named as upstream names them.
pub(crate) mod label {
    pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
    pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
    pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    pub(crate) const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    /// The image as the pod spec named it: when it changes, the container is replaced.
    pub(crate) const IMAGE: &str = "io.kubernetes.container.image";
}

/// One run of a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attempt {
    pub(crate) id: ContainerId,
    /// 0 for the first run, then counted up: the restart count.
    pub(crate) number: u32,
    /// As the pod spec named it then.
    pub(crate) image: String,
    /// Its full name.
    pub(crate) image_name: String,
    pub(crate) image_id: String,
    pub(crate) state: ContainerState,
    pub(crate) created_at: Timestamp,
    /// What it left at its termination message path, read once it exited.
    pub(crate) message: Option<String>,
}

impl Attempt {
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. })
    }

    pub(crate) fn has_exited(&self) -> bool {
        matches!(self.state, ContainerState::Exited { .. })
    }
}

/// The last two runs of a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Attempts {
    pub(crate) current: Option<Attempt>,
    pub(crate) previous: Option<Attempt>,
    /// Runs before those: to be removed.
    pub(crate) older: Vec<ContainerId>,
}

/// A pod's sandbox and containers as the engine has them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Observed {
    /// Namespaces stand.
    pub(crate) alive: bool,
    /// The sandbox is known to the engine, alive or not.
    pub(crate) exists: bool,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) containers: BTreeMap<String, Attempts>,
}

impl Observed {
    /// Sorts a sandbox's containers by name and attempt.
    pub(crate) fn new(sandbox: SandboxStatus) -> Observed {
        let mut by_name: BTreeMap<String, Vec<Attempt>> = BTreeMap::new();
        for container in sandbox.containers {
            let name = container
                .labels
                .get(label::CONTAINER_NAME)
                .unwrap_or(&container.name)
                .clone();
            by_name.entry(name).or_default().push(Attempt {
                number: restart_count(&container.labels),
                image: container
                    .labels
                    .get(label::IMAGE)
                    .unwrap_or(&container.image)
                    .clone(),
                image_name: container.image,
                id: container.id,
                image_id: container.image_id,
                state: container.state,
                created_at: container.created_at,
                message: None,
            });
        }
        let containers = by_name
            .into_iter()
            .map(|(name, mut attempts)| {
                attempts.sort_by_key(|attempt| (attempt.number, attempt.created_at));
                let current = attempts.pop();
                let previous = attempts.pop();
                let older = attempts.into_iter().map(|attempt| attempt.id).collect();
                (
                    name,
                    Attempts {
                        current,
                        previous,
                        older,
                    },
                )
            })
            .collect();
        Observed {
            alive: sandbox.alive,
            exists: true,
            address: sandbox.address,
            containers,
        }
    }

    /// Puts back runs that are known and that the engine has forgotten, where they are the last ones.
    pub(crate) fn recall(&mut self, known: &HashMap<String, Attempt>) {
        for (name, known) in known {
            let attempts = self.containers.entry(name.clone()).or_default();
            let is_next = attempts
                .current
                .as_ref()
                .is_none_or(|current| current.number == known.number + 1);
            if is_next && attempts.previous.is_none() {
                attempts.previous = Some(known.clone());
            }
        }
    }

    /// The newest run of a container.
    pub(crate) fn current(&self, container: &str) -> Option<&Attempt> {
        self.containers.get(container)?.current.as_ref()
    }

    /// Whether any process of the pod runs.
    pub(crate) fn any_running(&self) -> bool {
        self.containers
            .values()
            .any(|attempts| attempts.current.as_ref().is_some_and(Attempt::is_running))
    }
}

fn restart_count(labels: &Labels) -> u32 {
    labels
        .get(label::RESTART_COUNT)
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::{ContainerStatus, SandboxId};

    fn container(id: &str, name: &str, count: u32) -> ContainerStatus {
        ContainerStatus {
            id: ContainerId(id.into()),
            sandbox: SandboxId("u".into()),
            name: name.into(),
            image: "docker.io/library/x:1".into(),
            image_id: "sha256:1".into(),
            state: ContainerState::Created,
            created_at: Timestamp::UNIX_EPOCH,
            log_path: "/log".into(),
            labels: [
                (label::CONTAINER_NAME.to_owned(), name.to_owned()),
                (label::RESTART_COUNT.to_owned(), count.to_string()),
                (label::IMAGE.to_owned(), "x:1".to_owned()),
            ]
            .into(),
        }
    }

    fn attempt(number: u32) -> Attempt {
        Attempt {
            id: ContainerId(format!("c{number}")),
            number,
            image: "x:1".into(),
            image_name: "x:1".into(),
            image_id: "sha256:1".into(),
            state: ContainerState::Created,
            created_at: Timestamp::UNIX_EPOCH,
            message: None,
        }
    }

    #[test]
    fn a_run_that_the_engine_forgot_is_the_one_before_the_next() {
        let check = |current: Option<u32>, expected: Option<u32>| {
            let mut observed = Observed::default();
            let attempts = Attempts {
                current: current.map(attempt),
                ..Attempts::default()
            };
            observed.containers.insert("c".into(), attempts);
            let known = HashMap::from([("c".to_owned(), attempt(4))]);
            observed.recall(&known);
            let previous = observed.containers["c"].previous.as_ref();
            assert_eq!(previous.map(|attempt| attempt.number), expected);
        };
        // Not forgotten yet, nothing new yet, the next run, and one after it.
        check(Some(4), None);
        check(None, Some(4));
        check(Some(5), Some(4));
        check(Some(6), None);
    }

    #[test]
    fn the_newest_two_attempts_are_kept_apart_from_the_older() {
        let observed = Observed::new(SandboxStatus {
            id: SandboxId("u".into()),
            alive: true,
            address: None,
            created_at: Timestamp::UNIX_EPOCH,
            labels: Labels::new(),
            containers: vec![
                container("c2", "c", 2),
                container("c10", "c", 10),
                container("c1", "c", 1),
                container("d0", "d", 0),
            ],
        });
        let attempts = &observed.containers["c"];
        assert_eq!(attempts.current.as_ref().map(|a| a.number), Some(10));
        assert_eq!(attempts.previous.as_ref().map(|a| a.number), Some(2));
        assert_eq!(attempts.older, [ContainerId("c1".into())]);
        assert_eq!(
            observed.current("d").map(|a| a.image.as_str()),
            Some("x:1"),
            "the name in the pod's spec, not the engine's full form"
        );
    }
}
