//! Logs, attach, terminals and exec.

use std::io::{Read as _, Write as _};

use runtime::{ContainerState, KeeperError, RefusalKind};

use crate::house::{House, code, exec, read_all, read_until};

pub(crate) async fn streams_and_partial_lines() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let script = "printf abc; echo err >&2; printf 'def\\n'; \
                  head -c 40000 /dev/zero | tr '\\0' x; echo; printf tail";
    let spec = house.shell(&sandbox, "c", script);
    assert_eq!(code(&sandbox.run(spec).await), 0);
    let log = sandbox.log("c");
    let of = |stream: &str| -> Vec<String> {
        log.lines()
            .filter_map(|line| line.strip_prefix(stream))
            .map(|line| format!("{} {}", &line[1..2], line.len() - 3))
            .collect()
    };
    assert_eq!(of("stdout"), ["F 6", "P 16384", "P 16384", "F 7232", "P 4"]);
    assert_eq!(of("stderr"), ["F 3"]);
    sandbox.end().await;
    house.left_empty();
}

pub(crate) async fn hundred_thousand_lines() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let spec = house.container(&sandbox, "c", &["seq", "100000"]);
    let begun = std::time::Instant::now();
    assert_eq!(code(&sandbox.run(spec).await), 0);
    println!("  100,000 lines in {:?}", begun.elapsed());
    // Complete at the moment the exit is told.
    let expected: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert!(sandbox.stdout("c") == expected);
    sandbox.end().await;
    house.left_empty();
}

pub(crate) async fn logs_go_on_after_rotation() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let mut spec = house.shell(&sandbox, "c", "cat");
    spec.stdin = true;
    sandbox.start(spec).await;
    let ends = sandbox.keeper.attach("c").await.expect("attached");
    let mut stdin = std::fs::File::from(ends.stdin.expect("asked for"));
    stdin.write_all(b"one\n").expect("written");
    sandbox.wait_for("c", "one").await;
    let log = sandbox.directory.join("log");
    std::fs::rename(log.join("c.log"), log.join("c.log.1")).expect("moved");
    sandbox.keeper.reopen_log("c").await.expect("reopened");
    stdin.write_all(b"two\n").expect("written");
    sandbox.wait_for("c", "two").await;
    assert_eq!(sandbox.log("c"), "stdout F two\n");
    sandbox.keeper.signal("c", 9).await.expect("sent");
    sandbox.exit("c").await;
    sandbox.end().await;
    house.left_empty();
}

pub(crate) async fn a_full_disk_does_not_hold_up_a_container() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let mut spec = house.shell(&sandbox, "c", "seq 20000; exit 3");
    spec.log_path = Some("/dev/full".into());
    assert_eq!(code(&sandbox.run(spec).await), 3);
    let said = std::fs::read_to_string(sandbox.directory.join("keeper.log")).expect("readable");
    assert!(
        said.contains("write the log of c: No space left on device"),
        "{said}"
    );
    sandbox.end().await;
    house.left_empty();
}

pub(crate) async fn attach_loses_nothing_however_slow_the_client() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let script = "read x; echo e$x >&2; seq 200000; echo last >&2; read x; echo o$x";
    let mut spec = house.shell(&sandbox, "c", script);
    spec.stdin = true;
    sandbox.start(spec).await;
    let slow = sandbox.keeper.attach("c").await.expect("attached");
    let fast = sandbox.keeper.attach("c").await.expect("attached");
    let gone = sandbox.keeper.attach("c").await.expect("attached");
    let mut stdin = std::fs::File::from(fast.stdin.expect("asked for"));
    stdin.write_all(b"go\n").expect("written");
    // Until both pipes are full: the container waits.
    let mut asked = [rustix::event::PollFd::new(
        &gone.stdout,
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut asked, None).expect("there is output");
    drop(gone);
    let reading = tokio::spawn(read_all(fast.stdout));
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    let seen = read_until(slow.stdout.try_clone().expect("copied"), "\n1000\n").await;
    assert!(expected.starts_with(&seen) && !sandbox.log("c").contains("last"));
    let rest = tokio::spawn(read_all(slow.stdout));
    sandbox.wait_for("c", "200000").await;
    stdin.write_all(b"on\n").expect("written");
    assert_eq!(code(&sandbox.exit("c").await), 0);
    let whole = format!("{expected}oon\n");
    assert!(reading.await.expect("no panic") == whole);
    assert!(seen + &rest.await.expect("no panic") == whole);
    for (error, verdict) in [(fast.stderr, fast.verdict), (slow.stderr, slow.verdict)] {
        assert_eq!(read_all(error.expect("three streams")).await, "ego\nlast\n");
        assert_eq!(read_all(verdict.expect("told")).await, "k");
    }
    sandbox.end().await;
    house.left_empty();
}

