//! As much of HTTP/1.1 (RFC 9112) as a server of short texts needs: requests one after the other on
//! a connection, bodies stepped over, no surprises for a proxy in front.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Request line and headers.
const HEAD_MAX: usize = 16 << 10;
/// A body that is stepped over; a longer one ends the connection.
const BODY_MAX: u64 = 1 << 20;
/// How long a client may take to send a request that it has begun, or to take an answer.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How long a connection may be idle.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// How long a client may take to close, after it got its last answer.
const LINGER_TIME: Duration = Duration::from_secs(1);

/// What is answered.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn new(status: u16, body: String) -> Response {
        Response { status, body }
    }
}

/// What is asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Without the query.
    pub(crate) path: String,
    /// Only headers are wanted.
    pub(crate) head: bool,
    /// The client sends nothing after this.
    pub(crate) close: bool,
    /// Of the body.
    length: u64,
    /// The client waits for a word before it sends the body.
    expects: bool,
}

/// What a connection brings.
pub(crate) enum Next {
    Request(Request),
    /// No request that can be answered; the status says why, and the connection ends.
    Refuse(u16),
    /// Nothing more comes.
    End,
}

/// One client.
pub(crate) struct Connection {
    stream: TcpStream,
    /// Read, but not yet used.
    pending: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(REQUEST_TIME))?;
        Ok(Connection {
            stream,
            pending: Vec::new(),
        })
    }

    /// Waits for the next request.
    pub(crate) fn next(&mut self) -> io::Result<Next> {
        let mut begun = !self.pending.is_empty();
        let time = if begun { REQUEST_TIME } else { IDLE_TIME };
        let mut deadline = Instant::now() + time;
        loop {
            if let Some(end) = head_end(&self.pending) {
                let head: Vec<u8> = self.pending.drain(..end).collect();
                return match parse(&head) {
                    Ok(request) => self.with_body(request),
                    Err(status) => Ok(Next::Refuse(status)),
                };
            }
            if self.pending.len() > HEAD_MAX {
                return Ok(Next::Refuse(431));
            }
            match self.read_more(deadline)? {
                Some(0) => return Ok(Next::End),
                Some(_) if begun => {}
                Some(_) => {
                    begun = true;
                    deadline = Instant::now() + REQUEST_TIME;
                }
                None if begun => return Ok(Next::Refuse(408)),
                None => return Ok(Next::End),
            }
        }
    }

    /// Answers. With `close`, waits for the client to close, so that it gets all of the answer.
    pub(crate) fn answer(
        &mut self,
        response: &Response,
        close: bool,
        head: bool,
    ) -> io::Result<()> {
        let reason = match response.status {
            200 => "OK",
            400 => "Bad Request",
            408 => "Request Timeout",
            413 => "Content Too Large",
            431 => "Request Header Fields Too Large",
            501 => "Not Implemented",
            505 => "HTTP Version Not Supported",
            _ => "Internal Server Error",
        };
        let connection = if close { "Connection: close\r\n" } else { "" };
        let mut text = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n{connection}\r\n",
            response.status,
            response.body.len(),
        );
        if !head {
            text.push_str(&response.body);
        }
        self.stream.write_all(text.as_bytes())?;
        if close {
            self.linger()?;
        }
        Ok(())
    }

    /// Steps over the body.
    fn with_body(&mut self, request: Request) -> io::Result<Next> {
        if request.length > BODY_MAX {
            return Ok(Next::Refuse(413));
        }
        if request.expects && request.length > 0 {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let deadline = Instant::now() + REQUEST_TIME;
        let mut left = usize::try_from(request.length).expect("a body is short");
        loop {
            let here = left.min(self.pending.len());
            self.pending.drain(..here);
            left -= here;
            if left == 0 {
                return Ok(Next::Request(request));
            }
            match self.read_more(deadline)? {
                Some(0) => return Ok(Next::End),
                Some(_) => {}
                None => return Ok(Next::Refuse(408)),
            }
        }
    }

    /// Reads what there is, as soon as there is something; 0 bytes are the end, `None` is the
    /// deadline.
    fn read_more(&mut self, deadline: Instant) -> io::Result<Option<usize>> {
        let mut buffer = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buffer) {
                Ok(read) => {
                    self.pending.extend_from_slice(&buffer[..read]);
                    return Ok(Some(read));
                }
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Closing while the client still sends would throw away what it has not read yet.
    fn linger(&mut self) -> io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write)?;
        let deadline = Instant::now() + LINGER_TIME;
        while self.read_more(deadline)?.is_some_and(|read| read > 0) {
            self.pending.clear();
        }
        Ok(())
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some(end + 4)
}

