//! A kind: its names and facts as data, and the rules that only it has.

use std::sync::OnceLock;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::decode::{self, Decoded};
use crate::rules::Rules;
use crate::schema::{self, SchemaRef};
use crate::table::{Column, Heading};
use crate::{Fault, metadata};

/// A part of a resource that is read and written on its own.
#[derive(Clone, Debug, Deserialize)]
pub struct Subresource {
    /// The last step of its path: `status`, `scale`, `eviction`.
    pub name: String,
    /// The kind of its body.
    pub kind: String,
    /// The group of that kind where it is not the resource's own.
    #[serde(default)]
    pub group: Option<String>,
    /// The version of that kind where it is not the resource's own.
    #[serde(default)]
    pub version: Option<String>,
    /// What can be done with it.
    pub verbs: Vec<String>,
}

/// A row of the data file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    group: String,
    version: String,
    kind: String,
    definition: String,
    #[serde(default)]
    plural: String,
    #[serde(default)]
    singular: String,
    #[serde(default)]
    short_names: Vec<String>,
    #[serde(default)]
    categories: Vec<String>,
    #[serde(default)]
    namespaced: bool,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    subresources: Vec<Subresource>,
}

/// A kind of object, and everything the server must know of it.
#[derive(Debug)]
pub struct Kind {
    data: Data,
    list_kind: String,
    storage_space: String,
    schema: SchemaRef,
    rules: &'static Rules,
    columns: OnceLock<Vec<Column>>,
}

impl Kind {
    fn from_data(data: Data) -> Kind {
        let rules = crate::rules::of(&data.group, &data.kind);
        let storage_space = match (&*data.group, &*data.plural) {
            // Two views of the same objects.
            ("", plural) | ("events.k8s.io", plural) => plural.to_owned(),
            (group, plural) => format!("{plural}.{group}"),
        };
        Kind {
            list_kind: format!("{}List", data.kind),
            storage_space,
            schema: schema::definition(&data.definition)
                .expect("the generator writes the schema of each kind"),
            rules,
            columns: OnceLock::new(),
            data,
        }
    }

    /// All kinds of the data file.
    pub(crate) fn all_of(text: &str) -> Result<Vec<Kind>, serde_json::Error> {
        let rows: Vec<Data> = serde_json::from_str(text)?;
        Ok(rows.into_iter().map(Kind::from_data).collect())
    }

    /// The API group; empty for the core group.
    pub fn group(&self) -> &str {
        &self.data.group
    }

    /// The version within the group.
    pub fn version(&self) -> &str {
        &self.data.version
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        match self.group() {
            "" => self.data.version.clone(),
            group => format!("{group}/{}", self.data.version),
        }
    }

    /// The name of the kind: `Deployment`.
    pub fn kind(&self) -> &str {
        &self.data.kind
    }

    /// The name of the kind of its lists: `DeploymentList`.
    pub fn list_kind(&self) -> &str {
        &self.list_kind
    }

    /// The resource name in paths: `deployments`; empty for kinds that only are bodies of subresources.
    pub fn plural(&self) -> &str {
        &self.data.plural
    }

    /// The name for one: `deployment`.
    pub fn singular(&self) -> &str {
        &self.data.singular
    }

    /// `deploy`, `svc`.
    pub fn short_names(&self) -> &[String] {
        &self.data.short_names
    }

    /// Groups of resources such as `all`.
    pub fn categories(&self) -> &[String] {
        &self.data.categories
    }

    /// Whether objects live in namespaces.
    pub fn namespaced(&self) -> bool {
        self.data.namespaced
    }

    /// What can be done with the resource.
    pub fn verbs(&self) -> &[String] {
        &self.data.verbs
    }

    /// Its parts that are read and written on their own.
    pub fn subresources(&self) -> &[Subresource] {
        &self.data.subresources
    }

    /// `pods`, `deployments.apps`: the space of the store where the objects lie. Kinds that show the same objects share one.
    pub fn storage_space(&self) -> &str {
        &self.storage_space
    }

    /// Whether objects are answered but never stored: reviews, bindings, bodies of subresources.
    pub fn is_virtual(&self) -> bool {
        !self.data.verbs.iter().any(|verb| verb == "get")
    }

    /// The root of its schema.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// The name of the definition of its type in the published OpenAPI document.
    pub fn definition(&self) -> &str {
        &self.data.definition
    }

    /// Reads a body as Go would read it into the kind's type, and leaves in `body` what Go would print:
    /// unknown fields removed, empty fields dropped or added as the type says, quantities and times canonical.
    /// `raw` is the JSON text that `body` was parsed from; it is needed to find duplicate fields.
    pub fn decode(&self, body: &mut Value, raw: Option<&[u8]>) -> Decoded {
        decode::decode(body, raw, &self.schema)
    }

    /// Fills in what was left out and has a default.
    pub fn default(&self, object: &mut Value) {
        decode::apply_defaults(object, &self.schema);
        (self.rules.default)(object);
    }

    /// Brings a new object into the shape that a create stores: no status, generation 1.
    pub fn prepare_create(&self, object: &mut Value) {
        metadata::drop_repeated_owners(object);
        (self.rules.prepare_create)(object);
        decode::normalize(object, &self.schema);
    }

    /// Brings a changed object into the shape that an update stores: what this door (`sub`) may not change is taken
    /// from `old`, and `metadata.generation` counts changes of the spec.
    pub fn prepare_update(&self, new: &mut Value, old: &Value, sub: Option<&str>) {
        metadata::drop_repeated_owners(new);
        metadata::keep(new, old);
        (self.rules.prepare_update)(new, old, sub);
        decode::normalize(new, &self.schema);
    }

    /// All faults of a new object.
    pub fn validate_create(&self, object: &Value) -> Vec<Fault> {
        let mut faults = Vec::new();
        metadata::validate(object, self.namespaced(), self.rules.name, &mut faults);
        (self.rules.validate)(object, &mut faults);
        faults
    }

    /// All faults of a change from `old` to `new` through the door `sub`.
    pub fn validate_update(&self, new: &Value, old: &Value, sub: Option<&str>) -> Vec<Fault> {
        let mut faults = Vec::new();
        metadata::validate_update(new, old, &mut faults);
        (self.rules.validate_update)(new, old, sub, &mut faults);
        faults
    }

    /// What each request for the kind is warned of, reads too: the kind is going.
    pub fn deprecated(&self) -> Option<&'static str> {
        self.rules.deprecated
    }

    /// What is allowed but deserves a `Warning` header.
    pub fn warnings(&self, object: &Value) -> Vec<String> {
        (self.rules.warnings)(object)
    }

    /// The columns of a `Table` answer.
    pub fn columns(&self) -> &[Column] {
        self.columns
            .get_or_init(|| self.rules.columns.iter().map(Heading::column).collect())
    }

    /// One row of a `Table` answer.
    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        (self.rules.cells)(object, now)
    }

    /// The fields that a field selector may ask for, with their values in this object.
    pub fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let mut fields = metadata::selectable_fields(object, self.namespaced());
        fields.extend((self.rules.fields)(object));
        fields
    }
}
