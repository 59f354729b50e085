//! What the house does to itself: `cargo xtask build|test|check|images|hello|machine|bench`.
//!
//! Tasks call cargo and the programs that they built; nothing here is part of the product. What a
//! task needs from Debian's packages it installs by name, so that a bare machine with Rust is enough.

mod build;
mod check;
mod floors;
mod hello;
mod images;
mod machine;
mod packages;
mod shell;
mod test;

use std::process::ExitCode;

use anyhow::bail;
use shell::Run;

const USAGE: &str = "\
usage: cargo xtask TASK

  build    build the static release binary; its path is the last line
  test     every test: in the crates, on the kernel, and through real kubectl
  check    formatting, lints, floors, licences, banned crates
  images   make the test images; their directory is the last line
  hello    build, start a cluster, run the hello example on it
  machine  try it on an emulated machine with systemd and cgroup v2 alone: containers, a
           restart, a power cut (minutes); machine SUITE tries another release of Debian
  bench    measure (cargo xtask bench -- --help)
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    std::env::set_current_dir(shell::root())?;
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.filter(|argument| argument != "--").collect();
    match task.as_str() {
        "build" => {
            let built = build::release(&["wharf"])?;
            println!("{}", built.join("wharf").display());
            Ok(())
        }
        "test" => test::run(),
        "check" => check::run(),
        "images" => {
            println!("{}", images::make()?.display());
            Ok(())
        }
        "hello" => hello::run(),
        "machine" => machine::run(rest.first().map(String::as_str)),
        "bench" => {
            let built = build::release(&["wharf", "bench"])?;
            let images = images::make()?;
            shell::command(&built.join("bench").to_string_lossy())
                .arg("--wharf")
                .arg(built.join("wharf"))
                .arg("--images")
                .arg(images)
                .args(rest)
                .run()
        }
        "" | "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        other => bail!("no such task: {other}\n{USAGE}"),
    }
}
