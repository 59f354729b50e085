//! Reading a JSON body as Go's strict decoder would read it into the kind's type.
//!
//! Upstream decodes into structs and prints them again; clients see the traces of that: unknown fields are gone or
//! refused, empty optional fields disappear, objects held by value stand there as `{}`, quantities and times are
//! canonical. [`decode`] and [`normalize`] leave the same traces by walking value and schema side by side.

use serde_json::{Map, Value};

use crate::base64;
use crate::quantity::Quantity;
use crate::schema::{Form, SchemaRef, Type};
use crate::strict;
use crate::time;

/// What the decoder had to say about a body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// `unknown field "spec.foo"`: the fields are removed from the body; and, which can only be known when the raw
    /// bytes were given, `duplicate field "spec.foo"`. In the order of the raw bytes, else in that of the names.
    pub faults: Vec<String>,
    /// Why the body cannot be read at all, as Go tells it (`json: cannot unmarshal …`); the body is then unusable.
    pub error: Option<String>,
}

impl SchemaRef {
    /// Reads a body of this type that is no kind of its own, as `DeleteOptions`; see
    /// [`Kind::decode`](crate::Kind::decode).
    pub fn decode(&self, body: &mut Value, raw: Option<&[u8]>) -> Decoded {
        decode(body, raw, self)
    }
}

/// Reads `body` as the type at `schema` and leaves in it what Go would print; see [`Decoded`].
pub(crate) fn decode(body: &mut Value, raw: Option<&[u8]>, schema: &SchemaRef) -> Decoded {
    let mut reader = Reader {
        path: String::new(),
        unknown: Vec::new(),
        mismatch: None,
    };
    let aborted = reader.read(body, schema).err();
    let faults = match raw {
        Some(raw) => strict::faults(raw, &reader.unknown),
        None => {
            reader.unknown.sort_unstable();
            let told = |path| format!("unknown field \"{path}\"");
            reader.unknown.into_iter().map(told).collect()
        }
    };
    Decoded {
        faults,
        error: aborted.or(reader.mismatch.map(|mismatch| mismatch.to_string())),
    }
}

/// Brings an object that was changed by our own code into the form in which Go would print it.
pub(crate) fn normalize(object: &mut Value, schema: &SchemaRef) {
    decode(object, None, schema);
}

