//! What holds a connection open: exec, attach, cp, port-forward, logs -f.

use anyhow::{Context, ensure};
use conformance::{Kubectl, eventually, http_get, run};

use super::{Case, HELLO, sleeper};

pub const CASES: &[Case] = &[
    ("stream_exec", exec),
    ("stream_exec_terminal", exec_terminal),
    ("stream_cp", cp),
    ("stream_port_forward", port_forward),
    ("stream_attach", attach),
    ("stream_logs_follow", logs_follow),
];

fn ready(kubectl: &Kubectl, pod: &str) -> anyhow::Result<()> {
    kubectl
        .run(&[
            "wait",
            &format!("pod/{pod}"),
            "--for=condition=Ready",
            "--timeout=60s",
        ])?
        .ok()?;
    Ok(())
}

fn exec(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&sleeper("box", "", ""))?;
    ready(kubectl, "box")?;
    let said = kubectl.run(&[
        "exec",
        "box",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ])?;
    ensure!(
        said.code == 7 && said.stdout == "out\n" && said.stderr.starts_with("err\n"),
        "{said:?}"
    );
    let text = "word\n".repeat(20_000);
    let echoed = kubectl
        .run_with(&["exec", "-i", "box", "--", "cat"], &text)?
        .ok()?
        .stdout;
    ensure!(
        echoed == text,
        "{} of {} bytes came back",
        echoed.len(),
        text.len()
    );
    kubectl
        .run(&["exec", "box", "--", "no-such-program"])?
        .refused()?
        .says("executable file not found in $PATH")?;
    kubectl
        .run(&["exec", "nobody", "--", "true"])?
        .refused()?
        .says("pods \"nobody\" not found")?;
    kubectl
        .run(&["exec", "box", "-c", "other", "--", "true"])?
        .refused()?
        .says("container other is not valid for pod box")?;
    Ok(())
}

fn exec_terminal(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&sleeper("box", "", ""))?;
    ready(kubectl, "box")?;
    // script(1) gives kubectl the terminal that a person has. Its size follows as a message of its own.
    let command = kubectl.command(&[
        "exec",
        "-it",
        "box",
        "--",
        "sh",
        "-c",
        "'tty; for wait in $(seq 100); do stty size 2>/dev/null | grep 100 && break; sleep 0.1; done; exit 3'",
    ]);
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let line = format!("stty rows 30 cols 100; {}", words.join(" "));
    let said = run(
        std::process::Command::new("script").args(["-qec", &line, "/dev/null"]),
        "",
    )?;
    ensure!(said.code == 3, "{said:?}");
    said.says("/dev/pts/")?.says("30 100")?;
    Ok(())
}

fn cp(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&sleeper("box", "", ""))?;
    ready(kubectl, "box")?;
    let directory = std::env::temp_dir().join(format!("wharf-cp-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let (here, back) = (directory.join("here"), directory.join("back"));
    let content: Vec<u8> = (0..300_000_u32)
        .map(|number| (number % 251) as u8)
        .collect();
    std::fs::write(&here, &content)?;
    kubectl
        .run(&["cp", &here.to_string_lossy(), "box:/tmp/there"])?
        .ok()?;
    kubectl
        .run(&["cp", "box:/tmp/there", &back.to_string_lossy()])?
        .ok()?;
    let same = std::fs::read(&back)? == content;
    std::fs::remove_dir_all(&directory)?;
    ensure!(same, "what came back is different");
    Ok(())
}

fn port_forward(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, labels: {{app: web}}}}\nspec:\n  containers:\n  - {{name: c, image: '{HELLO}:v1'}}\n"
    ))?;
    kubectl
        .run(&["expose", "pod", "web", "--port=80", "--target-port=3000"])?
        .ok()?;
    ready(kubectl, "web")?;
    for target in ["pod/web", "service/web"] {
        let port = if target == "pod/web" { ":3000" } else { ":80" };
        let mut forward = kubectl.start(&["port-forward", target, port])?;
        // Held on to: kubectl ends when it cannot tell of the connections that it handles.
        let mut lines = forward.lines()?;
        let line = lines.next().context("no line")??;
        let port = line
            .split("127.0.0.1:")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .context(line.clone())?;
        for _ in 0..20 {
            let body = http_get(&format!("http://127.0.0.1:{port}/"))?;
            ensure!(body.contains("[v1]"), "{body}");
        }
    }
    Ok(())
}

fn attach(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: echo}\nspec:\n  restartPolicy: Never\n  containers:\n  - {name: c, image: busybox, imagePullPolicy: IfNotPresent, stdin: true, stdinOnce: true, command: [sh, -c, 'read line; echo got $line']}\n",
    )?;
    kubectl.until("pod/echo", "{.status.phase}", "Running")?;
    let said = kubectl
        .run_with(&["attach", "-i", "echo"], "hello\n")?
        .ok()?;
    ensure!(said.stdout.contains("got hello"), "{said:?}");
    kubectl.until("pod/echo", "{.status.phase}", "Succeeded")?;
    let said = kubectl
        .run(&[
            "run",
            "once",
            "--image=busybox",
            "--image-pull-policy=IfNotPresent",
            "--rm",
            "-i",
            "--restart=Never",
            "--",
            "echo",
            "from inside",
        ])?
        .ok()?;
    said.says("from inside")?;
    eventually("its end", || {
        kubectl.run(&["get", "pod", "once"])?.refused()
    })?;
    Ok(())
}

fn logs_follow(kubectl: &Kubectl) -> anyhow::Result<()> {
    kubectl.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: counter, labels: {app: counter}}\nspec:\n  restartPolicy: Never\n  containers:\n  - {name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done']}\n",
    )?;
    eventually("its log", || kubectl.run(&["logs", "counter"])?.ok())?;
    let all = kubectl.run(&["logs", "-f", "counter"])?.ok()?.stdout;
    let expected: String = (0..2000).map(|number| format!("line {number}\n")).collect();
    ensure!(all == expected, "{} lines", all.lines().count());
    kubectl
        .run(&["logs", "-l", "app=counter", "--tail=2", "--prefix"])?
        .ok()?
        .says("line 1999")?;
    Ok(())
}