/// Reads request line and headers; the status of the refusal if they are not right.
fn parse(head: &[u8]) -> Result<Request, u16> {
    let text = std::str::from_utf8(head).map_err(|_| 400_u16)?;
    let mut lines = text.split("\r\n").skip_while(|line| line.is_empty());
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(400);
    };
    let old = match version {
        "HTTP/1.1" => false,
        "HTTP/1.0" => true,
        _ if version.starts_with("HTTP/") => return Err(505),
        _ => return Err(400),
    };
    let mut request = Request {
        path: path_of(target)?,
        head: method == "HEAD",
        close: old,
        length: 0,
        expects: false,
    };
    let mut length_before = None;
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or(400_u16)?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let length = value.parse().map_err(|_| 400_u16)?;
                // Two lengths: somebody in between may have believed the other one.
                if length_before.is_some_and(|before| before != length) {
                    return Err(400);
                }
                length_before = Some(length);
                request.length = length;
            }
            // A body whose end is not known here would be taken for the next request.
            "transfer-encoding" => return Err(501),
            "connection" => {
                for word in value.split(',').map(str::trim) {
                    request.close |= word.eq_ignore_ascii_case("close");
                }
            }
            "expect" => request.expects = value.eq_ignore_ascii_case("100-continue"),
            _ => {}
        }
    }
    Ok(request)
}

/// `/a?b` → `/a`; also from the absolute form that proxies use.
fn path_of(target: &str) -> Result<String, u16> {
    let target = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    let path = target.split(['?', '#']).next().unwrap_or_default();
    if path.starts_with('/') || path == "*" {
        return Ok(path.to_owned());
    }
    Err(400)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn requests_are_read_or_refused() {
        #[track_caller]
        fn check(head: &str, expected: Result<(&str, bool, u64), u16>) {
            let found = parse(head.as_bytes());
            let found = found
                .as_ref()
                .map(|request| (request.path.as_str(), request.close, request.length));
            assert_eq!(found, expected.as_ref().map(|found| *found), "{head:?}");
        }
        check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok(("/", false, 0)));
        check(
            "GET /healthz?x=1 HTTP/1.1\r\n\r\n",
            Ok(("/healthz", false, 0)),
        );
        check("GET http://a:1/b HTTP/1.1\r\n\r\n", Ok(("/b", false, 0)));
        check("GET http://a HTTP/1.1\r\n\r\n", Ok(("/", false, 0)));
        check("GET / HTTP/1.0\r\n\r\n", Ok(("/", true, 0)));
        check(
            "GET / HTTP/1.1\r\nConnection: x, Close\r\n\r\n",
            Ok(("/", true, 0)),
        );
        check(
            "POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\n",
            Ok(("/", false, 5)),
        );
        check("\r\nGET / HTTP/1.1\r\n\r\n", Ok(("/", false, 0)));
        check("GET /\r\n\r\n", Err(400));
        check("GET / HTTP/1.1 x\r\n\r\n", Err(400));
        check("GET x HTTP/1.1\r\n\r\n", Err(400));
        check("GET / HTTP/2.0\r\n\r\n", Err(505));
        check("GET / HTTP/1.1\r\nnonsense\r\n\r\n", Err(400));
        check("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", Err(400));
        check(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            Err(501),
        );
    }

    /// Serves one connection, as long as it lasts, and gives back what the client got.
    fn talk(requests: &[u8], leaving: bool) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            let mut connection = Connection::new(stream).expect("a connection");
            loop {
                match connection.next().expect("a live client") {
                    Next::Request(request) => {
                        let response = Response::new(200, request.path.clone());
                        let close = request.close || leaving;
                        connection
                            .answer(&response, close, request.head)
                            .expect("a live client");
                        if close {
                            return;
                        }
                    }
                    Next::Refuse(status) => {
                        let response = Response::new(status, String::new());
                        connection
                            .answer(&response, true, false)
                            .expect("a live client");
                        return;
                    }
                    Next::End => return,
                }
            }
        });
        let mut client = TcpStream::connect(address).expect("the server");
        client.write_all(requests).expect("the server reads");
        if !leaving {
            client
                .shutdown(std::net::Shutdown::Write)
                .expect("the server is there");
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        server.join().expect("the server ends");
        answer
    }

    #[test]
    fn requests_follow_each_other_on_a_connection() {
        let answer = talk(
            b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nxyzHEAD /b HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\n\r\n",
            false,
        );
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3, "{answer}");
        assert!(
            answer.contains("\r\n\r\n/a") && answer.ends_with("\r\n\r\n/c"),
            "{answer}"
        );
        assert!(!answer.contains("\r\n\r\n/b"), "{answer}");
        assert!(!answer.contains("close"), "{answer}");
    }

    #[test]
    fn a_server_that_leaves_says_so_and_closes() {
        let answer = talk(b"GET /a HTTP/1.1\r\n\r\n", true);
        assert!(
            answer.contains("Connection: close\r\n") && answer.ends_with("/a"),
            "{answer}"
        );
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let long = [&b"GET / HTTP/1.1\r\nX: "[..], &vec![b'x'; HEAD_MAX]].concat();
        assert!(talk(&long, false).starts_with("HTTP/1.1 431 "));
        let body = b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n";
        assert!(talk(body, false).starts_with("HTTP/1.1 413 "));
    }
}
