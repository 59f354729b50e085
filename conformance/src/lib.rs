//! Black box: what a user types, through real clients.
//!
//! A test knows the program's path (`WHARF`), the directory of test images (`WHARF_IMAGES`) and what
//! is written in the documentation, and nothing of the inside. The subject is a variable: with
//! `KUBECONFIG_UNDER_TEST` the kubectl tests run against any other cluster that has the images, so
//! that the tests can be tested on the genuine one. Nothing here sleeps: it asks for a condition until
//! it holds, and a deadline says what it waited for.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(90);

/// What a finished command said.
#[derive(Debug)]
pub struct Said {
    /// Exit code; -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Said {
    fn of(output: Output) -> Said {
        Said {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The code must be zero.
    pub fn ok(self) -> anyhow::Result<Said> {
        ensure!(
            self.code == 0,
            "exit code {}\n{}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }

    /// The code must not be zero.
    pub fn refused(self) -> anyhow::Result<Said> {
        ensure!(
            self.code != 0,
            "succeeded, which it must not:\n{}{}",
            self.stdout,
            self.stderr
        );
        Ok(self)
    }

    /// Standard output or error contains a text.
    pub fn says(self, text: &str) -> anyhow::Result<Said> {
        let found = self.stdout.contains(text) || self.stderr.contains(text);
        ensure!(
            found,
            "{text:?} is not in what was said:\n{}{}",
            self.stdout,
            self.stderr
        );
        Ok(self)
    }

    /// Standard output as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("JSON expected:\n{}", self.stdout))
    }
}

/// Runs a program with text on its standard input.
pub fn run(command: &mut Command, input: &str) -> anyhow::Result<Said> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {shown}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read is free not to.
        let _ = stdin.write_all(input.as_bytes());
    }
    Ok(Said::of(
        child
            .wait_with_output()
            .with_context(|| format!("wait for {shown}"))?,
    ))
}

/// Asks until the answer is there.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if started.elapsed() > DEADLINE => {
                return Err(error.context(format!("waited in vain for: {what}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// An instance of wharf with a directory, ports and addresses of its own.
pub struct Instance {
    program: PathBuf,
    directory: tempfile::TempDir,
    number: u8,
}

impl Instance {
    /// Not started yet. Instances with different numbers run side by side.
    pub fn new(number: u8) -> anyhow::Result<Instance> {
        let program =
            std::env::var_os("WHARF").context("WHARF names no program; run cargo xtask test")?;
        Ok(Instance {
            program: program.into(),
            directory: tempfile::tempdir()?,
            number,
        })
    }

    /// `wharf` with this instance's settings behind the words.
    pub fn wharf(&self, words: &[&str]) -> anyhow::Result<Said> {
        self.wharf_with(words, "")
    }

    /// The same, with text on standard input.
    pub fn wharf_with(&self, words: &[&str], input: &str) -> anyhow::Result<Said> {
        run(
            Command::new(&self.program)
                .args(words)
                .args(self.settings()),
            input,
        )
    }

    /// The flags that make it this instance.
    pub fn settings(&self) -> Vec<String> {
        let number = u16::from(self.number);
        [
            ("--data-dir", self.data_dir().display().to_string()),
            ("--kubeconfig", self.kubeconfig().display().to_string()),
            ("--api-listen", format!("127.0.0.1:{}", 27000 + number)),
            ("--pod-cidr", format!("10.{}.0.0/16", 140 + number * 2)),
            ("--service-cidr", format!("10.{}.0.0/16", 141 + number * 2)),
            ("--node-name", format!("node-{number}")),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_string(), value])
        .collect()
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Where it keeps everything.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A place for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// Its kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// `kubectl` on it.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl {
            kubeconfig: self.kubeconfig(),
            namespace: "default".into(),
        }
    }

    /// Loads test images by the names of their archives.
    pub fn load(&self, names: &[&str]) -> anyhow::Result<()> {
        let images = PathBuf::from(
            std::env::var_os("WHARF_IMAGES").context("WHARF_IMAGES names no directory")?,
        );
        for name in names {
            let archive = images.join(format!("{name}.tar"));
            self.wharf(&["image", "load", &archive.to_string_lossy()])?
                .ok()?;
        }
        Ok(())
    }

    /// The server's process.
    pub fn pid(&self) -> anyhow::Result<u32> {
        let status = self.wharf(&["status", "-o", "json"])?.json()?;
        let pid = status["pid"].as_u64().context("status names no process")?;
        Ok(u32::try_from(pid)?)
    }

    /// Its name on this machine.
    pub fn name(&self) -> anyhow::Result<String> {
        let status = self.wharf(&["status", "-o", "json"])?.json()?;
        Ok(status["instance"]
            .as_str()
            .context("status names no instance")?
            .to_string())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        match self.wharf(&["reset", "--yes"]).and_then(Said::ok) {
            Ok(_) => {}
            Err(error) => eprintln!("reset of instance {}: {error:#}", self.number),
        }
    }
}

/// `kubectl` with a kubeconfig and a namespace.
#[derive(Clone)]
pub struct Kubectl {
    kubeconfig: PathBuf,
    namespace: String,
}

impl Kubectl {
    /// On another cluster.
    pub fn of(kubeconfig: PathBuf) -> Kubectl {
        Kubectl {
            kubeconfig,
            namespace: "default".into(),
        }
    }

    /// A fresh namespace with its ServiceAccount.
    pub fn in_new_namespace(&self, name: &str) -> anyhow::Result<Kubectl> {
        self.run(&["create", "namespace", name])?.ok()?;
        let inside = Kubectl {
            namespace: name.into(),
            ..self.clone()
        };
        eventually("the default ServiceAccount", || {
            inside.run(&["get", "serviceaccount", "default"])?.ok()
        })?;
        Ok(inside)
    }

    /// The namespace it works in.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Runs it.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<Said> {
        self.run_with(words, "")
    }

    /// Runs it with text on its standard input.
    pub fn run_with(&self, words: &[&str], input: &str) -> anyhow::Result<Said> {
        run(&mut self.command(words), input)
    }

    /// Starts it, to be ended by the caller.
    pub fn start(&self, words: &[&str]) -> anyhow::Result<Running> {
        let child = self
            .command(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start kubectl")?;
        Ok(Running(Some(child)))
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) -> anyhow::Result<Said> {
        self.run_with(&["apply", "-f", "-"], manifest)?.ok()
    }

    /// The words that come out of a jsonpath.
    pub fn path(&self, object: &str, path: &str) -> anyhow::Result<String> {
        Ok(self
            .run(&["get", object, "-o", &format!("jsonpath={path}")])?
            .ok()?
            .stdout)
    }

    /// Waits until a jsonpath gives a text.
    pub fn until(&self, object: &str, path: &str, expected: &str) -> anyhow::Result<()> {
        eventually(&format!("{object} {path} = {expected}"), || {
            let found = self.path(object, path)?;
            ensure!(found == expected, "it is {found:?}");
            Ok(())
        })
    }

    /// The command, not started.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command =
            Command::new(std::env::var_os("KUBECTL").unwrap_or_else(|| "kubectl".into()));
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--namespace")
            .arg(&self.namespace)
            .args(words);
        command
    }
}

/// A program that runs until it is dropped or ended.
pub struct Running(Option<Child>);

impl Running {
    /// Reads its standard output line by line.
    pub fn lines(
        &mut self,
    ) -> anyhow::Result<impl Iterator<Item = std::io::Result<String>> + use<>> {
        let output = self
            .0
            .as_mut()
            .and_then(|child| child.stdout.take())
            .context("its output is being read already")?;
        Ok(std::io::BufRead::lines(std::io::BufReader::new(output)))
    }

