//! Commands that run in containers on a daemon's behalf.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::calls::{kill, not_running};
use super::container::{machine, null};
use super::exec::{self, execute};
use super::exits::Exit;
use super::process::{Heard, Report, Reports, Side, fork, report_channel};
use super::{Keeper, forget_peers};
use crate::protocol::{Answer, Event, Refusal, RefusalKind};
use crate::spec::ExecSpec;

/// At once, per sandbox.
const EXECUTIONS_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct Execution {
    connection: u64,
    /// Until it has been executed.
    starting: Option<Starting>,
    pid: Option<i32>,
    /// It ended before it was known to have been executed.
    exit: Option<Exit>,
}

#[derive(Debug)]
struct Starting {
    begun: Instant,
    request: u64,
    reports: Reports,
    failure: Option<Refusal>,
    stdin: bool,
    tty: bool,
    far_ends: Vec<OwnedFd>,
}

impl Execution {
    pub(super) fn reports(&self) -> Option<&Reports> {
        self.starting.as_ref().map(|starting| &starting.reports)
    }

    /// When it was begun, until it has been executed.
    pub(super) fn begun(&self) -> Option<Instant> {
        self.starting.as_ref().map(|starting| starting.begun)
    }
}

/// The ends of pipes for both sides.
struct Streams {
    near: Option<[OwnedFd; 3]>,
    far: Vec<OwnedFd>,
}

impl Keeper {
    /// Begins; it is over when the child's reports end.
    pub(super) fn exec(
        &mut self,
        connection: u64,
        request: u64,
        container: &str,
        spec: ExecSpec,
    ) -> Result<(), Refusal> {
        if spec.argv.is_empty() {
            return Err(Refusal::new(RefusalKind::Invalid, "no command specified"));
        }
        if self.executions.len() >= EXECUTIONS_MAX {
            let message = format!("{EXECUTIONS_MAX} commands run in this sandbox already");
            return Err(Refusal::new(RefusalKind::Machine, message));
        }
        let one = &self.containers[&self.find(container)?];
        let init = one
            .record
            .state
            .pid()
            .ok_or_else(|| not_running(container))?;
        let streams = open_streams(&spec).map_err(|error| machine("make a pipe", &error.into()))?;
        let prepare = |error| machine(&format!("execute in container {container}"), &error);
        let (reports, reporter) = report_channel().map_err(prepare)?;
        let begun = Instant::now();
        match fork().map_err(prepare)? {
            Side::Child => {
                drop((reports, streams.far));
                forget_peers(&mut self.connections, &mut self.listener);
                let job = exec::Execution {
                    container: &one.record.spec,
                    spec: &spec,
                    init,
                    cgroups: &self.cgroups,
                    standard_streams: streams.near,
                };
                execute(job, reporter)
            }
            Side::Parent(_) => {
                let number = self.next_number();
                let execution = Execution {
                    connection,
                    starting: Some(Starting {
                        begun,
                        request,
                        reports,
                        failure: None,
                        stdin: spec.stdin,
                        tty: spec.tty,
                        far_ends: streams.far,
                    }),
                    pid: None,
                    exit: None,
                };
                self.executions.insert(number, execution);
                Ok(())
            }
        }
    }

    pub(super) fn hear_execution(&mut self, number: u64) {
        loop {
            let Some(execution) = self.executions.get_mut(&number) else {
                return;
            };
            let Some(starting) = &mut execution.starting else {
                return;
            };
            match starting.reports.hear() {
                Heard::Nothing => return,
                Heard::End => return self.settle_execution(number),
                Heard::Report(Report::Failed(refusal), _) => {
                    starting.failure.get_or_insert(refusal);
                }
                Heard::Report(Report::Cause(_), _) => {}
                Heard::Report(Report::Terminal, terminal) => starting.far_ends.extend(terminal),
                Heard::Report(Report::Process { pid }, _) => {
                    execution.pid = Some(pid);
                    let begun = starting.begun;
                    self.settle_unknown_exit(pid, begun);
                }
            }
        }
    }

    fn settle_execution(&mut self, number: u64) {
        let Some(execution) = self.executions.get_mut(&number) else {
            return;
        };
        let Some(starting) = execution.starting.take() else {
            return;
        };
        let (connection, exit) = (execution.connection, execution.exit);
        let failure = match (starting.failure, execution.pid) {
            (None, Some(_)) => None,
            (None, None) => {
                let message = "execute: the process that was to enter the container was killed";
                Some(Refusal::new(RefusalKind::Machine, message))
            }
            (failure, _) => failure,
        };
        match failure {
            None => {
                let answer = Answer::Exec {
                    exec: number,
                    stdin: starting.stdin,
                    tty: starting.tty,
                };
                self.reply(connection, starting.request, Ok(answer), starting.far_ends);
                if let Some(exit) = exit {
                    self.tell_exit(number, exit);
                }
            }
            Some(refusal) => {
                self.executions.remove(&number);
                self.reply(connection, starting.request, Err(refusal), Vec::new());
            }
        }
        self.forget_unknown_exits();
    }

    /// Whether the process that ended was one of these.
    pub(super) fn execution_ended(&mut self, pid: i32, exit: Exit) -> bool {
        let found = self
            .executions
            .iter_mut()
            .find(|(_, execution)| execution.pid == Some(pid) && execution.exit.is_none());
        let Some((&number, execution)) = found else {
            return false;
        };
        execution.exit = Some(exit);
        if execution.starting.is_none() {
            self.tell_exit(number, exit);
        }
        true
    }

    fn tell_exit(&mut self, number: u64, exit: Exit) {
        let Some(execution) = self.executions.remove(&number) else {
            return;
        };
        if let Some(connection) = self.connections.get_mut(&execution.connection) {
            connection.tell(&Event::ExecExited {
                exec: number,
                code: exit.code,
            });
        }
    }

    pub(super) fn signal_execution(&mut self, exec: u64, signal: i32) -> Result<Answer, Refusal> {
        let pid = self
            .executions
            .get(&exec)
            .and_then(|execution| execution.pid)
            .ok_or_else(|| Refusal::new(RefusalKind::NotFound, format!("no exec {exec}")))?;
        kill(pid, signal)?;
        Ok(Answer::Done)
    }
}

fn open_streams(spec: &ExecSpec) -> Result<Streams, Errno> {
    if spec.tty {
        return Ok(Streams {
            near: None,
            far: Vec::new(),
        });
    }
    let mut far = Vec::new();
    let input = if spec.stdin {
        let (near, end) = pipe_with(PipeFlags::CLOEXEC)?;
        far.push(end);
        near
    } else {
        null().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?
    };
    let (end, output) = pipe_with(PipeFlags::CLOEXEC)?;
    far.push(end);
    let (end, error) = pipe_with(PipeFlags::CLOEXEC)?;
    far.push(end);
    Ok(Streams {
        near: Some([input, output, error]),
        far,
    })
}
