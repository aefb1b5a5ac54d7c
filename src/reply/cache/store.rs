//! The memory tier: answers by key, bounded in octets; what was used least gives way.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use http::HeaderMap;
use parking_lot::Mutex;
use prometheus::IntCounter;
use quick_cache::sync::Cache as Bounded;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};

use super::entry::Entry;
use super::invalid::{Invalid, Kind, Place, covers, place};
use super::tier::Tier;
use super::told::{Message, Prefix};
use crate::observe::registry::CacheMetrics;
use crate::state::{Kept, Memory, memory};

/// What a process keeps.
pub struct Store {
    answers: Bounded<Box<[u8]>, Variants, Octets, ahash::RandomState, Counted>,
    /// Who changes the variants of a key holds one of these.
    changes: Box<[Mutex<()>]>,
    /// Whether the answers to a key are each caller's own, by its hash.
    own: Memory<u64, bool>,
    hasher: ahash::RandomState,
    pub invalid: Invalid,
    /// One answer's octets.
    pub largest: usize,
    /// For answers on their way.
    pub under_way: Room,
    pub metrics: CacheMetrics,
    /// Where answers stand for other processes, too.
    pub tier: Option<Arc<Tier>>,
}

/// The answers to requests that differ only in fields that `Vary` names; the latest first.
type Variants = Arc<[Arc<Entry>]>;

#[derive(Clone)]
struct Octets;

#[derive(Clone)]
struct Counted(IntCounter);

