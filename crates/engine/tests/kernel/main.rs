//! The engine on the real kernel: as root, in a network namespace, cgroups and directories of its own.
//!
//! The program is its own keeper, so it brings its own `main`. Arguments are parts of test names.

#[path = "../../../runtime/tests/kernel/harness.rs"]
mod harness;
mod house;
mod lives;
mod streams;

use std::process::ExitCode;

use harness::{Test, tests};

const TESTS: &[Test] = tests![
    lives::a_sandbox_from_beginning_to_end,
    lives::images_and_specs_are_one,
    lives::what_cannot_be_made,
    lives::stopping_asks_first,
    lives::a_new_daemon_finds_everything,
    lives::a_killed_keeper_is_noticed,
    lives::a_silent_keeper_is_not_a_dead_one,
    lives::what_a_silent_keeper_holds_is_stopped_by_force,
    lives::one_silent_keeper_says_nothing_of_the_others,
    lives::what_is_not_understood_is_left_alone,
    lives::keepers_that_do_not_answer_are_noticed,
    lives::what_is_half_made_goes_away,
    lives::thirty_pods_at_once,
    streams::exec_attach_and_dial,
    streams::terminals,
    streams::an_end_that_is_not_the_whole_is_an_error,
];

fn main() -> ExitCode {
    harness::run(TESTS, own_network)
}

/// Links and tables are seen by nobody else.
fn own_network() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .expect("root may have a network namespace");
}
