//! The program as a whole: up, down, again, killed, side by side, with bad luck.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use conformance::{Instance, eventually, http_get, nothing_left};
use libtest_mimic::{Arguments, Trial};

type Case = (&'static str, fn() -> anyhow::Result<()>);

const CASES: &[Case] = &[
    ("up_status_down_leave_nothing", up_status_down_leave_nothing),
    ("killed_daemon_loses_nothing", killed_daemon_loses_nothing),
    ("containers_may_end_in_peace", containers_may_end_in_peace),
    ("two_instances_side_by_side", two_instances_side_by_side),
    ("mistakes_are_named", mistakes_are_named),
    ("settings_are_remembered", settings_are_remembered),
    ("kubeconfigs_of_others_stay", kubeconfigs_of_others_stay),
    ("images_are_verified", images_are_verified),
    (
        "full_disk_is_said_and_survived",
        full_disk_is_said_and_survived,
    ),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each starts daemons of its own; two at a time would only share two cores.
    arguments.test_threads = Some(1);
    let trials = CASES
        .iter()
        .map(|(name, case)| {
            Trial::test(*name, move || {
                case().map_err(|error| format!("{error:#}").into())
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn up_status_down_leave_nothing() -> anyhow::Result<()> {
    let instance = Instance::new(2)?;
    instance.wharf(&["status"])?.refused()?.says("is stopped")?;
    instance
        .wharf(&["up"])?
        .ok()?
        .says("Next: kubectl --kubeconfig")?;
    instance.wharf(&["up"])?.ok()?.says("already running")?;
    let status = instance.wharf(&["status", "-o", "json"])?.ok()?.json()?;
    ensure!(
        status["ready"] == true && status["pid"].is_u64(),
        "{status}"
    );
    let kubectl = instance.kubectl();
    kubectl
        .run(&["config", "current-context"])?
        .ok()?
        .says(&instance.name()?)?;
    kubectl.run(&["get", "nodes"])?.ok()?.says(" Ready ")?;
    kubectl
        .run(&["get", "namespaces"])?
        .ok()?
        .says("kube-system")?;
    instance.load(&["hellok8s-v1"])?;
    instance
        .wharf(&["image", "ls"])?
        .ok()?
        .says("ceyewan/hellok8s:v1")?;
    kubectl
        .run(&[
            "run",
            "web",
            "--image=registry.cn-hangzhou.aliyuncs.com/ceyewan/hellok8s:v1",
        ])?
        .ok()?;
    kubectl
        .run(&["wait", "pod/web", "--for=condition=Ready", "--timeout=60s"])?
        .ok()?;
    instance
        .wharf(&[
            "image",
            "rm",
            "registry.cn-hangzhou.aliyuncs.com/ceyewan/hellok8s:v1",
        ])?
        .refused()?
        .says("is using")?;
    let (name, directory) = (instance.name()?, instance.data_dir());
    instance.wharf(&["down"])?.ok()?;
    nothing_left(&name, &directory)?;
    instance.wharf(&["down"])?.ok()?;
    // What is stored stays, and runs again.
    instance.wharf(&["up"])?.ok()?;
    kubectl
        .run(&["wait", "pod/web", "--for=condition=Ready", "--timeout=60s"])?
        .ok()?;
    instance
        .wharf_with(&["reset"], "")?
        .refused()?
        .says("--yes")?;
    instance.wharf(&["reset", "--yes"])?.ok()?;
    nothing_left(&name, &directory)?;
    ensure!(
        !directory.exists(),
        "{} is still there",
        directory.display()
    );
    let contexts = kubectl
        .run(&["config", "get-contexts", "-o", "name"])?
        .ok()?
        .stdout;
    ensure!(contexts.is_empty(), "{contexts}");
    Ok(())
}

fn killed_daemon_loses_nothing() -> anyhow::Result<()> {
    let instance = Instance::new(3)?;
    instance.wharf(&["up"])?.ok()?;
    instance.load(&["hellok8s-v2", "busybox"])?;
    let kubectl = instance.kubectl();
    kubectl.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: counter}\nspec:\n  containers:\n  - {name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'i=0; while true; do echo $i; i=$((i+1)); sleep 0.01; done']}\n",
    )?;
    kubectl
        .run(&[
            "run",
            "web",
            "--image=registry.cn-hangzhou.aliyuncs.com/ceyewan/hellok8s:v2",
        ])?
        .ok()?;
    kubectl
        .run(&[
            "wait",
            "pod/web",
            "pod/counter",
            "--for=condition=Ready",
            "--timeout=60s",
        ])?
        .ok()?;
    let address = kubectl.path("pod/web", "{.status.podIP}")?;
    let before = kubectl.path(
        "pods",
        "{.items[*].status.containerStatuses[*].containerID}",
    )?;
    for round in 0..3 {
        // Killed while it writes: what it acknowledged must be there.
        let pid = instance.pid()?;
        let writer = {
            let kubectl = kubectl.clone();
            std::thread::spawn(move || {
                let mut acknowledged = Vec::new();
                for number in 0.. {
                    let name = format!("kept-{round}-{number}");
                    match kubectl.run(&["create", "configmap", &name]) {
                        Ok(said) if said.code == 0 => acknowledged.push(name),
                        _ => return acknowledged,
                    }
                }
                acknowledged
            })
        };
        eventually("the first write", || {
            kubectl
                .run(&["get", "configmap", &format!("kept-{round}-2")])?
                .ok()
        })?;
        conformance::run(
            std::process::Command::new("kill").args(["-9", &pid.to_string()]),
            "",
        )?
        .ok()?;
        let acknowledged = writer
            .join()
            .map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        ensure!(
            http_get(&format!("http://{address}:3000/"))?.contains("[v2]"),
            "the container did not go on"
        );
        instance.wharf(&["up"])?.ok()?;
        let names = kubectl.path("configmaps", "{.items[*].metadata.name}")?;
        let missing: Vec<&String> = acknowledged
            .iter()
            .filter(|name| !names.split(' ').any(|found| found == name.as_str()))
            .collect();
        ensure!(
            missing.is_empty() && acknowledged.len() >= 3,
            "{missing:?} of {} are lost",
            acknowledged.len()
        );
    }
    kubectl
        .run(&[
            "wait",
            "pod/web",
            "pod/counter",
            "--for=condition=Ready",
            "--timeout=60s",
        ])?
        .ok()?;
    let after = kubectl.path(
        "pods",
        "{.items[*].status.containerStatuses[*].containerID}",
    )?;
    ensure!(
        before == after,
        "containers were replaced: {before} {after}"
    );
    ensure!(
        kubectl.path(
            "pods",
            "{.items[*].status.containerStatuses[*].restartCount}"
        )? == "0 0"
    );
    let log = kubectl.run(&["logs", "counter"])?.ok()?.stdout;
    let numbers: Vec<u64> = log
        .lines()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .context("lines are numbers")?;
    ensure!(
        numbers.len() > 100
            && numbers
                .iter()
                .enumerate()
                .all(|(index, number)| index as u64 == *number),
        "lines are lost"
    );
    // A daemon that was killed and not started again: down still takes everything away.
    let (name, directory) = (instance.name()?, instance.data_dir());
    let pid = instance.pid()?;
    conformance::run(
        std::process::Command::new("kill").args(["-9", &pid.to_string()]),
        "",
    )?
    .ok()?;
    instance.wharf(&["down"])?.ok()?;
    nothing_left(&name, &directory)
}

/// One pod writes down that it was told to end, after its hook has asked for a name; another does not
/// listen.
const ENDINGS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: tidy}
spec:
  containers:
  - name: tidy
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "trap 'echo saved > /out/saved; exit 0' TERM; touch /out/ready; while true; do sleep 0.1; done"]
    readinessProbe: {exec: {command: [test, -e, /out/ready]}, periodSeconds: 1}
    lifecycle:
      preStop: {exec: {command: [sh, -c, "nslookup kubernetes.default.svc.cluster.local > /out/asked"]}}
    volumeMounts: [{name: out, mountPath: /out}]
  volumes: [{name: out, hostPath: {path: DIRECTORY, type: DirectoryOrCreate}}]
---
apiVersion: v1
kind: Pod
metadata: {name: deaf}
spec:
  containers:
  - name: deaf
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, "100000"]
"#;