/// What is to be forgotten.
pub enum Purge<'a> {
    /// A path, the client's or the service's, with its query or without.
    Key(&'a str),
    Prefix(&'a str),
    Tag(&'a str),
}

/// Octets that are left for answers that are being fetched, or that a client has not taken yet: each of them counts once, and
/// may be held twice. Beside what is kept, and as bounded.
#[derive(Debug)]
pub struct Room(AtomicUsize);

/// Of the octets of the tier: no answer is larger.
const SHARE_UNDER_WAY: u64 = 4;

/// Variants of one key; the oldest gives way.
const MOST_VARIANTS: usize = 16;

/// Keys of which it is known whose their answers are.
const MOST_OWN: usize = 10_000;

/// For the table's size at the beginning, which grows.
const USUAL_ANSWER: u64 = 8 << 10;

impl Store {
    /// What is out of date, and Redis was not told of yet.
    pub fn unsaid(&self) -> Option<&Arc<Kept>> {
        self.tier.as_ref().map(|tier| tier.told.kept())
    }

    /// `octets` of answers of at most `largest` each.
    pub fn new(octets: u64, largest: u64, metrics: CacheMetrics, tier: Option<Arc<Tier>>) -> Self {
        let largest = largest.min(octets / 4);
        // Each shard has its share of the octets, and must hold a few of the largest.
        let shards = (octets / largest.max(1) / 4).clamp(1, 64);
        let shards = 1 << shards.ilog2();
        let options = OptionsBuilder::new()
            .shards(shards)
            .estimated_items_capacity((octets / USUAL_ANSWER).clamp(64, 100_000) as usize)
            .weight_capacity(octets)
            .build()
            .expect("both capacities are set");
        let hasher = ahash::RandomState::new();
        let evicted = Counted(metrics.evictions.clone());
        Self {
            answers: Bounded::with_options(options, Octets, hasher.clone(), evicted),
            changes: (0..64).map(|_| Mutex::new(())).collect(),
            own: memory(MOST_OWN),
            hasher,
            invalid: Invalid::default(),
            largest: largest as usize,
            under_way: Room(AtomicUsize::new((octets / SHARE_UNDER_WAY) as usize)),
            metrics,
            tier,
        }
    }

    /// The answer to a request, fresh or not. `own`: the key of its caller alone.
    pub fn find(
        &self,
        shared: &[u8],
        own: Option<&[u8]>,
        has_credentials: bool,
        request: &HeaderMap,
    ) -> Option<Arc<Entry>> {
        self.find_shared(shared, has_credentials, request)
            .or_else(|| self.look(own?, request))
    }

    pub fn find_shared(
        &self,
        key: &[u8],
        has_credentials: bool,
        request: &HeaderMap,
    ) -> Option<Arc<Entry>> {
        let found = self.look(key, request);
        found.filter(|entry| entry.head.is_for_all || !has_credentials)
    }

    pub fn look(&self, key: &[u8], request: &HeaderMap) -> Option<Arc<Entry>> {
        let variants = self.answers.get(key)?;
        let entry = variants.iter().find(|entry| entry.head.is_for(request))?;
        match self.is_good(entry) {
            true => Some(entry.clone()),
            false => {
                let entry = entry.clone();
                self.change(key, |variants| {
                    variants.retain(|other| !Arc::ptr_eq(other, &entry))
                });
                None
            }
        }
    }

    /// Whether anything is kept under a key, to whatever request.
    pub fn has_any(&self, key: &[u8]) -> bool {
        self.answers.contains_key(key)
    }

    pub fn is_good(&self, entry: &Entry) -> bool {
        let head = &entry.head;
        self.invalid
            .is_good(head.since, &head.whose.places, &head.whereabouts())
    }

    /// Keeps an answer; one to the same request gives way.
    pub fn keep(&self, key: &[u8], entry: Arc<Entry>) {
        self.change(key, |variants| {
            let named: HeaderMap = entry
                .head
                .vary
                .iter()
                .filter_map(|(name, said)| {
                    let said = http::HeaderValue::from_bytes(said.as_deref()?).ok()?;
                    Some((name.clone(), said))
                })
                .collect();
            // Those to the same request, and those that depend on other fields than it does.
            variants.retain(|other| {
                let same_fields = other.head.vary.iter().map(|(name, _)| name);
                same_fields.eq(entry.head.vary.iter().map(|(name, _)| name))
                    && !other.head.is_for(&named)
            });
            variants.insert(0, entry);
            variants.truncate(MOST_VARIANTS);
        });
    }

    /// Forgets an answer.
    pub fn forget(&self, key: &[u8], entry: &Arc<Entry>) {
        self.change(key, |variants| {
            variants.retain(|other| !Arc::ptr_eq(other, entry))
        });
    }

    fn change(&self, key: &[u8], change: impl FnOnce(&mut Vec<Arc<Entry>>)) {
        let hash = self.hasher.hash_one(key);
        let _alone = self.changes[hash as usize % self.changes.len()].lock();
        let mut variants = self
            .answers
            .peek(key)
            .map_or_else(Vec::new, |all| all.to_vec());
        change(&mut variants);
        match variants.is_empty() {
            true => drop(self.answers.remove(key)),
            false => self.answers.insert(key.into(), variants.into()),
        }
        self.metrics.bytes.set(self.answers.weight() as i64);
    }

    /// Whether the answers to this are each caller's own, as far as it is known.
    pub fn is_own(&self, shared: &[u8]) -> Option<bool> {
        self.own.get(&self.hasher.hash_one(shared))
    }

    pub fn note_own(&self, shared: &[u8], is_own: bool) {
        self.own.insert(self.hasher.hash_one(shared), is_own);
    }

    /// How many were forgotten here.
    pub fn purge(&self, tenant: Option<&[u8]>, purge: &Purge<'_>) -> usize {
        let now = self.invalid.now();
        let count = Cell::new(0);
        let forget = |is_it: &dyn Fn(&Entry) -> bool| {
            self.answers.retain(|_, variants| {
                let found = variants.iter().filter(|entry| is_it(entry)).count();
                count.set(count.get() + found);
                // The others of the key are asked for anew.
                found == 0
            });
        };
        match purge {
            Purge::Prefix(prefix) => {
                self.invalid.prefix(tenant, prefix, now);
                let told = tenant.map(String::from_utf8_lossy);
                self.tell(Message {
                    at: now,
                    places: Vec::new(),
                    prefix: Some(Prefix {
                        tenant: told.map(Into::into),
                        prefix: (*prefix).to_owned(),
                    }),
                });
                forget(&|entry| covers(tenant, prefix, &entry.head.whereabouts()));
            }
            Purge::Tag(tag) => self.purge_place(place(tenant, Kind::Tag, tag), now, forget),
            Purge::Key(path) => {
                let path = path.split_once('?').map_or(*path, |(path, _)| path);
                self.purge_place(place(tenant, Kind::Path, path), now, forget);
            }
        }
        self.metrics.purges.inc();
        self.metrics.bytes.set(self.answers.weight() as i64);
        count.get()
    }

    fn purge_place(&self, place: Place, now: u64, forget: impl Fn(&dyn Fn(&Entry) -> bool)) {
        self.put_out_of_date(&[place], now);
        forget(&|entry| entry.head.whose.places.contains(&place));
    }

    /// From now on what these are of is out of date, here and elsewhere.
    pub fn put_out_of_date(&self, places: &[Place], at: u64) {
        for place in places {
            self.invalid.tag(*place, at);
        }
        self.tell(Message {
            at,
            places: places.to_vec(),
            prefix: None,
        });
    }

    fn tell(&self, message: Message) {
        if let Some(tier) = &self.tier {
            tier.told.tell(message);
        }
    }

    /// What was kept may be out of date, and nobody has heard what of it.
    pub fn doubt_all(&self) {
        self.invalid.all(self.invalid.now());
        self.answers.clear();
        self.metrics.bytes.set(0);
    }
}

// === impl Room ===

impl Room {
    pub fn take(&self, octets: usize) -> bool {
        let without = |left: usize| left.checked_sub(octets);
        self.0.fetch_update(Relaxed, Relaxed, without).is_ok()
    }

    pub fn give_back(&self, octets: usize) {
        self.0.fetch_add(octets, Relaxed);
    }
}

// === impl Octets ===

impl Weighter<Box<[u8]>, Variants> for Octets {
    fn weight(&self, key: &Box<[u8]>, variants: &Variants) -> u64 {
        let answers: usize = variants.iter().map(|entry| entry.weight()).sum();
        (key.len() + answers) as u64
    }
}

// === impl Counted ===

impl Lifecycle<Box<[u8]>, Variants> for Counted {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), _: Box<[u8]>, variants: Variants) {
        self.0.inc_by(variants.len() as u64);
    }
}
