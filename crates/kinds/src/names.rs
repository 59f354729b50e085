//! What names, labels and their like may look like, with upstream's texts.

/// Checks a name, or the beginning of one (`true`) to which random letters will be added, and says what is wrong with it.
pub type NameCheck = fn(&str, bool) -> Vec<String>;

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";

fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            plain(*first) && plain(*last) && bytes.iter().all(|byte| plain(*byte) || *byte == b'-')
        }
        _ => false,
    }
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn is_qualified(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            first.is_ascii_alphanumeric()
                && last.is_ascii_alphanumeric()
                && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        }
        _ => false,
    }
}

fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

/// A text that names the pattern and gives examples.
fn pattern(message: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{pattern}')");
    }
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}'")).collect();
    format!("{message} (e.g. {}, regex used for validation is '{pattern}')", examples.join(", or "))
}

/// A DNS label after RFC 1123: names of namespaces, containers, ports, services.
pub fn dns1123_label(value: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if value.len() > 63 {
        faults.push(too_long(63));
    }
    if !is_label(value) {
        let text = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
        faults.push(pattern(text, LABEL, &["my-name", "123-abc"]));
    }
    faults
}

/// A DNS subdomain after RFC 1123: names of most objects.
pub fn dns1123_subdomain(value: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if value.len() > 253 {
        faults.push(too_long(253));
    }
    if !is_subdomain(value) {
        let text = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
        faults.push(pattern(text, &format!("{LABEL}(\\.{LABEL})*"), &["example.com"]));
    }
    faults
}

/// A DNS label after RFC 1035.
pub fn dns1035_label(value: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if value.len() > 63 {
        faults.push(too_long(63));
    }
    if !(is_label(value) && value.starts_with(|first: char| first.is_ascii_lowercase())) {
        let text = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
        faults.push(pattern(text, "[a-z]([-a-z0-9]*[a-z0-9])?", &["my-name", "abc-123"]));
    }
    faults
}

const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

/// A key of labels, annotations, finalizers: a name with an optional DNS prefix.
pub fn qualified_name(value: &str) -> Vec<String> {
    let text = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let examples = ["MyName", "my.name", "123-abc"];
    let mut faults = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            match prefix.is_empty() {
                true => faults.push("prefix part must be non-empty".to_owned()),
                false => faults.extend(dns1123_subdomain(prefix).into_iter().map(|text| format!("prefix part {text}"))),
            }
            name
        }
        _ => {
            let text = format!("a qualified name {}", pattern(text, QUALIFIED, &examples));
            return vec![format!("{text} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')")];
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        faults.push(format!("name part {}", too_long(63)));
    }
    if !is_qualified(name) {
        faults.push(format!("name part {}", pattern(text, QUALIFIED, &examples)));
    }
    faults
}

/// The value of a label.
pub fn label_value(value: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if value.len() > 63 {
        faults.push(too_long(63));
    }
    if !value.is_empty() && !is_qualified(value) {
        let text = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
        faults.push(pattern(text, &format!("({QUALIFIED})?"), &["MyValue", "my_value", "12345"]));
    }
    faults
}

/// A beginning of a name may end in a dash, as letters will follow.
fn masked(name: &str, prefix: bool) -> String {
    match name.strip_suffix('-') {
        Some(stem) if prefix && !stem.is_empty() => format!("{stem}a"),
        _ => name.to_owned(),
    }
}

/// Names of most kinds.
pub fn subdomain_name(name: &str, prefix: bool) -> Vec<String> {
    dns1123_subdomain(&masked(name, prefix))
}

/// Names that must be one label: namespaces.
pub fn label_name(name: &str, prefix: bool) -> Vec<String> {
    dns1123_label(&masked(name, prefix))
}

/// Names that may stand as a step of a path: roles and bindings.
pub fn path_segment_name(name: &str, prefix: bool) -> Vec<String> {
    if !prefix && (name == "." || name == "..") {
        return vec![format!("may not be '{name}'")];
    }
    let forbidden = ['/', '%'].into_iter().filter(|symbol| name.contains(*symbol));
    forbidden.map(|symbol| format!("may not contain '{symbol}'")).collect()
}
