//! What one request wants of the cache: carried with Pingora's key through its phases, and to who waits and who fills.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use http::HeaderMap;
use parking_lot::Mutex;

use super::RouteCache;
use super::entry::{Entry, Whose};
use super::key::Keys;
use super::store::Store;
use super::tier;

pub struct Wanted {
    pub store: Arc<Store>,
    shared: Box<[u8]>,
    own: Option<Box<[u8]>>,
    pub has_credentials: bool,
    pub is_unidentified: bool,
    /// Its answer is likely to be for its caller alone: as it was the last time, or is usual on its route.
    is_own: bool,
    /// For fields that `Vary` names.
    pub request: HeaderMap,
    /// Where it is asked for.
    pub whose: Whose,
    /// Of its service's keys in Redis.
    prefix: Box<str>,
    /// When the backend was asked, as [`super::invalid::Invalid::now`] has it.
    pub since: AtomicU64,
    /// Others who wait for it wait in vain: its answer is for its asker, or for nobody.
    pub is_for_me_alone: AtomicBool,
    /// What was found, and is being renewed.
    stale: Mutex<Option<Arc<Entry>>>,
    /// Octets of its answer that are held until the request is over: for the store, and for a client that does not take them
    /// as fast as they come.
    held: AtomicUsize,
}

impl Wanted {
    pub fn new(
        store: Arc<Store>,
        keys: Keys,
        request: HeaderMap,
        whose: Whose,
        cache: &RouteCache,
    ) -> Self {
        let (has_credentials, is_unidentified) = (keys.has_credentials, keys.is_unidentified);
        let (shared, own) = keys.split();
        let is_own = store.is_own(&shared).unwrap_or(cache.authorized);
        Self {
            is_own,
            since: AtomicU64::new(store.invalid.now()),
            store,
            shared,
            own,
            has_credentials,
            is_unidentified,
            request,
            whose,
            prefix: cache.prefix.clone(),
            is_for_me_alone: AtomicBool::new(false),
            stale: Mutex::new(None),
            held: AtomicUsize::new(0),
        }
    }

    /// Fresh or not.
    pub async fn find(&self) -> Option<Arc<Entry>> {
        let found = self.store.find(
            &self.shared,
            self.own.as_deref(),
            self.has_credentials,
            &self.request,
        );
        let found = match found {
            Some(found) => Some(found),
            None => self.find_elsewhere().await,
        };
        (*self.stale.lock()).clone_from(&found);
        found
    }

    /// In Redis, from where it comes into this process.
    pub async fn find_elsewhere(&self) -> Option<Arc<Entry>> {
        let tier = self.store.tier.as_ref()?;
        let entry = tier
            .recall(&self.keys(), self.has_credentials, &self.request)
            .await?;
        if entry.head.whose.tenant != self.whose.tenant || !self.store.is_good(&entry) {
            return None;
        }
        let entry = Arc::new(entry);
        self.keep_here(entry.clone());
        Some(entry)
    }

    fn keys(&self) -> tier::Keys<'_> {
        tier::Keys {
            prefix: &self.prefix,
            shared: &self.shared,
            own: self.own.as_deref(),
        }
    }

    pub fn stale(&self) -> Option<Arc<Entry>> {
        self.stale.lock().clone()
    }

    /// What it is kept under.
    fn key_of(&self, is_for_all: bool) -> &[u8] {
        match &self.own {
            Some(own) if !is_for_all => own,
            _ => &self.shared,
        }
    }

    pub fn keep(&self, entry: Arc<Entry>) {
        // Said to be out of date while it was on its way.
        if !self.store.is_good(&entry) {
            return;
        }
        self.keep_here(entry.clone());
        if let Some(tier) = &self.store.tier {
            let is_own = self.own.is_some() && !entry.head.is_for_all;
            tier.keep(&self.keys(), is_own, &entry);
        }
    }

    fn keep_here(&self, entry: Arc<Entry>) {
        let is_for_all = entry.head.is_for_all;
        if self.own.is_some() {
            self.store.note_own(&self.shared, !is_for_all);
        }
        self.store.keep(self.key_of(is_for_all), entry);
    }

    /// It is not what its backend has any more.
    pub fn forget(&self, entry: &Arc<Entry>) {
        self.store.forget(self.key_of(entry.head.is_for_all), entry);
    }

    /// Those who have the same wait for each other.
    pub fn lock_key(&self) -> Vec<u8> {
        match &self.own {
            Some(own) if self.is_own => own.to_vec(),
            _ => self.shared.to_vec(),
        }
    }

    /// Whether an answer that is its asker's own is waited for by others.
    pub fn waits_with_all(&self) -> bool {
        self.own.is_some() && !self.is_own
    }

    /// The backend is asked now.
    pub fn asks(&self) {
        self.since.store(self.store.invalid.now(), Relaxed);
    }

    /// Whether there is room for so many octets more.
    pub fn hold(&self, octets: usize) -> bool {
        let has_room = self.store.under_way.take(octets);
        if has_room {
            self.held.fetch_add(octets, Relaxed);
        }
        has_room
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.store.under_way.give_back(*self.held.get_mut());
    }
}
