//! The health check of gRPC services: `grpc.health.v1.Health/Check`, by hand, as it is one request.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::GRPCAction;

use crate::handler;

/// The most of an answer that is read.
const ANSWER_BYTES_MAX: usize = 4096;

/// Asks a service for its health.
///
/// # Errors
///
/// Why it is not healthy, in the words of upstream's events.
pub(crate) async fn check(host: &str, action: &GRPCAction, limit: Duration) -> Result<(), String> {
    let port =
        u16::try_from(action.port).map_err(|_| format!("invalid port number: {}", action.port))?;
    let address = handler::join_host_port(host, port);
    let unreachable = || {
        let limit = handler::seconds(limit);
        format!(
            "timeout: failed to connect service \"{address}\" within {limit}: context deadline exceeded"
        )
    };
    // Upstream keeps on connecting until its time is up; the answer is the same, only later.
    let stream = handler::connect(host, port)
        .await
        .map_err(|_| unreachable())?;
    let failed = |error: hyper::Error| format!("error: health rpc probe failed: {error}");
    let (mut sender, connection) = hyper::client::conn::http2::handshake::<_, _, Full<Bytes>>(
        TokioExecutor::new(),
        TokioIo::new(stream),
    )
    .await
    .map_err(failed)?;
    let service = action.service.as_deref().unwrap_or_default();
    let request = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36 grpc")
        .body(Full::new(frame(service)))
        .map_err(|error| format!("error: health rpc probe failed: {error}"))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(failed)?;
        let mut status = header(answer.headers(), "grpc-status");
        let mut message = header(answer.headers(), "grpc-message");
        let mut body = BytesMut::new();
        let mut incoming = answer.into_body();
        while let Some(frame) = incoming.frame().await {
            let frame = frame.map_err(failed)?;
            if let Some(data) = frame.data_ref() {
                let room = ANSWER_BYTES_MAX.saturating_sub(body.len());
                body.extend_from_slice(&data[..data.len().min(room)]);
            } else if let Some(trailers) = frame.trailers_ref() {
                status = header(trailers, "grpc-status").or(status);
                message = header(trailers, "grpc-message").or(message);
            }
        }
        verdict(status.as_deref(), message.as_deref(), &body)
    };
    tokio::select! {
        result = exchange => result,
        Err(error) = connection => Err(failed(error)),
    }
}

fn header(headers: &http::HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// `HealthCheckRequest{service = 1}` in a gRPC frame.
fn frame(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
            length >>= 7;
        }
        message.put_u8(u8::try_from(length).expect("below 0x80"));
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(&message);
    frame.freeze()
}

/// `HealthCheckResponse{status = 1}`: 1 is SERVING.
fn verdict(status: Option<&str>, message: Option<&str>, body: &[u8]) -> Result<(), String> {
    match status {
        Some("0") => {}
        Some("12") => {
            let message = message.unwrap_or_default();
            return Err(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
            ));
        }
        status => {
            let code = status.unwrap_or("none");
            let message = message.unwrap_or_default();
            return Err(format!(
                "error: health rpc probe failed: rpc error: code = {code} desc = {message}"
            ));
        }
    }
    let answer = match body.get(5..) {
        Some([0x08, value, ..]) => *value,
        _ => 0,
    };
    let name = match answer {
        1 => return Ok(()),
        0 => "UNKNOWN",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "unknown",
    };
    Err(format!("service unhealthy (responded with \"{name}\")"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        assert_eq!(&frame("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&frame("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(frame(&"x".repeat(200)).len(), 5 + 3 + 200);
    }

    #[test]
    fn answers() {
        let check = |status, body: &[u8], expected: &str| {
            let text =
                verdict(status, Some("m"), body).map_or_else(|text| text, |()| "healthy".into());
            assert_eq!(text, expected);
        };
        check(Some("0"), &[0, 0, 0, 0, 2, 8, 1], "healthy");
        check(
            Some("0"),
            &[0, 0, 0, 0, 2, 8, 2],
            "service unhealthy (responded with \"NOT_SERVING\")",
        );
        check(
            Some("0"),
            &[],
            "service unhealthy (responded with \"UNKNOWN\")",
        );
        check(
            Some("5"),
            &[],
            "error: health rpc probe failed: rpc error: code = 5 desc = m",
        );
        check(
            None,
            &[],
            "error: health rpc probe failed: rpc error: code = none desc = m",
        );
    }
}
