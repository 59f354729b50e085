//! An instance of wharf that lives as long as a measurement.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::report::{Figure, Report};
use crate::{first, process};

/// A running instance; dropped, it is taken down and its directory is deleted.
pub(crate) struct Wharf {
    program: PathBuf,
    directory: tempfile::TempDir,
}

/// Away from what an instance with default settings uses.
const SETTINGS: [&str; 8] = [
    "--api-listen",
    "127.0.0.1:26443",
    "--pod-cidr",
    "10.130.0.0/16",
    "--service-cidr",
    "10.131.0.0/16",
    "--node-name",
    "bench",
];

/// The tenth address of the range of Services below.
const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 131, 0, 10);
const TIMEOUT_START: Duration = Duration::from_secs(60);

/// How long after the command was typed.
struct Start {
    ready: Duration,
    dns: Duration,
    returned: Duration,
}

impl Wharf {
    /// Starts twice: on an empty directory and again, to measure both.
    pub(crate) async fn start(
        program: &Path,
        images: &Path,
        report: &mut Report,
    ) -> anyhow::Result<Wharf> {
        let wharf = Wharf {
            program: program.into(),
            directory: tempfile::tempdir().context("make a directory")?,
        };
        let empty = wharf.up().await?;
        wharf.run(&["down"])?;
        let again = wharf.up().await?;
        for (name, start) in [
            ("start on an empty directory", empty),
            ("start again", again),
        ] {
            for (what, time) in [
                ("to node Ready", start.ready),
                ("to DNS answering", start.dns),
                ("to the return of `wharf up`", start.returned),
            ] {
                report.add("wharf", Figure::duration(format!("{name}, {what}"), time));
            }
        }
        let archive = images.join("hellok8s-v1.tar");
        wharf.run(&["image", "load", &archive.to_string_lossy()])?;
        Ok(wharf)
    }

    /// Starts it, and looks at it from outside while it starts.
    async fn up(&self) -> anyhow::Result<Start> {
        // Of an earlier start, and it would be tried before the new server listens.
        let kubeconfig = self.data_dir().join("pki/admin.kubeconfig");
        if kubeconfig.exists() {
            std::fs::remove_file(&kubeconfig)?;
        }
        let started = Instant::now();
        let mut command = self.command(&["up"]);
        let returned = tokio::task::spawn_blocking(move || {
            let done = command.output()?;
            if !done.status.success() {
                bail!("wharf up: {}", String::from_utf8_lossy(&done.stderr));
            }
            Ok(started.elapsed())
        });
        let seen = async {
            let (ready, dns) = tokio::join!(
                first::node_ready(&kubeconfig),
                first::dns_answer(DNS_ADDRESS)
            );
            anyhow::Ok((ready? - started, dns? - started))
        };
        let (ready, dns) = tokio::time::timeout(TIMEOUT_START, seen)
            .await
            .context("the cluster does not get ready")??;
        Ok(Start {
            ready,
            dns,
            returned: returned.await??,
        })
    }

    fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// The server and every process below the keepers' directory's name.
    pub(crate) fn processes(&self) -> anyhow::Result<Vec<u32>> {
        let server = self.server_pid()?;
        Ok([vec![server], self.keepers()?].concat())
    }

    /// The largest keeper's memory that it shares with nobody.
    pub(crate) fn keeper_private_bytes(&self) -> anyhow::Result<u64> {
        self.run_pod()?;
        let sizes: anyhow::Result<Vec<u64>> = self
            .keepers()?
            .into_iter()
            .map(|pid| process::memory(pid, &["Private_Clean:", "Private_Dirty:"]))
            .collect();
        sizes?.into_iter().max().context("no keeper runs")
    }

    fn run_pod(&self) -> anyhow::Result<()> {
        let kubectl = |arguments: &[&str]| {
            let done = Command::new("kubectl")
                .arg("--kubeconfig")
                .arg(self.kubeconfig())
                .args(arguments)
                .output()?;
            if !done.status.success() {
                bail!(
                    "kubectl {arguments:?}: {}",
                    String::from_utf8_lossy(&done.stderr)
                );
            }
            anyhow::Ok(())
        };
        kubectl(&["run", "keeper", "--image", crate::IMAGE])?;
        kubectl(&[
            "wait",
            "pod/keeper",
            "--for=condition=Ready",
            "--timeout=30s",
        ])
    }

    fn server_pid(&self) -> anyhow::Result<u32> {
        let status: Value = serde_json::from_str(&self.run(&["status", "-o", "json"])?)?;
        status["pid"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok())
            .context("status names no process")
    }

    /// Keepers carry the data directory on their command line.
    fn keepers(&self) -> anyhow::Result<Vec<u32>> {
        let directory = self.directory.path().to_string_lossy().into_owned();
        let server = self.server_pid()?;
        Ok(process::all()?
            .into_iter()
            .filter(|pid| *pid != server)
            .filter(|pid| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                line.contains("keeper") && line.contains(&directory)
            })
            .collect())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(words)
            .args(SETTINGS)
            .arg("--data-dir")
            .arg(self.data_dir())
            .arg("--kubeconfig")
            .arg(self.kubeconfig());
        command
    }

    fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        let done = self
            .command(words)
            .output()
            .with_context(|| format!("start {}", self.program.display()))?;
        if !done.status.success() {
            bail!("wharf {words:?}: {}", String::from_utf8_lossy(&done.stderr));
        }
        Ok(String::from_utf8(done.stdout)?)
    }
}

impl Drop for Wharf {
    fn drop(&mut self) {
        if let Err(error) = self.run(&["reset", "--yes"]) {
            eprintln!("take down: {error:#}");
        }
    }
}
