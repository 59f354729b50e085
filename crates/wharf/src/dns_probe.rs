//! Whether the cluster's name server answers where pods ask it.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// An answer takes microseconds; a lost packet is asked for again.
const TIMEOUT: Duration = Duration::from_millis(300);
const ATTEMPTS: usize = 5;

/// Asks for the API server's name through the Service, by the ordinary path (RFC 1035, section 4.1).
pub(crate) async fn answers(server: Ipv4Addr) -> anyhow::Result<()> {
    let mut failure = None;
    for id in 1..=ATTEMPTS as u16 {
        match ask(server, id).await {
            Ok(()) => return Ok(()),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| anyhow::anyhow!("not asked")))
}

async fn ask(server: Ipv4Addr, id: u16) -> anyhow::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .await
        .context("open a socket")?;
    socket
        .connect((server, 53))
        .await
        .with_context(|| format!("reach {server}"))?;
    socket
        .send(&query(id, "kubernetes.default.svc.cluster.local"))
        .await
        .with_context(|| format!("ask {server}"))?;
    let mut answer = [0; 512];
    let length = timeout(TIMEOUT, socket.recv(&mut answer))
        .await
        .with_context(|| format!("{server} does not answer"))?
        .with_context(|| format!("{server} refuses"))?;
    ensure!(
        length >= 12 && answer[..2] == id.to_be_bytes(),
        "{server} answers nonsense"
    );
    let (code, answers) = (answer[3] & 0x0f, u16::from_be_bytes([answer[6], answer[7]]));
    ensure!(
        code == 0 && answers > 0,
        "{server} does not know the API server (code {code})"
    );
    Ok(())
}

/// A question for an A record, recursion desired.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(64);
    message.extend(id.to_be_bytes());
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_as_the_standard_draws_it() {
        assert_eq!(
            query(0x0102, "a.bc"),
            [
                1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 2, b'b', b'c', 0, 0, 1, 0, 1
            ]
        );
    }
}