fn containers_may_end_in_peace() -> anyhow::Result<()> {
    let instance = Instance::new(9)?;
    instance.wharf(&["up"])?.ok()?;
    instance.load(&["busybox"])?;
    let kubectl = instance.kubectl();
    let out = instance.scratch().join("out");
    kubectl
        .apply(&ENDINGS.replace("DIRECTORY", &out.display().to_string()))?
        .ok()?;
    let ready = [
        "wait",
        "pod",
        "--all",
        "--for=condition=Ready",
        "--timeout=60s",
    ];
    kubectl.run(&ready)?.ok()?;
    // Whoever waits for it goes away: it goes on all the same.
    let mut down = std::process::Command::new(instance.program())
        .args(["down", "--timeout", "5"])
        .args(instance.settings())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    eventually("the pod was told", || {
        std::fs::read_to_string(out.join("saved")).context("it wrote nothing")
    })?;
    let asked = std::fs::read_to_string(out.join("asked")).context("the hook did not run")?;
    ensure!(asked.contains("Name:"), "the hook got no answer: {asked}");
    down.kill()?;
    down.wait()?;
    instance
        .wharf(&["status"])?
        .refused()?
        .says("is stopping")?;
    instance
        .wharf(&["up"])?
        .ok()?
        .says("The cluster is ready")?;
    kubectl.run(&ready)?.ok()?;
    // Also without a server.
    for file in ["saved", "asked"] {
        std::fs::remove_file(out.join(file))?;
    }
    let (name, directory) = (instance.name()?, instance.data_dir());
    let pid = instance.pid()?.to_string();
    conformance::run(std::process::Command::new("kill").args(["-9", &pid]), "")?.ok()?;
    instance.wharf(&["down", "--timeout", "2"])?.ok()?;
    ensure!(out.join("saved").exists(), "the pod was not told");
    ensure!(out.join("asked").exists(), "the hook did not run");
    nothing_left(&name, &directory)
}

