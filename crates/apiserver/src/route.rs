//! What a request is about, read from its method and path.
//!
//! A parser of our own rather than a table of routes: the paths of the API are regular, and the
//! same reading serves authorization (which must see what upstream's sees) and dispatch.

use std::borrow::Cow;

use http::Method;
use kinds::FieldSelector;

/// The attributes of a request, as upstream's `RequestInfo` has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path names a resource of an API group.
    pub is_resource: bool,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for
    /// other paths the lower-case method. Questions about rights may have any other.
    pub verb: Cow<'static, str>,
    /// API group, empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace; for a Namespace object its own name.
    pub namespace: String,
    /// Plural of the resource.
    pub resource: String,
    /// Subresource, or empty.
    pub subresource: String,
    /// Object name, or empty.
    pub name: String,
    /// What follows the subresource, without a leading slash (proxy paths).
    pub rest: String,
    /// The path, decoded.
    pub path: String,
    /// What a list, watch or deletecollection is restricted to, where that can be read. The objects
    /// are chosen by the same reading, so that nobody gets others than those allowed.
    pub field_selector: Option<FieldSelector>,
}

/// The query parameters that decide what is asked, in the order they stand.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the part after the question mark. Malformed escapes stay as they are.
    pub fn parse(query: &str) -> Query {
        Query(
            query
                .split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name, true), decode(value, true))
                })
                .collect(),
        )
    }

    /// The first value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// Every value of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// A truth value as upstream reads it: present and neither `0` nor `false`.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| !matches!(value, "0" | "false" | "False" | "FALSE"))
    }
}

impl RequestInfo {
    /// Reads method, path and query.
    pub fn parse(method: &Method, path: &str, query: &Query) -> RequestInfo {
        let mut info = RequestInfo {
            verb: plain_verb(method).into(),
            path: decode(path, false),
            ..RequestInfo::default()
        };
        let segments: Vec<String> = path
            .split('/')
            .filter(|segment| !segment.is_empty())
            .map(|segment| decode(segment, false))
            .collect();
        let mut rest = match segments.split_first() {
            Some((first, rest)) if first == "api" && rest.len() >= 2 => {
                info.version = rest[0].clone();
                &rest[1..]
            }
            Some((first, rest)) if first == "apis" && rest.len() >= 3 => {
                info.group = rest[0].clone();
                info.version = rest[1].clone();
                &rest[2..]
            }
            _ => return info,
        };
        info.is_resource = true;
        info.verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        }
        .into();
        // The old form /api/v1/watch/… of watches. There are none of parts of objects, and nothing
        // else is done in this form: it would be allowed as a watch.
        let old_watch = rest.len() > 1 && rest[0] == "watch" && info.verb == "get";
        if old_watch {
            rest = &rest[1..];
        }
        if rest[0] == "namespaces"
            && let Some(namespace) = rest.get(1)
        {
            info.namespace = namespace.clone();
            let of_the_namespace =
                matches!(rest.get(2).map(String::as_str), Some("status" | "finalize"));
            if rest.len() > 2 && !of_the_namespace {
                rest = &rest[2..];
            }
        }
        info.resource = rest[0].clone();
        info.name = rest.get(1).cloned().unwrap_or_default();
        info.subresource = rest.get(2).cloned().unwrap_or_default();
        info.rest = rest.get(3..).map(|rest| rest.join("/")).unwrap_or_default();
        if old_watch {
            info.verb = "watch".into();
            if !info.subresource.is_empty() {
                info.resource = "watch".into();
                info.subresource.clear();
                info.rest.clear();
            }
        }
        if info.name.is_empty() {
            match &*info.verb {
                "get" => {
                    info.field_selector = selected(query);
                    info.verb = if query.flag("watch") { "watch" } else { "list" }.into();
                    if let Some(name) = info.field_selector.as_ref().and_then(name_selected) {
                        info.name = name;
                    }
                }
                "delete" => info.verb = "deletecollection".into(),
                _ => {}
            }
        }
        if matches!(&*info.verb, "watch" | "deletecollection") {
            info.field_selector = selected(query);
        }
        info
    }
}

impl RequestInfo {
    /// Whether the request is meant for a server behind the API, which decides on methods, bodies
    /// and what is acceptable itself.
    pub(crate) fn is_proxied(&self) -> bool {
        self.subresource == "proxy"
    }

    /// Whether what is sent goes on to others as it comes.
    pub(crate) fn is_stream(&self) -> bool {
        matches!(
            self.subresource.as_str(),
            "proxy" | "exec" | "attach" | "portforward" | "log"
        )
    }
}

