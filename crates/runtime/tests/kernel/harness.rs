//! Runs the tests of a program that is its own keeper, and therefore has a `main` of its own.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use futures::FutureExt as _;

/// Its name and itself.
pub(crate) type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

/// Longer than any test takes.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Names the tests by their paths: `module::name`.
macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), || Box::pin($module::$name()))),*]
    };
}
pub(crate) use tests;

/// Becomes a keeper if it is started as one. Otherwise runs the tests one after another, those whose
/// names have an argument in them, `prepare` before there is a second thread.
pub(crate) fn run(tests: &[Test], prepare: fn()) -> ExitCode {
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
    prepare();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let mut failed = Vec::new();
    for (name, test) in tests {
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