fn two_instances_side_by_side() -> anyhow::Result<()> {
    let (one, two) = (Instance::new(4)?, Instance::new(5)?);
    one.wharf(&["up"])?.ok()?;
    two.wharf(&["up"])?.ok()?;
    for instance in [&one, &two] {
        instance.load(&["hellok8s-v1"])?;
        let kubectl = instance.kubectl();
        kubectl
            .run(&[
                "create",
                "deployment",
                "web",
                "--image=registry.cn-hangzhou.aliyuncs.com/ceyewan/hellok8s:v1",
            ])?
            .ok()?;
        kubectl
            .run(&[
                "expose",
                "deployment",
                "web",
                "--port=80",
                "--target-port=3000",
            ])?
            .ok()?;
        kubectl
            .run(&["rollout", "status", "deployment/web", "--timeout=60s"])?
            .ok()?;
        let address = kubectl.path("service/web", "{.spec.clusterIP}")?;
        eventually("an answer", || http_get(&format!("http://{address}/")))?;
    }
    let address = two.kubectl().path("service/web", "{.spec.clusterIP}")?;
    one.wharf(&["down"])?.ok()?;
    ensure!(
        http_get(&format!("http://{address}/"))?.contains("[v1]"),
        "the other instance was hurt"
    );
    Ok(())
}

