//! What a caller asks for beside the object: list, watch, write and delete options, and the form
//! of the answer. Checked with upstream's texts.

use std::num::IntErrorKind;

use http::{HeaderMap, header};
use serde_json::Value;

use crate::route::Query;
use crate::status::{Failure, Fault, FaultReason, fault};

const META_GROUP: &str = "meta.k8s.io";

fn invalid(kind: &str, fault: Fault) -> Failure {
    Failure::invalid(META_GROUP, kind, "", &[fault])
}

/// Which revision a read asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The newest.
    Newest,
    /// Any; upstream answers from its cache.
    Any,
    /// One that is not older.
    NotOlderThan(u64),
    /// Exactly this one.
    Exact(u64),
}

/// Options of list, watch and deletecollection.
#[derive(Clone, Debug)]
pub(crate) struct ListOptions {
    pub(crate) label_selector: Option<String>,
    pub(crate) field_selector: Option<String>,
    pub(crate) limit: usize,
    pub(crate) continue_token: Option<String>,
    pub(crate) wanted: Wanted,
    pub(crate) bookmarks: bool,
    pub(crate) initial_events: Option<bool>,
    pub(crate) timeout_seconds: Option<u64>,
}

impl ListOptions {
    pub(crate) fn parse(query: &Query, watch: bool) -> Result<ListOptions, Failure> {
        let text = |name| query.get(name).filter(|value: &&str| !value.is_empty());
        let number = |name: &str| -> Result<Option<i64>, Failure> {
            query
                .get(name)
                .filter(|value| !value.is_empty())
                .map(integer)
                .transpose()
        };
        let revision = text("resourceVersion");
        let matching = text("resourceVersionMatch");
        let initial_events = query
            .get("sendInitialEvents")
            .map(|_| query.flag("sendInitialEvents"));
        check_match(query, watch, revision, matching, initial_events)?;
        let revision = revision
            .map(|text| match text.parse() {
                Ok(revision) => Ok(revision),
                // Upstream dresses this up for lists only.
                Err(_) if watch => Err(Failure::plain_internal(not_a_revision(text))),
                Err(_) => parse_revision(text),
            })
            .transpose()?;
        let wanted = match (revision, matching) {
            (None, _) => Wanted::Newest,
            (Some(0), _) => Wanted::Any,
            (Some(revision), Some("Exact")) => Wanted::Exact(revision),
            // A page at a revision is a page of exactly that revision.
            (Some(revision), None) if !watch && number("limit")?.unwrap_or(0) > 0 => {
                Wanted::Exact(revision)
            }
            (Some(revision), _) => Wanted::NotOlderThan(revision),
        };
        Ok(ListOptions {
            label_selector: text("labelSelector").map(str::to_owned),
            field_selector: text("fieldSelector").map(str::to_owned),
            limit: number("limit")?.map_or(0, |limit| usize::try_from(limit).unwrap_or(0)),
            continue_token: text("continue").map(str::to_owned),
            wanted,
            bookmarks: query.flag("allowWatchBookmarks"),
            initial_events,
            timeout_seconds: number("timeoutSeconds")?
                .and_then(|seconds| u64::try_from(seconds).ok())
                .filter(|seconds| *seconds > 0),
        })
    }
}

fn check_match(
    query: &Query,
    watch: bool,
    revision: Option<&str>,
    matching: Option<&str>,
    initial_events: Option<bool>,
) -> Result<(), Failure> {
    let kind = "ListOptions";
    let path = "resourceVersionMatch";
    let forbidden = |detail: &str| {
        Err(invalid(
            kind,
            fault(path, FaultReason::Forbidden, Value::Null, detail),
        ))
    };
    if watch {
        if initial_events.is_some() && matching != Some("NotOlderThan") {
            return forbidden(
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            );
        }
        if initial_events.is_none()
            && let Some(matching) = matching
        {
            let mut faults = vec![fault(
                path,
                FaultReason::Forbidden,
                Value::Null,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            )];
            if matching != "NotOlderThan" {
                faults.push(fault(
                    path,
                    FaultReason::NotSupported,
                    matching,
                    "supported values: \"NotOlderThan\"",
                ));
            }
            return Err(Failure::invalid(META_GROUP, kind, "", &faults));
        }
        if query.get("continue").is_some_and(|token| !token.is_empty()) {
            return forbidden("resourceVersionMatch is forbidden when continue is provided");
        }
        return Ok(());
    }
    if initial_events.is_some() {
        return Err(invalid(
            kind,
            fault(
                "sendInitialEvents",
                FaultReason::Forbidden,
                Value::Null,
                "sendInitialEvents is forbidden for list",
            ),
        ));
    }
    let Some(matching) = matching else {
        return Ok(());
    };
    if revision.is_none() {
        return forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided");
    }
    if query.get("continue").is_some_and(|token| !token.is_empty()) {
        return forbidden("resourceVersionMatch is forbidden when continue is provided");
    }
    match matching {
        "Exact" if revision == Some("0") => {
            forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
        }
        "Exact" | "NotOlderThan" => Ok(()),
        other => Err(invalid(
            kind,
            fault(
                path,
                FaultReason::NotSupported,
                other,
                "supported values: \"Exact\", \"NotOlderThan\", \"\"",
            ),
        )),
    }
}

