//! Exec, attach and dial.

use engine::{ContainerId, Engine, Error, ExecSpec};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::house::{House, code, exit, id, pod};

async fn read(mut stream: engine::Reader) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("readable");
    text.replace('\r', "")
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

pub(crate) async fn exec_attach_and_dial() {
    let house = House::new().await;
    let engine = house.engine().await;
    engine.run_sandbox(&id("a"), pod("a")).await.expect("made");
    let mut spec = house.shell(
        "c",
        "httpd -p 8080 -h /data; echo ready; cat; echo err >&2; exit 2",
    );
    (spec.stdin, spec.stdin_once) = (true, true);
    let container = engine.create_container(&id("a"), spec).await.expect("made");
    engine.start_container(&container).await.expect("started");
    house.wait_for("c", "ready").await;

    check_exec(&engine, &container).await;
    check_ends_of_exec(&engine, &container).await;
    check_dial(&engine).await;
    let stats = engine.stats(&container).await.expect("readable");
    assert!(
        stats.memory > 0 && stats.pids >= 2 && !stats.cpu.is_zero(),
        "{stats:?}"
    );

    let streams = engine.attach(&container).await.expect("attached");
    let mut stdin = streams.stdin.expect("asked for");
    stdin.write_all(b"typed\n").await.expect("written");
    drop(stdin);
    assert_eq!(read(streams.stdout).await, "typed\n");
    assert_eq!(read(streams.stderr.expect("no terminal")).await, "err\n");
    assert_eq!(code(&exit(&engine, &container).await), 2);
    assert_eq!(house.stdout("c"), "ready\ntyped\n");
    let refused = engine.attach(&container).await;
    assert!(matches!(refused.err(), Some(Error::NotRunning(_))));
    engine.remove_sandbox(&id("a")).await.expect("removed");
    house.left_empty(engine).await;
}

fn request(argv: &str) -> ExecSpec {
    ExecSpec {
        argv: words(argv),
        ..ExecSpec::default()
    }
}

async fn check_exec(engine: &impl Engine, container: &ContainerId) {
    let run = engine
        .exec(
            container,
            ExecSpec {
                stdin: true,
                ..request("cat")
            },
        )
        .await
        .expect("executed");
    let mut stdin = run.streams.stdin.expect("asked for");
    stdin.write_all(b"over and back").await.expect("written");
    stdin.shutdown().await.expect("closed");
    drop(stdin);
    assert_eq!(read(run.streams.stdout).await, "over and back");
    assert_eq!(run.exit.await.expect("told"), 0);

    let spec = ExecSpec {
        user: Some("root".to_owned()),
        working_dir: Some("/etc".to_owned()),
        env: vec![("OWN".to_owned(), "x".to_owned())],
        argv: vec![
            "sh".into(),
            "-c".into(),
            "id -u; pwd; echo $OWN; echo err >&2; exit 5".into(),
        ],
        ..ExecSpec::default()
    };
    let run = engine.exec(container, spec).await.expect("executed");
    assert_eq!(read(run.streams.stdout).await, "0\n/etc\nx\n");
    assert_eq!(
        read(run.streams.stderr.expect("no terminal")).await,
        "err\n"
    );
    assert_eq!(run.exit.await.expect("told"), 5);
}

async fn check_ends_of_exec(engine: &impl Engine, container: &ContainerId) {
    let run = engine
        .exec(container, request("sleep 600"))
        .await
        .expect("executed");
    (run.kill)();
    assert_eq!(run.exit.await.expect("told"), 137);

    let spec = ExecSpec {
        user: Some("eve".to_owned()),
        ..request("true")
    };
    let refused = engine.exec(container, spec).await.err().expect("refused");
    assert!(matches!(refused, Error::Invalid(_)), "{refused}");
    let refused = engine
        .exec(container, request("nope"))
        .await
        .err()
        .expect("refused");
    assert_eq!(
        refused.to_string(),
        "exec: \"nope\": executable file not found in $PATH"
    );
}

async fn check_dial(engine: &impl Engine) {
    let mut stream = engine.dial(&id("a"), 8080).await.expect("connected");
    stream
        .write_all(b"GET /plain HTTP/1.0\r\n\r\n")
        .await
        .expect("written");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("readable");
    assert!(text.ends_with("hello\n"), "{text}");
    let refused = engine
        .dial(&id("a"), 8081)
        .await
        .expect_err("nobody listens");
    assert_eq!(
        refused.to_string(),
        "connect to localhost:8081 of sandbox a: connection refused"
    );
}

/// What is not taken before everything is removed is missing, and that is told.
pub(crate) async fn an_end_that_is_not_the_whole_is_an_error() {
    let house = House::new().await;
    let engine = house.engine().await;
    engine.run_sandbox(&id("a"), pod("a")).await.expect("made");
    let script = "read x; head -c 300000 /dev/zero; echo done >&2; sleep 600";
    let mut spec = house.shell("c", script);
    spec.stdin = true;
    let container = engine.create_container(&id("a"), spec).await.expect("made");
    engine.start_container(&container).await.expect("started");
    let streams = engine.attach(&container).await.expect("attached");
    let mut stdin = streams.stdin.expect("asked for");
    stdin.write_all(b"go\n").await.expect("written");
    let mut error = streams.stderr.expect("no terminal");
    let mut said = [0; 5];
    error.read_exact(&mut said).await.expect("readable");
    assert_eq!(&said, b"done\n");
    engine.remove_sandbox(&id("a")).await.expect("removed");
    let (mut stdout, mut seen) = (streams.stdout, Vec::new());
    let end = stdout.read_to_end(&mut seen).await.expect_err("not all");
    assert!(seen.len() > 100_000);
    assert!(end.to_string().starts_with("output is missing"), "{end}");
    assert!(error.read_to_end(&mut seen).await.is_err());
    house.left_empty(engine).await;
}

pub(crate) async fn terminals() {
    let house = House::new().await;
    let engine = house.engine().await;
    engine.run_sandbox(&id("a"), pod("a")).await.expect("made");
    let mut spec = house.shell("c", "read x; stty size; echo $TERM $x; read y; exit 8");
    (spec.tty, spec.stdin) = (true, true);
    let container = engine.create_container(&id("a"), spec).await.expect("made");
    engine.start_container(&container).await.expect("started");
    let mut streams = engine.attach(&container).await.expect("attached");
    (streams.resize.as_ref().expect("a terminal"))(99, 44);
    let mut stdin = streams.stdin.take().expect("asked for");
    stdin.write_all(b"in\n").await.expect("written");
    house.wait_for("c", "xterm in").await;

    let spec = ExecSpec {
        argv: vec![
            "sh".into(),
            "-c".into(),
            "read x; stty size; tty; exit 4".into(),
        ],
        tty: true,
        stdin: true,
        ..ExecSpec::default()
    };
    let run = engine.exec(&container, spec).await.expect("executed");
    (run.streams.resize.as_ref().expect("a terminal"))(80, 24);
    let mut typing = run.streams.stdin.expect("asked for");
    typing.write_all(b"x\n").await.expect("written");
    assert_eq!(read(run.streams.stdout).await, "x\n24 80\n/dev/pts/1\n");
    assert_eq!(run.exit.await.expect("told"), 4);

    stdin.write_all(b"\n").await.expect("written");
    let seen = read(streams.stdout).await;
    assert!(seen.contains("44 99\nxterm in\n"), "{seen}");
    assert_eq!(code(&exit(&engine, &container).await), 8);
    engine.remove_sandbox(&id("a")).await.expect("removed");
    house.left_empty(engine).await;
}
