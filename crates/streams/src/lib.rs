//! The framing under `kubectl exec`, `attach`, `cp` and `port-forward`: SPDY/3.1 and `channel.k8s.io`.
//!
//! The decision: **no IO in here.** Bytes go in, events come out; calls go in, bytes come out. So a
//! node and a client can be played against each other in a loop, byte by byte, and every parser can
//! be fuzzed. Every length that the other side names has a bound, and what exceeds it is an error
//! that ends the connection.
//!
//! Sockets, WebSocket frames, tasks and what the streams carry are left to the callers.

pub mod channel;
mod dictionary;
mod frame;
mod headers;
mod mux;
pub mod remote_command;

pub use frame::{Frame, FrameDecoder, FrameError, StreamId, encode};
pub use headers::{HeaderBlockError, Headers};
pub use mux::{Event, Mux, MuxError, Side};
