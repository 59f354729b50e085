//! Nothing new in a namespace that is missing or being deleted; the namespaces that a cluster
//! cannot do without are not deleted.

use super::{Admission, Operation};
use crate::meta;
use crate::status::Failure;

const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// Refuses new objects where there is no living namespace for them.
pub(super) fn admit(admission: &mut Admission<'_>) -> Result<(), Failure> {
    let call = admission.call;
    if admission.operation != Operation::Create || !call.resource.kind.namespaced() {
        return Ok(());
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
        return Ok(());
    }
    let message = format!("namespace {namespace} is being terminated");
    let name = crate::encode::metadata_str(admission.object, "name");
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
