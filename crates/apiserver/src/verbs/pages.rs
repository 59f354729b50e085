//! What a list that is read page by page goes on in.
//!
//! A state of a space costs nothing to keep but what was changed since, so the state that a list was
//! begun in is kept for as long as upstream lets a list take. All who read in the same state share
//! it. What they may keep is bounded together; where it is too much, the one who keeps most gives up
//! what it began first, so nobody ends the lists of others.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde_json::{Value, json};
use store::{Difference, Revision, Snapshot, Space};
use tokio::time::{Instant, sleep_until};

use crate::meta::Meta;
use crate::status::Failure;

/// States that are kept at most.
const STATES: usize = 256;
/// Bytes of objects that they may keep alive beyond what the youngest of each space has.
const BYTES: usize = 64 << 20;
/// How long a list may take, whether anything changes or not: upstream compacts after five minutes,
/// and clients are tested for what they do then.
const AGE: Duration = Duration::from_secs(300);

/// A space as it was at a revision.
#[derive(Clone)]
pub(super) struct State {
    pub(super) revision: Revision,
    pub(super) entries: Space<Meta>,
}

impl State {
    pub(super) fn of(snapshot: &Snapshot<Meta>, space: &str) -> State {
        State {
            revision: snapshot.revision(),
            entries: snapshot.space(space),
        }
    }
}

/// The states that lists were begun in.
#[derive(Default)]
pub(crate) struct Pages {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    /// By their space and by when it was written last.
    states: BTreeMap<(Arc<str>, Revision), Shared>,
    /// Whether a task waits to forget them.
    is_watched: bool,
}

struct Shared {
    entries: Space<Meta>,
    /// Up to here, at least, the space was like this.
    until: Revision,
    /// Who reads in it, and when they began to.
    readers: HashMap<Arc<str>, Instant>,
    /// Bytes of what the next younger state of the space does not have.
    cost: usize,
}

impl Pages {
    /// Keeps a state for the next page of a list, which begins in it or goes on.
    pub(super) fn keep(&self, reader: &str, space: &Arc<str>, state: &State, begins: bool) {
        let mut kept = self.kept.lock();
        let now = Instant::now();
        kept.forget(now);
        let key = (space.clone(), state.entries.written());
        let is_new = !kept.states.contains_key(&key);
        let shared = kept.states.entry(key.clone()).or_insert_with(|| Shared {
            entries: state.entries.clone(),
            until: state.revision,
            readers: HashMap::new(),
            cost: 0,
        });
        shared.until = shared.until.max(state.revision);
        let begun = shared.readers.entry(reader.into()).or_insert(now);
        if begins {
            *begun = now;
        }
        if is_new {
            kept.weigh(&key);
            kept.weigh_before(&key);
            kept.shrink(STATES, BYTES);
        }
        if !std::mem::replace(&mut kept.is_watched, true) {
            tokio::spawn(forget_in_time(Arc::downgrade(&self.kept)));
        }
    }

    /// The state of `space` at `revision`, if it is kept.
    pub(super) fn find(&self, space: &Arc<str>, revision: Revision) -> Option<State> {
        let mut kept = self.kept.lock();
        kept.forget(Instant::now());
        let first = (space.clone(), Revision(0));
        let last = (space.clone(), revision);
        let (_, shared) = kept.states.range(first..=last).next_back()?;
        (shared.until >= revision).then(|| State {
            revision,
            entries: shared.entries.clone(),
        })
    }
}

