//! One start of the machine: from power on to power off, read on its console.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;

use super::disk::Disk;
use crate::shell::command;

/// After this the machine is switched off.
const TIMEOUT: Duration = Duration::from_secs(1200);

/// What is to happen to the machine after a line on its console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Power {
    Stays,
    /// At once, with whatever it was writing.
    Cut,
}

/// Starts the machine, told `words` on its kernel's command line, shows its console line by line, and
/// returns when it is off.
pub(super) fn start(
    disk: &Disk,
    words: &str,
    line_seen: impl FnMut(&str) -> Power,
) -> anyhow::Result<()> {
    let mut machine = command("qemu-system-x86_64")
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
        .args(["-m", "2048", "-no-reboot", "-display", "none"])
        // A link that leads nowhere: packets to others are dropped.
        .args(["-nic", "user,model=virtio-net-pci,restrict=on"])
        .args(["-monitor", "none", "-serial", "stdio", "-append"])
        .arg(format!(
            "console=ttyS0 quiet panic=-1 systemd.show_status=0 \
             systemd.unified_cgroup_hierarchy=1 {words}"
        ))
        .arg("-kernel")
        .arg(&disk.kernel)
        .arg("-initrd")
        .arg(&disk.start)
        // What the machine's kernel has written outlives the emulator, and nothing else does.
        .arg("-drive")
        .arg(format!(
            "file={},format=raw,if=virtio,cache=unsafe",
            disk.disk.display()
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start qemu-system-x86_64")?;
    let console = machine.stdout.take().context("its console is a pipe")?;
    let machine = Arc::new(Mutex::new(machine));
    let (over, is_over) = mpsc::channel::<()>();
    let watched = Arc::clone(&machine);
    let watch = thread::spawn(move || {
        if is_over.recv_timeout(TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            println!("(switched off after {TIMEOUT:?})");
            kill(&watched);
        }
    });
    let seen = read(console, line_seen);
    if !matches!(seen, Ok(Power::Stays)) {
        println!("(the power is cut)");
        kill(&machine);
    }
    drop(over);
    // It has nothing to say.
    let _ = watch.join();
    let ended = lock(&machine).wait();
    ended.context("wait for the machine")?;
    seen.map(drop)
}

/// Shows the console to its end, or until the power is to be cut.
fn read(console: impl Read, mut line_seen: impl FnMut(&str) -> Power) -> anyhow::Result<Power> {
    for line in BufReader::new(console).split(b'\n') {
        let line = line.context("read the console")?;
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        println!("{line}");
        if line_seen(&line) == Power::Cut {
            return Ok(Power::Cut);
        }
    }
    Ok(Power::Stays)
}

fn kill(machine: &Mutex<Child>) {
    // It may have ended by itself.
    let _ = lock(machine).kill();
}

fn lock(machine: &Mutex<Child>) -> MutexGuard<'_, Child> {
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}
