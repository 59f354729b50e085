//! Running commands in containers.

use std::path::Path;
use std::sync::Arc;

use runtime::Keeper;

use crate::api::{ContainerId, Error, Exec, ExecSpec};
use crate::error::{machine, of_keeper};
use crate::sandbox::Container;
use crate::{streams, user};

pub(crate) async fn execute(
    id: &ContainerId,
    keeper: &Keeper,
    container: &Container,
    spec: ExecSpec,
) -> Result<Exec, Error> {
    let pid = container
        .state
        .borrow()
        .pid()
        .ok_or_else(|| Error::NotRunning(id.clone()))?;
    let user = match &spec.user {
        None => None,
        Some(wanted) => Some(find_user(pid, wanted)?),
    };
    let stdin = spec.stdin;
    let request = runtime::ExecSpec {
        argv: spec.argv,
        env: spec
            .env
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        working_dir: spec.working_dir,
        user,
        tty: spec.tty,
        stdin,
    };
    let run = keeper
        .exec(&id.0, request)
        .await
        .map_err(|error| of_keeper("execute in container", id, error))?;
    let (keeper, number, name) = (keeper.clone(), run.number, id.0.clone());
    let exit = run.exit;
    Ok(Exec {
        streams: streams::streams(run.streams, stdin)
            .map_err(|error| machine("execute in container", &id.0, error))?,
        exit: Box::pin(async move {
            exit.await.map_err(|_| {
                machine(
                    "wait for a command in container",
                    name,
                    "its keeper is gone",
                )
            })
        }),
        kill: Arc::new(move || {
            let keeper = keeper.clone();
            // It may have ended; then there is nothing to be done.
            tokio::spawn(async move {
                let _ = keeper.signal_exec(number, libc::SIGKILL).await;
            });
        }),
    })
}

/// Looks a user up in the files of a running container.
fn find_user(pid: i32, wanted: &str) -> Result<runtime::User, Error> {
    let found = user::look_in(Path::new(&format!("/proc/{pid}/root")), wanted)?;
    Ok(runtime::User {
        uid: found.uid,
        gid: found.gid,
        groups: found.groups,
    })
}