    /// Waits for its end.
    pub fn wait(mut self) -> anyhow::Result<Said> {
        let child = self.0.take().context("it was ended already")?;
        Ok(Said::of(child.wait_with_output()?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The body that an HTTP GET answers, without a proxy and with a short patience.
pub fn http_get(url: &str) -> anyhow::Result<String> {
    let said = run(
        Command::new("curl").args([
            "-sS",
            "--noproxy",
            "*",
            "--max-time",
            "5",
            "--fail-with-body",
            url,
        ]),
        "",
    )?
    .ok()?;
    Ok(said.stdout)
}

/// What of an instance is on the machine: links, tables, cgroups, mounts, processes. Empty after `down`.
pub fn left_behind(name: &str, data_dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let directory = data_dir.to_string_lossy().into_owned();
    for link in std::fs::read_dir("/sys/class/net")?.flatten() {
        let link = link.file_name().to_string_lossy().into_owned();
        if link.starts_with(name) {
            found.push(format!("link {link}"));
        }
    }
    let tables = run(Command::new("nft").args(["list", "tables"]), "")?
        .ok()?
        .stdout;
    found.extend(
        tables
            .lines()
            .filter(|table| table.split(' ').any(|word| word == name))
            .map(String::from),
    );
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&directory))
            .map(|line| format!("mount {line}")),
    );
    for hierarchy in [
        "", "memory", "pids", "cpu", "devices", "freezer", "unified", "systemd", "blkio", "cpuset",
    ] {
        let cgroup = Path::new("/sys/fs/cgroup").join(hierarchy).join(name);
        if cgroup.exists() {
            found.push(format!("cgroup {}", cgroup.display()));
        }
    }
    for process in std::fs::read_dir("/proc")?.flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&directory) {
            found.push(format!("process {}", process.file_name().to_string_lossy()));
        }
    }
    Ok(found)
}

/// Fails with everything that is left.
pub fn nothing_left(name: &str, data_dir: &Path) -> anyhow::Result<()> {
    let left = left_behind(name, data_dir)?;
    if !left.is_empty() {
        bail!("left behind:\n{}", left.join("\n"));
    }
    Ok(())
}
