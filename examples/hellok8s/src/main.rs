//! The web server of a Kubernetes tutorial: `hellok8s v1|v2|v3|liveness|bad`, on port 3000.
//!
//! One program plays all the versions of the tutorial, so that one file is enough for all images;
//! which one it is stands in the image's entrypoint. It runs as process 1 of a container FROM
//! scratch, and shows what a server owes its cluster: on SIGTERM it goes on serving until nobody is
//! sent here any more, finishes the requests that it has, and exits with 0.

mod connections;
mod http;
mod signal;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use connections::Connections;
use http::{Connection, Next, Response};

const PORT: u16 = 3000;
/// How long the version `liveness` is well.
const WELL_FOR: Duration = Duration::from_secs(15);
/// How long new connections are still taken after SIGTERM: other machines hear later than we do
/// that this one goes.
const LINGER: Duration = Duration::from_millis(1500);
/// How long requests that were begun may take after that.
const DRAIN: Duration = Duration::from_secs(5);
/// A thread reads a request and writes an answer: it needs no more.
const STACK: usize = 64 << 10;

/// A version of the tutorial's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
    V3,
    Liveness,
    Bad,
}

impl Version {
    fn from_word(word: &str) -> Option<Version> {
        Some(match word {
            "v1" => Version::V1,
            "v2" => Version::V2,
            "v3" => Version::V3,
            "liveness" => Version::Liveness,
            "bad" => Version::Bad,
            _ => return None,
        })
    }
}

/// What the answers are made of.
#[derive(Debug)]
struct Hello {
    version: Version,
    host: String,
    /// Of the database of the tutorial's version 3.
    url: String,
    started: Instant,
}

impl Hello {
    fn answer(&self, path: &str) -> Response {
        match (path, self.version) {
            ("/healthz", Version::Liveness) => self.health(self.started.elapsed()),
            ("/healthz", Version::Bad) => Response::new(500, String::new()),
            ("/healthz", _) => Response::new(200, "ok\n".to_owned()),
            _ => Response::new(200, self.greeting()),
        }
    }

    fn health(&self, age: Duration) -> Response {
        if age > WELL_FOR {
            return Response::new(500, format!("error: {:.6}s\n", age.as_secs_f64()));
        }
        Response::new(200, "ok\n".to_owned())
    }

    fn greeting(&self) -> String {
        let (host, url) = (&self.host, &self.url);
        match self.version {
            Version::V1 | Version::Liveness | Version::Bad => {
                "[v1] Hello, Kubernetes!\n".to_owned()
            }
            Version::V2 => format!("[v2] Hello, Kubernetes!, From host: {host}\n"),
            Version::V3 => format!(
                "[v3] Hello, Kubernetes!, From host: {host}, Get Database Connect URL: {url}\n"
            ),
        }
    }
}

/// What all connections share.
struct Server {
    hello: Hello,
    /// Answers say `Connection: close` from now on.
    leaving: AtomicBool,
    connections: Connections,
}

fn main() {
    let word = std::env::args().nth(1).unwrap_or_default();
    let Some(version) = Version::from_word(&word) else {
        eprintln!("usage: hellok8s v1|v2|v3|liveness|bad");
        std::process::exit(2);
    };
    // Before any thread is there, so that none of them gets the signal.
    signal::hold_back();
    let server = Arc::new(Server {
        hello: Hello {
            version,
            host: host_name(),
            url: std::env::var("URL").unwrap_or_default(),
            started: Instant::now(),
        },
        leaving: AtomicBool::new(false),
        connections: Connections::default(),
    });
    let listener = match TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], PORT))) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("cannot listen on port {PORT}: {error}");
            std::process::exit(1);
        }
    };
    println!("hellok8s {word} listens on port {PORT}");
    let accepting = server.clone();
    thread::spawn(move || accept(&accepting, &listener));
    let name = signal::wait();
    println!("{name}: finishing what was begun");
    server.leaving.store(true, Ordering::SeqCst);
    thread::sleep(LINGER);
    server.connections.end_idle();
    server.connections.wait_until_none(DRAIN);
}

/// Takes connections for as long as the process lives.
fn accept(server: &Arc<Server>, listener: &TcpListener) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, or the client is gone again: neither lasts.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    eprintln!("accept: {error}");
                    thread::sleep(Duration::from_millis(10));
                }
                continue;
            }
        };
        let Ok(guest) = server.connections.enter(&stream) else {
            continue;
        };
        let serving = server.clone();
        let spawned = thread::Builder::new().stack_size(STACK).spawn(move || {
            serve(&serving, stream);
            serving.connections.leave(guest);
        });
        if let Err(error) = spawned {
            server.connections.leave(guest);
            eprintln!("thread: {error}");
        }
    }
}

/// Answers the requests of one connection, until either side is done with it.
fn serve(server: &Server, stream: TcpStream) {
    let Ok(mut connection) = Connection::new(stream) else {
        return;
    };
    loop {
        let request = match connection.next() {
            Ok(Next::Request(request)) => request,
            Ok(Next::Refuse(status)) => {
                let _ = connection.answer(&Response::new(status, String::new()), true, false);
                return;
            }
            Ok(Next::End) | Err(_) => return,
        };
        let response = server.hello.answer(&request.path);
        let close = request.close || server.leaving.load(Ordering::SeqCst);
        if connection.answer(&response, close, request.head).is_err() || close {
            return;
        }
    }
}

fn host_name() -> String {
    match std::fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(name) => name.trim_end().to_owned(),
        Err(_) => std::env::var("HOSTNAME").unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(version: &str) -> Hello {
        Hello {
            version: Version::from_word(version).expect("a version"),
            host: "pod-1".to_owned(),
            url: "http://db:3306".to_owned(),
            started: Instant::now(),
        }
    }

    #[test]
    fn each_version_says_its_own() {
        #[track_caller]
        fn check(version: &str, path: &str, status: u16, body: &str) {
            let response = hello(version).answer(path);
            assert_eq!((response.status, response.body.as_str()), (status, body));
        }
        check("v1", "/", 200, "[v1] Hello, Kubernetes!\n");
        check(
            "v2",
            "/",
            200,
            "[v2] Hello, Kubernetes!, From host: pod-1\n",
        );
        check(
            "v3",
            "/any",
            200,
            "[v3] Hello, Kubernetes!, From host: pod-1, Get Database Connect URL: http://db:3306\n",
        );
        check("liveness", "/", 200, "[v1] Hello, Kubernetes!\n");
        check("liveness", "/healthz", 200, "ok\n");
        check("bad", "/healthz", 500, "");
        check("v1", "/healthz", 200, "ok\n");
        assert_eq!(Version::from_word("v4"), None);
    }

    #[test]
    fn liveness_ends_after_a_while() {
        let hello = hello("liveness");
        assert_eq!(hello.health(Duration::from_secs(15)).status, 200);
        let ill = hello.health(Duration::from_millis(15_500));
        assert_eq!(
            (ill.status, ill.body.as_str()),
            (500, "error: 15.500000s\n")
        );
    }
}
