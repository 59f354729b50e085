//! How containers come to life and end.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::{WaitOptions, wait};

use super::calls::kill;
use super::container::{Launching, machine};
use super::executions::Execution;
use super::exits::Exit;
use super::launch::{Launch, launch};
use super::process::{Heard, Report, Side, fork, report_channel};
use super::{GRACE, Keeper, complain, forget_peers};
use crate::protocol::{Answer, Event, Refusal, RefusalKind};
use crate::record::write_container;
use crate::spec::ContainerState;

/// Longer than any disk should take.
const TIMEOUT_LAUNCH: Duration = Duration::from_secs(120);

impl Keeper {
    /// Begins a start; it is over when the launcher's reports end.
    pub(super) fn start(
        &mut self,
        connection: u64,
        request: u64,
        container: &str,
    ) -> Result<(), Refusal> {
        let number = self.find(container)?;
        if self.ending.is_some() {
            return Err(Refusal::new(
                RefusalKind::WrongState,
                "the sandbox is ending",
            ));
        }
        let Some(one) = self.containers.get_mut(&number) else {
            return Ok(());
        };
        if one.launch.is_some() || one.record.state != ContainerState::Created {
            let message = format!("container {container} has been started already");
            return Err(Refusal::new(RefusalKind::WrongState, message));
        }
        let near = one.open_streams()?;
        let prepare = |error| machine(&format!("start container {container}"), &error);
        let (reports, reporter) = report_channel().map_err(prepare)?;
        let namespace = self
            .processes
            .as_ref()
            .map(|processes| format!("/proc/{}/ns/pid", processes.pid));
        let begun = Instant::now();
        match fork().map_err(prepare)? {
            Side::Child => {
                drop(reports);
                forget_peers(&mut self.connections, &mut self.listener);
                let job = Launch {
                    spec: &one.record.spec,
                    directory: &self.directory.join("containers").join(container),
                    cgroups: &self.cgroups,
                    process_namespace: namespace.as_deref(),
                    host_processes: self.sandbox.spec.host_processes,
                    memory: self.memory.as_ref(),
                    standard_streams: near.0,
                };
                launch(job, reporter)
            }
            Side::Parent(launcher) => {
                one.launch = Some(Launching {
                    connection,
                    request,
                    launcher,
                    reports,
                    failure: None,
                    cause: None,
                    begun,
                    deadline: begun + TIMEOUT_LAUNCH,
                });
                Ok(())
            }
        }
    }

    pub(super) fn hear_launch(&mut self, number: u64) {
        loop {
            let Some(one) = self.containers.get_mut(&number) else {
                return;
            };
            let Some(launching) = &mut one.launch else {
                return;
            };
            match launching.reports.hear() {
                Heard::Nothing => return,
                Heard::End => return self.settle_launch(number),
                Heard::Report(Report::Failed(refusal), _) => {
                    // The first is the cause.
                    launching.failure.get_or_insert(refusal);
                }
                Heard::Report(Report::Cause(cause), _) => {
                    launching.cause.get_or_insert(cause);
                }
                Heard::Report(Report::Terminal, terminal) => {
                    if let Some(terminal) = terminal
                        && let Err(error) = one.adopt_terminal(terminal)
                    {
                        complain(&error);
                    }
                }
                Heard::Report(Report::Process { pid }, _) => {
                    one.record.state = ContainerState::Running {
                        pid,
                        started_at: Timestamp::now(),
                    };
                    let begun = launching.begun;
                    self.keep_record(number);
                    self.settle_unknown_exit(pid, begun);
                }
            }
        }
    }

    /// The launcher is done: everybody who is to know is told.
    fn settle_launch(&mut self, number: u64) {
        let Some(one) = self.containers.get_mut(&number) else {
            return;
        };
        let Some(launching) = one.launch.take() else {
            return;
        };
        let cause = launching.cause;
        let with_cause = |mut refusal: Refusal| {
            if let (RefusalKind::Machine, Some(cause)) = (refusal.kind, &cause) {
                // Its own message says less and at greater length.
                refusal.message = format!("create container: {cause}");
            }
            refusal
        };
        let failure = launching.failure.map(with_cause).or_else(|| {
            (one.record.state == ContainerState::Created).then(|| {
                let message = "start container: the launcher was killed";
                Refusal::new(RefusalKind::Machine, message)
            })
        });
        let result = match failure {
            None => Ok(Answer::Container {
                state: one.record.state.clone(),
            }),
            Some(refusal) => {
                if let Some(pid) = one.record.state.pid() {
                    // It was made, but could not be told to go on; its exit is heard of later.
                    let _ = kill(pid, libc::SIGKILL);
                }
                self.fail(number, &refusal);
                Err(refusal)
            }
        };
        self.announce(number);
        self.reply(launching.connection, launching.request, result, Vec::new());
        if self.ending.is_some() {
            // It came too late to be killed, or asked to end, with the others.
            self.kill(number);
        }
        self.forget_unknown_exits();
    }

    /// A container that could not be started has exited with 128, as under containerd.
    fn fail(&mut self, number: u64, refusal: &Refusal) {
        let Some(one) = self.containers.get_mut(&number) else {
            return;
        };
        one.close();
        one.outputs.clear();
        one.record.state = ContainerState::Exited {
            code: 128,
            signal: None,
            oom_killed: false,
            started_at: None,
            finished_at: Timestamp::now(),
            message: Some(refusal.message.clone()),
        };
        // libcontainer removes its cgroup on failure, but not if it was killed.
        let cgroup = one.record.spec.cgroup.clone();
        self.cgroups.kill(&cgroup);
        self.leftovers.remove(&self.cgroups, cgroup);
        self.keep_record(number);
    }

