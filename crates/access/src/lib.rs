//! Role-based access: rules and bindings in, decisions out.
//!
//! Kubernetes' RBAC (rbac.authorization.k8s.io/v1) only ever adds: a request is allowed if one rule of
//! one role that is bound to the caller allows it, and nothing can forbid. So a [`Policy`] is a plain
//! value made from the four kinds of objects, and every question to it is a search. It is kept part by
//! part, one for each object, so that it follows a change at the cost of what was changed. There is no
//! IO and no clock in here; who feeds it, and when, is left to the API server.

mod attributes;
mod binding;
mod bootstrap;
mod policy;
mod reconcile;
mod rule;

pub use attributes::{Attributes, Subject, User};
pub use bootstrap::bootstrap;
pub use policy::{Decision, Place, Policy};
pub use reconcile::{Reconciled, reconcile};
pub use rule::Rule;
