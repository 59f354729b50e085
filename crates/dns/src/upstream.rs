//! The machine's resolvers, for names that are not the zone's.
//!
//! `resolv.conf` is looked at again when a question comes and a moment has passed: an idle server
//! looks at nothing. Resolvers that have stopped answering are left in peace for a moment, in which
//! clients are told at once that they cannot be helped, instead of each waiting for the same silence.
//! Whether they have is found out by a question of our own: that names of some zone are not answered
//! says nothing about the resolvers, and anybody may ask for such names.

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
/// After so many questions in a row without any answer, resolvers are asked what each can answer.
const FAILURES_MAX: u32 = 3;
/// If none does, they are left alone for so long.
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
    resolvers: Option<Resolvers>,
    failures: u32,
    resting_until: Option<Instant>,
    /// It is being found out whether they answer at all.
    is_trying: bool,
}

/// The resolvers of one state of the file.
#[derive(Clone)]
struct Resolvers {
    /// For clients.
    asked: Arc<TokioResolver>,
    /// The same ones, without memory.
    tried: Arc<TokioResolver>,
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
        let Some(resolvers) = self.resolvers() else {
            return servfail();
        };
        let Ok(_permit) = self.0.questions.try_acquire() else {
            return servfail();
        };
        let said = look_up(&resolvers.asked, name.clone(), kind).await;
        match said {
            Ok(_) => self.0.state.lock().has_answer(),
            Err(_) => self.note_silence(&resolvers),
        }
        said.unwrap_or_else(|error| {
            tracing::debug!(%name, %kind, error, "no resolver answered");
            servfail()
        })
    }

    /// A question was not answered. After some of them, finds out whether it is for the resolvers.
    fn note_silence(&self, resolvers: &Resolvers) {
        let mut state = self.0.state.lock();
        state.failures = state.failures.saturating_add(1);
        if state.failures < FAILURES_MAX || state.is_trying {
            return;
        }
        state.is_trying = true;
        let (inner, tried) = (self.0.clone(), resolvers.tried.clone());
        tokio::spawn(async move {
            // Any resolver knows the servers of the root, or refuses at once to say.
            let said = look_up(&tried, Name::root(), RecordType::NS).await;
            let mut state = inner.state.lock();
            state.is_trying = false;
            match said {
                Ok(_) => state.has_answer(),
                Err(_) => state.resting_until = Some(Instant::now() + REST),
            }
        });
    }

    /// The resolvers to ask, unless they are resting.
    fn resolvers(&self) -> Option<Resolvers> {
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
                state.resolvers = read(&self.0);
            }
        }
        if state.resting_until.is_some_and(|until| now < until) {
            return None;
        }
        state.resolvers.clone()
    }
}

impl State {
    fn has_answer(&mut self) {
        (self.failures, self.resting_until) = (0, None);
    }
}

async fn look_up(resolver: &TokioResolver, name: Name, kind: RecordType) -> Result<Said, String> {
    match tokio::time::timeout(TIMEOUT, resolver.lookup(name, kind)).await {
        Ok(Ok(lookup)) => Ok(Said {
            code: ResponseCode::NoError,
            answers: lookup.answers().to_vec(),
            authorities: Vec::new(),
        }),
        Ok(Err(error)) => from_error(error),
        Err(_) => Err("timed out".to_owned()),
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
fn read(inner: &Inner) -> Option<Resolvers> {
    match build(inner) {
        Ok(resolvers) => Some(resolvers),
        Err(reason) => {
            let path = inner.path.display();
            tracing::warn!(%path, reason, "names outside the cluster cannot be resolved");
            None
        }
    }
}

fn build(inner: &Inner) -> Result<Resolvers, String> {
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
    Ok(Resolvers {
        asked: resolver(config.clone(), CACHE_ENTRIES)?,
        tried: resolver(config, 0)?,
    })
}

fn resolver(config: ResolverConfig, cache_entries: u64) -> Result<Arc<TokioResolver>, String> {
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options = builder.options_mut();
    options.ndots = 0;
    options.timeout = TIMEOUT_TRY;
    options.attempts = TRIES;
    options.cache_size = cache_entries;
    options.positive_max_ttl = Some(CACHE_TTL_MAX);
    options.negative_max_ttl = Some(CACHE_TTL_MAX);
    options.use_hosts_file = ResolveHosts::Never;
    let built = builder.build().map_err(|error| error.to_string())?;
    Ok(Arc::new(built))
}
