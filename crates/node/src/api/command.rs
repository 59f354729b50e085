//! `exec` and `attach`: a process's standard streams, carried by WebSocket or SPDY.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use engine::{ContainerId, ExecSpec, Reader, Streams, Writer};
use http::Request;
use serde_json::json;
use streams::channel::{STDERR, STDOUT};
use streams::remote_command::{Version, negotiate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::api::{Failure, Query, find_pod, running, spdy, websocket};
use crate::context::Context;
use crate::failure;

/// Pieces that wait between the process and the client, in each direction.
pub(super) const WAITING_MAX: usize = 16;
/// Bytes that are read at once.
const PIECE: usize = 32 * 1024;
/// A process that has ended, but whose streams others hold open, is waited for as long as they say something.
const QUIET: Duration = Duration::from_secs(1);

/// Which streams the client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

impl Wanted {
    fn of(query: &Query) -> Result<Wanted, Failure> {
        let either = |kubelet: &str, api: &str| query.flag(kubelet) || query.flag(api);
        let tty = query.flag("tty");
        let wanted = Wanted {
            stdin: either("input", "stdin"),
            stdout: either("output", "stdout"),
            // A terminal has one output.
            stderr: either("error", "stderr") && !tty,
            tty,
        };
        if !wanted.stdin && !wanted.stdout && !wanted.stderr {
            return Err(Failure::bad_request(
                "you must specify at least 1 of stdin, stdout, stderr",
            ));
        }
        Ok(wanted)
    }
}

/// The client's end, whatever carries it.
pub(super) struct Remote {
    /// Ends when the client closes its standard input, or is gone.
    pub(super) stdin: mpsc::Receiver<Bytes>,
    /// Columns and rows.
    pub(super) sizes: mpsc::Receiver<(u16, u16)>,
    /// Closed when the client is gone.
    pub(super) output: mpsc::Sender<Output>,
}

/// Something for the client.
pub(super) enum Output {
    /// Bytes on a channel.
    Data(u8, Bytes),
    /// The last thing it hears.
    End(Ending),
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Exit(i32),
    Failed(String),
}

impl Ending {
    /// What goes over the error channel.
    pub(super) fn text(&self, version: Version) -> Option<Bytes> {
        let text = match (self, version.has_status()) {
            (Ending::Exit(0), true) => json!({"metadata": {}, "status": "Success"}).to_string(),
            (Ending::Exit(0), false) => return None,
            (Ending::Exit(code), true) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: {code}"),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            })
            .to_string(),
            (Ending::Exit(code), false) => format!("command terminated with exit code {code}"),
            (Ending::Failed(message), true) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {message}"),
                "reason": "InternalError",
                "details": {"causes": [{"message": message}]},
                "code": 500,
            })
            .to_string(),
            (Ending::Failed(message), false) => message.clone(),
        };
        Some(text.into())
    }
}

/// What is asked for.
enum Task {
    Exec(ExecSpec),
    Attach,
}

/// Which container is meant.
struct Names {
    namespace: String,
    pod: String,
    uid: Option<String>,
    container: String,
}

impl Names {
    fn new((namespace, pod, container): (String, String, String)) -> Names {
        Names {
            namespace,
            pod,
            uid: None,
            container,
        }
    }

    fn with_uid((namespace, pod, uid, container): (String, String, String, String)) -> Names {
        Names {
            uid: Some(uid),
            ..Names::new((namespace, pod, container))
        }
    }
}

pub(super) async fn exec(
    State(context): State<Arc<Context>>,
    Path(names): Path<(String, String, String)>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    execute(context, Names::new(names), request).await
}

pub(super) async fn exec_uid(
    State(context): State<Arc<Context>>,
    Path(names): Path<(String, String, String, String)>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    execute(context, Names::with_uid(names), request).await
}

async fn execute(
    context: Arc<Context>,
    names: Names,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let query = Query::of(&request);
    let wanted = Wanted::of(&query)?;
    let argv = query.all("command");
    if argv.is_empty() {
        return Err(Failure::bad_request(
            "you must specify at least 1 command for the container",
        ));
    }
    let spec = ExecSpec {
        argv,
        tty: wanted.tty,
        stdin: wanted.stdin,
        ..ExecSpec::default()
    };
    answer(context, names, wanted, Task::Exec(spec), request).await
}