/// What somebody has not taken when all of it ends is lost, but not in secret.
pub(crate) async fn attach_to_a_sandbox_that_is_ended_says_that_something_is_missing() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    // More than fits into the pipe to a client; the rest fits into the one from the container.
    let script = "read x; head -c 300000 /dev/zero; echo done >&2; sleep 600";
    let mut spec = house.shell(&sandbox, "c", script);
    spec.stdin = true;
    sandbox.start(spec).await;
    let ends = sandbox.keeper.attach("c").await.expect("attached");
    let mut stdin = std::fs::File::from(ends.stdin.expect("asked for"));
    stdin.write_all(b"go\n").expect("written");
    let error = ends.stderr.expect("three streams");
    assert_eq!(read_until(error, "done\n").await, "done\n");
    sandbox.keeper.end().await.expect("ended");
    assert_eq!(code(&sandbox.exit("c").await), 137);
    let seen = read_all(ends.stdout).await.len();
    assert!((100_000..300_000).contains(&seen), "{seen}");
    assert_eq!(read_all(ends.verdict.expect("told")).await, "");
    house.left_empty();
}

pub(crate) async fn standard_input() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    // Without: /dev/null.
    let spec = house.shell(&sandbox, "none", "cat; echo end");
    sandbox.run(spec).await;
    assert_eq!(sandbox.log("none"), "stdout F end\n");
    // Once: the end of the first attach is the end of input.
    let mut spec = house.shell(&sandbox, "once", "cat; echo end");
    (spec.stdin, spec.stdin_once) = (true, true);
    sandbox.start(spec).await;
    let ends = sandbox.keeper.attach("once").await.expect("attached");
    let again = sandbox.keeper.attach("once").await.expect("attached");
    assert!(again.stdin.is_none());
    let mut stdin = std::fs::File::from(ends.stdin.expect("asked for"));
    stdin.write_all(b"in\n").expect("written");
    drop(stdin);
    sandbox.exit("once").await;
    assert_eq!(sandbox.log("once"), "stdout F in\nstdout F end\n");
    sandbox.end().await;
    house.left_empty();
}

pub(crate) async fn a_terminal() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let script = "tty; test -t 0 && test -t 2 && echo terminal; read x; stty size; ls -l /dev/console | cut -c1; exit 4";
    let mut spec = house.shell(&sandbox, "c", script);
    (spec.tty, spec.stdin) = (true, true);
    sandbox.start(spec).await;
    let ends = sandbox.keeper.attach("c").await.expect("attached");
    assert!(ends.tty && ends.stderr.is_none());
    let mut terminal = std::fs::File::from(ends.stdin.expect("a terminal takes input"));
    let size = rustix::termios::Winsize {
        ws_row: 33,
        ws_col: 101,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&terminal, size).expect("resized");
    // The terminal itself repeats what is typed, so not before.
    sandbox.wait_for("c", "terminal").await;
    terminal.write_all(b"go\n").expect("written");
    assert_eq!(code(&sandbox.exit("c").await), 4);
    let log = sandbox.stdout("c").replace('\r', "");
    assert!(log.starts_with("/dev/pts/0\nterminal\n"), "{log:?}");
    assert!(log.ends_with("33 101\nc\n"), "{log:?}");
    sandbox.end().await;
    house.left_empty();
}

pub(crate) async fn exec_streams_and_exit_codes() {
    let house = House::new();
    let sandbox = house.sandbox("a").await;
    let mut spec = house.container(&sandbox, "c", &["sleep", "600"]);
    spec.env.push("FROM=container".to_owned());
    spec.working_dir = "/tmp".to_owned();
    sandbox.start(spec).await;

    let mut spec = exec(&[
        "sh",
        "-c",
        "cat; echo $FROM $OWN $PWD; echo err >&2; exit 9",
    ]);
    (spec.stdin, spec.env) = (true, vec!["OWN=1".to_owned()]);
    let run = sandbox.keeper.exec("c", spec).await.expect("executed");
    let mut stdin = std::fs::File::from(run.streams.stdin.expect("asked for"));
    stdin.write_all(b"typed\n").expect("written");
    drop(stdin);
    assert_eq!(
        read_all(run.streams.stdout).await,
        "typed\ncontainer 1 /tmp\n"
    );
    assert_eq!(
        read_all(run.streams.stderr.expect("no terminal")).await,
        "err\n"
    );
    assert_eq!(run.exit.await, Ok(9));

    let run = sandbox
        .keeper
        .exec("c", exec(&["sleep", "600"]))
        .await
        .expect("executed");
    sandbox
        .keeper
        .signal_exec(run.number, 9)
        .await
        .expect("sent");
    assert_eq!(run.exit.await, Ok(137));

    // At once, and none mistaken for another.
    let many = futures::future::join_all((0..20).map(|number| {
        let keeper = sandbox.keeper.clone();
        async move {
            let script = format!("exit {number}");
            let run = keeper
                .exec("c", exec(&["sh", "-c", &script]))
                .await
                .expect("executed");
            run.exit.await.expect("told")
        }
    }))
    .await;
    assert_eq!(many, (0..20).collect::<Vec<_>>());

    // It lives in the container's cgroup, and ends with the container.
    let run = sandbox
        .keeper
        .exec("c", exec(&["sleep", "600"]))
        .await
        .expect("executed");
    sandbox.keeper.signal("c", 9).await.expect("sent");
    assert_eq!(run.exit.await, Ok(137));
    sandbox.end().await;
    house.left_empty();
}

