//! Nothing new in a namespace that is missing or being deleted; the namespaces that a cluster
//! cannot do without are not deleted.

use std::sync::Arc;

use store::Entry;

use super::{Admission, Operation};
use crate::encode::metadata_str;
use crate::handle::Call;
use crate::meta::{self, Meta};
use crate::status::Failure;

const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// Refuses new objects where there is no living namespace for them.
pub(super) fn admit(admission: &mut Admission<'_>) -> Result<(), Failure> {
    if admission.operation != Operation::Create {
        return Ok(());
    }
    let name = metadata_str(admission.object, "name");
    living(admission.call, name).map(drop)
}

/// The namespace in which `name` is to be made; none for an object of the whole cluster.
///
/// # Errors
/// That there is no such namespace, or that it is being deleted.
pub(crate) fn living(call: &Call, name: &str) -> Result<Option<Arc<Entry<Meta>>>, Failure> {
    if !call.resource.kind.namespaced() {
        return Ok(None);
    }
    let namespace = call.info.namespace.as_str();
    let namespaces = call.core.builtin("", "v1", "namespaces");
    let Some(found) = call.core.store().get(&namespaces.key("", namespace)) else {
        return Err(Failure::not_found(namespaces.name(), namespace));
    };
    let facts = meta::facts(namespaces, &found);
    let is_terminating = facts
        .fields
        .iter()
        .any(|(field, value)| *field == "status.phase" && value == "Terminating");
    if !is_terminating && !facts.is_leaving {
        return Ok(Some(found));
    }
    let message = format!("namespace {namespace} is being terminated");
    Err(Failure::forbidden(
        call.resource.name(),
        name,
        format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        ),
    )
    .with_cause("NamespaceTerminating", &message, Some("metadata.namespace")))
}

/// Refuses to delete the immortal namespaces.
pub(super) fn protect(admission: &mut Admission<'_>) -> Result<(), Failure> {
    let call = admission.call;
    let refused = admission.operation == Operation::Delete
        && call.resource.is("", "Namespace")
        && IMMORTAL.contains(&call.info.name.as_str());
    if refused {
        return Err(Failure::forbidden(
            call.resource.name(),
            &call.info.name,
            "this namespace may not be deleted",
        ));
    }
    Ok(())
}
