//! The life of a request: who asks, may they, and which verb answers.

use std::collections::HashMap;
use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use jiff::Timestamp;
use kinds::Kind;
use lifecycle::Drain;
use parking_lot::Mutex;
use serde_json::Value;
use store::{Entry, Key, Store};

use crate::authorize::roles::Roles;
use crate::authorize::{Authorizer, require};
use crate::bodies::{self, Bodies, Held};
use crate::caller::{self, Caller, Certified};
use crate::encode::Head;
use crate::heavy::{Heavy, Load};
use crate::meta::Meta;
use crate::options::Accept;
use crate::places::Unproven;
use crate::route::{Query, RequestInfo};
use crate::status::{Failure, ResourceName};
use crate::token::Tokens;
use crate::verbs::pages::Pages;
use crate::{
    Body, Config, StartError, discovery, health, openapi, review, subresources, verbs, views,
    websocket,
};

/// Warnings on one answer, so that the head of the answer stays small.
const WARNINGS: usize = 32;

/// What all requests share.
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    /// The built-in authorizer, if it is the one that decides.
    pub(crate) roles: Option<Arc<Roles>>,
    pub(crate) tokens: Tokens,
    pub(crate) pages: Pages,
    pub(crate) openapi: openapi::Documents,
    resources: HashMap<String, Arc<Resource>>,
    by_kind: HashMap<String, Arc<Resource>>,
    started: AtomicBool,
    bodies: Bodies,
    heavy: Heavy,
}

/// A kind with what is worked out from it once.
#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) kind: &'static Kind,
    /// The kind that its objects are stored as.
    pub(crate) stored_kind: &'static Kind,
    /// How objects of this kind begin on the wire.
    pub(crate) head: Head,
    /// How they begin in the store: as those of the kind that they are stored as.
    pub(crate) stored_head: Head,
    /// Fields that are called otherwise in the store: (stored, shown).
    renames: &'static [(&'static str, &'static str)],
    pub(crate) space: Arc<str>,
    pub(crate) api_version: String,
    /// The object with nothing set.
    pub(crate) zero: Arc<Value>,
}

impl Resource {
    fn of(kind: &'static Kind) -> Resource {
        let api_version = kind.api_version();
        Resource {
            kind,
            stored_kind: views::stored_kind(kind),
            head: Head::new(kind.kind(), &api_version),
            stored_head: Head::new(kind.kind(), &views::stored_kind(kind).api_version()),
            renames: views::renames(kind),
            space: kind.storage_space().into(),
            api_version,
            zero: Arc::new(verbs::managed::zero(kind)),
        }
    }

    /// How error texts call it.
    pub(crate) fn name(&self) -> ResourceName<'static> {
        ResourceName {
            group: self.kind.group(),
            plural: self.kind.plural(),
        }
    }

    /// Where an object lives in the store.
    pub(crate) fn key(&self, namespace: &str, name: &str) -> Key {
        let name: Arc<str> = if self.kind.namespaced() {
            format!("{namespace}/{name}").into()
        } else {
            name.into()
        };
        Key {
            space: self.space.clone(),
            name,
        }
    }

    /// A stored object as one of this kind.
    pub(crate) fn view(&self, object: Value) -> Value {
        if object["apiVersion"] == self.api_version.as_str() && object["kind"] == self.kind.kind() {
            return object;
        }
        let mut object = views::shown(object, self.renames, self.kind.kind(), &self.api_version);
        // What one view always shows, the other leaves out when it is empty.
        self.kind.decode(&mut object, None);
        object
    }

    /// An object of this kind as it is stored.
    pub(crate) fn to_stored(&self, object: &Value) -> store::Body {
        if self.renames.is_empty() {
            return self.stored_head.body(object);
        }
        self.stored_head
            .body(&views::stored(object.clone(), self.renames))
    }

    /// Whether some fields are called otherwise in the store.
    pub(crate) fn has_own_labels(&self) -> bool {
        !self.renames.is_empty()
    }

    /// Whether this is the kind `name` of `group`.
    pub(crate) fn is(&self, group: &str, name: &str) -> bool {
        self.kind.group() == group && self.kind.kind() == name
    }

    /// 422 with these faults.
    pub(crate) fn invalid(&self, name: &str, faults: &[kinds::Fault]) -> Failure {
        Failure::invalid(self.kind.group(), self.kind.kind(), name, faults)
    }
}

