//! The cluster's name server: a zone of its own, and a way to the machine's resolvers for the rest.
//!
//! The zone is a table of names in memory that others fill group by group: an answer is one look-up,
//! and a change touches the names of its group and no others. Messages are read and written by
//! hickory's codec; the loop round it is our own, because a general name server's takes as many
//! connections as anybody opens, and one process here also serves the API. What the zone does not know is asked of the resolvers in the machine's
//! `resolv.conf`; where there is none, or none answers, clients are told so at once.
//!
//! Which names exist, and what Kubernetes calls them, is left to the callers. So is where to listen.

mod answer;
mod server;
#[cfg(test)]
mod tests;
mod upstream;
mod zone;

pub use hickory_proto::rr::Name;
pub use server::{BindError, Server};
pub use upstream::Upstream;
pub use zone::{Data, Entry, Zone, ZoneError, full_name, reverse_name};
