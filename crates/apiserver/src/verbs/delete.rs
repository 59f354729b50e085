//! Removing an object: at once, or by marking it and waiting for who holds it.
//!
//! ```text
//!  delete ─► finalizers, or grace left? ─ no ──► gone
//!                    │ yes
//!                    ▼
//!            deletionTimestamp set ── last finalizer removed, grace ended ──► gone
//! ```

use bytes::Bytes;
use http::{Response, StatusCode};
use jiff::{Span, Timestamp};
use serde_json::{Value, json};
use store::{Entry, Transaction};

use super::change::{self, Done, Refused, is_finished, seconds};
use super::{answer, body};
use crate::Body;
use crate::admit::{self, Admission, Operation};
use crate::allocate;
use crate::encode::{members, metadata_str};
use crate::handle::Call;
use crate::meta::Meta;
use crate::options::{DeleteOptions, Propagation};
use crate::status::{self, Failure, ResourceName};

/// How often a delete is tried against states that others keep changing.
const TRIES: usize = 32;
/// The type of the body of a delete.
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
/// Finalizer for "after its dependents".
const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer for "without its dependents".
const ORPHAN: &str = "orphan";

/// What a delete has led to.
pub(crate) struct Deleted {
    /// Its last or present state.
    pub(crate) object: Done,
    /// Whether it is gone.
    pub(crate) gone: bool,
}

/// Deletes the object of the request.
pub(crate) async fn delete(call: &Call, bytes: Bytes) -> Result<Response<Body>, Failure> {
    let options = read_options(call, &bytes)?;
    let deleted = delete_object(call, &options).await?;
    let code = if !deleted.gone && options.cascading {
        StatusCode::ACCEPTED
    } else {
        StatusCode::OK
    };
    if deleted.gone && !returns_object(call) {
        let object = deleted.object.into_object(call)?;
        let status = status::success(
            Some((
                call.resource.name(),
                &call.info.name,
                metadata_str(&object, "uid"),
            )),
            None,
        );
        return Ok(answer::value(call, &status, code));
    }
    deleted.object.answer(call, code)
}

/// Reads the options, from the body if there is one.
pub(crate) fn read_options(call: &Call, bytes: &Bytes) -> Result<DeleteOptions, Failure> {
    if bytes.is_empty() {
        return DeleteOptions::parse(&call.query, None);
    }
    let encoding = body::Encoding::of(&call.headers)?;
    let mut options = body::read(bytes, encoding).map_err(Failure::bad_request)?;
    let kind = options["kind"].as_str().unwrap_or_default();
    if !matches!(kind, "" | "DeleteOptions") {
        let api_version = match options["apiVersion"].as_str().unwrap_or_default() {
            "" => "meta.k8s.io/v1",
            given => given,
        };
        return Err(Failure::bad_request(format!(
            "no kind {} is registered for version {} in scheme \"pkg/runtime/scheme.go:111\"",
            kinds::quote(kind),
            kinds::quote(api_version)
        )));
    }
    // What has the wrong type must not look as if it were not there: a dry run would delete.
    let schema = kinds::definition(DELETE_OPTIONS).expect("the built-in definitions have it");
    if let Some(error) = schema.decode(&mut options, None).error {
        return Err(Failure::bad_request(error));
    }
    DeleteOptions::parse(&call.query, Some(&options))
}

/// Kinds whose delete answers with the object rather than with a `Status`, as upstream's do.
fn returns_object(call: &Call) -> bool {
    let kind = call.resource.kind;
    kind.group().is_empty()
        && matches!(
            kind.kind(),
            "Pod"
                | "Service"
                | "ServiceAccount"
                | "PersistentVolume"
                | "PersistentVolumeClaim"
                | "PodTemplate"
                | "ReplicationController"
                | "ResourceQuota"
        )
}

/// Deletes, or begins to delete, the object that the call names.
pub(crate) async fn delete_object(
    call: &Call,
    options: &DeleteOptions,
) -> Result<Deleted, Failure> {
    for _ in 0..TRIES {
        let entry = call.stored()?;
        let old = answer::parse(call, &entry)?;
        check_preconditions(call, &old, options)?;
        let mut new = old.clone();
        admit::validate(&mut Admission {
            call,
            operation: Operation::Delete,
            subresource: None,
            object: &mut new,
            old: Some(&old),
        })?;
        let gone = mark(call, &mut new, options);
        if gone && !call.resource.is("", "Pod") {
            // Its last state is the one that everybody knew.
            new = old.clone();
        }
        if options.dry_run {
            return Ok(Deleted {
                object: Done::Unstored(new),
                gone,
            });
        }
        if !gone && new == old {
            return Ok(Deleted {
                object: Done::Stored(entry),
                gone,
            });
        }
        let transaction = transaction(call, &entry, &new, gone);
        match change::commit(call, transaction).await {
            Ok(entry) => {
                return Ok(Deleted {
                    object: Done::Stored(entry),
                    gone,
                });
            }
            Err(Refused::Conflict(_)) if options.revision.is_some() => return Err(call.modified()),
            Err(Refused::Conflict(_)) => {}
            Err(Refused::Failure(failure)) => return Err(failure),
        }
    }
    Err(call.modified())
}