impl Core {
    pub(crate) fn new(config: Config) -> Result<Core, StartError> {
        let tokens = Tokens::new(&config.token_key, &config.issuer)?;
        let (authorizer, roles): (Arc<dyn Authorizer>, _) = match &config.authorizer {
            Some(authorizer) => (authorizer.clone(), None),
            None => {
                let roles = Arc::new(Roles::new(config.store.clone()));
                (roles.clone(), Some(roles))
            }
        };
        let all: Vec<Arc<Resource>> = kinds::builtin()
            .all()
            .map(|kind| Arc::new(Resource::of(kind)))
            .collect();
        let resources = all
            .iter()
            .filter(|resource| !resource.kind.plural().is_empty())
            .map(|resource| {
                let kind = resource.kind;
                (
                    path_of(kind.group(), kind.version(), kind.plural()),
                    resource.clone(),
                )
            })
            .collect();
        let by_kind = all
            .into_iter()
            .map(|resource| {
                let kind = resource.kind;
                (path_of(kind.group(), kind.version(), kind.kind()), resource)
            })
            .collect();
        let openapi = openapi::Documents::new(&config.version.git_version);
        Ok(Core {
            config,
            authorizer,
            roles,
            tokens,
            pages: Pages::default(),
            openapi,
            resources,
            by_kind,
            started: AtomicBool::new(false),
            bodies: Bodies::new(),
            heavy: Heavy::new(),
        })
    }

    pub(crate) fn store(&self) -> &Store<Meta> {
        &self.config.store
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.config.now)()
    }

    /// Whether the bootstrap objects are there.
    pub(crate) fn is_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    pub(crate) fn set_started(&self) {
        self.started.store(true, Ordering::Release);
    }

    /// The resource at this place of the API.
    pub(crate) fn resource(
        &self,
        group: &str,
        version: &str,
        plural: &str,
    ) -> Option<&Arc<Resource>> {
        self.resources.get(&path_of(group, version, plural))
    }

    /// The resource whose objects are of this kind.
    pub(crate) fn resource_of_kind(
        &self,
        group: &str,
        version: &str,
        kind: &str,
    ) -> Option<&Arc<Resource>> {
        self.by_kind.get(&path_of(group, version, kind))
    }

    /// A built-in resource that the server itself works with.
    pub(crate) fn builtin(&self, group: &str, version: &str, plural: &str) -> &Arc<Resource> {
        self.resource(group, version, plural)
            .unwrap_or_else(|| panic!("the built-in kinds have {plural} in {group:?}/{version}"))
    }

    /// A built-in kind that only is the body of subresources.
    pub(crate) fn builtin_kind(&self, group: &str, version: &str, kind: &str) -> &Arc<Resource> {
        self.resource_of_kind(group, version, kind)
            .unwrap_or_else(|| panic!("the built-in kinds have {kind} in {group:?}/{version}"))
    }

    /// The newest state of an object, parsed.
    pub(crate) fn read(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Value> {
        let entry = self.store().get(&resource.key(namespace, name))?;
        serde_json::from_slice(&entry.bytes).ok()
    }
}

fn path_of(group: &str, version: &str, name: &str) -> String {
    format!("{group}/{version}/{name}")
}

/// One request on a resource, with its identity known and allowed.
pub(crate) struct Call {
    pub(crate) core: Arc<Core>,
    pub(crate) caller: Arc<Caller>,
    pub(crate) resource: Arc<Resource>,
    pub(crate) info: RequestInfo,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) accept: Accept,
    pub(crate) now: Timestamp,
    /// Ends long answers when the listener that the request came through drains.
    pub(crate) drain: Drain,
    warnings: Mutex<Vec<String>>,
}