    pub(super) fn expire_launches(&mut self, now: Instant) {
        for container in self.containers.values_mut() {
            if let Some(launching) = &mut container.launch
                && launching.deadline <= now
            {
                let message = "start container: it took longer than two minutes";
                let refusal = Refusal::new(RefusalKind::Machine, message);
                launching.failure.get_or_insert(refusal);
                launching.deadline = now + TIMEOUT_LAUNCH;
                // Its end is the end of the reports, unless the container's process holds them.
                let process = container.record.state.pid();
                for pid in process.into_iter().chain([launching.launcher]) {
                    let _ = kill(pid, libc::SIGKILL);
                }
                self.cgroups.kill(&container.record.spec.cgroup);
            }
        }
    }

    pub(super) fn hear_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or_default();
            if number == libc::SIGTERM || number == libc::SIGINT {
                self.wind_up();
            }
        }
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let exit = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit { code, signal: None },
                (None, Some(signal)) => Exit {
                    code: 128 + signal,
                    signal: Some(signal),
                },
                (None, None) => continue,
            };
            self.reaped(pid.as_raw_nonzero().get(), exit);
        }
    }

    /// The machine goes down, or somebody wants to see the sandbox gone: containers are asked to end,
    /// and killed after a while; or at once, by whoever asks again.
    fn wind_up(&mut self) {
        if self.ending.is_some() {
            return self.kill_all();
        }
        self.ending = Some(Vec::new());
        self.patience = Some(Instant::now() + GRACE);
        for container in self.containers.values() {
            if let Some(pid) = container.record.state.pid() {
                // It may have ended already.
                let _ = kill(pid, libc::SIGTERM);
            }
        }
    }

    fn reaped(&mut self, pid: i32, exit: Exit) {
        let container = self
            .containers
            .iter()
            .find(|(_, one)| one.record.state.pid() == Some(pid));
        if let Some((&number, _)) = container {
            self.ended(number, exit);
        } else if !self.execution_ended(pid, exit) && self.first_start().is_some() {
            self.unknown_exits.note(pid, exit, Instant::now());
        }
        if self.kills_everything() {
            kill_children();
        }
    }

    /// The sandbox ends, and nobody in it is given time for it any more.
    fn kills_everything(&self) -> bool {
        let asked = |waiting: &Vec<_>| !waiting.is_empty() || self.patience.is_none();
        self.ending.as_ref().is_some_and(asked)
    }

    /// When the oldest of the starts began whose processes' numbers may not have been reported yet.
    fn first_start(&self) -> Option<Instant> {
        let launches = self
            .containers
            .values()
            .filter_map(|one| one.launch.as_ref());
        let executions = self.executions.values().filter_map(Execution::begun);
        launches.map(|launch| launch.begun).chain(executions).min()
    }

    /// The number of a process became known whose start began then: it may have ended already.
    pub(super) fn settle_unknown_exit(&mut self, pid: i32, begun: Instant) {
        if let Some(exit) = self.unknown_exits.take(pid, begun) {
            self.reaped(pid, exit);
        }
    }

    pub(super) fn forget_unknown_exits(&mut self) {
        let first = self.first_start();
        self.unknown_exits.forget_before(first);
    }

    /// A container's process has ended, and with it the container.
    fn ended(&mut self, number: u64, exit: Exit) {
        let Some(one) = self.containers.get_mut(&number) else {
            return;
        };
        let ContainerState::Running { started_at, .. } = one.record.state else {
            return;
        };
        let cgroup = one.record.spec.cgroup.clone();
        // In a process namespace of its own nothing is left; in another there may be.
        self.cgroups.kill(&cgroup);
        let oom_killed = self.cgroups.oom_kills(&cgroup) > 0;
        if let Err(error) = one.drain(&mut self.buffer) {
            complain(&format!("write the log of {}: {error}", one.record.spec.id));
        }
        one.close();
        one.record.state = ContainerState::Exited {
            code: exit.code,
            signal: exit.signal,
            oom_killed,
            started_at: Some(started_at),
            finished_at: Timestamp::now(),
            message: None,
        };
        self.keep_record(number);
        let is_launching = self
            .containers
            .get(&number)
            .is_some_and(|one| one.launch.is_some());
        if !is_launching {
            self.announce(number);
        }
        self.leftovers.remove(&self.cgroups, cgroup);
    }

    fn keep_record(&self, number: u64) {
        let Some(one) = self.containers.get(&number) else {
            return;
        };
        // Without its directory a keeper has nobody to remember for.
        if let (false, Err(error)) = (
            self.abandoned,
            write_container(&self.directory, &one.record),
        ) {
            complain(&error);
        }
    }

    /// Tells everyone of a container's new state.
    fn announce(&mut self, number: u64) {
        let Some(one) = self.containers.get(&number) else {
            return;
        };
        let event = Event::Container {
            container: one.record.spec.id.clone(),
            state: one.record.state.clone(),
        };
        for connection in self.connections.values_mut() {
            connection.tell(&event);
        }
    }

    pub(super) fn pump(&mut self, number: u64, index: usize) {
        if let Some(one) = self.containers.get_mut(&number)
            && let Err(error) = one.pump(index, &mut self.buffer)
        {
            complain(&format!("write the log of {}: {error}", one.record.spec.id));
        }
    }
}

/// Kills what no record knows: a launcher that was killed leaves us the process that it had cloned, which
/// waits for its launcher for ever and holds the reports open.
fn kill_children() {
    let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    for pid in children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
    {
        // It may have ended already.
        let _ = kill(pid, libc::SIGKILL);
    }
}
