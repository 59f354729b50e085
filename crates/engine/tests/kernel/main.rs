//! The engine on the real kernel: as root, in a network namespace, cgroups and directories of its own.
//!
//! The program is its own keeper, so it brings its own `main`. Arguments are parts of test names.

mod house;
mod lives;
mod streams;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use futures::FutureExt as _;

type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), || Box::pin($module::$name()))),*]
    };
}

const TESTS: &[Test] = tests![
    lives::a_sandbox_from_beginning_to_end,
    lives::images_and_specs_are_one,
    lives::what_cannot_be_made,
    lives::stopping_asks_first,
    lives::a_new_daemon_finds_everything,
    lives::a_killed_keeper_is_noticed,
    lives::what_is_half_made_goes_away,
    lives::thirty_pods_at_once,
    streams::exec_attach_and_dial,
    streams::terminals,
];

/// Longer than any test takes.
const TIMEOUT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments
        .next()
        .is_some_and(|first| first == runtime::KEEPER_ARGUMENT)
    {
        runtime::keeper_main(arguments);
    }
    let filters: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    if !rustix::process::geteuid().is_root() {
        println!("not root: kernel tests are left out");
        return ExitCode::SUCCESS;
    }
    // Before there is a second thread: links and tables are seen by nobody else.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .expect("root may have a network namespace");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let mut failed = Vec::new();
    for (name, test) in TESTS {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        let result = runtime.block_on(async {
            AssertUnwindSafe(tokio::time::timeout(TIMEOUT, test()))
                .catch_unwind()
                .await
        });
        let passed = matches!(result, Ok(Ok(())));
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            failed.push(name);
        }
    }
    // A failed test may have left a read that never ends.
    runtime.shutdown_background();
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        println!("failed: {failed:?}");
        ExitCode::FAILURE
    }
}
