//! Who is asking.
//!
//! A caller inside the process is known by construction ([`crate::ApiServer::client`]); one from
//! outside is known by its client certificate or its token, or is anonymous. An identity, once
//! established, is a value in the request's extensions, where no network peer can put one.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue, header};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::status::{Failure, ResourceName};

/// The group of every caller whose identity was established.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
/// The group of callers without an identity.
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The group that may do everything.
pub(crate) const MASTERS: &str = "system:masters";

/// An identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// User name.
    pub name: String,
    /// Groups, among them `system:authenticated`.
    pub groups: Vec<String>,
    /// Unique id, or empty.
    pub uid: String,
    /// What else is known, e.g. the pod a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Caller {
    /// An identity with the groups given and `system:authenticated`.
    pub fn authenticated(name: impl Into<String>, groups: &[&str]) -> Caller {
        Caller {
            name: name.into(),
            groups: groups
                .iter()
                .chain(&[AUTHENTICATED])
                .map(|group| (*group).to_owned())
                .collect(),
            ..Caller::default()
        }
    }

    /// The administrator that no policy can lock out.
    pub fn system_masters() -> Caller {
        Caller::authenticated("system:admin", &[MASTERS])
    }

    /// The API server itself, e.g. when it makes its bootstrap objects.
    pub fn apiserver() -> Caller {
        Caller::authenticated("system:apiserver", &[MASTERS])
    }

    /// A controller by its upstream name, e.g. `replicaset-controller`: a ServiceAccount of
    /// kube-system, for which the bootstrap policy has a role of its own.
    pub fn controller(name: &str) -> Caller {
        Caller::service_account("kube-system", name, "")
    }

    /// The scheduler.
    pub fn scheduler() -> Caller {
        Caller::authenticated("system:kube-scheduler", &[])
    }

    /// The agent of a node.
    pub fn node(name: &str) -> Caller {
        Caller::authenticated(format!("system:node:{name}"), &["system:nodes"])
    }

    /// A ServiceAccount.
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Caller {
        let mut caller = Caller::authenticated(
            format!("system:serviceaccount:{namespace}:{name}"),
            &[
                "system:serviceaccounts",
                &format!("system:serviceaccounts:{namespace}"),
            ],
        );
        caller.uid = uid.to_owned();
        caller
    }

    /// A caller without an identity.
    pub fn anonymous() -> Caller {
        Caller {
            name: "system:anonymous".into(),
            groups: vec![UNAUTHENTICATED.into()],
            ..Caller::default()
        }
    }

    /// Whether the caller is in the group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|known| known == group)
    }

    /// The node whose agent this is.
    pub fn node_name(&self) -> Option<&str> {
        self.in_group("system:nodes")
            .then(|| self.name.strip_prefix("system:node:"))?
    }

    /// The identity in a client certificate whose chain the TLS layer has verified: the common
    /// name is the user, each organization a group. `None` if there is no common name.
    pub fn from_certificate(der: &[u8]) -> Option<Caller> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups: Vec<&str> = subject
            .iter_organization()
            .filter_map(|organization| organization.as_str().ok())
            .collect();
        let mut caller = Caller::authenticated(name, &groups);
        caller.extra.insert(
            "authentication.kubernetes.io/credential-id".into(),
            vec![format!(
                "X509SHA256={}",
                hexadecimal(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der).as_ref())
            )],
        );
        Some(caller)
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The identity that a TLS connection has proved; [`crate::serve`] puts it on each request.
#[derive(Clone, Debug)]
pub(crate) struct Certified(pub(crate) Option<Arc<Caller>>);

/// The bearer token of a request.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim())
        .filter(|token| !token.is_empty())
}

