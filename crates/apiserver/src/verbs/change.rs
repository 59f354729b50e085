//! Writing: what create, update, patch and the subresources have in common.
//!
//! Each write is one transaction of the store. An update reads, makes the new state, and commits
//! on condition that nobody wrote in between; if somebody did, it starts again, unless the caller
//! has said which state it meant.

use std::sync::Arc;

use http::{Response, StatusCode};
use jiff::Timestamp;
use rand::Rng as _;
use serde_json::Value;
use store::{CommitError, Entry, Expected, Key, Transaction, Write};

use super::{answer, managed};
use crate::Body;
use crate::admit::{self, Admission, Operation, namespace_lifecycle};
use crate::allocate::{self, Claims};
use crate::encode::{members, metadata_str};
use crate::handle::Call;
use crate::meta::Meta;
use crate::options::WriteOptions;
use crate::status::{Failure, FaultReason, fault};

/// How often an update is tried against states that others keep changing, and a create against
/// others that take the chosen addresses first.
const TRIES: usize = 32;
/// Bytes of a stored object. Patches grow objects step by step, and every watcher gets the whole of
/// it each time. Upstream's limit is 1.5 MiB in a denser form than JSON.
const OBJECT_LIMIT: usize = 2 << 20;
/// How many generated names are tried; upstream tries as often.
const TRIES_NAME: usize = 8;
/// Bytes of a generated name before its random end.
const GENERATED_BASE: usize = 58;

/// What a write has led to.
#[derive(Debug)]
pub(crate) enum Done {
    /// The object as it is stored now.
    Stored(Arc<Entry<Meta>>),
    /// An object that is not stored: of a dry run, or one that the write has removed.
    Unstored(Value),
}

impl Done {
    /// The answer that shows it.
    pub(crate) fn answer(self, call: &Call, code: StatusCode) -> Result<Response<Body>, Failure> {
        match self {
            Done::Stored(entry) => answer::stored(call, &entry, code),
            Done::Unstored(object) => answer::object_value(call, &object, code),
        }
    }

    /// The object, parsed.
    pub(crate) fn into_object(self, call: &Call) -> Result<Value, Failure> {
        match self {
            Done::Stored(entry) => answer::parse(call, &entry),
            Done::Unstored(object) => Ok(object),
        }
    }
}

/// A time as objects hold it: whole seconds.
pub(crate) fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Stores a new object that has been read and completed ([`super::body::object`]).
pub(crate) async fn create(
    call: &Call,
    mut object: Value,
    options: &WriteOptions,
) -> Result<Done, Failure> {
    begin_life(call, &mut object)?;
    let prefix = metadata_str(&object, "generateName").to_owned();
    if prefix.is_empty() || !metadata_str(&object, "name").is_empty() {
        return create_named(call, object, options).await;
    }
    for _ in 1..TRIES_NAME {
        let mut named = object.clone();
        members(&mut named, "metadata").insert("name".into(), generated_name(&prefix).into());
        match create_named(call, named, options).await {
            Err(failure) if failure.reason() == "AlreadyExists" => {}
            result => return result,
        }
    }
    members(&mut object, "metadata").insert("name".into(), generated_name(&prefix).into());
    create_named(call, object, options).await
}

async fn create_named(
    call: &Call,
    mut object: Value,
    options: &WriteOptions,
) -> Result<Done, Failure> {
    let resource = &call.resource;
    let kind = resource.kind;
    // The caller manages what it has sent and what defaults make of it, not what strategy and
    // admission add.
    if !options.applied {
        managed::track(call, None, &mut object, options, None);
    }
    kind.prepare_create(&mut object);
    let mut admission = Admission {
        call,
        operation: Operation::Create,
        subresource: None,
        object: &mut object,
        old: None,
    };
    admit::mutate(&mut admission)?;
    let name = metadata_str(&object, "name").to_owned();
    let faults = kind.validate_create(&object);
    if !faults.is_empty() {
        return Err(resource.invalid(&name, &faults));
    }
    for warning in kind.warnings(&object) {
        call.warn(warning);
    }
    admit::validate(&mut Admission {
        call,
        operation: Operation::Create,
        subresource: None,
        object: &mut object,
        old: None,
    })?;
    let key = resource.key(&call.info.namespace, &name);
    let exists = || Failure::already_exists(resource.name(), &name);
    for _ in 0..TRIES {
        let claims = allocate::for_create(call, &mut object)?;
        if options.dry_run {
            return match call.core.store().get(&key) {
                Some(_) => Err(exists()),
                None => Ok(Done::Unstored(object)),
            };
        }
        let transaction = Transaction::create(key.clone(), resource.to_stored(&object));
        let transaction = in_namespace(call, &name, claims.join(transaction))?;
        match commit(call, transaction).await {
            Ok(entry) => return Ok(Done::Stored(entry)),
            Err(Refused::Conflict(at)) if at == key => return Err(exists()),
            // An address was taken, or the namespace is not what it was.
            Err(Refused::Conflict(_)) => {}
            Err(Refused::Failure(failure)) => return Err(failure),
        }
        claims.release(&mut object);
    }
    Err(Failure::too_many_requests(
        "addresses are being taken, or its namespace is being changed, faster than this object can be stored; try again",
        1,
    ))
}

