//! Who has an instance: a server that answers, or nobody.
//!
//! A server that is just ending, or was just killed, is neither for a moment: its socket still takes
//! connections, or its lock is still held. A command that comes then waits for one of the two.

use std::time::Duration;

use anyhow::bail;
use http::Method;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::control::{Control, Ended};
use crate::{Instance, Lock, Locked};

/// A killed process gives everything back well within this time, and a new one listens.
const TIMEOUT_SETTLE: Duration = Duration::from_secs(10);
/// Between two looks. There is no event that tells of both the socket and the lock.
const INTERVAL_LOOK: Duration = Duration::from_millis(20);

/// What [`ask_or_lock`] found.
#[derive(Debug)]
pub enum Presence<T> {
    /// A server has the instance, and this is its answer.
    Answered(T),
    /// Nobody had it, and now we do.
    Nobody(Lock),
}

/// Asks the instance's server, or takes the lock if there is none. The data directory exists.
///
/// Fails if the server refuses, or if the lock stays taken by a process that does not answer.
pub async fn ask_or_lock<T: DeserializeOwned>(
    instance: &Instance,
    method: Method,
    path: &str,
) -> anyhow::Result<Presence<T>> {
    let deadline = Instant::now() + TIMEOUT_SETTLE;
    loop {
        if let Some(mut control) = Control::connect(&instance.control_socket()).await? {
            match control.ask(method.clone(), path).await {
                Ok(answer) => return Ok(Presence::Answered(answer)),
                Err(error) if error.is::<Ended>() => {}
                Err(error) => return Err(error),
            }
        }
        match instance.lock()? {
            Locked::Ours(lock) => return Ok(Presence::Nobody(lock)),
            Locked::Taken if Instant::now() < deadline => {
                tokio::time::sleep(INTERVAL_LOOK).await;
            }
            Locked::Taken => bail!(
                "another wharf is using {0} and does not answer; it may be starting or stopping: try again, or end it by its process id (`fuser {0}/wharf.lock`)",
                instance.data_dir.display()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(name: &str) -> Instance {
        let directory =
            std::env::temp_dir().join(format!("wharf-presence-{name}-{}", std::process::id()));
        let instance = Instance::at(directory);
        instance.make_data_dir().expect("made");
        instance
    }

    /// A server that was killed after it took our connection: the socket accepts and says nothing, and
    /// the lock is held a little longer.
    #[tokio::test]
    async fn a_server_that_is_ending_is_waited_out() {
        let instance = instance("ending");
        let Locked::Ours(held) = instance.lock().expect("asked") else {
            panic!("the lock is taken");
        };
        let listener = tokio::net::UnixListener::bind(instance.control_socket()).expect("bound");
        let ending = tokio::spawn(async move {
            drop(listener.accept().await.expect("a connection"));
            drop(listener.accept().await.expect("it came again"));
            drop(listener);
            drop(held);
        });
        let found = ask_or_lock::<serde_json::Value>(&instance, Method::GET, "/ready").await;
        assert!(matches!(found, Ok(Presence::Nobody(_))), "{found:?}");
        ending.await.expect("ended");
        std::fs::remove_dir_all(instance.data_dir).expect("removed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_never_answers_is_named() {
        let instance = instance("silent");
        let Locked::Ours(_held) = instance.lock().expect("asked") else {
            panic!("the lock is taken");
        };
        let refused = ask_or_lock::<serde_json::Value>(&instance, Method::GET, "/ready")
            .await
            .expect_err("the lock is taken");
        assert!(refused.to_string().contains("another wharf is using"));
        std::fs::remove_dir_all(instance.data_dir).expect("removed");
    }
}
