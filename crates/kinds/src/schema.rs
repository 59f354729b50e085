//! The types of all kinds, parsed once into one flat table, and references into it that can be walked.
//!
//! The text of the data file stays in the program's read-only pages: names are slices of it, so the parsed
//! table costs a few bytes a field. Schemas of custom resources will be tables of their own behind an `Arc`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::Value;

/// What a value is, as far as reading and printing it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// An object with known fields.
    Object,
    /// A map with string keys.
    Map,
    /// A list.
    List,
    /// A string.
    String,
    /// Bytes, written in base64.
    Bytes,
    /// A 32-bit integer.
    Int32,
    /// A 64-bit integer.
    Int64,
    /// A floating-point number.
    Number,
    /// A boolean.
    Boolean,
    /// An integer or a string.
    IntOrString,
    /// An amount with a unit, see [`Quantity`](crate::Quantity).
    Quantity,
    /// A time in whole seconds.
    Time,
    /// A time in microseconds.
    MicroTime,
    /// Anything; kept as it is.
    Any,
}

/// How Go prints a field, which decides what an object looks like after it went through the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Left out when empty: scalars by value, lists, maps, and objects behind a pointer.
    Omitted,
    /// A scalar behind a pointer: kept whatever its value, left out when absent.
    Pointer,
    /// Printed even when absent, with the empty value of its type.
    Always,
    /// An object by value: printed even when empty.
    Value,
}

/// How two versions of a list merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListType {
    /// As one value.
    Atomic,
    /// By the items themselves.
    Set,
    /// By these fields of the items.
    Map(Vec<String>),
}

/// How two versions of a map or object merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapType {
    /// As one value.
    Atomic,
    /// Field by field.
    Granular,
}

type Text = Cow<'static, str>;

/// How a value merges with another version of itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct Merge {
    list_type: Option<Text>,
    list_keys: Box<[Text]>,
    map_type: Option<Text>,
    patch_strategy: Box<[Text]>,
    patch_key: Option<Text>,
}

#[derive(Debug)]
enum Node {
    Scalar(Type),
    List(u32),
    Map(u32),
    Object(u32),
}

#[derive(Debug)]
struct Field {
    name: Text,
    node: Node,
    required: bool,
    form: Form,
    default: Option<Box<Value>>,
    words: Option<Box<[Text]>>,
    merge: Option<Box<Merge>>,
}

#[derive(Debug)]
struct Definition {
    name: Text,
    /// Sorted by name.
    fields: Box<[Field]>,
    merge: Option<Box<Merge>>,
}

/// A closed set of definitions.
#[derive(Debug, Default)]
pub(crate) struct Schema {
    definitions: Vec<Definition>,
    /// Items of lists and values of maps, which have no field of their own.
    elements: Vec<Field>,
}

#[derive(Clone)]
enum Table {
    Built(&'static Schema),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Definition(u32),
    Field(u32, u32),
    Element(u32),
}

/// A place in a schema: a definition, a field of one, or the items of a list or map. Cheap to clone.
#[derive(Clone)]
pub struct SchemaRef {
    table: Table,
    place: Place,
}

impl fmt::Debug for SchemaRef {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "SchemaRef({:?} {:?})", self.definition(), self.place)
    }
}

impl SchemaRef {
    fn schema(&self) -> &Schema {
        match &self.table {
            Table::Built(schema) => schema,
        }
    }

    fn at(&self, place: Place) -> SchemaRef {
        SchemaRef {
            table: self.table.clone(),
            place,
        }
    }

    fn own_field(&self) -> Option<&Field> {
        match self.place {
            Place::Definition(_) => None,
            Place::Field(definition, field) => self
                .schema()
                .definitions
                .get(definition as usize)?
                .fields
                .get(field as usize),
            Place::Element(element) => self.schema().elements.get(element as usize),
        }
    }

    fn object(&self) -> Option<(u32, &Definition)> {
        let index = match self.place {
            Place::Definition(index) => index,
            _ => match self.own_field()?.node {
                Node::Object(index) => index,
                _ => return None,
            },
        };
        self.schema()
            .definitions
            .get(index as usize)
            .map(|definition| (index, definition))
    }

