//! Admission: what the cluster adds to an object, and what it refuses although it is valid.
//!
//! One plugin, one file. Plugins that change run first, in upstream's order; those that only
//! refuse see the final object.

mod default_tolerations;
mod escalation;
pub(crate) mod namespace_lifecycle;
mod node_restriction;
mod pod_security;
mod priority;
mod service_account;

use serde_json::Value;

use crate::handle::Call;
use crate::status::Failure;

/// What is being done to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
}

/// An object on its way in.
pub(crate) struct Admission<'a> {
    pub(crate) call: &'a Call,
    pub(crate) operation: Operation,
    pub(crate) subresource: Option<&'a str>,
    pub(crate) object: &'a mut Value,
    pub(crate) old: Option<&'a Value>,
}

impl Admission<'_> {
    /// Whether this makes a new object of the kind.
    fn creates(&self, group: &str, kind: &str) -> bool {
        self.operation == Operation::Create
            && self.subresource.is_none()
            && self.call.resource.is(group, kind)
    }
}

/// Lets every plugin change the object, or refuse it.
pub(crate) fn mutate(admission: &mut Admission<'_>) -> Result<(), Failure> {
    namespace_lifecycle::admit(admission)?;
    service_account::admit(admission)?;
    priority::admit(admission)?;
    default_tolerations::admit(admission);
    Ok(())
}

/// Lets every plugin refuse the final object.
pub(crate) fn validate(admission: &mut Admission<'_>) -> Result<(), Failure> {
    namespace_lifecycle::protect(admission)?;
    node_restriction::check(admission)?;
    escalation::check(admission)?;
    pod_security::check(admission)
}