fn mistakes_are_named() -> anyhow::Result<()> {
    let instance = Instance::new(6)?;
    let check = |words: &[&str], code: i32, text: &str| {
        let said = instance.wharf(words)?;
        ensure!(
            said.code == code,
            "{words:?}: exit code {}: {}{}",
            said.code,
            said.stdout,
            said.stderr
        );
        said.says(text).map(drop)
    };
    let plain = |words: &[&str]| {
        conformance::run(
            std::process::Command::new(instance.program()).args(words),
            "",
        )
    };
    ensure!(plain(&["upp"])?.says("unrecognized subcommand")?.code == 64);
    ensure!(
        plain(&["up", "--pod-cidr", "10.0.0.0/40"])?
            .says("10.244.0.0/16")?
            .code
            == 64
    );
    ensure!(
        plain(&["up", "--config", "/nowhere.toml"])?
            .says("/nowhere.toml")?
            .code
            == 64
    );
    plain(&["version"])?.ok()?.says("Kubernetes API v1.36")?;
    completion_works(instance.program())?;
    check(&["image", "ls"], 1, "wharf up")?;
    // The port is taken.
    let port = 27006;
    let holder = std::net::TcpListener::bind(("127.0.0.1", port))?;
    check(&["up"], 1, &format!("127.0.0.1:{port}"))?;
    check(&["doctor"], 1, "--api-listen")?;
    drop(holder);
    instance.wharf(&["doctor"])?.ok()?.says("overlayfs")?;
    foreign_rules_are_named(instance.program())?;
    // Not root.
    let said = conformance::run(
        std::process::Command::new("setpriv")
            .args(["--reuid=65534", "--clear-groups"])
            .arg(instance.program())
            .args(["up"]),
        "",
    )?;
    said.refused()?.says("sudo")?;
    // The data directory is a file; the database is none.
    std::fs::remove_dir_all(instance.data_dir())?;
    std::fs::write(instance.data_dir(), "a file")?;
    check(&["up"], 1, "data")?;
    std::fs::remove_file(instance.data_dir())?;
    instance.wharf(&["up"])?.ok()?;
    instance.wharf(&["down"])?.ok()?;
    let database = instance.data_dir().join("store/state.db");
    let kept = std::fs::read(&database)?;
    std::fs::write(&database, vec![7; 8192])?;
    for side in ["state.db-wal", "state.db-shm"] {
        let _ = std::fs::remove_file(instance.data_dir().join("store").join(side));
    }
    check(&["up"], 1, "state.db")?;
    ensure!(
        std::fs::read(&database)? == vec![7; 8192],
        "the damaged file was changed"
    );
    std::fs::write(&database, kept)?;
    instance.wharf(&["up"])?.ok()?;
    Ok(())
}