    fn merge(&self) -> Option<&Merge> {
        self.own_field().and_then(|field| field.merge.as_deref())
    }

    /// What the value here is.
    pub fn kind_of_value(&self) -> Type {
        match self.own_field().map(|field| &field.node) {
            None | Some(Node::Object(_)) => Type::Object,
            Some(Node::List(_)) => Type::List,
            Some(Node::Map(_)) => Type::Map,
            Some(Node::Scalar(scalar)) => *scalar,
        }
    }

    /// The name of the definition of the object here: `io.k8s.api.core.v1.PodSpec`.
    pub fn definition(&self) -> Option<&str> {
        self.object().map(|(_, definition)| &*definition.name)
    }

    /// The field of the object here with this name.
    pub fn field(&self, name: &str) -> Option<SchemaRef> {
        let (index, definition) = self.object()?;
        let field = definition
            .fields
            .binary_search_by(|field| (*field.name).cmp(name))
            .ok()?;
        Some(self.at(Place::Field(index, field as u32)))
    }

    /// The fields of the object here, sorted by name.
    pub fn fields(&self) -> impl Iterator<Item = (&str, SchemaRef)> {
        let object = self.object();
        let index = object.map(|(index, _)| index).unwrap_or_default();
        let fields = object
            .map(|(_, definition)| &*definition.fields)
            .unwrap_or_default();
        fields
            .iter()
            .enumerate()
            .map(move |(field, data)| (&*data.name, self.at(Place::Field(index, field as u32))))
    }

    /// The items of the list here.
    pub fn items(&self) -> Option<SchemaRef> {
        match self.own_field()?.node {
            Node::List(element) => Some(self.at(Place::Element(element))),
            _ => None,
        }
    }

    /// The values of the map here.
    pub fn additional(&self) -> Option<SchemaRef> {
        match self.own_field()?.node {
            Node::Map(element) => Some(self.at(Place::Element(element))),
            _ => None,
        }
    }

    /// Whether the field must be given.
    pub fn required(&self) -> bool {
        self.own_field().is_some_and(|field| field.required)
    }

    /// How Go prints the field.
    pub fn form(&self) -> Form {
        self.own_field().map_or(Form::Value, |field| field.form)
    }

    /// The value that the field gets when it is absent.
    pub fn default_value(&self) -> Option<&Value> {
        self.own_field()?.default.as_deref()
    }

    /// The words that the string here, or each item of the list here, may be; empty where any will do.
    pub fn words(&self) -> &[Cow<'static, str>] {
        self.own_field()
            .and_then(|field| field.words.as_deref())
            .unwrap_or_default()
    }

    /// How the list here merges.
    pub fn list_type(&self) -> ListType {
        let merge = self.merge();
        match merge.and_then(|merge| merge.list_type.as_deref()) {
            Some("set") => ListType::Set,
            Some("map") => ListType::Map(
                merge
                    .into_iter()
                    .flat_map(|merge| &merge.list_keys)
                    .map(|key| key.to_string())
                    .collect(),
            ),
            _ => ListType::Atomic,
        }
    }

    /// How the map or object here merges; what the field says goes before what its type says.
    pub fn map_type(&self) -> MapType {
        let of_type = || {
            self.object()
                .and_then(|(_, definition)| definition.merge.as_ref()?.map_type.as_deref())
        };
        let word = self
            .merge()
            .and_then(|merge| merge.map_type.as_deref())
            .or_else(of_type);
        if word == Some("atomic") {
            MapType::Atomic
        } else {
            MapType::Granular
        }
    }

    /// The words of the field's strategic-merge-patch strategy: none, or of `merge`, `replace`, `retainKeys`.
    pub fn patch_strategy(&self) -> impl Iterator<Item = &str> {
        self.merge()
            .into_iter()
            .flat_map(|merge| &merge.patch_strategy)
            .map(|word| &**word)
    }

    /// The field that strategic merge patch tells the items of the list here apart by.
    pub fn patch_merge_key(&self) -> Option<&str> {
        self.merge()?.patch_key.as_deref()
    }
}