fn selected(query: &Query) -> Option<FieldSelector> {
    FieldSelector::parse(query.get("fieldSelector")?).ok()
}

/// The name in a field selector that selects exactly one object: authorization by resource name
/// applies to such lists and watches, as upstream has it.
fn name_selected(selector: &FieldSelector) -> Option<String> {
    let name = selector.required("metadata.name")?;
    let is_segment = !matches!(name, "" | "." | "..") && !name.contains(['/', '%']);
    is_segment.then(|| name.to_owned())
}

fn plain_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "",
    }
}

/// Decodes `%XX` (and `+` as a space in queries). What is no valid escape, or no UTF-8 after
/// decoding, is kept or replaced: such a name simply matches nothing.
pub(crate) fn decode(text: &str, plus_is_space: bool) -> String {
    let plain = !text.contains('%') && (!plus_is_space || !text.contains('+'));
    if plain {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let escape = bytes.get(index + 1..index + 3).and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            text.bytes()
                .all(|digit| digit.is_ascii_hexdigit())
                .then(|| u8::from_str_radix(text, 16).ok())?
        });
        match (bytes[index], escape) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                index += 3;
                continue;
            }
            (b'+', _) if plus_is_space => decoded.push(b' '),
            (byte, _) => decoded.push(byte),
        }
        index += 1;
    }
    String::from_utf8(decoded)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, target: &str, expected: &str) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let info = RequestInfo::parse(&method, path, &Query::parse(query));
        let got = format!(
            "{} {} g={} v={} ns={} r={} n={} s={} rest={}",
            info.is_resource,
            info.verb,
            info.group,
            info.version,
            info.namespace,
            info.resource,
            info.name,
            info.subresource,
            info.rest
        );
        assert_eq!(got, expected, "{method} {target}");
    }

    #[test]
    fn paths() {
        let get = Method::GET;
        check(
            get.clone(),
            "/api/v1/pods?watch=true",
            "true watch g= v=v1 ns= r=pods n= s= rest=",
        );
        check(
            get.clone(),
            "/api/v1/namespaces/a%2Fb/pods/x/log",
            "true get g= v=v1 ns=a/b r=pods n=x s=log rest=",
        );
        check(
            get.clone(),
            "/api/v1/namespaces/a",
            "true get g= v=v1 ns=a r=namespaces n=a s= rest=",
        );
        check(
            Method::PUT,
            "/api/v1/namespaces/a/finalize",
            "true update g= v=v1 ns=a r=namespaces n=a s=finalize rest=",
        );
        check(
            Method::DELETE,
            "/apis/apps/v1/namespaces/a/deployments",
            "true deletecollection g=apps v=v1 ns=a r=deployments n= s= rest=",
        );
        check(
            get.clone(),
            "/api/v1/watch/namespaces/a/pods",
            "true watch g= v=v1 ns=a r=pods n= s= rest=",
        );
        check(
            get.clone(),
            "/api/v1/watch/namespaces/a/pods/p/proxy/x",
            "true watch g= v=v1 ns=a r=watch n=p s= rest=",
        );
        check(
            Method::POST,
            "/api/v1/watch/namespaces/a/pods/p/proxy/x",
            "true create g= v=v1 ns= r=watch n=namespaces s=a rest=pods/p/proxy/x",
        );
        check(
            get.clone(),
            "/api/v1/pods?fieldSelector=metadata.name%3Dx",
            "true list g= v=v1 ns= r=pods n=x s= rest=",
        );
        for several in [
            "type!=x\\,metadata.name=foo",
            "metadata.name!=foo",
            "metadata.name=a/b",
            "a=b\\,metadata.name==foo",
        ] {
            check(
                get.clone(),
                &format!("/api/v1/secrets?fieldSelector={several}"),
                "true list g= v=v1 ns= r=secrets n= s= rest=",
            );
        }
        check(
            get.clone(),
            "/api/v1/nodes/n/proxy/a/b",
            "true get g= v=v1 ns= r=nodes n=n s=proxy rest=a/b",
        );
        check(get, "/apis/apps/v1", "false get g= v= ns= r= n= s= rest=");
        check(
            Method::POST,
            "/healthz",
            "false post g= v= ns= r= n= s= rest=",
        );
    }

    #[test]
    fn escapes() {
        assert_eq!(decode("a%3Ab+c%zz%2", true), "a:b c%zz%2");
        assert_eq!(decode("%ff", false), "\u{fffd}");
    }
}
