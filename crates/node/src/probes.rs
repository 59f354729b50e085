//! Startup, liveness and readiness probes: one task per probe of a running container.
//!
//! ```text
//!   container runs ─► initial delay ─► ask ─► count ─► tell the worker when the answer turns
//!                                       ▲ every period │
//!                                       └──────────────┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use engine::{ContainerId, ExecSpec};
use informer::EventType;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Probe};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};

use crate::context::Context;
use crate::grpc;
use crate::handler::{self, ExecFailure, HandlerError};
use crate::pod::Member;

/// What a probe asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    fn as_str(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }

    fn of(self, member: &Member) -> Option<&Probe> {
        match self {
            ProbeKind::Startup => member.container.startup_probe.as_ref(),
            ProbeKind::Liveness => member.container.liveness_probe.as_ref(),
            ProbeKind::Readiness => member.container.readiness_probe.as_ref(),
        }
    }
}

/// The answer of a probe has turned (or was given for the first time).
#[derive(Clone, Debug)]
pub(crate) struct News {
    pub(crate) container: String,
    pub(crate) id: ContainerId,
    pub(crate) kind: ProbeKind,
    pub(crate) is_success: bool,
}

/// The outcome of asking once.
enum Outcome {
    Success,
    Failure(String),
    /// It could not be asked: counts for nothing.
    Unknown(String),
}

/// A container whose probes are asked.
#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) context: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) member: Member,
    pub(crate) id: ContainerId,
    pub(crate) started_at: Timestamp,
    pub(crate) address: String,
    pub(crate) news: mpsc::Sender<News>,
}

/// A probe that is being asked, until this is dropped.
pub(crate) struct Asking(AbortHandle);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Begins to ask; nothing if the container has no such probe.
pub(crate) fn ask(subject: &Subject, kind: ProbeKind) -> Option<Asking> {
    let probe = kind.of(&subject.member)?.clone();
    let task = tokio::spawn(run(subject.clone(), kind, probe));
    Some(Asking(task.abort_handle()))
}

fn positive(value: Option<i32>, default: u32) -> u32 {
    value
        .and_then(|value| u32::try_from(value).ok())
        .filter(|value| *value > 0)
        .unwrap_or(default)
}

async fn run(subject: Subject, kind: ProbeKind, probe: Probe) {
    let period = Duration::from_secs(positive(probe.period_seconds, 10).into());
    let successes_needed = positive(probe.success_threshold, 1);
    let failures_needed = positive(probe.failure_threshold, 3);
    tokio::time::sleep(initial_delay(&subject, &probe)).await;
    let mut ticks = tokio::time::interval_at(Instant::now(), period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: Option<bool> = None;
    let (mut last, mut run_length) = (None, 0_u32);
    loop {
        ticks.tick().await;
        let is_success = match ask_once(&subject, kind, &probe).await {
            Outcome::Success => true,
            Outcome::Failure(text) => {
                let message = format!("{} probe failed: {text}", kind.as_str());
                subject.say_unhealthy(message);
                false
            }
            Outcome::Unknown(text) => {
                let kind = kind.as_str();
                let message = format!("{kind} probe errored and resulted in unknown state: {text}");
                subject.say_unhealthy(message);
                continue;
            }
        };
        run_length = if last == Some(is_success) {
            run_length.saturating_add(1)
        } else {
            1
        };
        last = Some(is_success);
        let needed = if is_success {
            successes_needed
        } else {
            failures_needed
        };
        if run_length < needed || told == Some(is_success) {
            continue;
        }
        told = Some(is_success);
        let news = News {
            container: subject.member.container.name.clone(),
            id: subject.id.clone(),
            kind,
            is_success,
        };
        // A liveness or startup probe that failed, and a startup probe that passed, have had their say.
        let is_over = match kind {
            ProbeKind::Startup => true,
            ProbeKind::Liveness => !is_success,
            ProbeKind::Readiness => false,
        };
        if subject.news.send(news).await.is_err() || is_over {
            return;
        }
    }
}

fn initial_delay(subject: &Subject, probe: &Probe) -> Duration {
    let wanted = Duration::from_secs(positive(probe.initial_delay_seconds, 0).into());
    let running = subject
        .context
        .now()
        .duration_since(subject.started_at)
        .unsigned_abs();
    wanted.saturating_sub(running)
}

impl Subject {
    fn say_unhealthy(&self, message: String) {
        self.context.event(
            &self.pod,
            Some(&self.member),
            EventType::Warning,
            "Unhealthy",
            message,
        );
    }
}

async fn ask_once(subject: &Subject, kind: ProbeKind, probe: &Probe) -> Outcome {
    let limit = Duration::from_secs(positive(probe.timeout_seconds, 1).into());
    if let Some(exec) = &probe.exec {
        let spec = ExecSpec {
            argv: exec.command.clone().unwrap_or_default(),
            ..ExecSpec::default()
        };
        let engine = &*subject.context.engine;
        return match handler::exec(engine, &subject.id, spec, limit).await {
            Ok((0, _)) => Outcome::Success,
            Ok((_, output)) => Outcome::Failure(output),
            Err(error @ ExecFailure::TimedOut { .. }) => Outcome::Failure(error.to_string()),
            Err(error @ ExecFailure::Start(_)) => Outcome::Unknown(error.to_string()),
        };
    }
    let asked = async {
        if let Some(get) = &probe.http_get {
            http(subject, kind, get).await
        } else if let Some(tcp) = &probe.tcp_socket {
            let host = tcp.host.as_deref().filter(|host| !host.is_empty());
            let port = match handler::port(&tcp.port, &subject.member.container) {
                Ok(port) => port,
                Err(error) => return Outcome::Unknown(error.to_string()),
            };
            let host = host.unwrap_or(&subject.address);
            outcome(handler::connect(host, port).await.map(drop))
        } else if let Some(action) = &probe.grpc {
            grpc::check(&subject.address, action, limit)
                .await
                .map_or_else(Outcome::Failure, |()| Outcome::Success)
        } else {
            Outcome::Unknown("missing probe handler".to_owned())
        }
    };
    match tokio::time::timeout(limit, asked).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::Failure(timed_out(subject, probe, limit)),
    }
}

