//! Events vanish an hour after they were last written.
//!
//! No event is kept in memory for that: the oldest one that the server has tells when to look again,
//! and where there is none, nothing can expire before a whole lifetime has passed.

use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, ListParams};
use tracing::debug;

use crate::{Clock, Context, writes};

/// Events per request.
const PAGE: u32 = 500;
/// So much longer than its lifetime an event may be kept, so that many go at once.
const SLACK: Duration = Duration::from_secs(300);
/// When to try again after the server could not be asked.
const RETRY: Duration = Duration::from_secs(60);

pub(crate) async fn run(context: Context) {
    let lifetime = context.config.event_lifetime;
    loop {
        let pause = match sweep(&context.client, lifetime, &context.config.now).await {
            Ok(oldest) => pause(oldest, lifetime, (context.config.now)()),
            Err(error) => {
                debug!(%error, "could not look for old events");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = context.drain.signaled() => return,
        }
    }
}

/// How long nothing needs to be done, when what is left was last written at `oldest` or later.
fn pause(oldest: Option<Timestamp>, lifetime: Duration, now: Timestamp) -> Duration {
    let age = oldest.map(|oldest| now.duration_since(oldest));
    let age = age
        .and_then(|age| Duration::try_from(age).ok())
        .unwrap_or_default();
    lifetime.saturating_sub(age) + SLACK
}

/// Deletes what has expired, and tells when the oldest of the rest was written.
async fn sweep(
    client: &kube::Client,
    lifetime: Duration,
    clock: &Clock,
) -> Result<Option<Timestamp>, kube::Error> {
    let lifetime = SignedDuration::try_from(lifetime).unwrap_or(SignedDuration::MAX);
    let events: Api<Event> = Api::all(client.clone());
    let mut params = ListParams::default().limit(PAGE);
    let mut oldest = None;
    loop {
        let page = events.list(&params).await?;
        let now = clock();
        for event in &page.items {
            let Some(written) = last_written(event) else {
                continue;
            };
            if now.duration_since(written) < lifetime {
                oldest = oldest.into_iter().chain([written]).min();
            } else {
                delete(client, event).await?;
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(oldest),
        }
    }
}

fn last_written(event: &Event) -> Option<Timestamp> {
    let series = event
        .series
        .as_ref()
        .and_then(|series| series.last_observed_time.as_ref());
    let times = [
        event
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0),
        event.last_timestamp.as_ref().map(|time| time.0),
        event.event_time.as_ref().map(|time| time.0),
        series.map(|time| time.0),
    ];
    times.into_iter().flatten().max()
}

async fn delete(client: &kube::Client, event: &Event) -> Result<(), kube::Error> {
    let meta = &event.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or("default");
    let mut params = writes::delete(meta);
    if let Some(preconditions) = &mut params.preconditions {
        // Written again meanwhile: then it has not expired.
        preconditions.resource_version = meta.resource_version.clone();
    }
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let name = meta.name.as_deref().unwrap_or_default();
    writes::deleted(events.delete(name, &params).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_look_is_when_the_oldest_expires() {
        let now = Timestamp::from_second(1_000_000).expect("in range");
        let ago = |seconds| Some(now - SignedDuration::from_secs(seconds));
        let lifetime = Duration::from_secs(3600);
        let check = |oldest, seconds| {
            assert_eq!(
                pause(oldest, lifetime, now),
                Duration::from_secs(seconds) + SLACK
            );
        };
        check(None, 3600);
        check(ago(0), 3600);
        check(ago(3000), 600);
        check(ago(3600), 0);
        check(ago(5000), 0);
    }

    #[test]
    fn an_event_that_was_counted_on_is_as_old_as_its_last_count() {
        let event: Event = serde_json::from_value(serde_json::json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "involvedObject": {},
            "lastTimestamp": "2026-01-01T01:00:00Z",
            "series": {"count": 2, "lastObservedTime": "2026-01-01T00:30:00.000000Z"},
        }))
        .expect("is an event");
        let last = last_written(&event).expect("has times").to_string();
        assert_eq!(last, "2026-01-01T01:00:00Z");
    }
}