impl Call {
    /// A call that the server makes itself, outside of any request.
    pub(crate) fn internal(
        core: &Arc<Core>,
        resource: &Arc<Resource>,
        namespace: &str,
        name: &str,
    ) -> Call {
        Call {
            core: core.clone(),
            caller: Arc::new(Caller::apiserver()),
            resource: resource.clone(),
            info: RequestInfo {
                is_resource: true,
                group: resource.kind.group().into(),
                version: resource.kind.version().into(),
                resource: resource.kind.plural().into(),
                namespace: namespace.into(),
                name: name.into(),
                ..RequestInfo::default()
            },
            query: Query::default(),
            headers: HeaderMap::new(),
            accept: Accept::PLAIN,
            now: core.now(),
            drain: Drain::never(),
            warnings: Mutex::default(),
        }
    }

    /// The same caller's call on another object, for a request that writes through another
    /// resource (a binding writes a pod).
    pub(crate) fn on(&self, resource: &Arc<Resource>, namespace: &str, name: &str) -> Call {
        let mut call = Call::internal(&self.core, resource, namespace, name);
        call.caller = self.caller.clone();
        call.query = self.query.clone();
        call.headers = self.headers.clone();
        call.now = self.now;
        call
    }

    /// Adds a `Warning` header to the answer.
    pub(crate) fn warn(&self, text: impl Into<String>) {
        let mut warnings = self.warnings.lock();
        let text = text.into();
        if warnings.len() < WARNINGS && !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// Where the object of this request lives.
    pub(crate) fn key(&self) -> Key {
        self.resource.key(&self.info.namespace, &self.info.name)
    }

    /// The names of all objects that this request is about begin so.
    pub(crate) fn prefix(&self) -> String {
        if self.resource.kind.namespaced() && !self.info.namespace.is_empty() {
            format!("{}/", self.info.namespace)
        } else {
            String::new()
        }
    }

    /// The object of this request as it is stored, or that it is not there.
    pub(crate) fn stored(&self) -> Result<Arc<Entry<Meta>>, Failure> {
        let entry = self.core.store().get(&self.key());
        entry.ok_or_else(|| self.not_found())
    }

    pub(crate) fn not_found(&self) -> Failure {
        Failure::not_found(self.resource.name(), &self.info.name)
    }

    pub(crate) fn modified(&self) -> Failure {
        Failure::modified(self.resource.name(), &self.info.name)
    }
}

/// Answers a request. Never fails and never panics: both become a `Status`.
pub(crate) async fn respond(
    core: Arc<Core>,
    caller: Option<Arc<Caller>>,
    request: Request<Body>,
) -> Response<Body> {
    let answer = AssertUnwindSafe(answer(core, caller, request)).catch_unwind();
    match answer.await {
        Ok(Ok(response)) => response,
        Ok(Err(failure)) => failure.into_response(),
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            tracing::error!(panic = %text, "a request handler panicked");
            Failure::internal(
                "this request caused apiserver to panic. Look in the logs for details",
            )
            .into_response()
        }
    }
}

