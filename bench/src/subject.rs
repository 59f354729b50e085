//! An instance of wharf that lives as long as a measurement.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::process;
use crate::report::{Figure, Report};

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

impl Wharf {
    /// Starts twice: on an empty directory and again, to measure both.
    pub(crate) fn start(
        program: &Path,
        images: &Path,
        report: &mut Report,
    ) -> anyhow::Result<Wharf> {
        let wharf = Wharf {
            program: program.into(),
            directory: tempfile::tempdir().context("make a directory")?,
        };
        let started = Instant::now();
        wharf.run(&["up"])?;
        report.add(
            "wharf",
            Figure::duration(
                "start on an empty directory, to Ready and DNS",
                started.elapsed(),
            ),
        );
        wharf.run(&["down"])?;
        let started = Instant::now();
        wharf.run(&["up"])?;
        report.add(
            "wharf",
            Figure::duration("start again, to Ready and DNS", started.elapsed()),
        );
        let archive = images.join("hellok8s-v1.tar");
        wharf.run(&["image", "load", &archive.to_string_lossy()])?;
        Ok(wharf)
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

    fn run(&self, command: &[&str]) -> anyhow::Result<String> {
        let done = Command::new(&self.program)
            .args(command)
            .args(SETTINGS)
            .arg("--data-dir")
            .arg(self.directory.path().join("data"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .output()
            .with_context(|| format!("start {}", self.program.display()))?;
        if !done.status.success() {
            bail!(
                "wharf {command:?}: {}",
                String::from_utf8_lossy(&done.stderr)
            );
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
