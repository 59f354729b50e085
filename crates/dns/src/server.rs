//! Listening, on UDP and TCP.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Header, HeaderCounts, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};

use crate::upstream::{Said, Upstream};
use crate::zone::{Reply, Zone};

/// A TCP connection on which nothing is asked for this long is closed.
const TIMEOUT_TCP: Duration = Duration::from_secs(5);
/// Answers that wait to be written to one TCP connection.
const TCP_RESPONSES: usize = 16;
/// Limits of what a UDP answer may take; between them the client decides (RFC 6891, 6.2.5).
const UDP_BYTES: std::ops::RangeInclusive<u16> = 512..=4096;

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for DNS on {address} ({protocol}): {source}{}", hint(.source))]
pub struct BindError {
    /// Where.
    pub address: SocketAddr,
    /// `UDP` or `TCP`.
    pub protocol: &'static str,
    /// Why not.
    pub source: io::Error,
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            "; another name server listens there (see `ss -lntup`): stop it or choose another address"
        }
        io::ErrorKind::PermissionDenied => "; ports below 1024 need root",
        io::ErrorKind::AddrNotAvailable => "; the address is not on this machine",
        _ => "",
    }
}

/// A name server that listens. Dropping it ends it.
pub struct Server {
    inner: hickory_server::Server<Answering>,
    addresses: Vec<SocketAddr>,
}

impl Server {
    /// Listens at these addresses, on UDP and TCP. With port 0, both take the same free port.
    pub async fn bind(
        addresses: &[SocketAddr],
        zone: Zone,
        upstream: Upstream,
    ) -> Result<Server, BindError> {
        let mut inner = hickory_server::Server::new(Answering {
            zone,
            upstream,
            turn: AtomicUsize::new(0),
        });
        let mut bound = Vec::new();
        for address in addresses {
            let failed = |protocol| {
                move |source| BindError {
                    address: *address,
                    protocol,
                    source,
                }
            };
            let listener = TcpListener::bind(address).await.map_err(failed("TCP"))?;
            let address = listener.local_addr().map_err(failed("TCP"))?;
            let socket = UdpSocket::bind(address).await.map_err(failed("UDP"))?;
            inner.register_socket(socket);
            inner.register_listener(listener, TIMEOUT_TCP, TCP_RESPONSES);
            bound.push(address);
        }
        Ok(Server {
            inner,
            addresses: bound,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops listening; answers that are being made are not waited for.
    pub async fn close(mut self) {
        if let Err(error) = self.inner.shutdown_gracefully().await {
            tracing::debug!(%error, "the name server ended with an error");
        }
    }
}

struct Answering {
    zone: Zone,
    upstream: Upstream,
    turn: AtomicUsize,
}

/// An answer before it is written.
struct Answer {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Answer {
    fn only(code: ResponseCode) -> Answer {
        Answer {
            code,
            authoritative: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }
}

impl From<Said> for Answer {
    fn from(said: Said) -> Answer {
        Answer {
            answers: said.answers,
            authorities: said.authorities,
            ..Answer::only(said.code)
        }
    }
}

impl Answering {
    async fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let ours = |code| Answer {
            authoritative: true,
            ..Answer::only(code)
        };
        match self.zone.ask(name, kind, turn) {
            Reply::Records {
                answers,
                additionals,
                elsewhere: None,
            } => Answer {
                answers,
                additionals,
                ..ours(ResponseCode::NoError)
            },
            Reply::Records {
                mut answers,
                elsewhere: Some(target),
                ..
            } => {
                // Clients do not follow aliases themselves: the answer is whole or a failure.
                let said = self.upstream.ask(target, kind).await;
                answers.extend(said.answers);
                let answer = Answer {
                    answers,
                    authorities: said.authorities,
                    ..ours(said.code)
                };
                Answer {
                    authoritative: false,
                    ..answer
                }
            }
            Reply::NoData(authority) => Answer {
                authorities: vec![*authority],
                ..ours(ResponseCode::NoError)
            },
            Reply::NoName(authority) => Answer {
                authorities: vec![*authority],
                ..ours(ResponseCode::NXDomain)
            },
            Reply::Elsewhere => self.upstream.ask(name.clone(), kind).await.into(),
        }
    }

    async fn answer_request(&self, request: &Request) -> Answer {
        if request.metadata.op_code != OpCode::Query {
            return Answer::only(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else {
            return Answer::only(ResponseCode::FormErr);
        };
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Answer::only(ResponseCode::BADVERS);
        }
        let query = info.query;
        let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
        if query.query_class() != DNSClass::IN || transfer {
            return Answer::only(ResponseCode::Refused);
        }
        // The name goes back as it was written, upper case and all.
        self.answer(query.original().name(), query.query_type())
            .await
    }
}

#[async_trait::async_trait]
impl RequestHandler for Answering {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let answer = self.answer_request(request).await;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = answer.code;
        metadata.authoritative = answer.authoritative;
        metadata.recursion_available = true;
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            let bytes = asked
                .max_payload()
                .clamp(*UDP_BYTES.start(), *UDP_BYTES.end());
            edns.set_max_payload(bytes);
            edns
        });
        let builder = MessageResponseBuilder::new(&request.queries, edns.as_ref());
        let response = builder.build(
            metadata,
            answer.answers.iter(),
            answer.authorities.iter(),
            [],
            answer.additionals.iter(),
        );
        match response_handle.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, client = %request.src(), "cannot send an answer");
                ResponseInfo::from(Header {
                    metadata,
                    counts: HeaderCounts::default(),
                })
            }
        }
    }
}
