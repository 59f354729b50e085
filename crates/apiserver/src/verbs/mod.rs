//! One verb, one file; all generic over the kind.

pub(crate) mod answer;
pub(crate) mod body;
pub(crate) mod change;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod delete_collection;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod managed;
pub(crate) mod pages;
pub(crate) mod patch;
pub(crate) mod select;
pub(crate) mod update;
pub(crate) mod watch;
mod yaml;