/// A type as the data file writes it: a word, or one of `{"ref"}`, `{"list"}`, `{"map"}`.
#[derive(Deserialize)]
#[serde(untagged)]
enum ShapeData<'a> {
    Word(&'a str),
    #[serde(borrow)]
    Of(Box<Of<'a>>),
}

#[derive(Deserialize)]
struct Of<'a> {
    #[serde(rename = "ref")]
    reference: Option<&'a str>,
    #[serde(borrow)]
    list: Option<ShapeData<'a>>,
    #[serde(borrow)]
    map: Option<ShapeData<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FieldData<'a> {
    #[serde(rename = "type")]
    word: Option<&'a str>,
    #[serde(rename = "ref")]
    reference: Option<&'a str>,
    #[serde(borrow)]
    list: Option<ShapeData<'a>>,
    #[serde(borrow)]
    map: Option<ShapeData<'a>>,
    #[serde(default)]
    required: bool,
    form: Option<Form>,
    default: Option<Box<Value>>,
    #[serde(borrow, default)]
    words: Vec<&'a str>,
    #[serde(flatten, borrow)]
    merge: MergeData<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MergeData<'a> {
    list_type: Option<&'a str>,
    #[serde(default)]
    #[serde(borrow)]
    list_keys: Vec<&'a str>,
    map_type: Option<&'a str>,
    #[serde(default)]
    #[serde(borrow)]
    patch_strategy: Vec<&'a str>,
    patch_key: Option<&'a str>,
}

#[derive(Deserialize)]
struct DefinitionData<'a> {
    #[serde(borrow)]
    fields: BTreeMap<&'a str, FieldData<'a>>,
    #[serde(flatten, borrow)]
    merge: MergeData<'a>,
}

impl MergeData<'static> {
    fn build(self) -> Option<Box<Merge>> {
        let words = |list: Vec<&'static str>| list.into_iter().map(Cow::Borrowed).collect();
        let merge = Merge {
            list_type: self.list_type.map(Cow::Borrowed),
            list_keys: words(self.list_keys),
            map_type: self.map_type.map(Cow::Borrowed),
            patch_strategy: words(self.patch_strategy),
            patch_key: self.patch_key.map(Cow::Borrowed),
        };
        (merge != Merge::default()).then(|| Box::new(merge))
    }
}

struct Builder {
    schema: Schema,
    index: BTreeMap<&'static str, u32>,
}

impl Builder {
    fn node(
        &mut self,
        word: Option<&str>,
        reference: Option<&str>,
        list: Option<ShapeData<'static>>,
        map: Option<ShapeData<'static>>,
    ) -> Node {
        match (reference, list, map) {
            (Some(name), _, _) => match self.index.get(name) {
                Some(index) => Node::Object(*index),
                None => Node::Scalar(Type::Any),
            },
            (_, Some(items), _) => Node::List(self.element(items)),
            (_, _, Some(values)) => Node::Map(self.element(values)),
            _ => Node::Scalar(scalar(word.unwrap_or("any"))),
        }
    }

    fn element(&mut self, shape: ShapeData<'static>) -> u32 {
        let node = match shape {
            ShapeData::Word(word) => Node::Scalar(scalar(word)),
            ShapeData::Of(of) => self.node(None, of.reference, of.list, of.map),
        };
        let name = Cow::Borrowed("");
        self.schema.elements.push(Field {
            name,
            node,
            required: false,
            form: Form::Value,
            default: None,
            words: None,
            merge: None,
        });
        self.schema.elements.len() as u32 - 1
    }

    fn field(&mut self, name: &'static str, data: FieldData<'static>) -> Field {
        Field {
            name: Cow::Borrowed(name),
            node: self.node(data.word, data.reference, data.list, data.map),
            required: data.required,
            form: data.form.unwrap_or(Form::Omitted),
            default: data.default,
            words: (!data.words.is_empty())
                .then(|| data.words.into_iter().map(Cow::Borrowed).collect()),
            merge: data.merge.build(),
        }
    }
}