/// What a token begins with where it is given as the subprotocol of a WebSocket: browsers can set no
/// other header of one.
const BEARER_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// Takes the token out of the subprotocols of a WebSocket, so that nobody else reads it. Another
/// subprotocol must be left, or the browser would take no answer.
///
/// # Errors
/// What is wrong with the token as it is given.
pub(crate) fn take_bearer_protocol(
    headers: &mut HeaderMap,
) -> Result<Option<String>, &'static str> {
    if !crate::websocket::is_wanted(headers) {
        return Ok(None);
    }
    let protocols: Vec<&str> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let (tokens, others): (Vec<&str>, Vec<&str>) = protocols
        .into_iter()
        .partition(|protocol| protocol.starts_with(BEARER_PROTOCOL));
    let token = match tokens.as_slice() {
        [] => return Ok(None),
        [token] => &token[BEARER_PROTOCOL.len()..],
        _ => return Err("multiple base64.bearer.authorization tokens specified"),
    };
    let token = URL_SAFE_NO_PAD
        .decode(token)
        .ok()
        .and_then(|token| String::from_utf8(token).ok())
        .ok_or("invalid base64.bearer.authorization token encoding")?;
    if others.is_empty() {
        return Err("missing additional subprotocol");
    }
    let others = HeaderValue::try_from(others.join(", ")).expect("it was a header before");
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, others);
    Ok(Some(token).filter(|token| !token.is_empty()))
}

/// Something the caller must be allowed to impersonate, for the authorizer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Impersonated {
    pub(crate) group: &'static str,
    pub(crate) resource: &'static str,
    pub(crate) subresource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// Reads the `Impersonate-*` headers: who the caller wants to be, and what that needs.
pub(crate) fn impersonation(
    headers: &HeaderMap,
) -> Result<Option<(Caller, Vec<Impersonated>)>, Failure> {
    let mut wanted = wanted(headers)?;
    if wanted == Caller::default() {
        return Ok(None);
    }
    if wanted.name.is_empty() {
        return Err(nameless(&wanted));
    }
    let needs = needs(&wanted);
    if wanted.groups.is_empty()
        && let Some((namespace, _)) = account(&wanted.name)
    {
        wanted.groups = vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{namespace}"),
        ];
    }
    let implied = if wanted.name == "system:anonymous" {
        UNAUTHENTICATED
    } else {
        AUTHENTICATED
    };
    if !wanted.in_group(AUTHENTICATED) && !wanted.in_group(UNAUTHENTICATED) {
        wanted.groups.push(implied.into());
    }
    Ok(Some((wanted, needs)))
}

/// The identity that the headers name, without what it implies.
fn wanted(headers: &HeaderMap) -> Result<Caller, Failure> {
    const EXTRA: &str = "impersonate-extra-";
    let mut wanted = Caller::default();
    for (header, value) in headers {
        let header = header.as_str();
        if !header.starts_with("impersonate-") {
            continue;
        }
        let value = value.to_str().map_err(|_| {
            Failure::bad_request(format!("header {header} is not made of printable ASCII"))
        })?;
        match header {
            "impersonate-user" => wanted.name = value.to_owned(),
            "impersonate-uid" => wanted.uid = value.to_owned(),
            "impersonate-group" => wanted.groups.push(value.to_owned()),
            _ => {
                if let Some(key) = header.strip_prefix(EXTRA) {
                    let key = crate::route::decode(key, false);
                    wanted.extra.entry(key).or_default().push(value.to_owned());
                }
            }
        }
    }
    Ok(wanted)
}

/// 400 of an identity without a name, as upstream prints what there is of it.
fn nameless(wanted: &Caller) -> Failure {
    let quoted = |values: &[String]| -> String {
        let values: Vec<String> = values.iter().map(|value| kinds::quote(value)).collect();
        format!("[]string{{{}}}", values.join(", "))
    };
    let groups = if wanted.groups.is_empty() {
        "[]string(nil)".to_owned()
    } else {
        quoted(&wanted.groups)
    };
    let extra: Vec<String> = wanted
        .extra
        .iter()
        .map(|(key, values)| format!("{}:{}", kinds::quote(key), quoted(values)))
        .collect();
    let extra = if extra.is_empty() {
        "map[string][]string(nil)".to_owned()
    } else {
        format!("map[string][]string{{{}}}", extra.join(", "))
    };
    Failure::bad_request(format!(
        "requested &user.DefaultInfo{{Name:\"\", UID:{}, Groups:{groups}, Extra:{extra}}} without impersonating a user name",
        kinds::quote(&wanted.uid)
    ))
}

/// Namespace and name of the ServiceAccount whose user this is.
fn account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}

