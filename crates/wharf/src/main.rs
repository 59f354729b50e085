//! The program. A keeper is this same file executed again, and must stay small and single-threaded,
//! so it is told apart before anything else happens.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "keeper") {
        runtime::keeper_main(arguments);
    }
    cli::run(&wharf::Wharf)
}