impl Kept {
    /// Forgets what nobody has begun to read in of late.
    fn forget(&mut self, now: Instant) {
        for shared in self.states.values_mut() {
            let readers = &mut shared.readers;
            readers.retain(|_, begun| now.duration_since(*begun) < AGE);
        }
        let is_unread = |(key, shared): (&(Arc<str>, Revision), &Shared)| {
            shared.readers.is_empty().then(|| key.clone())
        };
        let unread: Vec<_> = self.states.iter().filter_map(is_unread).collect();
        for key in unread {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &(Arc<str>, Revision)) {
        self.states.remove(key);
        self.weigh_before(key);
    }

    /// Reckons what a state costs beside the next younger one.
    fn weigh(&mut self, key: &(Arc<str>, Revision)) {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut younger = self.states.range((Excluded(key), Unbounded));
        let younger = younger.next().filter(|((space, _), _)| *space == key.0);
        let younger = younger.map(|(_, shared)| shared.entries.clone());
        let Some(shared) = self.states.get_mut(key) else {
            return;
        };
        shared.cost = younger.map_or(0, |younger| {
            let only_here = shared.entries.since(&younger);
            only_here
                .map(|difference| match difference {
                    Difference::Put(entry) => entry.bytes.len(),
                    Difference::Gone(_) => 0,
                })
                .sum()
        });
    }

    fn weigh_before(&mut self, key: &(Arc<str>, Revision)) {
        let first = (key.0.clone(), Revision(0));
        let older = self.states.range(first..key.clone()).next_back();
        if let Some(older) = older.map(|(older, _)| older.clone()) {
            self.weigh(&older);
        }
    }

    /// Takes from who has most until no more is kept than may be.
    fn shrink(&mut self, states: usize, bytes: usize) {
        loop {
            let cost: usize = self.states.values().map(|shared| shared.cost).sum();
            let (is_long, is_heavy) = (self.states.len() > states, cost > bytes);
            if !is_long && !is_heavy {
                return;
            }
            let mut shares: HashMap<Arc<str>, (usize, usize)> = HashMap::new();
            for shared in self.states.values() {
                for reader in shared.readers.keys() {
                    let share = shares.entry(reader.clone()).or_default();
                    share.0 += if is_heavy { shared.cost } else { 0 };
                    share.1 += 1;
                }
            }
            let most = shares.into_iter().max_by_key(|(_, share)| *share);
            let Some((reader, _)) = most else { return };
            let begun = |shared: &Shared| shared.readers.get(&reader).copied();
            let oldest = self
                .states
                .iter()
                .filter_map(|(key, shared)| Some((begun(shared)?, key.clone())))
                .min_by_key(|(begun, _)| *begun);
            let Some((_, key)) = oldest else { return };
            if let Some(shared) = self.states.get_mut(&key) {
                shared.readers.remove(&reader);
                if shared.readers.is_empty() {
                    self.remove(&key);
                }
            }
        }
    }

    /// When the next of what is kept has to be forgotten.
    fn next_end(&self) -> Option<Instant> {
        let begun = self
            .states
            .values()
            .flat_map(|shared| shared.readers.values());
        begun.min().map(|begun| *begun + AGE)
    }
}

/// Forgets what is kept when its time has come, also if nobody asks for anything.
async fn forget_in_time(kept: Weak<Mutex<Kept>>) {
    while let Some(strong) = kept.upgrade() {
        let end = {
            let mut kept = strong.lock();
            kept.forget(Instant::now());
            let end = kept.next_end();
            kept.is_watched = end.is_some();
            end
        };
        drop(strong);
        let Some(end) = end else { return };
        sleep_until(end).await;
    }
}

/// Where the next page begins, as upstream writes it.
pub(super) struct Token {
    /// The state to go on in; the newest if none.
    pub(super) revision: Option<Revision>,
    /// The first name of the page, without what all names of the list begin with.
    start: String,
}

impl Token {
    /// For the page after the name `last`.
    pub(super) fn after(last: &str, revision: Revision) -> Token {
        Token {
            revision: Some(revision),
            start: format!("/{last}\u{0}"),
        }
    }

    pub(super) fn start(&self) -> &str {
        self.start.strip_prefix('/').unwrap_or(&self.start)
    }