/// Everything that one must be allowed to impersonate to be this caller.
fn needs(wanted: &Caller) -> Vec<Impersonated> {
    const AUTHENTICATION: &str = "authentication.k8s.io";
    let need = |group, resource, subresource: &str, namespace: &str, name: &str| Impersonated {
        group,
        resource,
        subresource: subresource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let mut needs = vec![match account(&wanted.name) {
        Some((namespace, name)) => need("", "serviceaccounts", "", namespace, name),
        None => need("", "users", "", "", &wanted.name),
    }];
    for group in &wanted.groups {
        needs.push(need("", "groups", "", "", group));
    }
    for (key, values) in &wanted.extra {
        for value in values {
            needs.push(need(AUTHENTICATION, "userextras", key, "", value));
        }
    }
    if !wanted.uid.is_empty() {
        needs.push(need(AUTHENTICATION, "uids", "", "", &wanted.uid));
    }
    needs
}

/// The 403 for an identity that may not be taken on.
pub(crate) fn may_not_impersonate(caller: &Caller, need: &Impersonated) -> Failure {
    let resource = ResourceName {
        group: need.group,
        plural: need.resource,
    };
    let path = if need.subresource.is_empty() {
        need.resource.to_owned()
    } else {
        format!("{}/{}", need.resource, need.subresource)
    };
    let scope = if need.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", need.namespace)
    };
    Failure::forbidden(
        resource,
        &need.name,
        format!(
            "User \"{}\" cannot impersonate resource \"{path}\" in API group \"{}\" {scope}",
            caller.name, need.group
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_names_user_and_groups() {
        let authority = pki::Authority::in_memory().expect("an authority");
        let issued = authority
            .issue_client("alice", Some("dev"))
            .expect("a certificate");
        let (chain, _) = issued.for_rustls();
        let caller = Caller::from_certificate(&chain[0]).expect("an identity");
        assert_eq!(caller.name, "alice");
        assert_eq!(caller.groups, ["dev", AUTHENTICATED]);
        assert_eq!(Caller::from_certificate(b"no certificate"), None);
    }

    #[test]
    fn impersonating_a_service_account_brings_its_groups() {
        let mut headers = HeaderMap::new();
        assert!(impersonation(&headers).expect("none").is_none());
        headers.insert(
            "impersonate-user",
            "system:serviceaccount:a:b".parse().expect("a value"),
        );
        let (wanted, needs) = impersonation(&headers).expect("well").expect("some");
        assert_eq!(
            wanted.groups,
            [
                "system:serviceaccounts",
                "system:serviceaccounts:a",
                AUTHENTICATED
            ]
        );
        assert_eq!(
            (needs[0].resource, needs[0].namespace.as_str()),
            ("serviceaccounts", "a")
        );
        let mut headers = HeaderMap::new();
        headers.insert("impersonate-group", "g".parse().expect("a value"));
        assert_eq!(impersonation(&headers).expect_err("no user").code(), 400);
    }

    #[test]
    fn bearer_tokens_are_found_whatever_the_case_of_the_scheme() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "bEARER  abc".parse().expect("a value"));
        assert_eq!(bearer(&headers), Some("abc"));
        headers.insert("authorization", "Basic abc".parse().expect("a value"));
        assert_eq!(bearer(&headers), None);
    }

    #[test]
    fn a_browser_gives_its_token_as_a_subprotocol() {
        let check = |given: &str, expected: Result<Option<&str>, ()>, left: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("upgrade", "WebSocket".parse().expect("a value"));
            headers.insert("sec-websocket-protocol", given.parse().expect("a value"));
            let taken = take_bearer_protocol(&mut headers.clone());
            assert_eq!(
                taken.as_ref().map(Option::as_deref).map_err(drop),
                expected,
                "{given}"
            );
            take_bearer_protocol(&mut headers).ok();
            assert_eq!(headers["sec-websocket-protocol"], left, "{given}");
            headers.insert("sec-websocket-protocol", given.parse().expect("a value"));
            headers.remove("upgrade");
            assert_eq!(take_bearer_protocol(&mut headers), Ok(None), "no WebSocket");
        };
        let token = "base64url.bearer.authorization.k8s.io.YWJj";
        check("v4.channel.k8s.io", Ok(None), "v4.channel.k8s.io");
        check(&format!("a,{token} , b"), Ok(Some("abc")), "a, b");
        check(token, Err(()), token);
        let twice = format!("{token}, a, {token}");
        check(&twice, Err(()), &twice);
        let broken = "base64url.bearer.authorization.k8s.io.Y!, a";
        check(broken, Err(()), broken);
    }
}