pub(super) async fn attach(
    State(context): State<Arc<Context>>,
    Path(names): Path<(String, String, String)>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let wanted = Wanted::of(&Query::of(&request))?;
    answer(context, Names::new(names), wanted, Task::Attach, request).await
}

pub(super) async fn attach_uid(
    State(context): State<Arc<Context>>,
    Path(names): Path<(String, String, String, String)>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let wanted = Wanted::of(&Query::of(&request))?;
    answer(
        context,
        Names::with_uid(names),
        wanted,
        Task::Attach,
        request,
    )
    .await
}

async fn answer(
    context: Arc<Context>,
    names: Names,
    wanted: Wanted,
    task: Task,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let pod = find_pod(&context, &names.namespace, &names.pod, names.uid.as_deref())?;
    let id = running(&context, &pod, &names.container).await?;
    let run = move |remote: Remote| run(context, id, wanted, task, remote);
    if spdy::is_asked_for(&request) {
        let offered = spdy::versions(&request);
        // A client that names none means the first.
        let version = match offered.is_empty() {
            true => Some(Version::V1),
            false => negotiate(offered.iter().map(String::as_str), Version::V4),
        };
        let version = version.ok_or_else(|| {
            Failure::bad_request(format!(
                "unable to upgrade: unable to negotiate protocol: client supports {offered:?}"
            ))
        })?;
        return spdy::command(request, version, wanted, run);
    }
    websocket::command(websocket::upgrade(request).await?, run)
}

/// Runs or attaches, and carries the streams until the end.
async fn run(context: Arc<Context>, id: ContainerId, wanted: Wanted, task: Task, remote: Remote) {
    let output = remote.output.clone();
    let started = match task {
        Task::Exec(spec) => match context.engine.exec(&id, spec).await {
            Ok(exec) => Ok(Process {
                streams: exec.streams,
                exit: Some(exec.exit),
                kill: Some(exec.kill),
            }),
            Err(error) => Err(format!(
                "error executing command in container: {}",
                failure::of_exec(&error)
            )),
        },
        Task::Attach => match context.engine.attach(&id).await {
            Ok(streams) => Ok(Process {
                streams,
                exit: None,
                kill: None,
            }),
            Err(error) => Err(format!("error attaching to container: {error}")),
        },
    };
    let ending = match started {
        Ok(process) => carry(process, wanted, remote).await,
        Err(message) => Some(Ending::Failed(message)),
    };
    if let Some(ending) = ending {
        // A client that is gone needs no end.
        let _ = output.send(Output::End(ending)).await;
    }
}

type Exit = Pin<Box<dyn Future<Output = Result<i32, engine::Error>> + Send>>;