    pub(super) fn text(&self) -> String {
        let revision = self
            .revision
            .map_or(json!(-1), |revision| json!(revision.0));
        let start = json!(self.start);
        let token = format!(r#"{{"v":"meta.k8s.io/v1","rv":{revision},"start":{start}}}"#);
        URL_SAFE_NO_PAD.encode(token)
    }

    pub(super) fn parse(text: &str) -> Result<Token, Failure> {
        let not_valid = |why: &str| {
            Failure::bad_request(format!(
                "invalid continue token: continue key is not valid: {why}"
            ))
        };
        let bytes = URL_SAFE_NO_PAD
            .decode(text.trim_end_matches('='))
            .map_err(|error| not_valid(&go_base64_error(text, &error)))?;
        let token: Value = serde_json::from_slice(&bytes)
            .map_err(|error| not_valid(&super::body::go_syntax_error(&bytes, &error)))?;
        if token["v"] != "meta.k8s.io/v1" {
            let version = token["v"].as_str().unwrap_or_default();
            return Err(not_valid(&format!(
                "server does not recognize this encoded version {}",
                kinds::quote(version)
            )));
        }
        let start = token["start"].as_str().unwrap_or_default();
        if start.is_empty() {
            return Err(not_valid(
                "encoded start key empty (version meta.k8s.io/v1)",
            ));
        }
        if !is_clean(start) {
            return Err(not_valid(start));
        }
        let revision = match token["rv"].as_i64() {
            Some(..=-1) => None,
            Some(revision @ 1..) => Some(Revision(revision.unsigned_abs())),
            _ => {
                return Err(not_valid(
                    "incorrect encoded start resourceVersion (version meta.k8s.io/v1)",
                ));
            }
        };
        Ok(Token {
            revision,
            start: start.to_owned(),
        })
    }

    /// 410 that shows how to go on without consistency.
    pub(super) fn expired(&self) -> Failure {
        let inconsistent = Token {
            revision: None,
            start: self.start.clone(),
        };
        Failure::expired("The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.")
            .with_continue(inconsistent.text())
    }
}

/// Whether a path leads nowhere but down.
fn is_clean(path: &str) -> bool {
    let below = path.strip_prefix('/').unwrap_or(path);
    below.is_empty() || !below.split('/').any(|part| matches!(part, "" | "." | ".."))
}

/// Where a text stops being base64, as Go says it.
fn go_base64_error(text: &str, error: &base64::DecodeError) -> String {
    let offset = match error {
        base64::DecodeError::InvalidByte(offset, _)
        | base64::DecodeError::InvalidLastSymbol(offset, _) => *offset,
        _ => text.len() / 4 * 4,
    };
    format!("illegal base64 data at input byte {offset}")
}

#[cfg(test)]
mod tests {
    use store::{Body, Key, Store, Transaction};

    use super::*;

    struct House {
        store: Store<Meta>,
        pages: Pages,
        space: Arc<str>,
    }

    impl House {
        async fn new() -> House {
            let engine = Box::new(store::Memory);
            let store = Store::open(engine, crate::extract(), store::Options::default());
            let store = store.await.expect("memory opens");
            House {
                pages: Pages::default(),
                store,
                space: "configmaps".into(),
            }
        }

        async fn write(&self, space: &str, name: &str, bytes: usize) {
            let body = Body::plain(vec![b' '; bytes]);
            let write = Transaction::new().put(Key::new(space, name), body);
            self.store.commit(write).await.expect("a commit");
        }

        fn newest(&self) -> State {
            State::of(&self.store.snapshot(), &self.space)
        }

        /// Writes, and begins a list in what is there then.
        async fn begin(&self, reader: &str) -> Revision {
            self.write("configmaps", "a", 10).await;
            let state = self.newest();
            self.pages.keep(reader, &self.space, &state, true);
            state.revision
        }

        fn finds(&self, revision: Revision) -> bool {
            let found = self.pages.find(&self.space, revision);
            found.is_some_and(|state| {
                assert_eq!(state.revision, revision);
                assert!(state.entries.written() <= revision);
                true
            })
        }
    }

    #[tokio::test]
    async fn nobody_ends_the_lists_of_others() {
        let house = House::new().await;
        let joe = house.begin("joe").await;
        let first = house.begin("jane").await;
        for _ in 0..2 * STATES {
            house.begin("jane").await;
        }
        assert!(house.finds(joe));
        assert!(!house.finds(first));
        assert_eq!(house.pages.kept.lock().states.len(), STATES);
    }

