//! Chooses a node for every pod that has none.
//!
//! The decision: the choice itself is a pure function, [`decide`](decide::decide), from what is known
//! of the nodes and the pods on them to a node or to the reasons against each; rules are plain
//! functions, and no clock, no client and no randomness is in it. Round it is one loop that owns the
//! state alone, so nothing is locked: it hears of changes, takes the pod whose turn it is, and counts it
//! as placed at once, before the server has been told; many bindings may be on their way at a time, and
//! a burst of pods still never over-commits a node. A pod that fits nowhere waits for a change that
//! could help it; nothing is tried again on a timer but what failed for the server's sake.
//!
//! Reasons and messages are upstream's, and so is the share of nodes that is looked at in a large
//! cluster. Left for later: pods that push others out (preemption; the messages say that none was
//! found), and volumes that only some nodes can reach. What happens to a pod on its node is left to the
//! node agent.

mod affinity;
mod cluster;
mod decide;
mod filter;
mod pending;
mod request;
mod score;
mod spread;
mod turn;

pub use turn::run;