async fn answer(
    core: Arc<Core>,
    caller: Option<Arc<Caller>>,
    request: Request<Body>,
) -> Result<Response<Body>, Failure> {
    let (mut parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let info = RequestInfo::parse(&parts.method, parts.uri.path(), &query);
    let caller = match caller {
        Some(caller) => caller,
        None => authenticate(&core, &mut parts)?,
    };
    let caller = impersonate(&core, caller, &parts.headers)?;
    require(&core.authorizer, &caller, &info)?;
    if !info.is_resource {
        return unresourceful(&core, &info, &parts.headers, &query, &parts.method);
    }
    let Some(resource) = core.resource(&info.group, &info.version, &info.resource) else {
        return if discovery::has_group(&info.group) {
            Err(Failure::no_such_resource())
        } else {
            Ok(health::plain_not_found())
        };
    };
    let any_form = !resource.kind.is_virtual();
    let accept = match Accept::parse(&parts.headers, &query, any_form) {
        Some(accept) => accept,
        // Streams carry what they like; only answers of objects must be acceptable.
        None if parts.headers.contains_key(header::UPGRADE) || info.is_proxied() => Accept::PLAIN,
        None if !any_form => return Err(Failure::no_accepted_type()),
        None => {
            return Err(Failure::not_acceptable(matches!(
                &*info.verb,
                "list" | "watch"
            )));
        }
    };
    let (body, _room) = take_body(&core, &caller, &info, &parts, body).await?;
    let call = Call {
        resource: resource.clone(),
        caller,
        info,
        query,
        accept,
        headers: std::mem::take(&mut parts.headers),
        now: core.now(),
        drain: parts
            .extensions
            .get::<Drain>()
            .cloned()
            .unwrap_or_else(Drain::never),
        warnings: Mutex::default(),
        core,
    };
    if let Some(deprecation) = call.resource.kind.deprecated() {
        call.warn(deprecation);
    }
    let load = load(&call, &body);
    // In a box: what all verbs may hold while they wait is much to carry about.
    let handler = dispatch(&call, Request::from_parts(parts, body)).boxed();
    let answered = call.core.heavy.run(load, handler).await;
    let mut response = answered.unwrap_or_else(Failure::into_response);
    for warning in call.warnings.lock().iter() {
        let value = format!("299 - {}", kinds::quote(warning));
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    Ok(response)
}

/// The body of a request from the network in memory. Callers inside the process have their bodies
/// in memory already, and streams have none.
async fn take_body(
    core: &Core,
    caller: &Caller,
    info: &RequestInfo,
    parts: &http::request::Parts,
    body: Body,
) -> Result<(Body, Option<Held>), Failure> {
    let from_network = parts.extensions.get::<Certified>().is_some();
    let has_body = !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
    if !from_network || !has_body || info.is_stream() {
        return Ok((body, None));
    }
    let (bytes, held) = core.bodies.take(&caller.name, body).await?;
    Ok((Body::from(bytes), Some(held)))
}

/// What a request has to handle. Streams have nothing that is handled here.
fn load(call: &Call, body: &Body) -> Load {
    let (info, store) = (&call.info, call.core.store());
    if info.is_stream() || info.verb == "watch" {
        return Load::default();
    }
    let plain = call.accept == Accept::PLAIN;
    let length = http_body::Body::size_hint(body).lower();
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    match &*info.verb {
        "get" if plain => Load::default(),
        "list" if plain => Load::default(),
        "list" | "deletecollection" => Load {
            bytes: length,
            objects: store.snapshot().count(&call.resource.space, ""),
        },
        _ => Load {
            bytes: length.max(store.get(&call.key()).map_or(0, |entry| entry.bytes.len())),
            objects: 0,
        },
    }
}

fn authenticate(core: &Core, parts: &mut http::request::Parts) -> Result<Arc<Caller>, Failure> {
    if let Some(Certified(Some(caller))) = parts.extensions.get::<Certified>() {
        return Ok(caller.clone());
    }
    let refused = |error: &dyn Display| {
        tracing::debug!(%error, "token refused");
        Failure::unauthorized()
    };
    let token = match caller::bearer(&parts.headers) {
        Some(token) => Some(token.to_owned()),
        None => {
            caller::take_bearer_protocol(&mut parts.headers).map_err(|error| refused(&error))?
        }
    };
    let Some(token) = token else {
        return Ok(Arc::new(Caller::anonymous()));
    };
    let verified = core
        .tokens
        .authenticate(core, &token, &[])
        .map_err(|error| refused(&error))?;
    if let Some(unproven) = parts.extensions.get::<Unproven>() {
        unproven.proven();
    }
    Ok(Arc::new(verified.caller))
}

fn impersonate(
    core: &Core,
    caller: Arc<Caller>,
    headers: &HeaderMap,
) -> Result<Arc<Caller>, Failure> {
    let Some((wanted, needs)) = caller::impersonation(headers)? else {
        return Ok(caller);
    };
    for need in &needs {
        let attributes = RequestInfo {
            is_resource: true,
            verb: "impersonate".into(),
            group: need.group.into(),
            version: "v1".into(),
            namespace: need.namespace.clone(),
            resource: need.resource.into(),
            subresource: need.subresource.clone(),
            name: need.name.clone(),
            ..RequestInfo::default()
        };
        require(&core.authorizer, &caller, &attributes)
            .map_err(|_| caller::may_not_impersonate(&caller, need))?;
    }
    Ok(Arc::new(wanted))
}

/// Paths that are no resources: discovery, documents, health.
fn unresourceful(
    core: &Arc<Core>,
    info: &RequestInfo,
    headers: &HeaderMap,
    query: &Query,
    method: &Method,
) -> Result<Response<Body>, Failure> {
    let path = info.path.as_str();
    let answer = health::answer(core, path, query)
        .or_else(|| core.tokens.documents(path))
        .map(Ok)
        .or_else(|| discovery::answer(path, headers))
        .or_else(|| core.openapi.answer(path, query, headers));
    match answer {
        Some(_) if !matches!(*method, Method::GET | Method::HEAD) => {
            Err(Failure::method_not_allowed())
        }
        Some(answer) => answer,
        None => Ok(health::plain_not_found()),
    }
}

async fn dispatch(call: &Call, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let kind = call.resource.kind;
    if !call.info.is_proxied() {
        check_method(request.method())?;
    }
    check_place(call)?;
    if !call.info.subresource.is_empty() {
        return subresources::answer(call, request).await;
    }
    if kind.is_virtual() {
        return match &*call.info.verb {
            "create" => review::create(call, read_body(request).await?).await,
            _ => Err(Failure::method_not_allowed()),
        };
    }
    if !kind.verbs().iter().any(|verb| **verb == *call.info.verb) {
        return Err(Failure::method_not_allowed());
    }
    let without_name = call.info.name.is_empty()
        && !matches!(
            &*call.info.verb,
            "create" | "list" | "watch" | "deletecollection"
        );
    if without_name {
        return Err(Failure::method_not_allowed());
    }
    match &*call.info.verb {
        "get" => verbs::get::get(call),
        "list" => verbs::list::list(call),
        "watch" if websocket::is_wanted(&call.headers) => {
            let response = verbs::watch::watch(call)?;
            let framing = websocket::Framing::Lines;
            websocket::send(
                request,
                &call.headers,
                response,
                framing,
                call.drain.clone(),
            )
            .await
        }
        "watch" => verbs::watch::watch(call),
        "create" if !call.info.name.is_empty() => Err(Failure::method_not_allowed()),
        "create" => verbs::create::create(call, read_body(request).await?).await,
        "update" => verbs::update::update(call, read_body(request).await?).await,
        "patch" => verbs::patch::patch(call, read_body(request).await?).await,
        "delete" => verbs::delete::delete(call, read_body(request).await?).await,
        "deletecollection" => {
            verbs::delete_collection::delete_collection(call, read_body(request).await?).await
        }
        _ => Err(Failure::method_not_allowed()),
    }
}

/// Only a proxied server may know others.
fn check_method(method: &Method) -> Result<(), Failure> {
    if matches!(
        *method,
        Method::GET | Method::POST | Method::PUT | Method::PATCH | Method::DELETE
    ) {
        return Ok(());
    }
    Err(Failure::method_not_allowed())
}

/// Objects of namespaces are found below a namespace, others are not; lists are found in both.
fn check_place(call: &Call) -> Result<(), Failure> {
    let info = &call.info;
    let below_namespace = !info.namespace.is_empty() && info.resource != "namespaces";
    if call.resource.kind.namespaced() && !below_namespace {
        let all = info.name.is_empty() || matches!(&*info.verb, "list" | "watch");
        return match (all, &*info.verb) {
            (true, "list" | "watch") => Ok(()),
            (true, _) => Err(Failure::method_not_allowed()),
            (false, _) => Err(Failure::no_such_resource()),
        };
    }
    // Reviews and the like are posted where they are.
    if !call.resource.kind.namespaced() && below_namespace {
        return Err(Failure::no_such_resource());
    }
    Ok(())
}

/// The whole body of a request, up to the limit, if it arrives in time.
pub(crate) async fn read_body(request: Request<Body>) -> Result<Bytes, Failure> {
    bodies::collect(request.into_body(), None).await
}
