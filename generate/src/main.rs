//! Writes the data files of the crate `kinds`: which kinds there are, their schema, their descriptions.
//!
//! Types and descriptions come from k8s-openapi; what it lacks comes from three tables: how fields merge
//! (`merge-keys.tsv`), which resources are served (`resources.tsv`), and two that stand beside this program:
//! `forms.tsv` (how Go prints a field: by value, behind a pointer, always; which words it knows) and `names.tsv` (short names, categories).
//! One definition stands on one line, so that a new level of the API is a diff that can be read.
//!
//! usage: generate MERGE_KEYS RESOURCES OUT_DIRECTORY

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use k8s_openapi::Resource;
use k8s_openapi::api as k;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

const FORMS: &str = include_str!("../forms.tsv");
const NAMES: &str = include_str!("../names.tsv");

/// A kind whose type, list of fields and names are wanted.
struct Root {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    definition: String,
}

fn root<T: Resource + JsonSchema>(generator: &mut SchemaGenerator) -> Root {
    generator.subschema_for::<T>();
    Root {
        group: T::GROUP,
        version: T::VERSION,
        kind: T::KIND,
        definition: T::schema_name().into_owned(),
    }
}

/// The kinds that Wharf knows, in the order in which discovery lists their groups. A new kind is a line here.
fn roots(generator: &mut SchemaGenerator) -> Vec<Root> {
    vec![
        root::<k::core::v1::Binding>(generator),
        root::<k::core::v1::ConfigMap>(generator),
        root::<k::core::v1::Endpoints>(generator),
        root::<k::core::v1::Event>(generator),
        root::<k::core::v1::Namespace>(generator),
        root::<k::core::v1::Node>(generator),
        root::<k::core::v1::Pod>(generator),
        root::<k::core::v1::Secret>(generator),
        root::<k::core::v1::ServiceAccount>(generator),
        root::<k::core::v1::Service>(generator),
        root::<k::apps::v1::Deployment>(generator),
        root::<k::apps::v1::ReplicaSet>(generator),
        root::<k::events::v1::Event>(generator),
        root::<k::authentication::v1::SelfSubjectReview>(generator),
        root::<k::authentication::v1::TokenRequest>(generator),
        root::<k::authentication::v1::TokenReview>(generator),
        root::<k::authorization::v1::LocalSubjectAccessReview>(generator),
        root::<k::authorization::v1::SelfSubjectAccessReview>(generator),
        root::<k::authorization::v1::SelfSubjectRulesReview>(generator),
        root::<k::authorization::v1::SubjectAccessReview>(generator),
        root::<k::autoscaling::v1::Scale>(generator),
        root::<k::policy::v1::Eviction>(generator),
        root::<k::rbac::v1::ClusterRoleBinding>(generator),
        root::<k::rbac::v1::ClusterRole>(generator),
        root::<k::rbac::v1::RoleBinding>(generator),
        root::<k::rbac::v1::Role>(generator),
        root::<k::scheduling::v1::PriorityClass>(generator),
        root::<k::coordination::v1::Lease>(generator),
        root::<k::discovery::v1::EndpointSlice>(generator),
    ]
}

/// The rows of a tab-separated table without its header line, each cut to `columns` cells.
fn rows<'a>(text: &'a str, columns: usize) -> impl Iterator<Item = Vec<&'a str>> {
    text.lines()
        .skip(1)
        .filter(|line| !line.is_empty())
        .map(move |line| {
            let mut cells: Vec<&str> = line.split('\t').collect();
            cells.resize(columns, "");
            cells
        })
}

fn words(cell: &str) -> Vec<&str> {
    cell.split(',').filter(|word| !word.is_empty()).collect()
}

/// What the tables say of a field; of the type itself where the field is empty.
#[derive(Clone, Default)]
struct Facts<'a> {
    merge: Vec<(&'static str, Value)>,
    form: &'a str,
    default: Option<Value>,
    words: Vec<&'a str>,
}

type FactsByField<'a> = BTreeMap<(&'a str, &'a str), Facts<'a>>;