/// What a cluster was made with is gone on with, cannot be changed, and is found again to be taken away.
fn settings_are_remembered() -> anyhow::Result<()> {
    let instance = Instance::new(30)?;
    let directory = instance.data_dir();
    let alone = |words: &[&str], more: &[&str]| {
        let mut command = std::process::Command::new(instance.program());
        command.args(words).arg("--data-dir").arg(&directory);
        conformance::run(command.args(more), "")
    };
    instance.wharf(&["up"])?.ok()?;
    let name = instance.name()?;
    let before = instance.wharf(&["status", "-o", "json"])?.json()?;
    instance.wharf(&["down"])?.ok()?;
    alone(&["down"], &[])?.ok()?.says("Nothing was running")?;
    let kubeconfig = instance.kubeconfig().display().to_string();
    alone(&["up"], &[])?.ok()?.says(&kubeconfig)?;
    let after = alone(&["status", "-o", "json"], &[])?.json()?;
    ensure!(after["addresses"] == before["addresses"], "{after}");
    for (flag, other) in [
        ("--pod-cidr", "10.249.0.0/16"),
        ("--service-cidr", "10.249.0.0/16"),
        ("--node-name", "other"),
    ] {
        let said = alone(&["up"], &[flag, other])?.says(flag)?.says("reset")?;
        ensure!(said.code == 64, "exit code {}", said.code);
    }
    // Killed, and taken away by who gives ranges that another instance has.
    let other = Instance::new(31)?;
    other.wharf(&["up"])?.ok()?;
    let taken = other.settings();
    let range = |flag: &str| {
        let position = taken.iter().position(|word| word == flag);
        position.map_or("", |position| taken[position + 1].as_str())
    };
    let pid = instance.pid()?.to_string();
    conformance::run(std::process::Command::new("kill").args(["-9", &pid]), "")?.ok()?;
    alone(&["down"], &["--pod-cidr", range("--pod-cidr")])?.ok()?;
    nothing_left(&name, &directory)?;
    let config = std::fs::read_to_string(instance.kubeconfig())?;
    ensure!(config.contains(&name), "{config}");
    alone(&["reset", "--yes"], &[])?.ok()?;
    let config = std::fs::read_to_string(instance.kubeconfig())?;
    ensure!(!config.contains(&name) && !directory.exists(), "{config}");
    // A start that fails on others' addresses leaves nothing, and can be reset.
    alone(
        &["up"],
        &[
            "--pod-cidr",
            range("--pod-cidr"),
            "--api-listen",
            "127.0.0.1:27030",
        ],
    )?
    .refused()?
    .says("--pod-cidr")?;
    alone(&["reset", "--yes"], &["--pod-cidr", range("--pod-cidr")])?.ok()?;
    nothing_left(&name, &directory)
}

/// A kubeconfig that cannot be written into is named before anything is started, and stays as it is.
fn kubeconfigs_of_others_stay() -> anyhow::Result<()> {
    let instance = Instance::new(32)?;
    let path = instance.kubeconfig();
    for content in ["a: [b", "just words", "clusters: words\n"] {
        std::fs::write(&path, content)?;
        instance.wharf(&["up"])?.refused()?.says("--kubeconfig")?;
        ensure!(std::fs::read_to_string(&path)? == content, "it was changed");
        ensure!(!instance.data_dir().exists(), "something was started");
    }
    std::fs::remove_file(&path)?;
    std::os::unix::fs::symlink("/dev/full", &path)?;
    instance.wharf(&["up"])?.refused()?.says("is no file")?;
    std::fs::remove_file(&path)?;
    // A link to what is not there yet; and two who come at once.
    let target = instance.scratch().join("target");
    std::os::unix::fs::symlink(&target, &path)?;
    let other = r#"
clusters: [{name: other, cluster: {server: "https://other"}}]
users: [{name: other, user: {password: '0644'}}]
contexts: [{name: other, context: {cluster: other, user: other}}]
"#;
    std::fs::write(&target, other)?;
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| instance.wharf(&["up"])));
        both.into_iter().try_for_each(|one| {
            let said = one.join().map_err(|_| anyhow::anyhow!("a panic"))?;
            said?.ok().map(drop)
        })
    })?;
    ensure!(std::fs::symlink_metadata(&path)?.is_symlink(), "{path:?}");
    let kubectl = instance.kubectl();
    kubectl.run(&["get", "nodes"])?.ok()?.says(" Ready ")?;
    let users = kubectl
        .run(&["config", "view", "--raw", "-o", "json"])?
        .json()?;
    ensure!(users["users"][0]["user"]["password"] == "0644", "{users}");
    // Whoever reads may stop reading.
    let script = r#"set -o pipefail; "$@" | true"#;
    conformance::run(
        std::process::Command::new("bash")
            .args(["-c", script, "bash"])
            .arg(instance.program())
            .arg("status")
            .args(instance.settings()),
        "",
    )?
    .ok()?;
    Ok(())
}

