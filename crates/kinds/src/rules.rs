//! What is special about a kind, as a table of functions, and which kind has which table.

use jiff::Timestamp;
use serde_json::Value;

use crate::names::{self, NameCheck};
use crate::table::{Column, age};
use crate::{Fault, metadata};

/// The rules of a kind. A kind's file holds one constant of these, starting from [`Rules::PLAIN`].
pub(crate) struct Rules {
    /// What the name of an object must look like.
    pub(crate) name: NameCheck,
    pub(crate) default: fn(&mut Value),
    pub(crate) prepare_create: fn(&mut Value),
    pub(crate) prepare_update: fn(&mut Value, &Value, Option<&str>),
    pub(crate) validate: fn(&Value, &mut Vec<Fault>),
    pub(crate) validate_update: fn(&Value, &Value, Option<&str>, &mut Vec<Fault>),
    pub(crate) warnings: fn(&Value) -> Vec<String>,
    pub(crate) columns: &'static [Column],
    pub(crate) cells: fn(&Value, Timestamp) -> Vec<Value>,
    pub(crate) fields: fn(&Value) -> Vec<(&'static str, String)>,
}

impl std::fmt::Debug for Rules {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Rules")
    }
}

impl Rules {
    /// A kind with nothing special about it.
    pub(crate) const PLAIN: Rules = Rules {
        name: names::subdomain_name,
        default: |_| {},
        prepare_create: |_| {},
        prepare_update: |_, _, _| {},
        validate: |_, _| {},
        validate_update: |_, _, _, _| {},
        warnings: |_| Vec::new(),
        columns: &[Column::name(NAME), Column::of("Created At", "date", "", CREATED_AT, 0)],
        cells: |object, _| vec![metadata::name(object).into(), object["metadata"]["creationTimestamp"].clone()],
        fields: |_| Vec::new(),
    };
}

/// Description of the column that names the object.
pub(crate) const NAME: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
/// Description of the column of the object's age.
pub(crate) const CREATED_AT: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
/// The column of the object's age.
pub(crate) const AGE: Column = Column::text("Age", CREATED_AT);

/// The cell of the object's age.
pub(crate) fn age_cell(object: &Value, now: Timestamp) -> Value {
    age(&object["metadata"]["creationTimestamp"], now).into()
}

/// The rules of a built-in kind. A new kind is a line here.
pub(crate) fn of(group: &str, kind: &str) -> &'static Rules {
    match (group, kind) {
        _ => &Rules::PLAIN,
    }
}