fn transaction(call: &Call, entry: &Entry<Meta>, new: &Value, gone: bool) -> Transaction {
    let body = call.resource.to_stored(new);
    let key = entry.key.clone();
    if gone {
        let transaction = Transaction::remove(key, entry.revision, body);
        allocate::for_delete(call, new).join(transaction)
    } else {
        Transaction::replace(key, entry.revision, body)
    }
}

fn check_preconditions(
    call: &Call,
    object: &Value,
    options: &DeleteOptions,
) -> Result<(), Failure> {
    // Upstream names the kind here, not the resource.
    let name = ResourceName {
        group: call.resource.kind.group(),
        plural: call.resource.kind.kind(),
    };
    let uid = metadata_str(object, "uid");
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != uid) {
        return Err(Failure::conflict(
            name,
            &call.info.name,
            format!(
                "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
            ),
        ));
    }
    let revision = metadata_str(object, "resourceVersion");
    if let Some(wanted) = options
        .revision
        .as_deref()
        .filter(|wanted| *wanted != revision)
    {
        return Err(Failure::conflict(
            name,
            &call.info.name,
            format!(
                "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({revision}). The object might have been modified"
            ),
        ));
    }
    Ok(())
}

/// Marks the object as being deleted. True if nothing holds it, so that it can go at once; then
/// only pods bear the mark.
fn mark(call: &Call, object: &mut Value, options: &DeleteOptions) -> bool {
    set_finalizers(object, options.propagation);
    let is_namespace = call.resource.is("", "Namespace");
    if is_namespace {
        object["status"]["phase"] = "Terminating".into();
    }
    let marked = object["metadata"]["deletionTimestamp"].is_string();
    let grace = grace_seconds(call, object, options);
    let metadata = members(object, "metadata");
    if marked {
        let before = metadata
            .get("deletionGracePeriodSeconds")
            .and_then(Value::as_i64)
            .unwrap_or(0);
        // A grace period can only be cut short, and only by who asks for it.
        let shorter = options.grace_seconds.is_some() || grace == 0;
        if shorter && grace < before {
            let begun = metadata["deletionTimestamp"]
                .as_str()
                .and_then(|text| text.parse::<Timestamp>().ok())
                .and_then(|end| end.checked_sub(Span::new().seconds(before)).ok())
                .unwrap_or(call.now);
            metadata.insert(
                "deletionTimestamp".into(),
                end_of_grace(begun, grace).into(),
            );
            metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
        }
    } else {
        metadata.insert(
            "deletionTimestamp".into(),
            end_of_grace(call.now, grace).into(),
        );
        if !is_namespace {
            metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
        }
        bump_generation(metadata);
    }
    is_finished(object)
}

fn end_of_grace(begun: Timestamp, grace: i64) -> String {
    seconds(
        begun
            .checked_add(Span::new().seconds(grace))
            .unwrap_or(begun),
    )
}

/// Kinds that count generations count the mark as one.
fn bump_generation(metadata: &mut serde_json::Map<String, Value>) {
    if let Some(generation) = metadata
        .get("generation")
        .and_then(Value::as_i64)
        .filter(|count| *count > 0)
    {
        metadata.insert("generation".into(), (generation + 1).into());
    }
}

/// Seconds that the object has to end. Only pods that run on a node need any.
fn grace_seconds(call: &Call, object: &Value, options: &DeleteOptions) -> i64 {
    if !call.resource.is("", "Pod") {
        return 0;
    }
    let unscheduled = object["spec"]["nodeName"]
        .as_str()
        .unwrap_or_default()
        .is_empty();
    let ended = matches!(
        object["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    );
    if unscheduled || ended {
        return 0;
    }
    const DEFAULT: i64 = 30;
    // A year: what is longer only overflows times.
    const MOST: i64 = 365 * 24 * 3600;
    let wanted = options
        .grace_seconds
        .or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(DEFAULT);
    if wanted < 0 { 1 } else { wanted.min(MOST) }
}

/// Makes the finalizers say what is to happen to the dependents. Without a wish, those that stand
/// there decide.
fn set_finalizers(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else {
        return;
    };
    let metadata = members(object, "metadata");
    let mut finalizers: Vec<Value> = metadata
        .get("finalizers")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    finalizers.retain(|finalizer| finalizer != FOREGROUND && finalizer != ORPHAN);
    match propagation {
        Propagation::Orphan => finalizers.push(ORPHAN.into()),
        Propagation::Foreground => finalizers.push(FOREGROUND.into()),
        Propagation::Background => {}
    }
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), json!(finalizers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finalizers_follow_the_propagation_policy() {
        let check = |before: Value, propagation, expected: Value| {
            let mut object = json!({"metadata": {"finalizers": before}});
            set_finalizers(&mut object, propagation);
            assert_eq!(
                object["metadata"]
                    .get("finalizers")
                    .cloned()
                    .unwrap_or_default(),
                expected
            );
        };
        check(
            json!(["a"]),
            Some(Propagation::Orphan),
            json!(["a", "orphan"]),
        );
        check(
            json!(["orphan"]),
            Some(Propagation::Foreground),
            json!(["foregroundDeletion"]),
        );
        check(
            json!(["orphan"]),
            Some(Propagation::Background),
            Value::Null,
        );
        check(json!(["orphan"]), None, json!(["orphan"]));
    }
}