fn facts<'a>(merge_keys: &'a str) -> anyhow::Result<FactsByField<'a>> {
    let mut all = FactsByField::new();
    for row in rows(merge_keys, 7) {
        let merge = &mut all.entry((row[0], row[1])).or_default().merge;
        for (name, cell) in [
            ("listType", row[2]),
            ("mapType", row[4]),
            ("patchKey", row[6]),
        ] {
            if !cell.is_empty() {
                merge.push((name, json!(cell)));
            }
        }
        for (name, cell) in [("listKeys", row[3]), ("patchStrategy", row[5])] {
            if !cell.is_empty() {
                merge.push((name, json!(words(cell))));
            }
        }
    }
    for row in rows(FORMS, 5) {
        let entry = all.entry((row[0], row[1])).or_default();
        entry.form = row[2];
        entry.words = words(row[4]);
        if !row[3].is_empty() {
            let default = serde_json::from_str(row[3])
                .with_context(|| format!("default of {} {}", row[0], row[1]))?;
            entry.default = Some(default);
        }
    }
    Ok(all)
}

/// The type of a schema node in our short form: a name, `{"ref"}`, `{"list"}` or `{"map"}`.
fn shape(schema: &Value) -> anyhow::Result<Value> {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.trim_start_matches("#/$defs/");
        return Ok(match name.rsplit('.').next() {
            Some("Quantity") => json!("quantity"),
            Some("IntOrString") => json!("int-or-string"),
            Some("Time") => json!("time"),
            Some("MicroTime") => json!("micro-time"),
            Some("FieldsV1" | "RawExtension") => json!("any"),
            _ => json!({"ref": name}),
        });
    }
    let format = schema["format"].as_str();
    Ok(match schema["type"].as_str() {
        Some("string") if format == Some("byte") => json!("bytes"),
        Some("string") => json!("string"),
        Some("boolean") => json!("boolean"),
        Some("integer") => json!(format.context("an integer without a format")?),
        Some("number") => json!("number"),
        Some("array") => json!({"list": shape(&schema["items"])?}),
        Some("object") if schema["additionalProperties"].is_object() => {
            json!({"map": shape(&schema["additionalProperties"])?})
        }
        _ => bail!("no word for {schema}"),
    })
}

/// How Go prints the field, where that does not follow from its type: required fields are always there,
/// optional scalars by value, optional objects behind a pointer.
fn form(facts: &Facts<'_>, required: bool) -> Option<&'static str> {
    match facts.form {
        "pointer" => Some("pointer"),
        "always" | "required" => Some("always"),
        "value" => Some("value"),
        "omitted" | "optional" => None,
        _ if required => Some("always"),
        _ => None,
    }
}

fn definition(name: &str, schema: &Value, all: &FactsByField<'_>) -> anyhow::Result<Value> {
    let mut out = Map::new();
    for (key, value) in all
        .get(&(name, ""))
        .map(|facts| facts.merge.as_slice())
        .unwrap_or_default()
    {
        out.insert((*key).to_owned(), value.clone());
    }
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut fields = Map::new();
    for (field, field_schema) in schema["properties"].as_object().into_iter().flatten() {
        let facts = all.get(&(name, field)).cloned().unwrap_or_default();
        let mut entry = match shape(field_schema).with_context(|| format!("{name} {field}"))? {
            Value::Object(entry) => entry,
            simple => Map::from_iter([("type".to_owned(), simple)]),
        };
        // k8s-openapi calls metadata required where Go does not mind its absence.
        // Required lists it makes optional, and some optional names required: `forms.tsv` has those.
        let is_required = match facts.form {
            "required" => true,
            "optional" => false,
            _ => required.contains(&field.as_str()) && field != "metadata",
        };
        if is_required {
            entry.insert("required".to_owned(), json!(true));
        }
        if let Some(form) = form(&facts, is_required) {
            entry.insert("form".to_owned(), json!(form));
        }
        if let Some(default) = facts.default {
            entry.insert("default".to_owned(), default);
        }
        if !facts.words.is_empty() {
            entry.insert("words".to_owned(), json!(facts.words));
        }
        entry.extend(
            facts
                .merge
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone())),
        );
        fields.insert(field.clone(), Value::Object(entry));
    }
    out.insert("fields".to_owned(), Value::Object(fields));
    Ok(Value::Object(out))
}

