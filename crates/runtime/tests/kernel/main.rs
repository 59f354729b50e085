//! Keepers and containers on the real kernel, as root, in cgroups and directories of their own.
//!
//! The program is its own keeper, so it brings its own `main`. Arguments are parts of test names.

mod house;
mod isolation;
mod lives;
mod output;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::process::ExitCode;

use futures::FutureExt as _;

type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), || Box::pin($module::$name()))),*]
    };
}

const TESTS: &[Test] = tests![
    lives::exit_codes_and_signals,
    lives::a_keeper_that_is_told_to_end_lets_its_containers_end_first,
    lives::commands_that_cannot_be_executed,
    lives::a_file_that_is_no_program,
    lives::memory_limit_kills_and_says_so,
    lives::daemon_goes_away_and_comes_back,
    lives::thirty_sandboxes_at_once,
    lives::a_sandbox_ends_with_everything_in_it,
    lives::a_keeper_ends_when_its_directory_is_gone,
    lives::who_is_frozen_can_be_killed,
    lives::what_is_refused,
    lives::starting_is_quick_and_a_keeper_small,
    output::streams_and_partial_lines,
    output::hundred_thousand_lines,
    output::logs_go_on_after_rotation,
    output::a_full_disk_does_not_hold_up_a_container,
    output::attach_sees_what_comes_and_a_slow_client_is_dropped,
    output::standard_input,
    output::a_terminal,
    output::exec_streams_and_exit_codes,
    output::variables_of_any_name,
    output::exec_in_a_terminal,
    output::exec_that_cannot_be_executed,
    isolation::what_a_plain_container_sees,
    isolation::users_capabilities_and_filters,
    isolation::mounts_and_roots,
    isolation::networks_and_dialing,
    isolation::shared_process_namespaces,
    isolation::the_first_shared_process_gives_nothing_away,
    isolation::cgroups_hold_and_count,
    isolation::cgroups_cannot_be_changed_from_inside,
    isolation::executed_commands_are_scored_as_their_container,
];

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
        let limit = std::time::Duration::from_secs(30);
        let result = runtime.block_on(async {
            AssertUnwindSafe(tokio::time::timeout(limit, test()))
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