struct Process {
    streams: Streams,
    /// Absent for a process that is not ours to wait for.
    exit: Option<Exit>,
    kill: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// Nothing when the client is gone.
async fn carry(process: Process, wanted: Wanted, remote: Remote) -> Option<Ending> {
    let Streams {
        stdin,
        stdout,
        stderr,
        resize,
    } = process.streams;
    let moved = AtomicU64::new(0);
    let is_attached = process.exit.is_none();
    let mut inputs = pin!(async {
        let write = write_input(stdin.filter(|_| wanted.stdin), remote.stdin);
        let resize = apply_sizes(resize, remote.sizes);
        tokio::join!(write, resize);
    });
    let mut outputs = pin!(async {
        let stdout = copy(Some(stdout), STDOUT, wanted.stdout, &remote.output, &moved);
        let stderr = copy(stderr, STDERR, wanted.stderr, &remote.output, &moved);
        let (stdout, stderr) = tokio::join!(stdout, stderr);
        stdout.and(stderr)
    });
    let mut exit = pin!(async {
        match process.exit {
            Some(exit) => exit.await,
            None => std::future::pending().await,
        }
    });
    let (mut inputs_done, mut outputs_done) = (false, false);
    let mut carried = Ok(());
    let code = loop {
        tokio::select! {
            code = &mut exit => break code,
            () = &mut inputs, if !inputs_done => inputs_done = true,
            result = &mut outputs, if !outputs_done => {
                (outputs_done, carried) = (true, result);
                if is_attached {
                    break Ok(0);
                }
            }
            () = remote.output.closed() => {
                // Its terminal is gone, and with it what ran in it.
                if let Some(kill) = process.kill.filter(|_| wanted.tty) {
                    kill();
                }
                return None;
            }
        }
    };
    while !outputs_done {
        let before = moved.load(Ordering::Relaxed);
        match tokio::time::timeout(QUIET, &mut outputs).await {
            Ok(result) => (outputs_done, carried) = (true, result),
            Err(_) if moved.load(Ordering::Relaxed) == before => break,
            Err(_) => {}
        }
    }
    Some(match (code, carried) {
        // Success would mean that this is all.
        (Ok(0), Err(error)) => Ending::Failed(error.to_string()),
        (Ok(code), _) => Ending::Exit(code),
        (Err(error), _) => Ending::Failed(error.to_string()),
    })
}

async fn write_input(stdin: Option<Writer>, mut remote: mpsc::Receiver<Bytes>) {
    let Some(mut stdin) = stdin else {
        return;
    };
    while let Some(bytes) = remote.recv().await {
        // A process that has closed its input goes on without it.
        if stdin.write_all(&bytes).await.is_err() || stdin.flush().await.is_err() {
            return;
        }
    }
    let _ = stdin.shutdown().await;
}

async fn apply_sizes(
    resize: Option<Arc<dyn Fn(u16, u16) + Send + Sync>>,
    mut sizes: mpsc::Receiver<(u16, u16)>,
) {
    while let Some((columns, rows)) = sizes.recv().await {
        if let Some(resize) = &resize {
            resize(columns, rows);
        }
    }
}

async fn copy(
    reader: Option<Reader>,
    channel: u8,
    is_wanted: bool,
    output: &mpsc::Sender<Output>,
    moved: &AtomicU64,
) -> io::Result<()> {
    let Some(mut reader) = reader else {
        return Ok(());
    };
    let mut piece = vec![0; PIECE];
    loop {
        let count = reader.read(&mut piece).await?;
        if count == 0 {
            return Ok(());
        }
        moved.fetch_add(1, Ordering::Relaxed);
        if !is_wanted {
            continue;
        }
        let bytes = Bytes::copy_from_slice(&piece[..count]);
        if output.send(Output::Data(channel, bytes)).await.is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncRead;

    use super::*;

    /// An output of which something is missing.
    struct Cut;

    impl AsyncRead for Cut {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Err(io::Error::other("output is missing")))
        }
    }

    #[tokio::test]
    async fn an_attach_that_was_not_whole_is_no_success() {
        let check = async |stdout: Reader, exit: Option<i32>, expected: Ending| {
            let (output, mut passed) = mpsc::channel(WAITING_MAX);
            let remote = Remote {
                stdin: mpsc::channel(1).1,
                sizes: mpsc::channel(1).1,
                output,
            };
            let process = Process {
                streams: Streams {
                    stdin: None,
                    stdout,
                    stderr: None,
                    resize: None,
                },
                exit: exit.map(|code| -> Exit { Box::pin(async move { Ok(code) }) }),
                kill: None,
            };
            let wanted = Wanted {
                stdin: false,
                stdout: true,
                stderr: false,
                tty: false,
            };
            assert_eq!(carry(process, wanted, remote).await, Some(expected));
            let Some(Output::Data(STDOUT, bytes)) = passed.recv().await else {
                panic!("what there is comes first");
            };
            assert_eq!(bytes, "some");
        };
        let missing = || Ending::Failed("output is missing".to_owned());
        let whole = || -> Reader { Box::pin(&b"some"[..]) };
        let cut = || -> Reader { Box::pin(AsyncReadExt::chain(&b"some"[..], Cut)) };
        check(whole(), None, Ending::Exit(0)).await;
        check(cut(), None, missing()).await;
        check(cut(), Some(0), missing()).await;
        check(cut(), Some(3), Ending::Exit(3)).await;
    }

    #[test]
    fn endings_by_version() {
        let check = |ending: Ending, version, expected: Option<&str>| {
            let text = ending.text(version);
            let text = text
                .as_deref()
                .map(|text| String::from_utf8_lossy(text).into_owned());
            assert_eq!(text.as_deref(), expected);
        };
        check(Ending::Exit(0), Version::V1, None);
        check(
            Ending::Exit(0),
            Version::V5,
            Some("{\"metadata\":{},\"status\":\"Success\"}"),
        );
        check(
            Ending::Exit(3),
            Version::V3,
            Some("command terminated with exit code 3"),
        );
        let text = Ending::Exit(3).text(Version::V4).expect("a status");
        let status: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0]["message"], "3");
    }
}
