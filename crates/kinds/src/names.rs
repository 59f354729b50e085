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
                && bytes
                    .iter()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        }
        _ => false,
    }
}

/// The text for labels and their keys that are too long.
fn too_many_bytes(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

/// The text for names that are too long.
fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} characters")
}

/// A text that names the pattern and gives examples.
fn pattern(message: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{pattern}')");
    }
    let examples: Vec<String> = examples
        .iter()
        .map(|example| format!("'{example}'"))
        .collect();
    format!(
        "{message} (e.g. {}, regex used for validation is '{pattern}')",
        examples.join(",  or ")
    )
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
        faults.push(pattern(
            text,
            &format!("{LABEL}(\\.{LABEL})*"),
            &["example.com"],
        ));
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
        faults.push(pattern(
            text,
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
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
                false => faults.extend(
                    dns1123_subdomain(prefix)
                        .into_iter()
                        .map(|text| format!("prefix part {text}")),
                ),
            }
            name
        }
        _ => {
            let text = format!("a valid label key {}", pattern(text, QUALIFIED, &examples));
            return vec![format!(
                "{text} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        faults.push(format!("name part {}", too_many_bytes(63)));
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
        faults.push(too_many_bytes(63));
    }
    if !value.is_empty() && !is_qualified(value) {
        let text = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
        faults.push(pattern(
            text,
            &format!("({QUALIFIED})?"),
            &["MyValue", "my_value", "12345"],
        ));
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
    let forbidden = ['/', '%']
        .into_iter()
        .filter(|symbol| name.contains(*symbol));
    forbidden
        .map(|symbol| format!("may not contain '{symbol}'"))
        .collect()
}

/// The text for numbers out of a range.
pub(crate) fn between(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// A port number, zero not among them.
pub(crate) fn port_number(port: i64) -> Option<String> {
    (!(1..=65_535).contains(&port)).then(|| between(1, 65_535))
}

/// A name of a port: at most 15 lower-case letters, digits and single dashes, one letter at least.
pub fn port_name(name: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if name.len() > 15 {
        faults.push(too_long(15));
    }
    if !name
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        || name.is_empty()
    {
        faults.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        faults.push("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        faults.push("must not contain consecutive hyphens".to_owned());
    }
    if name.starts_with('-') || name.ends_with('-') {
        faults.push("must not begin or end with a hyphen".to_owned());
    }
    faults
}

/// A key of a ConfigMap or Secret, which becomes a file name.
pub fn config_key(key: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if key.len() > 253 {
        faults.push(too_long(253));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if key.is_empty() || !key.bytes().all(plain) {
        let text = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        faults.push(pattern(
            text,
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match key {
        "." => faults.push("must not be '.'".to_owned()),
        ".." => faults.push("must not be '..'".to_owned()),
        _ if key.starts_with("..") => faults.push("must not start with '..'".to_owned()),
        _ => {}
    }
    faults
}

/// A name of an environment variable: printable ASCII without `=`.
pub fn environment_name(name: &str) -> Vec<String> {
    let plain = |byte: u8| (0x20..0x7f).contains(&byte) && byte != b'=';
    match !name.is_empty() && name.bytes().all(plain) {
        true => Vec::new(),
        false => {
            let text = "a valid environment variable name must consist only of printable ASCII characters other than '='";
            vec![text.to_owned()]
        }
    }
}

/// A name of an HTTP header.
pub(crate) fn http_header(name: &str) -> Vec<String> {
    match !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    {
        true => Vec::new(),
        false => {
            let text = "a valid HTTP header must consist of alphanumeric characters or '-'";
            vec![pattern(text, "[-A-Za-z0-9]+", &["X-Header-Name"])]
        }
    }
}

/// A DNS subdomain whose labels may begin or end with an underscore, as search domains may.
pub(crate) fn dns1123_subdomain_with_underscore(value: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if value.len() > 253 {
        faults.push(too_long(253));
    }
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let label = |label: &str| {
        let label = label.strip_prefix('_').unwrap_or(label);
        let edges = [label.bytes().next(), label.bytes().last()];
        edges.into_iter().all(|edge| edge.is_some_and(plain))
            && label
                .bytes()
                .all(|byte| plain(byte) || b"-_".contains(&byte))
    };
    if !value.split('.').all(label) {
        let part = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
        let text = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character";
        faults.push(pattern(
            text,
            &format!("{part}(\\.{part})*"),
            &["example.com"],
        ));
    }
    faults
}

/// An IPv4 or IPv6 address.
pub(crate) fn ip_address(value: &str) -> Option<String> {
    match value.parse::<std::net::IpAddr>() {
        Ok(_) => None,
        Err(_) if has_leading_zeros(value) => Some("must not have leading 0s".to_owned()),
        Err(_) => Some("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()),
    }
}

/// Whether this is an IPv4 address but for zeros that some programs take for octal.
fn has_leading_zeros(value: &str) -> bool {
    let part = |part: &str| part.len() <= 3 && part.parse::<u8>().is_ok();
    value.split('.').count() == 4 && value.split('.').all(part)
}

/// A range of addresses.
pub(crate) fn cidr(value: &str) -> Option<String> {
    let wrong =
        || Some("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned());
    let Some((address, bits)) = value.split_once('/') else {
        return wrong();
    };
    let (Ok(address), true) = (
        address.parse::<std::net::IpAddr>(),
        bits.bytes().all(|byte| byte.is_ascii_digit()),
    ) else {
        return wrong();
    };
    let (number, width) = match address {
        std::net::IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
        std::net::IpAddr::V6(address) => (u128::from(address), 128),
    };
    match bits.parse::<u32>() {
        Ok(bits) if bits <= width => {
            let beyond = (1_u128.checked_shl(width - bits).unwrap_or(0)).wrapping_sub(1);
            (number & beyond != 0)
                .then(|| "must not have bits set beyond the prefix length".to_owned())
        }
        _ => wrong(),
    }
}

/// A number or a percentage: `25%`.
pub(crate) fn percentage(value: &str) -> Option<String> {
    let digits = value.strip_suffix('%').unwrap_or_default();
    match !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        true => None,
        false => {
            let text = "a valid percent string must be a numeric string followed by an ending '%'";
            Some(pattern(text, "[0-9]+%", &["1%", "93%"]))
        }
    }
}