impl Schema {
    fn parse(text: &'static str) -> Result<Schema, serde_json::Error> {
        let data: BTreeMap<&'static str, DefinitionData<'static>> = serde_json::from_str(text)?;
        let index = data
            .keys()
            .enumerate()
            .map(|(index, name)| (*name, index as u32))
            .collect();
        let mut builder = Builder {
            schema: Schema::default(),
            index,
        };
        for (name, definition) in data {
            let fields = definition
                .fields
                .into_iter()
                .map(|(name, data)| builder.field(name, data))
                .collect();
            let merge = definition.merge.build();
            builder.schema.definitions.push(Definition {
                name: Cow::Borrowed(name),
                fields,
                merge,
            });
        }
        Ok(builder.schema)
    }

    /// The schema of all built-in kinds; parsed at the first call.
    fn built() -> &'static Schema {
        static SCHEMA: OnceLock<Schema> = OnceLock::new();
        SCHEMA.get_or_init(|| {
            Schema::parse(include_str!("../data/schema.json"))
                .expect("the data file was written by our own generator")
        })
    }
}

/// The built-in definition of this name: `io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions`.
pub fn definition(name: &str) -> Option<SchemaRef> {
    let schema = Schema::built();
    let index = schema
        .definitions
        .binary_search_by(|definition| (*definition.name).cmp(name))
        .ok()?;
    Some(SchemaRef {
        table: Table::Built(schema),
        place: Place::Definition(index as u32),
    })
}

fn scalar(word: &str) -> Type {
    match word {
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "int32" => Type::Int32,
        "int64" => Type::Int64,
        "number" => Type::Number,
        "boolean" => Type::Boolean,
        "int-or-string" => Type::IntOrString,
        "quantity" => Type::Quantity,
        "time" => Type::Time,
        "micro-time" => Type::MicroTime,
        _ => Type::Any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(definition_name: &str, path: &str) -> SchemaRef {
        let start = definition(definition_name).expect("the definition exists");
        path.split('.').fold(start, |at, step| match step {
            "[]" => at.items().expect("a list"),
            "{}" => at.additional().expect("a map"),
            name => at.field(name).expect("a field"),
        })
    }

    #[test]
    fn walks_to_fields_items_and_values() {
        let check = |path: &str, expected: Type| {
            assert_eq!(
                at("io.k8s.api.apps.v1.Deployment", path).kind_of_value(),
                expected,
                "{path}"
            );
        };
        check("spec.template.spec.containers", Type::List);
        check(
            "spec.template.spec.containers.[].resources.limits.{}",
            Type::Quantity,
        );
        check(
            "spec.template.spec.containers.[].ports.[].containerPort",
            Type::Int32,
        );
        check("spec.strategy.rollingUpdate.maxSurge", Type::IntOrString);
        check("metadata.labels.{}", Type::String);
        check("metadata.creationTimestamp", Type::Time);
    }

    #[test]
    fn merge_keys_of_apply_and_of_patch_differ_for_ports() {
        let ports = at("io.k8s.api.core.v1.Pod", "spec.containers.[].ports");
        assert_eq!(
            ports.list_type(),
            ListType::Map(vec!["containerPort".into(), "protocol".into()])
        );
        assert_eq!(ports.patch_merge_key(), Some("containerPort"));
        assert_eq!(ports.patch_strategy().collect::<Vec<_>>(), ["merge"]);
        assert_eq!(
            at("io.k8s.api.core.v1.Pod", "spec.nodeSelector").map_type(),
            MapType::Atomic
        );
        assert_eq!(
            at("io.k8s.api.core.v1.Service", "spec.selector").map_type(),
            MapType::Atomic
        );
    }

    #[test]
    fn every_reference_of_the_data_file_resolves() {
        for definition in &Schema::built().definitions {
            assert!(
                !definition.fields.is_empty(),
                "{} has no fields",
                definition.name
            );
        }
        let unresolved = include_str!("../data/schema.json")
            .split("\"ref\":\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .find(|name| super::definition(name).is_none());
        assert_eq!(unresolved, None);
    }
}
