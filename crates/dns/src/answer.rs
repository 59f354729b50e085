//! From a message to the message that answers it.

use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};

use crate::upstream::{Said, Upstream};
use crate::zone::{Reply, Zone};

/// Limits of what a UDP answer may take; between them the client decides (RFC 6891, 6.2.5). Who says
/// nothing gets the smallest (RFC 1035, 4.2.1).
const UDP_BYTES_MIN: u16 = 512;
const UDP_BYTES_MAX: u16 = 4096;
/// The fixed part of every message.
const HEADER_BYTES: usize = 12;

/// Zone and resolvers, as a whole that answers.
pub(crate) struct Answering {
    zone: Zone,
    upstream: Upstream,
    turn: AtomicUsize,
}

/// What can be said of a message at once.
pub(crate) enum First {
    /// This is the answer.
    Answer(Box<Message>),
    /// Resolvers must be asked.
    Ask(Box<Outside>),
    /// Nothing may be said: it is no question.
    Nothing,
}

/// A question for resolvers, and what the zone has to say to it already.
pub(crate) struct Outside {
    answer: Message,
    name: Name,
    kind: RecordType,
}

impl Answering {
    pub(crate) fn new(zone: Zone, upstream: Upstream) -> Answering {
        Answering {
            zone,
            upstream,
            turn: AtomicUsize::new(0),
        }
    }

    /// Reads a message and answers it, as far as that goes without asking others.
    pub(crate) fn first(&self, bytes: &[u8]) -> First {
        let asked = match Message::from_vec(bytes) {
            Ok(asked) => asked,
            Err(_) => return malformed(bytes),
        };
        if asked.metadata.message_type == MessageType::Response {
            return First::Nothing;
        }
        let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
        answer.metadata.recursion_desired = asked.metadata.recursion_desired;
        answer.metadata.checking_disabled = asked.metadata.checking_disabled;
        answer.metadata.recursion_available = true;
        if let Some(theirs) = &asked.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(theirs.max_payload().clamp(UDP_BYTES_MIN, UDP_BYTES_MAX));
            answer.set_edns(edns);
        }
        let refused = refusal(&asked);
        // The question goes back as it was written, upper case and all: clients may check it.
        answer.add_queries(asked.queries);
        match (refused, answer.queries.first()) {
            (Some(code), _) => answer.metadata.response_code = code,
            (None, None) => answer.metadata.response_code = ResponseCode::FormErr,
            (None, Some(query)) => {
                let (name, kind) = (query.name().clone(), query.query_type());
                return self.look_up(answer, name, kind);
            }
        }
        First::Answer(Box::new(answer))
    }

    fn look_up(&self, mut answer: Message, name: Name, kind: RecordType) -> First {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        match self.zone.ask(&name, kind, turn) {
            Reply::Elsewhere => return First::Ask(Box::new(Outside { answer, name, kind })),
            Reply::Records {
                answers,
                elsewhere: Some(target),
                ..
            } => {
                // Clients do not follow aliases themselves: the answer is whole or a failure.
                answer.add_answers(answers);
                return First::Ask(Box::new(Outside {
                    answer,
                    name: target,
                    kind,
                }));
            }
            Reply::Records {
                answers,
                additionals,
                elsewhere: None,
            } => {
                answer.add_answers(answers);
                answer.add_additionals(additionals);
            }
            Reply::NoData(authority) => {
                answer.add_authority(*authority);
            }
            Reply::NoName(authority) => {
                answer.metadata.response_code = ResponseCode::NXDomain;
                answer.add_authority(*authority);
            }
        }
        answer.metadata.authoritative = true;
        First::Answer(Box::new(answer))
    }

    /// Completes an answer by asking resolvers.
    pub(crate) async fn complete(&self, outside: Outside) -> Message {
        let Outside {
            mut answer,
            name,
            kind,
        } = outside;
        let Said {
            code,
            answers,
            authorities,
        } = self.upstream.ask(name, kind).await;
        answer.metadata.response_code = code;
        answer.add_answers(answers);
        answer.add_authorities(authorities);
        answer
    }
}

impl Outside {
    /// The answer when resolvers cannot be asked.
    pub(crate) fn give_up(mut self) -> Message {
        self.answer.answers.clear();
        self.answer.metadata.response_code = ResponseCode::ServFail;
        self.answer
    }
}

/// Why a question is not answered, whatever its name.
fn refusal(asked: &Message) -> Option<ResponseCode> {
    if asked.metadata.op_code != OpCode::Query {
        return Some(ResponseCode::NotImp);
    }
    if asked.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Some(ResponseCode::BADVERS);
    }
    let [query] = &asked.queries[..] else {
        return Some(ResponseCode::FormErr);
    };
    let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
    (transfer || query.query_class() != DNSClass::IN).then_some(ResponseCode::Refused)
}

/// What cannot be read is answered only if it is a question at least in its header.
fn malformed(bytes: &[u8]) -> First {
    let is_response = bytes.get(2).is_some_and(|flags| flags & 0x80 != 0);
    if bytes.len() < HEADER_BYTES || is_response {
        return First::Nothing;
    }
    let id = u16::from_be_bytes([bytes[0], bytes[1]]);
    First::Answer(Box::new(Message::error_msg(
        id,
        OpCode::Query,
        ResponseCode::FormErr,
    )))
}

/// Writes an answer for UDP: as much of it as the client takes. Some addresses are better than none,
/// for clients that do not ask again by TCP.
pub(crate) fn write_for_udp(mut message: Message) -> Vec<u8> {
    let limit = message
        .edns
        .as_ref()
        .map_or(UDP_BYTES_MIN, Edns::max_payload);
    write(&mut message, limit.into())
}

/// Writes an answer for TCP.
pub(crate) fn write_for_tcp(mut message: Message) -> Vec<u8> {
    write(&mut message, u16::MAX.into())
}

fn write(message: &mut Message, limit: usize) -> Vec<u8> {
    loop {
        match message.to_vec() {
            Ok(bytes) if bytes.len() <= limit => return bytes,
            // What was only meant to save a question may go without a word.
            _ if !message.additionals.is_empty() => message.additionals.clear(),
            _ if !message.answers.is_empty() || !message.authorities.is_empty() => {
                message.metadata.truncation = true;
                message.authorities.clear();
                let records: &mut Vec<Record> = &mut message.answers;
                records.truncate(records.len().saturating_sub(1 + records.len() / 8));
            }
            // A question alone always fits: it came in such a message.
            Ok(bytes) => return bytes,
            Err(error) => {
                tracing::debug!(%error, "cannot write an answer");
                let code = ResponseCode::ServFail;
                let failure = Message::error_msg(message.metadata.id, OpCode::Query, code);
                return failure.to_vec().unwrap_or_default();
            }
        }
    }
}
