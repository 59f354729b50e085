//! Memory and CPU of processes, from /proc.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context;

/// Ticks per second in /proc/PID/stat; fixed at 100 on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Of all processes of a cluster.
pub(crate) struct Used {
    pub(crate) pss_bytes: u64,
    pub(crate) cpu_percent: f64,
}

/// CPU over a time without work, and memory after it.
pub(crate) async fn idle(
    processes: &dyn Fn() -> anyhow::Result<Vec<u32>>,
    time: Duration,
) -> anyhow::Result<Used> {
    // What starting left to do is not idling.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (before, started) = (ticks(&processes()?), Instant::now());
    tokio::time::sleep(time).await;
    let pids = processes()?;
    let ticks = ticks(&pids).saturating_sub(before) as f64;
    let cpu_percent = ticks / TICKS_PER_SECOND / started.elapsed().as_secs_f64() * 100.0;
    let pss_bytes = pids
        .iter()
        .map(|pid| memory(*pid, &["Pss:"]))
        .sum::<anyhow::Result<u64>>()?;
    Ok(Used {
        pss_bytes,
        cpu_percent,
    })
}

/// Processes by name (as the kernel shortens it).
pub(crate) fn named(names: &[String]) -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::new();
    for pid in all()? {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if names
            .iter()
            .any(|wanted| name.trim_end() == &wanted[..wanted.len().min(15)])
        {
            found.push(pid);
        }
    }
    Ok(found)
}

/// All process ids.
pub(crate) fn all() -> anyhow::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("read /proc")?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect())
}

/// The sum of some lines of smaps_rollup, in bytes.
pub(crate) fn memory(pid: u32, lines: &[&str]) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let kilobytes = text
        .lines()
        .filter(|line| lines.iter().any(|wanted| line.starts_with(wanted)))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum::<u64>();
    Ok(kilobytes * 1024)
}

fn ticks(pids: &[u32]) -> u64 {
    pids.iter()
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // Fields 14 and 15, counted after the name, which may hold blanks.
            let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
            Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
        })
        .sum()
}
