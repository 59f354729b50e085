//! The machine's resolvers, for names that are not the zone's.
//!
//! `resolv.conf` is looked at again when a question comes and a moment has passed: an idle server
//! looks at nothing. Resolvers that have stopped answering are left in peace for a moment, in which
//! clients are told at once that they cannot be helped, instead of each waiting for the same silence.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::system_conf::parse_resolv_conf;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// How long `resolv.conf` is believed before it is looked at again.
const BELIEVED: Duration = Duration::from_secs(1);
/// One resolver, one try.
const TIMEOUT_TRY: Duration = Duration::from_millis(1500);
/// All resolvers, all tries: below the 5 seconds after which clients ask again.
const TIMEOUT: Duration = Duration::from_secs(4);
const TRIES: usize = 2;
const PORT: u16 = 53;
/// Questions on their way to resolvers at one time; more are refused (SERVFAIL).
const QUESTIONS_MAX: usize = 512;
/// Answers kept, and for how long at most.
const CACHE_ENTRIES: u64 = 2048;
const CACHE_TTL_MAX: Duration = Duration::from_secs(30);
/// After so many questions without any answer, resolvers are left alone …
const FAILURES_MAX: u32 = 3;
/// … for so long.
const REST: Duration = Duration::from_secs(2);

/// The resolvers of a `resolv.conf`. Clones share connections and cache.
#[derive(Clone)]
pub struct Upstream(Arc<Inner>);

struct Inner {
    path: PathBuf,
    ourselves: Vec<IpAddr>,
    /// Where resolvers listen: 53, except in tests.
    port: u16,
    state: Mutex<State>,
    questions: Semaphore,
}

#[derive(Default)]
struct State {
    looked: Option<Instant>,
    modified: Option<SystemTime>,
    resolver: Option<Arc<TokioResolver>>,
    failures: u32,
    resting_until: Option<Instant>,
}

/// What a resolver says.
pub(crate) struct Said {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
}

impl Said {
    fn only(code: ResponseCode) -> Said {
        Said {
            code,
            answers: Vec::new(),
            authorities: Vec::new(),
        }
    }
}

impl Upstream {
    /// Resolvers from the file, without those at `ourselves`: asking them would go round in a ring.
    pub fn new(
        resolv_conf: impl Into<PathBuf>,
        ourselves: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        Upstream::at_port(resolv_conf.into(), ourselves.into_iter().collect(), PORT)
    }

    pub(crate) fn at_port(path: PathBuf, ourselves: Vec<IpAddr>, port: u16) -> Self {
        Upstream(Arc::new(Inner {
            path,
            ourselves,
            port,
            state: Mutex::default(),
            questions: Semaphore::new(QUESTIONS_MAX),
        }))
    }

    /// Asks the resolvers. Always answers within a few seconds; SERVFAIL says that it could not.
    pub(crate) async fn ask(&self, name: Name, kind: RecordType) -> Said {
        let servfail = || Said::only(ResponseCode::ServFail);
        let Some(resolver) = self.resolver() else {
            return servfail();
        };
        let Ok(_permit) = self.0.questions.try_acquire() else {
            return servfail();
        };
        let asked = tokio::time::timeout(TIMEOUT, resolver.lookup(name.clone(), kind)).await;
        let said = match asked {
            Ok(Ok(lookup)) => Ok(Said {
                code: ResponseCode::NoError,
                answers: lookup.answers().to_vec(),
                authorities: Vec::new(),
            }),
            Ok(Err(error)) => from_error(error),
            Err(_) => Err("timed out".to_owned()),
        };
        self.note(said.is_ok());
        said.unwrap_or_else(|error| {
            tracing::debug!(%name, %kind, error, "no resolver answered");
            servfail()
        })
    }

    fn note(&self, answered: bool) {
        let mut state = self.0.state.lock();
        if answered {
            (state.failures, state.resting_until) = (0, None);
            return;
        }
        state.failures = state.failures.saturating_add(1);
        if state.failures >= FAILURES_MAX {
            state.resting_until = Some(Instant::now() + REST);
        }
    }

    /// The resolver to ask, if there is one that is not resting.
    fn resolver(&self) -> Option<Arc<TokioResolver>> {
        let mut state = self.0.state.lock();
        let now = Instant::now();
        if state
            .looked
            .is_none_or(|looked| now.duration_since(looked) >= BELIEVED)
        {
            state.looked = Some(now);
            let modified = std::fs::metadata(&self.0.path)
                .and_then(|meta| meta.modified())
                .ok();
            if modified.is_none() || modified != state.modified {
                *state = State {
                    looked: Some(now),
                    modified,
                    ..State::default()
                };
                state.resolver = read(&self.0).map(Arc::new);
            }
        }
        if state.resting_until.is_some_and(|until| now < until) {
            return None;
        }
        state.resolver.clone()
    }
}

fn from_error(error: NetError) -> Result<Said, String> {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(nothing)) => {
            let authority = nothing.soa.map(|soa| soa.into_record_of_rdata());
            Ok(Said {
                code: nothing.response_code,
                answers: Vec::new(),
                authorities: authority.into_iter().collect(),
            })
        }
        NetError::Dns(DnsError::ResponseCode(code)) => Ok(Said::only(code)),
        other => Err(other.to_string()),
    }
}

/// The resolvers that the file names; `None` if there are none to ask.
fn read(inner: &Inner) -> Option<TokioResolver> {
    match build(inner) {
        Ok(resolver) => Some(resolver),
        Err(reason) => {
            let path = inner.path.display();
            tracing::warn!(%path, reason, "names outside the cluster cannot be resolved");
            None
        }
    }
}

fn build(inner: &Inner) -> Result<TokioResolver, String> {
    let text = std::fs::read(&inner.path).map_err(|error| error.to_string())?;
    let (config, _) = parse_resolv_conf(text).map_err(|error| error.to_string())?;
    let (_, _, mut servers) = config.into_parts();
    servers.retain(|server| !inner.ourselves.contains(&server.ip));
    if servers.is_empty() {
        return Err("the only resolver in it is this one".to_owned());
    }
    for connection in servers
        .iter_mut()
        .flat_map(|server| &mut server.connections)
    {
        connection.port = inner.port;
    }
    // Names come whole: what to append to them was the client's business.
    let config = ResolverConfig::from_name_servers(servers);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options = builder.options_mut();
    options.ndots = 0;
    options.timeout = TIMEOUT_TRY;
    options.attempts = TRIES;
    options.cache_size = CACHE_ENTRIES;
    options.positive_max_ttl = Some(CACHE_TTL_MAX);
    options.negative_max_ttl = Some(CACHE_TTL_MAX);
    options.use_hosts_file = ResolveHosts::Never;
    builder.build().map_err(|error| error.to_string())
}