/// In a network namespace where a firewall drops what is forwarded.
fn foreign_rules_are_named(program: &std::path::Path) -> anyhow::Result<()> {
    let script = r#"
        nft 'add table inet wall; add chain inet wall through { type filter hook forward priority 0; policy drop; }'
        exec "$1" doctor
    "#;
    conformance::run(
        std::process::Command::new("unshare")
            .args(["--net", "sh", "-euc", script, "sh"])
            .arg(program),
        "",
    )?
    .ok()?
    .says("dropped by through of table inet wall")?
    .says("nft insert rule inet wall through ip saddr 10.244.0.0/16 accept")?;
    Ok(())
}

/// The script is loaded by a real shell, which then completes a command and a subcommand.
fn completion_works(program: &std::path::Path) -> anyhow::Result<()> {
    let script = r#"
        source <("$1" completion bash)
        complete -p wharf
        COMP_WORDS=(wharf st) COMP_CWORD=1; _wharf wharf st wharf; echo "${COMPREPLY[@]}"
        COMP_WORDS=(wharf image l) COMP_CWORD=2; _wharf wharf l image; echo "${COMPREPLY[@]}"
    "#;
    let said = conformance::run(
        std::process::Command::new("bash")
            .args(["-euc", script, "bash"])
            .arg(program),
        "",
    )?
    .ok()?;
    let lines: Vec<&str> = said.stdout.lines().collect();
    ensure!(
        matches!(lines[..], [registered, "status", "load ls"] if registered.contains("_wharf")),
        "{lines:?}"
    );
    Ok(())
}

fn images_are_verified() -> anyhow::Result<()> {
    let instance = Instance::new(7)?;
    instance.wharf(&["up"])?.ok()?;
    let images =
        std::path::PathBuf::from(std::env::var_os("WHARF_IMAGES").context("WHARF_IMAGES")?);
    let good = std::fs::read(images.join("hellok8s-v1.tar"))?;
    let refused = |name: &str, content: &[u8], text: &str| {
        let path = instance.scratch().join(name);
        std::fs::write(&path, content)?;
        instance
            .wharf(&["image", "load", &path.to_string_lossy()])?
            .refused()?
            .says(text)
            .map(drop)
    };
    refused("half.tar", &good[..good.len() / 2], "half.tar")?;
    refused("words.tar", b"no archive at all", "words.tar")?;
    // Refused at its beginning, long before all of it was sent; nothing of it reaches the terminal.
    let noise: Vec<u8> = (0u32..8 << 20).map(|at| (at % 251) as u8).collect();
    refused("noise.tar", &noise, "tar archive")?;
    // One byte inside the program: the layer's digest does not match any more.
    let mut changed = good.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    refused("changed.tar", &changed, "digest")?;
    let climbing = climbing_archive(instance.scratch())?;
    refused("climbing.tar", &climbing, "../escaped")?;
    ensure!(
        !instance.data_dir().join("images/escaped").exists(),
        "the archive wrote outside of its root"
    );
    instance
        .wharf(&["image", "load", "/nowhere.tar"])?
        .refused()?
        .says("/nowhere.tar")?;
    ensure!(
        instance
            .wharf(&["image", "ls", "-q"])?
            .ok()?
            .stdout
            .is_empty(),
        "something of a refused archive stayed"
    );
    // Standard input, and compressed.
    let zipped = conformance::run(
        std::process::Command::new("sh").arg("-c").arg(format!(
            "gzip -c {} | {} image load - {}",
            images.join("hellok8s-v1.tar").display(),
            instance.program().display(),
            instance.settings().join(" ")
        )),
        "",
    )?;
    zipped.ok()?.says("Loaded image: ")?;
    let archive = images.join("hellok8s-v1.tar").display().to_string();
    instance
        .wharf(&["image", "load", &archive, "--tag", "mine:2"])?
        .ok()?
        .says("Loaded image: docker.io/library/mine:2")?;
    let said = instance.wharf(&["image", "load", &archive, &archive, "--tag", "mine:2"])?;
    ensure!(said.says("--tag")?.code == 64, "two images of one name");
    // A root file system.
    let root = images.join("busybox-root.tar");
    instance
        .wharf(&["image", "import", &root.to_string_lossy(), "mine:1"])?
        .ok()?
        .says("sha256:")?;
    instance.wharf(&["image", "ls"])?.ok()?.says("mine:1")?;
    instance
        .wharf(&["image", "rm", "mine:1"])?
        .ok()?
        .says("Deleted: sha256:")?;
    instance
        .wharf(&["image", "rm", "mine:1"])?
        .refused()?
        .says("mine:1")?;
    Ok(())
}