/// Kubernetes allows every name of printable characters but `=`. Many a shell drops those that it has
/// no variable for, so the first program is asked, and none is in between.
pub(crate) async fn variables_of_any_name() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    let odd = ["data-1=one", "data.2=two", "of any: kind=a=b", "=x", "1=2"];
    let mut spec = house.container(&sandbox, "c", &["cat", "/proc/self/environ"]);
    spec.env.extend(odd.map(str::to_owned));
    let expected: String = spec.env.iter().map(|one| format!("{one}\0")).collect();
    assert_eq!(code(&sandbox.run(spec).await), 0);
    // Without a line's end: it is a part of one.
    assert_eq!(sandbox.log("c"), format!("stdout P {expected}\n"));

    let mut spec = house.container(&sandbox, "d", &["sleep", "600"]);
    spec.env = vec!["PATH=/bin".to_owned(), "data-1=container".to_owned()];
    sandbox.start(spec).await;
    let mut spec = exec(&["cat", "/proc/self/environ"]);
    spec.env = odd.map(str::to_owned).to_vec();
    let run = sandbox.keeper.exec("d", spec).await.expect("executed");
    let odd: String = odd.iter().map(|one| format!("{one}\0")).collect();
    assert_eq!(
        read_all(run.streams.stdout).await,
        format!("PATH=/bin\0{odd}")
    );
    sandbox.end().await;
    house.left_empty();
}

pub(crate) async fn exec_in_a_terminal() {
    let house = House::new();
    let sandbox = house.sandbox("a").await;
    sandbox
        .start(house.container(&sandbox, "c", &["sleep", "600"]))
        .await;
    let mut spec = exec(&["sh", "-c", "tty; read x; echo got $x; stty size"]);
    (spec.tty, spec.stdin) = (true, true);
    let run = sandbox.keeper.exec("c", spec).await.expect("executed");
    assert!(run.streams.tty && run.streams.stderr.is_none());
    let mut terminal = std::fs::File::from(run.streams.stdout);
    let mut first = [0; 10];
    terminal.read_exact(&mut first).expect("readable");
    assert_eq!(&first, b"/dev/pts/0");
    let size = rustix::termios::Winsize {
        ws_row: 7,
        ws_col: 77,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&terminal, size).expect("resized");
    terminal.write_all(b"x\n").expect("written");
    let rest = read_all(terminal.into()).await.replace('\r', "");
    assert_eq!(rest, "\nx\ngot x\n7 77\n");
    assert_eq!(run.exit.await, Ok(0));
    sandbox.end().await;
    house.left_empty();
}

pub(crate) async fn exec_that_cannot_be_executed() {
    let house = House::new();
    let mut sandbox = house.sandbox("a").await;
    sandbox
        .start(house.container(&sandbox, "c", &["sleep", "600"]))
        .await;
    for (argv, directory, expected) in [
        (
            "foo",
            None,
            "exec: \"foo\": executable file not found in $PATH",
        ),
        (
            "/data/plain",
            None,
            "exec: \"/data/plain\": permission denied",
        ),
        (
            "pwd",
            Some("/nowhere"),
            "chdir to cwd (\"/nowhere\") set in config.json failed: no such file or directory",
        ),
    ] {
        let mut spec = exec(&[argv]);
        spec.working_dir = directory.map(str::to_owned);
        match sandbox.keeper.exec("c", spec).await {
            Err(KeeperError::Refused(refusal)) => {
                assert_eq!(
                    (refusal.kind, refusal.message.as_str()),
                    (RefusalKind::Command, expected)
                );
            }
            other => panic!("{other:?}"),
        }
    }
    let run = sandbox
        .keeper
        .exec("c", exec(&["/data/junk"]))
        .await
        .expect("executed");
    let error = read_all(run.streams.stderr.expect("no terminal")).await;
    assert_eq!(error, "exec /data/junk: exec format error\n");
    assert_eq!(run.exit.await, Ok(1));

    sandbox.keeper.signal("c", 9).await.expect("sent");
    let state = sandbox.exit("c").await;
    assert!(matches!(
        state,
        ContainerState::Exited {
            signal: Some(9),
            ..
        }
    ));
    match sandbox.keeper.exec("c", exec(&["true"])).await {
        Err(KeeperError::Refused(refusal)) => assert_eq!(refusal.kind, RefusalKind::WrongState),
        other => panic!("{other:?}"),
    }
    sandbox.end().await;
    house.left_empty();
}