fn descriptions(schema: &Value) -> Value {
    let mut out = Map::new();
    out.insert(String::new(), schema["description"].clone());
    for (field, field_schema) in schema["properties"].as_object().into_iter().flatten() {
        out.insert(field.clone(), field_schema["description"].clone());
    }
    out.retain(|_, text| text.is_string());
    Value::Object(out)
}

/// The rows of the kind file: one for each resource, and one for each kind that only stands in subresources.
fn kind(root: &Root, resources: &str) -> anyhow::Result<Value> {
    let names: BTreeMap<(&str, &str, &str), Vec<&str>> = rows(NAMES, 8)
        .map(|row| ((row[0], row[2], row[3]), row))
        .collect();
    let mut out = json!({
        "group": root.group, "version": root.version, "kind": root.kind, "definition": root.definition,
    });
    let mut subresources = Vec::new();
    let own = rows(resources, 7).find(|row| {
        row[3].is_empty() && (row[0], row[1], row[4]) == (root.group, root.version, root.kind)
    });
    let Some(own) = own else { return Ok(out) };
    let plural = own[2];
    let row = names
        .get(&(root.group, plural, ""))
        .with_context(|| format!("{plural} is not in names.tsv"))?;
    out["plural"] = json!(plural);
    out["singular"] = json!(row[4]);
    out["shortNames"] = json!(words(row[5]));
    out["categories"] = json!(words(row[6]));
    out["namespaced"] = json!(own[5] == "yes");
    out["verbs"] = json!(words(own[6]));
    for row in rows(resources, 7)
        .filter(|row| (row[0], row[1], row[2]) == (root.group, root.version, plural))
    {
        let Some(names) = names
            .get(&(root.group, plural, row[3]))
            .filter(|_| !row[3].is_empty())
        else {
            continue;
        };
        let verbs = match row[6] {
            "connect" => vec!["create", "get"],
            verbs => words(verbs),
        };
        let mut response = names[7].rsplit('/');
        let mut entry = json!({"name": row[3], "kind": response.next(), "verbs": verbs});
        if let (Some(version), Some(group)) = (response.next(), response.next()) {
            entry["group"] = json!(group);
            entry["version"] = json!(version);
        }
        subresources.push(entry);
    }
    out["subresources"] = json!(subresources);
    Ok(out)
}

fn write_lines(path: &Path, lines: &[String], brackets: [&str; 2]) -> anyhow::Result<()> {
    let text = format!("{}\n{}\n{}\n", brackets[0], lines.join(",\n"), brackets[1]);
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [merge_keys, resources, out] = arguments.as_slice() else {
        bail!("usage: generate MERGE_KEYS RESOURCES OUT_DIRECTORY");
    };
    let merge_keys =
        fs::read_to_string(merge_keys).with_context(|| format!("reading {merge_keys}"))?;
    let resources =
        fs::read_to_string(resources).with_context(|| format!("reading {resources}"))?;
    let out = Path::new(out);

    let mut generator = SchemaGenerator::default();
    let roots = roots(&mut generator);
    generator.subschema_for::<meta::DeleteOptions>();
    generator.subschema_for::<meta::Status>();
    generator.subschema_for::<meta::APIResourceList>();
    let definitions = BTreeMap::from_iter(generator.take_definitions(false));
    let facts = facts(&merge_keys)?;

    let mut schema_lines = Vec::new();
    let mut description_lines = Vec::new();
    for (name, schema) in &definitions {
        let last = name.rsplit('.').next().unwrap_or_default();
        if !schema["properties"].is_object()
            && ["Quantity", "IntOrString", "Time", "MicroTime", "FieldsV1"].contains(&last)
        {
            description_lines.push(format!("{}:{}", json!(name), descriptions(schema)));
            continue;
        }
        let key = json!(name);
        schema_lines.push(format!("{key}:{}", definition(name, schema, &facts)?));
        description_lines.push(format!("{key}:{}", descriptions(schema)));
    }
    let kind_lines = roots
        .iter()
        .map(|root| kind(root, &resources).map(|row| row.to_string()))
        .collect::<anyhow::Result<Vec<String>>>()?;
    write_lines(&out.join("schema.json"), &schema_lines, ["{", "}"])?;
    write_lines(
        &out.join("descriptions.json"),
        &description_lines,
        ["{", "}"],
    )?;
    write_lines(&out.join("kinds.json"), &kind_lines, ["[", "]"])
}
