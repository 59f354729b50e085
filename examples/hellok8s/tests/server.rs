//! The program as a container runs it: a process, its port, a signal. One test, because the port is
//! always the same.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ask(stream: &mut TcpStream, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("the server reads");
    let mut reader = BufReader::new(stream);
    let (mut answer, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("an answer");
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().expect("a number");
        }
        answer.push_str(&line);
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the body");
    answer + &String::from_utf8(body).expect("text")
}

#[test]
fn a_server_that_is_asked_to_end_fails_nobody() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hellok8s"))
        .arg("v3")
        .env("URL", "http://db")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut running = Running(child);
    let mut line = String::new();
    output.read_line(&mut line).expect("its first line");
    assert_eq!(line, "hellok8s v3 listens on port 3000\n");
    let connect = || TcpStream::connect("127.0.0.1:3000").expect("the server");
    let (mut busy, mut idle) = (connect(), connect());
    let answer = ask(&mut busy, "/");
    assert!(
        answer.ends_with("Get Database Connect URL: http://db\n"),
        "{answer}"
    );
    assert!(!answer.contains("Connection: close"), "{answer}");
    ask(&mut idle, "/");

    let pid = running.0.id().to_string();
    let sent = Command::new("kill").args(["-TERM", &pid]).status();
    assert!(sent.expect("kill").success());
    line.clear();
    output.read_line(&mut line).expect("its last line");
    assert_eq!(line, "SIGTERM: finishing what was begun\n");
    // A connection from before, and one that comes now, are both served, and told to leave.
    for stream in [&mut busy, &mut connect()] {
        let answer = ask(stream, "/");
        assert!(answer.contains("Connection: close\r\n"), "{answer}");
        assert!(answer.contains("200 OK"), "{answer}");
        assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
    }
    drop(busy);
    assert_eq!(idle.read(&mut [0]).expect("the end"), 0);
    drop(idle);
    assert_eq!(running.0.wait().expect("it ends").code(), Some(0));
}