/// A number in a query, or 400 in Go's words.
pub(crate) fn integer(text: &str) -> Result<i64, Failure> {
    text.parse().map_err(|error: std::num::ParseIntError| {
        let why = match error.kind() {
            IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        let quoted = kinds::quote(text);
        Failure::bad_request(format!("strconv.ParseInt: parsing {quoted}: {why}"))
    })
}

/// A revision in a query.
pub(crate) fn parse_revision(text: &str) -> Result<u64, Failure> {
    text.parse().map_err(|_| {
        Failure::bad_request(format!(
            "invalid resource version: {}",
            not_a_revision(text)
        ))
    })
}

fn not_a_revision(text: &str) -> String {
    let quoted = kinds::quote(text);
    format!(
        "resourceVersion: Invalid value: {quoted}: strconv.ParseUint: parsing {quoted}: invalid syntax"
    )
}

/// How strictly a body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    /// Unknown and duplicate fields are refused.
    Strict,
    /// They are dropped, and the caller is told.
    Warn,
    /// They are dropped.
    Ignore,
}

/// Options of create, update and patch.
#[derive(Clone, Debug)]
pub(crate) struct WriteOptions {
    pub(crate) dry_run: bool,
    pub(crate) manager: String,
    pub(crate) validation: FieldValidation,
    pub(crate) force: bool,
    /// The object comes from server-side apply, which has set its managed fields.
    pub(crate) applied: bool,
}

impl WriteOptions {
    /// Options of a write that the server makes itself.
    pub(crate) fn internal() -> WriteOptions {
        WriteOptions {
            dry_run: false,
            manager: "wharf".into(),
            validation: FieldValidation::Ignore,
            force: false,
            applied: false,
        }
    }

    /// Reads the options that upstream calls `kind` (`CreateOptions`, …).
    pub(crate) fn parse(
        query: &Query,
        headers: &HeaderMap,
        kind: &str,
        apply: bool,
    ) -> Result<WriteOptions, Failure> {
        let dry_run = dry_run(query.all("dryRun"), kind)?;
        let manager = query.get("fieldManager").unwrap_or_default();
        if manager.len() > 128 {
            return Err(invalid(
                kind,
                fault(
                    "fieldManager",
                    FaultReason::TooLong,
                    Value::Null,
                    "may not be more than 128 bytes",
                ),
            ));
        }
        let control = manager
            .char_indices()
            .find(|(_, symbol)| symbol.is_control());
        if let Some((position, symbol)) = control {
            return Err(invalid(
                kind,
                fault(
                    "fieldManager",
                    FaultReason::Invalid,
                    manager,
                    format!(
                        "invalid character U+{:04X} (at position {position})",
                        symbol as u32
                    ),
                ),
            ));
        }
        if apply && manager.is_empty() {
            return Err(invalid(
                kind,
                fault(
                    "fieldManager",
                    FaultReason::Required,
                    Value::Null,
                    "is required for apply patch",
                ),
            ));
        }
        let validation = match query.get("fieldValidation").unwrap_or_default() {
            "" | "Warn" => FieldValidation::Warn,
            "Strict" => FieldValidation::Strict,
            "Ignore" => FieldValidation::Ignore,
            other => {
                return Err(invalid(
                    kind,
                    fault(
                        "fieldValidation",
                        FaultReason::NotSupported,
                        other,
                        "supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"",
                    ),
                ));
            }
        };
        if kind == "PatchOptions" && !apply && query.get("force").is_some() {
            return Err(invalid(
                kind,
                fault(
                    "force",
                    FaultReason::Forbidden,
                    Value::Null,
                    "may not be specified for non-apply patch",
                ),
            ));
        }
        Ok(WriteOptions {
            dry_run,
            manager: if manager.is_empty() {
                manager_of(headers)
            } else {
                manager.to_owned()
            },
            validation,
            force: query.flag("force"),
            applied: apply,
        })
    }
}

