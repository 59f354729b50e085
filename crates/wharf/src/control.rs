//! The server's side of the control socket; its words are in [`cli::control`].

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Json;
use axum::Router;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use cli::control::{ImageLine, Message, Removed, Status};
use futures::{SinkExt, StreamExt, TryStreamExt};
use http::StatusCode;
use image::{ImportOptions, LoadOptions, Source};
use lifecycle::Drain;
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::server::Server;

/// Pieces of an archive that wait for its reader.
const CHUNKS_MAX: usize = 4;

/// Answers commands until the drain is signaled. Only root can open the socket.
pub(crate) fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(path) {
        // We hold the instance's lock: whoever listened there is gone.
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("listen at {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protect {}", path.display()))?;
    Ok(listener)
}

/// Serves until the drain is signaled.
pub(crate) async fn serve(server: Arc<Server>, listener: UnixListener, drain: Drain) {
    let router = Router::new()
        .route("/status", get(status))
        .route("/ready", get(ready))
        .route("/down", post(down))
        .route("/images", get(images))
        .route("/images", delete(remove_image))
        .route("/images/load", post(load_images))
        .route("/images/import", post(import_image))
        .with_state(server);
    let served = axum::serve(listener, router)
        .with_graceful_shutdown(async move { drain.signaled().await })
        .await;
    if let Err(error) = served {
        tracing::error!("the control socket: {error}");
    }
}

/// An answer that is a message for people.
struct Refusal(anyhow::Error);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let message = Message {
            message: cli::in_words(&self.0),
        };
        (StatusCode::BAD_REQUEST, Json(message)).into_response()
    }
}

impl<E: Into<anyhow::Error>> From<E> for Refusal {
    fn from(error: E) -> Refusal {
        Refusal(error.into())
    }
}

async fn status(State(server): State<Arc<Server>>) -> Json<Status> {
    Json(server.status().await)
}

async fn ready(State(server): State<Arc<Server>>) -> Json<Status> {
    server.until_ready().await;
    Json(server.status().await)
}

#[derive(Deserialize)]
struct DownQuery {
    /// Seconds that a pod may take to end at most.
    grace: u64,
}

async fn down(
    State(server): State<Arc<Server>>,
    Query(query): Query<DownQuery>,
) -> Result<Json<Status>, Refusal> {
    let status = server.status().await;
    server
        .take_down(Duration::from_secs(query.grace))
        .await
        .map_err(anyhow::Error::msg)?;
    Ok(Json(status))
}

async fn images(State(server): State<Arc<Server>>) -> Json<Vec<ImageLine>> {
    Json(
        server
            .images()
            .list()
            .iter()
            .map(|image| line(image))
            .collect(),
    )
}

#[derive(Deserialize)]
struct LoadQuery {
    tag: Option<String>,
}

async fn load_images(
    State(server): State<Arc<Server>>,
    Query(query): Query<LoadQuery>,
    request: Request,
) -> Result<Json<Vec<ImageLine>>, Refusal> {
    let name = query.tag.map(|tag| named(&tag)).transpose()?;
    let options = LoadOptions {
        name,
        ..LoadOptions::default()
    };
    let loaded = server.images().load(source(request), options).await?;
    server.agent.images_changed();
    let lines = loaded.into_iter().map(|loaded| ImageLine {
        references: loaded.reference.iter().map(ToString::to_string).collect(),
        id: loaded.id.to_string(),
        size: 0,
        created: None,
    });
    Ok(Json(lines.collect()))
}

#[derive(Deserialize)]
struct ImportQuery {
    reference: String,
}

async fn import_image(
    State(server): State<Arc<Server>>,
    Query(query): Query<ImportQuery>,
    request: Request,
) -> Result<Json<ImageLine>, Refusal> {
    let options = ImportOptions {
        name: Some(named(&query.reference)?),
        created: jiff::Timestamp::now(),
        ..ImportOptions::default()
    };
    let imported = server.images().import(source(request), options).await?;
    server.agent.images_changed();
    let image = server
        .images()
        .find(&imported.id.to_string())
        .context("the image was removed meanwhile")?;
    Ok(Json(line(&image)))
}

#[derive(Deserialize)]
struct RemoveQuery {
    name: String,
    #[serde(default)]
    force: bool,
}

async fn remove_image(
    State(server): State<Arc<Server>>,
    Query(query): Query<RemoveQuery>,
) -> Result<Json<Removed>, Refusal> {
    let used = server.used_images().await;
    let removed = server
        .images()
        .remove(&query.name, query.force, |id| {
            used.get(&id.to_string()).cloned()
        })
        .await?;
    server.agent.images_changed();
    Ok(Json(Removed {
        untagged: removed.untagged.iter().map(ToString::to_string).collect(),
        deleted: removed.deleted.iter().map(ToString::to_string).collect(),
    }))
}

fn line(image: &image::Image) -> ImageLine {
    ImageLine {
        references: image.references.iter().map(ToString::to_string).collect(),
        id: image.id.to_string(),
        size: image.size,
        created: image.created.map(|created| created.to_string()),
    }
}

fn named(name: &str) -> anyhow::Result<oci::Reference> {
    name.parse().with_context(|| name.to_owned())
}

/// A request's body as an archive that is read on a thread of its own.
///
/// What comes after the reader has had enough is read and thrown away: a client that could not finish
/// writing would never read why it was refused.
fn source(request: Request) -> Source {
    let mut stream = request
        .into_body()
        .into_data_stream()
        .map_err(io::Error::other);
    let (mut sender, receiver) = futures::channel::mpsc::channel(CHUNKS_MAX);
    tokio::spawn(async move {
        while let Some(chunk) = stream.next().await {
            // The reader is gone: the rest is for nobody.
            let _ = sender.send(chunk).await;
        }
    });
    Source::Reader(Box::new(SyncIoBridge::new(StreamReader::new(receiver))))
}
