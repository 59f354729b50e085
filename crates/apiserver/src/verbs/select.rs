//! Which objects a list or watch is about.

use kinds::{FieldSelector, Selector};
use serde_json::Value;
use store::Entry;

use crate::handle::{Call, Resource};
use crate::meta::{self, Facts, Meta};
use crate::options::ListOptions;
use crate::status::Failure;
use crate::views;

/// Label and field selectors, checked against the kind.
#[derive(Debug)]
pub(crate) struct Selection {
    labels: Option<Selector>,
    fields: Option<FieldSelector>,
}

impl Selection {
    /// Reads the selectors of the options.
    pub(crate) fn parse(call: &Call, options: &ListOptions) -> Result<Selection, Failure> {
        let labels = options
            .label_selector
            .as_deref()
            .map(|text| {
                Selector::parse(text).map_err(|error| Failure::bad_request(error.to_string()))
            })
            .transpose()?;
        let fields = options
            .field_selector
            .as_deref()
            .map(|text| {
                FieldSelector::parse(text).map_err(|error| Failure::bad_request(error.to_string()))
            })
            .transpose()?;
        if let Some(selector) = &fields {
            let known = labelled(
                &call.resource,
                &call.resource.kind.selectable_fields(&Value::Null),
            );
            let unknown = selector
                .terms()
                .iter()
                .map(|term| term.field.as_str())
                .find(|field| !known.iter().any(|(known, _)| known == field));
            if let Some(field) = unknown {
                let plain = known
                    .iter()
                    .all(|(known, _)| known.starts_with("metadata."));
                return Err(Failure::bad_request(if plain {
                    format!(
                        "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                        kinds::quote(field)
                    )
                } else {
                    format!("field label not supported: {field}")
                }));
            }
        }
        let fields = restricted_to_name(call, fields)?;
        Ok(Selection { labels, fields })
    }

    /// Whether everything is selected.
    pub(crate) fn is_all(&self) -> bool {
        self.labels.is_none() && self.fields.is_none()
    }

    /// Whether a stored object is selected.
    pub(crate) fn takes(&self, resource: &Resource, entry: &Entry<Meta>) -> bool {
        self.is_all() || self.takes_facts(resource, meta::facts(resource, entry))
    }

    fn takes_facts(&self, resource: &Resource, facts: &Facts) -> bool {
        let labels = self.labels.as_ref().is_none_or(|selector| {
            selector.matches_with(|name| facts.labels.get(name).map(String::as_str))
        });
        labels
            && self
                .fields
                .as_ref()
                .is_none_or(|selector| match resource.has_own_labels() {
                    false => selector.matches(&facts.fields),
                    true => selector.matches(&labelled(resource, &facts.fields)),
                })
    }
}

/// A request that names an object, by its path (`/watch/…/NAME`) or by a selector, is about no other:
/// it was allowed for that name.
fn restricted_to_name(
    call: &Call,
    fields: Option<FieldSelector>,
) -> Result<Option<FieldSelector>, Failure> {
    let name = &call.info.name;
    if name.is_empty() {
        return Ok(fields);
    }
    match fields {
        None => Ok(Some(FieldSelector::exactly("metadata.name", name))),
        Some(selector) if selector.required("metadata.name") == Some(name) => Ok(Some(selector)),
        Some(_) => Err(Failure::bad_request(
            "fieldSelector metadata.name doesn't match requested name",
        )),
    }
}

/// Fields under the labels that the kind has for them. Facts are kept under those of the kind that
/// objects are stored as, since two kinds may show the same object.
fn labelled(resource: &Resource, fields: &[(&'static str, String)]) -> Vec<(&'static str, String)> {
    fields
        .iter()
        .filter_map(|(name, value)| Some((views::field_label(resource.kind, name)?, value.clone())))
        .collect()
}
