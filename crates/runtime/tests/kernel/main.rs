//! Keepers and containers on the real kernel, as root, in cgroups and directories of their own.
//!
//! The program is its own keeper, so it brings its own `main`. Arguments are parts of test names.

mod harness;
mod house;
mod isolation;
mod lives;
mod output;
mod volumes;

use std::process::ExitCode;

use harness::{Test, tests};

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
    lives::a_keeper_holds_nothing_of_its_starter_s_open,
    lives::a_keeper_that_does_not_answer_is_given_up,
    lives::who_is_frozen_can_be_killed,
    lives::a_cgroup_that_is_held_is_removed_later,
    lives::a_keeper_without_descriptors_rests_and_comes_back,
    lives::what_is_refused,
    lives::starting_is_quick_and_a_keeper_small,
    output::streams_and_partial_lines,
    output::hundred_thousand_lines,
    output::logs_go_on_after_rotation,
    output::a_full_disk_does_not_hold_up_a_container,
    output::attach_loses_nothing_however_slow_the_client,
    output::attach_to_a_sandbox_that_is_ended_says_that_something_is_missing,
    output::standard_input,
    output::a_terminal,
    output::exec_streams_and_exit_codes,
    output::variables_of_any_name,
    output::exec_in_a_terminal,
    output::exec_that_cannot_be_executed,
    isolation::what_a_plain_container_sees,
    isolation::users_capabilities_and_filters,
    isolation::mounts_and_roots,
    volumes::nothing_is_mounted_into_proc,
    volumes::who_changes_a_volume_meanwhile_leads_nothing_into_proc,
    volumes::links_on_the_way_to_a_mount_are_followed_inside,
    volumes::mounts_are_told_to_whom_they_concern,
    isolation::networks_and_dialing,
    isolation::shared_process_namespaces,
    isolation::the_first_shared_process_gives_nothing_away,
    isolation::cgroups_hold_and_count,
    isolation::cgroups_cannot_be_changed_from_inside,
    isolation::executed_commands_are_scored_as_their_container,
    isolation::what_a_keeper_executes_is_never_written_to,
];

fn main() -> ExitCode {
    harness::run(TESTS, || {})
}