/// The field manager of a caller that does not name one: its user agent up to the first slash.
fn manager_of(headers: &HeaderMap) -> String {
    let agent = headers
        .get(header::USER_AGENT)
        .and_then(|agent| agent.to_str().ok())
        .unwrap_or_default();
    let name = agent.split('/').next().unwrap_or_default();
    let name: String = name.chars().take(128).collect();
    if name.is_empty() {
        "unknown".into()
    } else {
        name
    }
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>, kind: &str) -> Result<bool, Failure> {
    let values: Vec<&str> = values.collect();
    if values.iter().all(|value| *value == "All") {
        return Ok(!values.is_empty());
    }
    Err(invalid(
        kind,
        fault(
            "dryRun",
            FaultReason::NotSupported,
            Value::from(values),
            "supported values: \"All\"",
        ),
    ))
}

/// What happens to the dependents of a deleted object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    /// They keep living.
    Orphan,
    /// They are deleted later.
    Background,
    /// They are deleted first.
    Foreground,
}

/// Options of delete and deletecollection.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteOptions {
    pub(crate) dry_run: bool,
    pub(crate) grace_seconds: Option<i64>,
    pub(crate) propagation: Option<Propagation>,
    pub(crate) uid: Option<String>,
    pub(crate) revision: Option<String>,
    /// `orphanDependents: false` was asked for, which makes the answer a 202.
    pub(crate) cascading: bool,
}

impl DeleteOptions {
    /// Reads the body, or without one the query.
    pub(crate) fn parse(query: &Query, body: Option<&Value>) -> Result<DeleteOptions, Failure> {
        const KIND: &str = "DeleteOptions";
        let body = body.filter(|body| !body.is_null());
        let text = |name: &str| -> Option<String> {
            match body {
                Some(body) => body[name].as_str().map(str::to_owned),
                None => query.get(name).map(str::to_owned),
            }
        };
        let grace_seconds = match body {
            Some(body) => body["gracePeriodSeconds"].as_i64(),
            None => query.get("gracePeriodSeconds").map(integer).transpose()?,
        };
        let orphan = match body {
            Some(body) => body["orphanDependents"].as_bool(),
            None => query
                .get("orphanDependents")
                .map(|_| query.flag("orphanDependents")),
        };
        let policy = text("propagationPolicy").filter(|policy| !policy.is_empty());
        if orphan.is_some() && policy.is_some() {
            return Err(invalid(
                KIND,
                fault(
                    "propagationPolicy",
                    FaultReason::Invalid,
                    Value::from(policy),
                    "orphanDependents and deletionPropagation cannot be both set",
                ),
            ));
        }
        let propagation = match (policy.as_deref(), orphan) {
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some(other), _) => {
                return Err(invalid(
                    KIND,
                    fault(
                        "propagationPolicy",
                        FaultReason::NotSupported,
                        other,
                        "supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\"",
                    ),
                ));
            }
            (None, None) => None,
        };
        let dry_run = match body {
            Some(body) => {
                let of_body = body["dryRun"].as_array().into_iter().flatten();
                dry_run(
                    of_body.map(|value| value.as_str().unwrap_or_default()),
                    KIND,
                )?
            }
            None => dry_run(query.all("dryRun"), KIND)?,
        };
        let precondition = |name: &str| body?["preconditions"][name].as_str().map(str::to_owned);
        Ok(DeleteOptions {
            dry_run,
            grace_seconds,
            propagation,
            uid: precondition("uid"),
            revision: precondition("resourceVersion"),
            cascading: orphan == Some(false),
        })
    }
}

/// As what an answer is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// The object itself.
    Object,
    /// Rows for people.
    Table,
    /// Its metadata only.
    Partial,
}

/// In which notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notation {
    Json,
    Yaml,
}

/// The form of the answer that the caller asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accept {
    pub(crate) shown: Shown,
    pub(crate) notation: Notation,
    pub(crate) pretty: bool,
}

impl Accept {
    /// The object as JSON.
    pub(crate) const PLAIN: Accept = Accept {
        shown: Shown::Object,
        notation: Notation::Json,
        pretty: false,
    };

    /// Chooses the first form in the `Accept` header that can be made, if one can; unless in
    /// `any_form`, as the object itself.
    pub(crate) fn parse(headers: &HeaderMap, query: &Query, any_form: bool) -> Option<Accept> {
        let pretty = match query.get("pretty") {
            Some(_) => query.flag("pretty"),
            None => headers
                .get(header::USER_AGENT)
                .and_then(|agent| agent.to_str().ok())
                .is_some_and(|agent| {
                    ["curl", "Wget", "Mozilla/5.0"]
                        .iter()
                        .any(|known| agent.starts_with(known))
                }),
        };
        let accept = |shown, notation| Accept {
            shown,
            notation,
            pretty,
        };
        let mut asked = accepted(headers).peekable();
        if asked.peek().is_none() {
            return Some(accept(Shown::Object, Notation::Json));
        }
        for part in asked {
            let mut parameters = part.split(';').map(str::trim);
            let media = parameters.next().unwrap_or_default();
            let notation = match media {
                "*/*" | "application/*" | "application/json" => Notation::Json,
                "application/yaml" => Notation::Yaml,
                _ => continue,
            };
            let (mut form, mut group, mut version) = ("", "", "");
            for parameter in parameters {
                match parameter.split_once('=') {
                    Some(("as", value)) => form = value,
                    Some(("g", value)) => group = value,
                    Some(("v", value)) => version = value,
                    _ => {}
                }
            }
            if form.is_empty() {
                return Some(accept(Shown::Object, notation));
            }
            if !any_form || group != META_GROUP || !matches!(version, "v1" | "v1beta1") {
                continue;
            }
            match form {
                "Table" => return Some(accept(Shown::Table, notation)),
                "PartialObjectMetadata" | "PartialObjectMetadataList" => {
                    return Some(accept(Shown::Partial, notation));
                }
                _ => {}
            }
        }
        None
    }
}