/// Gives a new object what the server alone decides.
fn begin_life(call: &Call, object: &mut Value) -> Result<(), Failure> {
    let namespaced = call.resource.kind.namespaced();
    let now = seconds(call.now);
    let metadata = members(object, "metadata");
    if namespaced {
        match metadata
            .get("namespace")
            .and_then(Value::as_str)
            .unwrap_or_default()
        {
            "" => {
                metadata.insert("namespace".into(), call.info.namespace.as_str().into());
            }
            given if given == call.info.namespace => {}
            _ => {
                return Err(Failure::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
        }
    } else {
        metadata.remove("namespace");
    }
    if metadata
        .get("resourceVersion")
        .is_some_and(|given| given != "" && given != "0")
    {
        return Err(Failure::plain_internal(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    for decided in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "resourceVersion",
    ] {
        metadata.remove(decided);
    }
    metadata.insert("uid".into(), new_uid().into());
    metadata.insert("creationTimestamp".into(), now.into());
    Ok(())
}

/// An identity that no other object has had.
fn new_uid() -> String {
    // The generator of this thread, which asks the system for its seed only.
    let random: [u8; 16] = rand::random();
    uuid::Builder::from_random_bytes(random)
        .into_uuid()
        .to_string()
}

/// A name from its beginning: five characters that form no words follow.
pub(crate) fn generated_name(prefix: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut end = prefix.len().min(GENERATED_BASE);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = prefix[..end].to_owned();
    let mut random = rand::rng();
    for _ in 0..5 {
        name.push(char::from(ALPHABET[random.random_range(0..ALPHABET.len())]));
    }
    name
}

/// Adds the condition that the namespace is as it is now, which is alive. What is made after it was
/// marked as deleted would not be found by who empties it.
fn in_namespace(call: &Call, name: &str, transaction: Transaction) -> Result<Transaction, Failure> {
    Ok(match namespace_lifecycle::living(call, name)? {
        Some(found) => transaction.check(found.key.clone(), Expected::At(found.revision)),
        None => transaction,
    })
}

/// Changes an object: `make` gets the state that is stored and returns the one to be stored, as
/// often as others write in between. `sub` is the subresource through which it is written.
pub(crate) async fn update(
    call: &Call,
    options: &WriteOptions,
    sub: Option<&str>,
    mut make: impl FnMut(&Value) -> Result<Value, Failure>,
) -> Result<Done, Failure> {
    let resource = &call.resource;
    let key = call.key();
    for _ in 0..TRIES {
        let entry = call.stored()?;
        let old = answer::parse(call, &entry)?;
        let mut new = make(&old)?;
        check_identity(call, &new, &old, options)?;
        carry_over(&mut new, &old);
        let claims = finish(call, &mut new, &old, options, sub)?;
        if options.dry_run {
            return Ok(Done::Unstored(new));
        }
        if new == old {
            return Ok(Done::Stored(entry));
        }
        let gone = is_finished(&new);
        let body = resource.to_stored(&new);
        let transaction = if gone {
            let transaction = Transaction::remove(key.clone(), entry.revision, body);
            allocate::for_delete(call, &new).join(transaction)
        } else {
            claims.join(Transaction::replace(key.clone(), entry.revision, body))
        };
        match commit(call, transaction).await {
            Ok(entry) => return Ok(Done::Stored(entry)),
            // Once more: a caller who named a revision is then refused for it by `check_identity`; one
            // who sent a patch without has it applied to what is stored now.
            Err(Refused::Conflict(_)) => {}
            Err(Refused::Failure(failure)) => return Err(failure),
        }
    }
    Err(call.modified())
}

/// Admission, strategy and validation of an update.
fn finish(
    call: &Call,
    new: &mut Value,
    old: &Value,
    options: &WriteOptions,
    sub: Option<&str>,
) -> Result<Claims, Failure> {
    let kind = call.resource.kind;
    admit::mutate(&mut Admission {
        call,
        operation: Operation::Update,
        subresource: sub,
        object: new,
        old: Some(old),
    })?;
    // A binding is made by this server field by field; no strategy has to hold it back.
    let bound = sub == Some("binding");
    if !bound {
        kind.prepare_update(new, old, sub);
    }
    if !options.applied && !bound {
        managed::track(call, Some(old), new, options, sub);
    }
    if !bound {
        let faults = kind.validate_update(new, old, sub);
        if !faults.is_empty() {
            return Err(call.resource.invalid(&call.info.name, &faults));
        }
    }
    for warning in kind.warnings(new) {
        call.warn(warning);
    }
    admit::validate(&mut Admission {
        call,
        operation: Operation::Update,
        subresource: sub,
        object: new,
        old: Some(old),
    })?;
    let claims = match sub {
        None => allocate::for_update(call, new, old)?,
        Some(_) => Claims::default(),
    };
    Ok(claims)
}

/// Refuses a new state that is meant for another object or another state of it than the stored one.
/// If there is none stored, any revision will do.
pub(super) fn check_identity(
    call: &Call,
    new: &Value,
    old: &Value,
    options: &WriteOptions,
) -> Result<(), Failure> {
    let (uid, old_uid) = (metadata_str(new, "uid"), metadata_str(old, "uid"));
    // A patch that changes it is refused by validation.
    if call.info.verb == "update" && !uid.is_empty() && uid != old_uid {
        let key = call.key();
        let root = if options.dry_run { "" } else { "/registry" };
        return Err(Failure::conflict(
            call.resource.name(),
            &call.info.name,
            format!(
                "StorageError: invalid object, Code: 4, Key: {root}/{}/{}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}",
                call.resource.kind.plural(),
                key.name
            ),
        ));
    }
    let revision = metadata_str(new, "resourceVersion");
    if revision.is_empty() || revision == "0" {
        if must_name_revision(call) && !old.is_null() {
            let fault = fault(
                "metadata.resourceVersion",
                FaultReason::Invalid,
                0,
                "must be specified for an update",
            );
            return Err(Failure::invalid(
                call.resource.kind.group(),
                call.resource.kind.plural(),
                &call.info.name,
                &[fault],
            ));
        }
        return Ok(());
    }
    if revision.parse::<u64>().is_err() {
        return Err(Failure::plain_internal(format!(
            "strconv.ParseUint: parsing {}: invalid syntax",
            kinds::quote(revision)
        )));
    }
    if !old.is_null() && revision != metadata_str(old, "resourceVersion") {
        return Err(call.modified());
    }
    Ok(())
}

/// Kinds whose updates must say which state they change: leases, for which writers race by design.
fn must_name_revision(call: &Call) -> bool {
    let kind = call.resource.kind;
    call.info.verb == "update" && (kind.group(), kind.kind()) == ("coordination.k8s.io", "Lease")
}

/// What the server decided and the new state leaves out stays.
fn carry_over(new: &mut Value, old: &Value) {
    let decided = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "managedFields",
        "generateName",
    ];
    let metadata = members(new, "metadata");
    metadata.remove("selfLink");
    metadata.insert(
        "resourceVersion".into(),
        metadata_str(old, "resourceVersion").into(),
    );
    for name in decided {
        let absent = metadata.get(name).is_none_or(Value::is_null);
        match old["metadata"].get(name) {
            Some(value) if absent || matches!(name, "generation" | "deletionTimestamp") => {
                metadata.insert(name.into(), value.clone());
            }
            // Validation refuses what only a deletion sets.
            _ => {}
        }
    }
}

/// Whether nothing holds a deleted object any longer.
pub(crate) fn is_finished(object: &Value) -> bool {
    let metadata = &object["metadata"];
    let none = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    let namespace_held = object["kind"] == "Namespace"
        && object["apiVersion"] == "v1"
        && !none(&object["spec"]["finalizers"]);
    metadata["deletionTimestamp"].is_string()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && none(&metadata["finalizers"])
        && !namespace_held
}

/// Why a transaction was not committed.
pub(crate) enum Refused {
    /// The condition on this key did not hold.
    Conflict(Key),
    /// Trying again does not help.
    Failure(Failure),
}

/// Commits and returns the entry of the transaction's own object, which is its first write.
pub(crate) async fn commit(
    call: &Call,
    transaction: Transaction,
) -> Result<Arc<Entry<Meta>>, Refused> {
    let too_large = transaction
        .writes
        .iter()
        .any(|write| matches!(write, Write::Put { body, .. } if body.size() > OBJECT_LIMIT));
    if too_large {
        return Err(Refused::Failure(Failure::plain_internal(
            "etcdserver: request is too large",
        )));
    }
    match call.core.store().commit(transaction).await {
        // Nothing that has to happen after a write belongs here: when the client goes away, this
        // future is dropped, and the write happens none the less.
        Ok(committed) => committed.entries.into_iter().next().ok_or_else(|| {
            Refused::Failure(Failure::internal(
                "a transaction without writes was committed",
            ))
        }),
        Err(CommitError::Conflict { key, .. }) => Err(Refused::Conflict(key)),
        Err(CommitError::Closed) => Err(Refused::Failure(Failure::unavailable(
            "the server is shutting down",
        ))),
        Err(error) => {
            tracing::error!(%error, "a write was not stored");
            Err(Refused::Failure(Failure::internal(error)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn nothing_is_made_in_a_namespace_that_was_marked_in_between() {
        let engine = Box::new(store::Memory);
        let options = store::Options::default();
        let store = store::Store::open(engine, crate::extract(), options).await;
        let config = crate::Config::new(
            store.expect("memory opens"),
            Arc::new(pki::Authority::in_memory().expect("an authority")),
            Arc::new(pki::TokenKey::in_memory().expect("a key")),
        );
        let server = crate::ApiServer::new(config).await.expect("a server");
        let core = &server.core;
        let namespaces = core.builtin("", "v1", "namespaces");
        let namespace = Call::internal(core, namespaces, "", "team");
        let options = WriteOptions::internal();
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}, "spec": {"finalizers": ["kubernetes"]}});
        let made = create(&namespace, object, &options).await;
        made.map(drop).expect("a namespace");

        let maps = core.builtin("", "v1", "configmaps");
        let call = Call::internal(core, maps, "team", "a");
        let body = maps.to_stored(&json!({"metadata": {"name": "a", "namespace": "team"}}));
        let transaction = Transaction::create(call.key(), body);
        let transaction = in_namespace(&call, "a", transaction).expect("it is alive");
        let deletion = crate::options::DeleteOptions::default();
        let deleted = super::super::delete::delete_object(&namespace, &deletion).await;
        assert!(!deleted.expect("it is marked").gone);
        let refused = commit(&call, transaction).await;
        assert!(matches!(refused, Err(Refused::Conflict(key)) if key == namespace.key()));
        let refused = in_namespace(&call, "a", Transaction::new());
        assert_eq!(refused.err().map(|failure| failure.code()), Some(403));
    }

    #[test]
    fn generated_names_are_cut_to_fit() {
        let name = generated_name("web-");
        assert_eq!(name.len(), 9);
        assert!(name.starts_with("web-"));
        assert_eq!(generated_name(&"a".repeat(100)).len(), 63);
        assert_eq!(generated_name(&"ä".repeat(100)).len(), 63);
    }

    #[test]
    fn an_object_goes_when_nothing_holds_it() {
        let check =
            |object: Value, expected: bool| assert_eq!(is_finished(&object), expected, "{object}");
        check(json!({"metadata": {}}), false);
        check(json!({"metadata": {"deletionTimestamp": "t"}}), true);
        check(
            json!({"metadata": {"deletionTimestamp": "t", "finalizers": ["a"]}}),
            false,
        );
        check(
            json!({"metadata": {"deletionTimestamp": "t", "deletionGracePeriodSeconds": 30}}),
            false,
        );
        check(
            json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"deletionTimestamp": "t"}, "spec": {"finalizers": ["kubernetes"]}}),
            false,
        );
    }
}