/// Fills in the defaults that the schema declares, wherever the object that has the field is there.
pub(crate) fn apply_defaults(value: &mut Value, schema: &SchemaRef) {
    match value {
        Value::Array(items) => {
            if let Some(item_schema) = schema.items() {
                items
                    .iter_mut()
                    .for_each(|item| apply_defaults(item, &item_schema));
            }
        }
        Value::Object(fields) if schema.kind_of_value() == Type::Object => {
            for (name, field) in schema.fields() {
                match (fields.get_mut(name), field.default_value()) {
                    (Some(present), default)
                        if !is_zero(present) || field.form() == Form::Pointer =>
                    {
                        if let (Value::Null, Some(default)) = (&*present, default) {
                            *present = default.clone();
                        }
                        apply_defaults(present, &field);
                    }
                    (_, Some(default)) => {
                        fields.insert(name.to_owned(), default.clone());
                    }
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

struct Reader {
    /// Where the walk is: `spec.containers[0].name`.
    path: String,
    /// Paths of fields that the type lacks.
    unknown: Vec<String>,
    /// Go goes on after a mismatch and tells the first.
    mismatch: Option<Mismatch>,
}

/// A value of a type that its place cannot take.
struct Mismatch {
    value: String,
    go_type: String,
    /// The struct that has the innermost field.
    holder: Option<String>,
    /// The fields that lead there, the innermost first; Go counts neither items nor keys.
    fields: Vec<String>,
}

impl Mismatch {
    /// It was found in this field of the object described by `schema`.
    fn is_below(&mut self, field: &str, schema: &SchemaRef) {
        if self.holder.is_none() {
            self.holder = Some(simple_name(schema).to_owned());
            if field == "uid" && self.go_type == "string" {
                self.go_type = "types.UID".to_owned();
            }
        }
        self.fields.push(field.to_owned());
    }
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Mismatch { value, go_type, .. } = self;
        write!(formatter, "json: cannot unmarshal {value} into Go ")?;
        match &self.holder {
            None => formatter.write_str("value")?,
            Some(holder) => {
                write!(formatter, "struct field {holder}")?;
                for field in self.fields.iter().rev() {
                    write!(formatter, ".{field}")?;
                }
            }
        }
        write!(formatter, " of type {go_type}")
    }
}

/// An error that ends Go's decoder at once: those of types that parse themselves.
type Abort = String;

impl Reader {
    fn below(
        &mut self,
        step: std::fmt::Arguments<'_>,
        read: impl FnOnce(&mut Reader) -> Result<(), Abort>,
    ) -> Result<(), Abort> {
        let length = self.path.len();
        std::fmt::Write::write_fmt(&mut self.path, step).map_err(|error| error.to_string())?;
        let outcome = read(self);
        self.path.truncate(length);
        outcome
    }

    fn read(&mut self, value: &mut Value, schema: &SchemaRef) -> Result<(), Abort> {
        match schema.kind_of_value() {
            Type::Object => self.read_object(value, schema),
            Type::Map => self.read_map(value, schema),
            Type::List => self.read_list(value, schema),
            scalar => self.read_scalar(value, scalar),
        }
    }

    fn read_object(&mut self, value: &mut Value, schema: &SchemaRef) -> Result<(), Abort> {
        if value.is_null() {
            *value = Value::Object(Map::new());
        }
        let Value::Object(fields) = value else {
            self.mismatch(value, &go_name(schema));
            return Ok(());
        };
        let strange: Vec<String> = fields
            .keys()
            .filter(|name| schema.field(name).is_none())
            .cloned()
            .collect();
        for name in strange {
            fields.remove(&name);
            let dot = if self.path.is_empty() { "" } else { "." };
            self.unknown.push(format!("{}{dot}{name}", self.path));
        }
        for (name, field) in schema.fields() {
            let form = field.form();
            let Some(present) = fields.get_mut(name) else {
                if let Some(empty) = empty(&field, form) {
                    fields.insert(name.to_owned(), empty);
                }
                continue;
            };
            if present.is_null() {
                match empty(&field, form) {
                    Some(empty) => *present = empty,
                    None => drop(fields.remove(name)),
                }
                continue;
            }
            let dot = if self.path.is_empty() { "" } else { "." };
            let had_mismatch = self.mismatch.is_some();
            self.below(format_args!("{dot}{name}"), |reader| {
                reader.read(present, &field)
            })?;
            if let Some(mismatch) = self.mismatch.as_mut().filter(|_| !had_mismatch) {
                mismatch.is_below(name, schema);
            }
            let bare = is_zero(present) && field.kind_of_value() != Type::Object;
            match form {
                Form::Omitted if bare => drop(fields.remove(name)),
                // Go prints a list that is there but empty as it prints one that is not there.
                Form::Always if present.is_array() && bare => *present = Value::Null,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_map(&mut self, value: &mut Value, schema: &SchemaRef) -> Result<(), Abort> {
        let Some(schema) = schema.additional() else {
            return Ok(());
        };
        let Value::Object(entries) = value else {
            let name = format!("map[string]{}", go_name(&schema));
            self.mismatch(value, &name);
            return Ok(());
        };
        for (key, entry) in entries.iter_mut() {
            self.below(format_args!(".{key}"), |reader| {
                reader.read_element(entry, &schema)
            })?;
        }
        Ok(())
    }

    fn read_list(&mut self, value: &mut Value, schema: &SchemaRef) -> Result<(), Abort> {
        let Some(schema) = schema.items() else {
            return Ok(());
        };
        let Value::Array(items) = value else {
            let name = format!("[]{}", go_name(&schema));
            self.mismatch(value, &name);
            return Ok(());
        };
        for (index, item) in items.iter_mut().enumerate() {
            self.below(format_args!("[{index}]"), |reader| {
                reader.read_element(item, &schema)
            })?;
        }
        Ok(())
    }

    /// Items of lists and values of maps exist even when they are null: they are the empty value of their type.
    fn read_element(&mut self, value: &mut Value, schema: &SchemaRef) -> Result<(), Abort> {
        match value.is_null() {
            true => {
                *value = zero(schema);
                Ok(())
            }
            false => self.read(value, schema),
        }
    }

    fn read_scalar(&mut self, value: &mut Value, scalar: Type) -> Result<(), Abort> {
        match scalar {
            Type::String if !value.is_string() => self.mismatch(value, "string"),
            Type::Boolean if !value.is_boolean() => self.mismatch(value, "bool"),
            Type::Number if !value.is_number() => self.mismatch(value, "float64"),
            Type::Int64 if value.as_i64().is_none() => self.mismatch(value, "int64"),
            Type::Int32 if !fits_int32(value) => self.mismatch(value, "int32"),
            Type::Bytes => self.read_bytes(value)?,
            Type::IntOrString if !value.is_string() && !fits_int32(value) => {
                return Err(format!(
                    "json: cannot unmarshal {} into Go value of type int32",
                    describe(value, "int32")
                ));
            }
            Type::Quantity => *value = canonical_quantity(value)?,
            Type::Time | Type::MicroTime => match value.as_str() {
                Some(text) => *value = time::canonical(text, scalar == Type::MicroTime)?.into(),
                None => {
                    return Err(format!(
                        "json: cannot unmarshal {} into Go value of type string",
                        go_kind(value)
                    ));
                }
            },
            _ => {}
        }
        Ok(())
    }

    /// Bytes are base64, or a list of numbers.
    fn read_bytes(&mut self, value: &mut Value) -> Result<(), Abort> {
        match &*value {
            Value::String(text) => match base64::canonical(text) {
                Ok(None) => {}
                Ok(Some(canonical)) => *value = canonical.into(),
                Err(at) => return Err(format!("illegal base64 data at input byte {at}")),
            },
            Value::Array(items) => {
                let byte =
                    |item: &Value| item.as_u64().and_then(|number| u8::try_from(number).ok());
                match items.iter().map(byte).collect::<Option<Vec<u8>>>() {
                    Some(bytes) => *value = base64::encode(&bytes).into(),
                    None => self.mismatch(value, "uint8"),
                }
            }
            _ => self.mismatch(value, "[]uint8"),
        }
        Ok(())
    }

    fn mismatch(&mut self, value: &Value, go_type: &str) {
        if self.mismatch.is_none() {
            self.mismatch = Some(Mismatch {
                value: describe(value, go_type),
                go_type: go_type.to_owned(),
                holder: None,
                fields: Vec::new(),
            });
        }
    }
}

fn fits_int32(value: &Value) -> bool {
    value
        .as_i64()
        .is_some_and(|number| i32::try_from(number).is_ok())
}

fn canonical_quantity(value: &Value) -> Result<Value, Abort> {
    let text = match value {
        Value::String(text) => text.trim().to_owned(),
        other => other.to_string(),
    };
    text.parse::<Quantity>()
        .map(|quantity| quantity.to_string().into())
        .map_err(|error| error.to_string())
}

/// A JSON value in Go's words. A number is told where another one would have fitted.
fn describe(value: &Value, go_type: &str) -> String {
    match value {
        Value::Number(number) if go_type.starts_with("int") => format!("number {number}"),
        value => go_kind(value).to_owned(),
    }
}

/// What Go's decoder calls a value.
pub fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The name of a type without its package.
fn simple_name(schema: &SchemaRef) -> &str {
    schema
        .definition()
        .and_then(|name| name.rsplit('.').next())
        .unwrap_or_default()
}

fn go_name(schema: &SchemaRef) -> String {
    match schema.kind_of_value() {
        Type::Object => match schema.definition().map(|name| name.rsplitn(3, '.')) {
            Some(mut parts) => {
                let (name, package) = (parts.next(), parts.next());
                format!(
                    "{}.{}",
                    package.unwrap_or_default(),
                    name.unwrap_or_default()
                )
            }
            None => "struct".to_owned(),
        },
        Type::Map => "map[string]string".to_owned(),
        Type::List => "[]string".to_owned(),
        Type::String => "string".to_owned(),
        Type::Bytes => "[]uint8".to_owned(),
        Type::Quantity => "resource.Quantity".to_owned(),
        _ => "int32".to_owned(),
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// What stands for an absent field; `None` when nothing does.
fn empty(field: &SchemaRef, form: Form) -> Option<Value> {
    match (form, field.kind_of_value()) {
        (Form::Value, _) => Some(zero(field)),
        (Form::Always, Type::Object) => Some(Value::Null),
        (Form::Always, _) => Some(zero(field)),
        (Form::Omitted | Form::Pointer, _) => None,
    }
}

/// The empty value of a type, as Go prints it.
fn zero(schema: &SchemaRef) -> Value {
    match schema.kind_of_value() {
        Type::Object => {
            let mut fields = Map::new();
            for (name, field) in schema.fields() {
                if let Some(empty) = empty(&field, field.form()) {
                    fields.insert(name.to_owned(), empty);
                }
            }
            Value::Object(fields)
        }
        Type::String | Type::Bytes => "".into(),
        Type::Int32 | Type::Int64 | Type::IntOrString | Type::Number => 0.into(),
        Type::Boolean => false.into(),
        Type::Quantity => "0".into(),
        Type::List | Type::Map | Type::Time | Type::MicroTime | Type::Any => Value::Null,
    }
}