    #[tokio::test]
    async fn who_keeps_most_bytes_alive_gives_up_first() {
        let house = House::new().await;
        house.write("configmaps", "large", 10_000).await;
        let jane = house.begin("jane").await;
        house.write("configmaps", "large", 10_000).await;
        let joe = house.begin("joe").await;
        let last = house.begin("jane").await;
        let mut kept = house.pages.kept.lock();
        let costs: Vec<usize> = kept.states.values().map(|shared| shared.cost).collect();
        assert_eq!(costs, [10_010, 10, 0]);
        kept.shrink(STATES, 10_020);
        assert_eq!(kept.states.len(), 3);
        kept.shrink(STATES, 10_019);
        drop(kept);
        assert!(!house.finds(jane));
        assert!(house.finds(joe) && house.finds(last));
    }

    #[tokio::test]
    async fn what_did_not_change_is_kept_once() {
        let house = House::new().await;
        house.write("configmaps", "a", 10).await;
        let mut revisions = Vec::new();
        for step in 0..10 {
            let state = house.newest();
            let reader = format!("r{step}");
            house.pages.keep(&reader, &house.space, &state, true);
            revisions.push(state.revision);
            house.write("secrets", "b", 10).await;
        }
        assert_eq!(house.pages.kept.lock().states.len(), 1);
        let after = house.store.revision();
        house.write("configmaps", "a", 10).await;
        for revision in revisions {
            assert!(house.finds(revision));
        }
        // Nobody has seen that the space was still the same then.
        assert!(!house.finds(after));
    }

    #[tokio::test]
    async fn a_list_that_goes_on_takes_no_longer_than_it_may_and_is_forgotten() {
        let house = House::new().await;
        let joe = house.begin("joe").await;
        let state = house.newest();
        // Not before: the store's writer is a thread that a stopped clock does not wait for.
        tokio::time::pause();
        let (step, keep) = (AGE / 4, |begins| {
            house.pages.keep("joe", &house.space, &state, begins);
        });
        for _ in 0..3 {
            tokio::time::sleep(step).await;
            assert!(house.finds(joe));
            keep(false);
        }
        tokio::time::sleep(step).await;
        assert!(!house.finds(joe));
        keep(true);
        tokio::time::sleep(step).await;
        keep(true);
        tokio::time::sleep(step * 3).await;
        assert!(house.finds(joe), "it was begun anew");
        tokio::time::sleep(AGE * 2).await;
        let kept = house.pages.kept.lock();
        assert!(kept.states.is_empty() && !kept.is_watched);
    }

    #[test]
    fn a_token_is_read_back_and_garbage_is_refused() {
        let text = Token::after("web", Revision(7)).text();
        let bytes = URL_SAFE_NO_PAD.decode(&text).expect("base64");
        let expected = br#"{"v":"meta.k8s.io/v1","rv":7,"start":"/web\u0000"}"#;
        assert_eq!(bytes, expected);
        let token = Token::parse(&text).expect("our own");
        assert_eq!(token.revision, Some(Revision(7)));
        assert_eq!(token.start(), "web\0");
        let code = |text: &str| Token::parse(text).err().map(|failure| failure.code());
        for garbage in ["abc", "", "e30", "eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ"] {
            assert_eq!(code(garbage), Some(400), "{garbage}");
        }
        let check = |revision: i64, start: &str, expected: Option<u16>| {
            let token = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start});
            let text = URL_SAFE_NO_PAD.encode(token.to_string());
            assert_eq!(code(&text), expected, "{token}");
        };
        // As the genuine server answers.
        for start in ["/a\0", "a", "a/\0", "/", "a\0\0", "/ns/a\0"] {
            check(7, start, None);
        }
        for start in ["../a\0", "a//b\0", "./a\0", "a/", "z/../../a\0", ""] {
            check(7, start, Some(400));
        }
        check(-1, "a", None);
        check(-2, "a", None);
        check(0, "a", Some(400));
    }
}
