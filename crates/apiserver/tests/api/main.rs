//! The server as its clients see it: a store in memory and `kube::Client`s, no sockets.

mod bootstrap;
mod boundaries;
mod deletes;
mod house;
mod identity;
mod misfits;
mod patches;
mod proxies;
mod reads;
mod services;
mod streams;
mod watches;
mod writes;
