//! `GET /containerLogs/{namespace}/{pod}/{container}`: as the answer's body, or as the messages of a
//! WebSocket if the client asks for one.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use engine::ContainerState;
use http::{Request, header};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use tokio::sync::mpsc;

use crate::api::{Failure, Query, find_pod, observe, websocket};
use crate::context::Context;
use crate::log_reader::{Follow, LogReader, Wanted};
use crate::logs::Stream;
use crate::pod;

/// Pieces of a log that wait for the client.
const WAITING_MAX: usize = 4;

/// Streams a container's log.
pub(super) async fn answer(
    State(context): State<Arc<Context>>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let query = Query::of(&request);
    let pod = find_pod(&context, &namespace, &name, None)?;
    let wanted = wanted(&query, context.now())?;
    let is_member = pod
        .spec
        .as_ref()
        .map(pod::members)
        .unwrap_or_default()
        .iter()
        .any(|member| member.container.name == container);
    if !is_member {
        return Err(Failure::not_found(format!(
            "container \"{container}\" not found in pod \"{name}\""
        )));
    }
    let observed = observe(&context, &pod).await?;
    let attempts = observed.containers.get(&container).cloned();
    let attempts = attempts.unwrap_or_default();
    let has_run = |state: &ContainerState| *state != ContainerState::Created;
    let lost = attempts
        .current
        .as_ref()
        .and_then(|current| lost(&context, &pod, &container, current.number));
    let previous = attempts
        .previous
        .map(|attempt| (attempt.number, None))
        .or(lost.map(|number| (number, None)));
    let attempt = match query.flag("previous") {
        true => previous,
        false => attempts
            .current
            .filter(|attempt| has_run(&attempt.state))
            .map(|attempt| (attempt.number, attempt.is_running().then_some(attempt.id)))
            .or(previous),
    };
    let Some((number, running)) = attempt else {
        return Err(Failure::bad_request(why_none(
            &pod,
            &container,
            query.flag("previous"),
        )));
    };
    let follow = running
        .filter(|_| query.flag("follow"))
        .map(|id| Follow::new(&context.engine, id));
    let log = context.log_file(&pod, &container, number);
    let upgrade = match websocket::is_asked_for(&request) {
        true => Some(websocket::upgrade(request).await?),
        false => None,
    };
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(WAITING_MAX);
    tokio::spawn(async move {
        // Without a receiver nobody wants the rest; an error of the disk ends the answer short.
        if let Err(error) = LogReader::new(log, wanted).send(follow, &sender).await {
            let _ = sender.send(Err(error)).await;
        }
    });
    if let Some(upgrade) = upgrade {
        return websocket::pieces(upgrade, receiver);
    }
    let pieces = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let body = Body::from_stream(pieces);
    Ok(([(header::CONTENT_TYPE, "text/plain")], body).into_response())
}

/// The run before this one, if its log is all that is left of it: its sandbox was made anew, as after
/// a new start of the machine.
fn lost(context: &Context, pod: &Pod, container: &str, current: u32) -> Option<u32> {
    let before = current.checked_sub(1)?;
    context
        .log_file(pod, container, before)
        .exists()
        .then_some(before)
}

fn wanted(query: &Query, now: Timestamp) -> Result<Wanted, Failure> {
    let number = |name: &str| -> Result<Option<i64>, Failure> {
        let Some(text) = query.get(name) else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .map_err(|_| Failure::bad_request(format!("{name}: \"{text}\" is not a number")))
    };
    let since = match (query.get("sinceTime"), number("sinceSeconds")?) {
        (Some(text), _) => Some(text.parse().map_err(|error| {
            Failure::bad_request(format!("sinceTime: \"{text}\" is not a time: {error}"))
        })?),
        (None, Some(seconds)) => Some(
            now.saturating_sub(SignedDuration::from_secs(seconds))
                .unwrap_or(Timestamp::MIN),
        ),
        (None, None) => None,
    };
    let unsigned = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
    Ok(Wanted {
        tail: unsigned(number("tailLines")?),
        since,
        timestamps: query.flag("timestamps"),
        bytes_max: unsigned(number("limitBytes")?),
        stream: match query.get("stream") {
            None | Some("All") => None,
            Some("Stdout") => Some(Stream::Stdout),
            Some("Stderr") => Some(Stream::Stderr),
            Some(other) => {
                return Err(Failure::bad_request(format!(
                    "stream: Unsupported value: \"{other}\": supported values: \"All\", \"Stderr\", \"Stdout\""
                )));
            }
        },
    })
}

/// Why there is no log, in upstream's words.
fn why_none(pod: &Pod, container: &str, previous: bool) -> String {
    let name = pod::name(pod);
    if previous {
        return format!(
            "previous terminated container \"{container}\" in pod \"{name}\" not found"
        );
    }
    let status = pod.status.clone().unwrap_or_default();
    let lists = [
        status.init_container_statuses,
        status.container_statuses,
        status.ephemeral_container_statuses,
    ];
    let known: Option<ContainerStatus> = lists
        .into_iter()
        .flatten()
        .flatten()
        .find(|known| known.name == container);
    let reason = known
        .and_then(|known| known.state?.waiting?.reason)
        .unwrap_or_default();
    let text = match reason.as_str() {
        "" => return format!("container \"{container}\" in pod \"{name}\" is not available"),
        "ErrImagePull" => "image can't be pulled",
        "ImagePullBackOff" => "trying and failing to pull image",
        other => other,
    };
    format!("container \"{container}\" in pod \"{name}\" is waiting to start: {text}")
}
