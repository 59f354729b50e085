//! Request bodies in memory: how much of it they may take, all together and each caller's.
//!
//! Room is taken for bytes that have arrived, not for requests that have begun, and only after the
//! request was allowed: who sends slowly, or may do nothing, keeps nobody else from writing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::Body;
use crate::status::Failure;

/// Bytes of a request body; upstream's limit.
pub(crate) const BODY_LIMIT: usize = 3 * 1024 * 1024;
/// How long a body may take to arrive; upstream's limit for a whole request.
const TIMEOUT_BODY: Duration = Duration::from_secs(60);
/// How long the next piece of it may take.
const TIMEOUT_PIECE: Duration = Duration::from_secs(20);
/// Room is counted in units of this many bytes; no piece takes less than one.
const UNIT: usize = 1024;
/// Units of room for all bodies from the network.
const ROOM: usize = 64 * 1024;
/// Units that one caller's bodies may take.
const SHARE: usize = ROOM / 4;

/// The room for bodies.
pub(crate) struct Bodies {
    room: Arc<Semaphore>,
    shares: Arc<Mutex<HashMap<Arc<str>, usize>>>,
}

/// Room that a body takes, until this is dropped.
pub(crate) struct Held {
    caller: Arc<str>,
    units: usize,
    shares: Arc<Mutex<HashMap<Arc<str>, usize>>>,
    room: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    pub(crate) fn new() -> Bodies {
        Bodies {
            room: Arc::new(Semaphore::new(ROOM)),
            shares: Arc::default(),
        }
    }

    /// The whole body of a request from the network.
    ///
    /// # Errors
    /// 413 when it is too large, 429 when there is no room for it, 504 when it does not arrive.
    pub(crate) async fn take(&self, caller: &str, body: Body) -> Result<(Bytes, Held), Failure> {
        let mut held = Held {
            caller: caller.into(),
            units: 0,
            shares: self.shares.clone(),
            room: self.room.clone(),
            permit: None,
        };
        let bytes = collect(body, Some(&mut held)).await?;
        Ok((bytes, held))
    }
}

impl Held {
    /// Takes room for `bytes` more, or refuses: to wait for it would be to keep what is held.
    fn grow(&mut self, bytes: usize) -> Result<(), Failure> {
        let more = bytes.div_ceil(UNIT);
        {
            let mut shares = self.shares.lock();
            let share = shares.entry(self.caller.clone()).or_default();
            if *share + more > SHARE {
                return Err(full());
            }
            *share += more;
            self.units += more;
        }
        // More than fits into this type is more than there is.
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let permit = self.room.clone().try_acquire_many_owned(more);
        let permit = permit.map_err(|_| full())?;
        match &mut self.permit {
            Some(held) => held.merge(permit),
            None => self.permit = Some(permit),
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut shares = self.shares.lock();
        if let Some(share) = shares.get_mut(&self.caller) {
            *share -= self.units;
            if *share == 0 {
                shares.remove(&self.caller);
            }
        }
    }
}

fn full() -> Failure {
    Failure::too_many_requests("too many requests, please try again later", 1)
}

/// The whole body of a request that has its body in memory already, or whose bytes are counted.
///
/// # Errors
/// As [`Bodies::take`].
pub(crate) async fn collect(mut body: Body, mut held: Option<&mut Held>) -> Result<Bytes, Failure> {
    let late = || Failure::timeout("request did not complete within the allotted timeout");
    let end = Instant::now() + TIMEOUT_BODY;
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    loop {
        let next = timeout_at(end.min(Instant::now() + TIMEOUT_PIECE), body.frame());
        let frame = match next.await.map_err(|_| late())? {
            None => break,
            Some(frame) => frame
                .map_err(|error| Failure::bad_request(format!("read the request body: {error}")))?,
        };
        let Ok(piece) = frame.into_data() else {
            continue;
        };
        if first.len() + whole.len() + piece.len() > BODY_LIMIT {
            return Err(Failure::too_large());
        }
        if let Some(held) = held.as_deref_mut() {
            held.grow(piece.len())?;
        }
        // Most bodies come in one piece, which need not be copied.
        if first.is_empty() && whole.is_empty() {
            first = piece;
        } else {
            if whole.is_empty() {
                whole.extend_from_slice(&std::mem::take(&mut first));
            }
            whole.extend_from_slice(&piece);
        }
    }
    Ok(if whole.is_empty() {
        first
    } else {
        whole.freeze()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt as _, stream};
    use std::convert::Infallible;

    /// A body of these pieces; without an end if `stalls`.
    fn body(pieces: &[usize], stalls: bool) -> Body {
        let pieces: Vec<_> = pieces
            .iter()
            .map(|length| Ok::<_, Infallible>(Bytes::from(vec![b'x'; *length])))
            .collect();
        let end = if stalls {
            stream::pending().left_stream()
        } else {
            stream::empty().right_stream()
        };
        use futures::StreamExt as _;
        Body::from_stream(stream::iter(pieces).chain(end))
    }

    #[tokio::test]
    async fn a_body_is_put_together() {
        let bodies = Bodies::new();
        let check = async |pieces: &[usize], expected: Result<usize, u16>| {
            let taken = bodies.take("joe", body(pieces, false)).await;
            let got = taken.map(|(bytes, _)| bytes.len());
            assert_eq!(got.map_err(|failure| failure.code()), expected);
        };
        check(&[], Ok(0)).await;
        check(&[3], Ok(3)).await;
        check(&[3, 1, 2000], Ok(2004)).await;
        check(&[BODY_LIMIT], Ok(BODY_LIMIT)).await;
        check(&[BODY_LIMIT, 1], Err(413)).await;
        assert_eq!(bodies.room.available_permits(), ROOM);
        assert!(bodies.shares.lock().is_empty());
    }

    #[tokio::test]
    async fn who_sends_slowly_keeps_nobody_out() {
        let bodies = Bodies::new();
        let mut slow = Vec::new();
        for _ in 0..10_000 {
            let mut taking = Box::pin(bodies.take("slow", body(&[1], true)));
            assert!((&mut taking).now_or_never().is_none());
            slow.push(taking);
        }
        bodies
            .take("joe", body(&[1000], false))
            .await
            .expect("room");
        for _ in 10_000..SHARE {
            let mut taking = Box::pin(bodies.take("slow", body(&[1], true)));
            assert!((&mut taking).now_or_never().is_none());
            slow.push(taking);
        }
        let refused = bodies.take("slow", body(&[1], false)).await;
        assert_eq!(refused.err().map(|failure| failure.code()), Some(429));
        bodies
            .take("joe", body(&[1000], false))
            .await
            .expect("room");
        drop(slow);
        bodies.take("slow", body(&[1], false)).await.expect("room");
        assert_eq!(bodies.room.available_permits(), ROOM);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_given_up() {
        let bodies = Bodies::new();
        let refused = bodies.take("slow", body(&[1], true)).await;
        assert_eq!(refused.err().map(|failure| failure.code()), Some(504));
        assert_eq!(bodies.room.available_permits(), ROOM);
    }
}