/// What a client says that it takes, each with its parameters.
pub(crate) fn accepted(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn list(query: &str, watch: bool) -> Result<ListOptions, Failure> {
        ListOptions::parse(&Query::parse(query), watch)
    }

    #[test]
    fn list_options_are_refused_with_upstreams_texts() {
        let check = |query: &str, watch: bool, code: u16, message: &str| {
            let failure = list(query, watch).expect_err(query);
            assert_eq!(
                (failure.code(), failure.message()),
                (code, message),
                "{query}"
            );
        };
        check(
            "limit=x",
            false,
            400,
            "strconv.ParseInt: parsing \"x\": invalid syntax",
        );
        check(
            "resourceVersion=abc",
            false,
            400,
            "invalid resource version: resourceVersion: Invalid value: \"abc\": strconv.ParseUint: parsing \"abc\": invalid syntax",
        );
        check(
            "resourceVersionMatch=Exact",
            false,
            422,
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        );
        check(
            "sendInitialEvents=true",
            true,
            422,
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
    }

    #[test]
    fn the_revision_that_a_list_wants() {
        let check = |query: &str, wanted| {
            assert_eq!(list(query, false).expect(query).wanted, wanted, "{query}");
        };
        check("", Wanted::Newest);
        check("resourceVersion=0", Wanted::Any);
        check("resourceVersion=5", Wanted::NotOlderThan(5));
        check("resourceVersion=5&limit=2", Wanted::Exact(5));
        check(
            "resourceVersion=5&resourceVersionMatch=Exact",
            Wanted::Exact(5),
        );
    }

    #[test]
    fn write_options_are_refused_with_upstreams_texts() {
        let check = |query: &str, message: &str| {
            let failure = WriteOptions::parse(
                &Query::parse(query),
                &HeaderMap::new(),
                "CreateOptions",
                false,
            )
            .expect_err(query);
            assert_eq!(failure.message(), message);
        };
        check(
            "fieldValidation=Foo",
            "CreateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"Foo\": supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"",
        );
        check(
            "dryRun=Foo",
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"Foo\"]: supported values: \"All\"",
        );
    }

    #[test]
    fn delete_options_come_from_the_body_or_the_query() {
        let query = Query::parse("gracePeriodSeconds=3&propagationPolicy=Orphan");
        let options = DeleteOptions::parse(&query, None).expect("well-formed");
        assert_eq!(options.grace_seconds, Some(3));
        assert_eq!(options.propagation, Some(Propagation::Orphan));
        let body =
            json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "u"}, "dryRun": ["All"]});
        let options = DeleteOptions::parse(&query, Some(&body)).expect("well-formed");
        assert_eq!(options.grace_seconds, Some(0));
        assert_eq!(options.propagation, None);
        assert_eq!(options.uid.as_deref(), Some("u"));
        assert!(options.dry_run);
        let failure =
            DeleteOptions::parse(&Query::parse("propagationPolicy=X"), None).expect_err("unknown");
        assert_eq!(
            failure.message(),
            "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: \"X\": supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
        );
    }

    #[test]
    fn the_first_form_that_can_be_made_is_chosen() {
        let check = |accept: &str, expected: Option<(Shown, Notation)>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().expect("a value"));
            let got = Accept::parse(&headers, &Query::default(), true);
            assert_eq!(
                got.map(|got| (got.shown, got.notation)),
                expected,
                "{accept}"
            );
        };
        check("*/*", Some((Shown::Object, Notation::Json)));
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
            Some((Shown::Table, Notation::Json)),
        );
        check(
            "application/vnd.kubernetes.protobuf,application/json",
            Some((Shown::Object, Notation::Json)),
        );
        check(
            "application/json;as=Foo;g=meta.k8s.io;v=v1, application/yaml",
            Some((Shown::Object, Notation::Yaml)),
        );
        check("text/html", None);
    }
}