/// A sound `docker save` archive whose layer has a file `../escaped`.
fn climbing_archive(scratch: &std::path::Path) -> anyhow::Result<Vec<u8>> {
    let script = r#"
        echo out > climber
        tar -cPf layer.tar --transform 's,climber,../escaped,' climber
        layer=$(sha256sum layer.tar | cut -d' ' -f1)
        echo '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:'$layer'"]}}' > config.json
        echo '[{"Config":"config.json","RepoTags":["climbing:1"],"Layers":["layer.tar"]}]' > manifest.json
        tar -cf climbing.tar manifest.json config.json layer.tar
    "#;
    conformance::run(
        std::process::Command::new("sh")
            .args(["-euc", script])
            .current_dir(scratch),
        "",
    )?
    .ok()?;
    std::fs::read(scratch.join("climbing.tar")).context("read climbing.tar")
}

fn full_disk_is_said_and_survived() -> anyhow::Result<()> {
    let instance = Instance::new(8)?;
    let directory = instance.data_dir();
    std::fs::create_dir_all(&directory)?;
    let mount = |words: &[&str]| {
        conformance::run(std::process::Command::new(words[0]).args(&words[1..]), "")?.ok()
    };
    let target = directory.to_string_lossy().into_owned();
    mount(&[
        "mount",
        "-t",
        "tmpfs",
        "-o",
        "size=24m,mode=0700",
        "wharf-small",
        &target,
    ])?;
    let outcome = (|| {
        instance.wharf(&["up"])?.ok()?;
        let kubectl = instance.kubectl();
        kubectl
            .run(&["create", "configmap", "before", "--from-literal=a=1"])?
            .ok()?;
        let filler = directory.join("filler");
        // dd ends with an error when the disk is full; that is what is wanted.
        conformance::run(
            std::process::Command::new("dd").args([
                "if=/dev/zero",
                &format!("of={}", filler.display()),
                "bs=64k",
            ]),
            "",
        )?
        .refused()?;
        let big = "x".repeat(900_000);
        let manifest = |name: &str| {
            format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: '{big}'}}\n"
            )
        };
        let mut refused = None;
        for number in 0..30 {
            let said =
                kubectl.run_with(&["create", "-f", "-"], &manifest(&format!("big-{number}")))?;
            if said.code != 0 {
                refused = Some(said);
                break;
            }
        }
        refused
            .context("the disk is full and writes succeed")?
            .says("disk")?;
        kubectl.run(&["get", "configmap", "before"])?.ok()?;
        std::fs::remove_file(&filler)?;
        eventually("a write after there is room", || {
            kubectl.run(&["create", "configmap", "after"])?.ok()
        })?;
        instance.wharf(&["down"])?.ok()?;
        instance.wharf(&["up"])?.ok()?;
        kubectl
            .run(&["get", "configmap", "before", "after"])?
            .ok()?;
        anyhow::Ok(())
    })();
    // Also after a failed run, so that nothing keeps the mount.
    let reset = instance.wharf(&["reset", "--yes"]);
    mount(&["umount", &target])?;
    // What the mount hid is an empty directory, which nobody resets.
    std::fs::remove_dir(&directory)?;
    reset?.ok()?;
    outcome
}