/// What Go's clients say when their time is up.
fn timed_out(subject: &Subject, probe: &Probe, limit: Duration) -> String {
    let container = &subject.member.container;
    if let Some(get) = &probe.http_get {
        let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
        let host = get.host.as_deref().filter(|host| !host.is_empty());
        let port = handler::port(&get.port, container).unwrap_or(0);
        let address = handler::join_host_port(host.unwrap_or(&subject.address), port);
        let path = get.path.as_deref().unwrap_or("/");
        return format!(
            "Get \"{scheme}://{address}{path}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        );
    }
    if let Some(tcp) = &probe.tcp_socket {
        let port = handler::port(&tcp.port, container).unwrap_or(0);
        let host = tcp.host.as_deref().filter(|host| !host.is_empty());
        let address = handler::join_host_port(host.unwrap_or(&subject.address), port);
        return format!("dial tcp {address}: i/o timeout");
    }
    format!("timed out after {}", handler::seconds(limit))
}

async fn http(
    subject: &Subject,
    kind: ProbeKind,
    get: &k8s_openapi::api::core::v1::HTTPGetAction,
) -> Outcome {
    let container = &subject.member.container;
    let request = match handler::HttpGet::new(get, container, &subject.address, "kube-probe") {
        Ok(request) => request,
        Err(error) => return Outcome::Unknown(error.to_string()),
    };
    match request.send().await {
        Ok(answer) if answer.elsewhere => {
            let body = &answer.body;
            let message = format!(
                "{} probe warning: Probe terminated redirects, Response body: {body}",
                kind.as_str()
            );
            subject.context.event(
                &subject.pod,
                Some(&subject.member),
                EventType::Warning,
                "ProbeWarning",
                message,
            );
            Outcome::Success
        }
        Ok(answer) if (200..400).contains(&answer.status) => Outcome::Success,
        Ok(answer) => Outcome::Failure(format!(
            "HTTP probe failed with statuscode: {}",
            answer.status
        )),
        Err(error) => Outcome::Failure(error.to_string()),
    }
}

fn outcome(result: Result<(), HandlerError>) -> Outcome {
    match result {
        Ok(()) => Outcome::Success,
        Err(error) => Outcome::Failure(error.to_string()),
    }
}
