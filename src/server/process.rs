//! What lives as long as the process, whatever is reloaded: what was counted, spent, remembered and revoked.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pingora::services::background::BackgroundService;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::life::Life;
use super::threads::Threads;
use crate::admit::auth;
use crate::admit::budget::Rooms;
use crate::admit::idempotency::Ledger;
use crate::admit::limits::{Books, Shared, Spent};
use crate::admit::lookup::Membership;
use crate::config::{Problems, Stage};
use crate::connection::FrontParts;
use crate::forward::pool::Connectors;
use crate::gateway::Gateway;
use crate::handover::Memory;
use crate::observe::access_log::Logger;
use crate::observe::registry::{Metrics, RouteMetrics, UNMATCHED};
use crate::policies::InForce;
use crate::reply::cache::{CacheConfig, CatchUp, Listens, Store, Tier, Told};
use crate::state::{
    CACHES, Cache, Kept, Lookups, Redis, RedisConfig, RedisHealth, Remembers, Revoked, Settle,
};

pub struct Process {
    pub stage: Stage,
    /// For what is in flight at its end, in which streams have their grace.
    pub shutdown_timeout: Duration,
    pub metrics: Arc<Metrics>,
    pub logger: Arc<Logger>,
    pub life: Arc<Life>,
    pub redis_health: Arc<RedisHealth>,
    pub spent: Arc<Spent>,
    books: Arc<Books>,
    pub shared_limits: Option<Shared>,
    pub known: auth::Known,
    pub members: Arc<Cache<Membership>>,
    /// Of writes that run once.
    pub ledger: Arc<Ledger>,
    /// For bodies and answers that are held.
    pub rooms: Rooms,
    pub connectors: Connectors,
    /// What is kept of answers.
    pub store: Option<Arc<Store>>,
    unmatched: Arc<RouteMetrics>,
    pub threads: Threads,
    tasks: Mutex<Tasks>,
}

/// How much a process does, and remembers.
pub struct Size<'a> {
    /// That serve requests.
    pub threads: usize,
    /// Limits that are remembered.
    pub max_keys: usize,
    /// What is kept of answers.
    pub cache: &'a CacheConfig,
}

/// Words on what is out of date that Redis was not told of yet.
const MOST_KEPT: usize = 50_000;

/// What runs beside the requests until the process ends.
pub type Tasks = Vec<Box<dyn BackgroundService + Send + Sync>>;

impl Process {
    pub fn begin(
        stage: Stage,
        shutdown_timeout: Duration,
        logger: Logger,
        redis: RedisConfig,
        size: Size<'_>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let Size {
            threads,
            max_keys,
            cache,
        } = size;
        let metrics = Metrics::new().inspect_err(|e| problems.add("metrics", e.to_string()));
        let metrics = Arc::new(metrics.ok()?);
        let revoked = Arc::new(Revoked::default());
        let redis_health = Arc::new(RedisHealth::default());
        let redis = redis.compile(
            revoked.clone(),
            redis_health.clone(),
            threads,
            &metrics.redis,
            problems,
        );
        let commands = redis.as_ref().map(|redis| &redis.commands);
        let (books, threads) = (
            Arc::new(Books::default()),
            Threads::new(threads, &metrics.loops),
        );
        let users = remembered("user", CACHES[0], commands, &metrics);
        let members = remembered("member", CACHES[1], commands, &metrics);
        let lookups = metrics.api_key_lookups();
        let known = auth::Known::new(
            revoked,
            commands,
            users.clone(),
            lookups,
            &metrics.streams_open,
        );
        let shared_limits = commands.map(|redis| Shared::new(redis.clone(), books.clone()));
        let life = Arc::new(Life::default());
        let ledger = Arc::new(Ledger::new(commands.cloned()));
        let mut tasks = known.tasks();
        tasks.extend(ledger.settle().map(|task| Box::new(task) as Box<_>));
        let mut memories: Vec<Arc<dyn Remembers>> = vec![users, members.clone()];
        memories.extend(known.stored_keys.clone().map(|keys| keys as Arc<_>));
        let store = keeps_answers(
            cache,
            commands,
            &redis_health,
            &metrics,
            &mut tasks,
            &mut memories,
        );
        // After them: what it doubts is looked up anew.
        memories.push(known.streams.clone());
        tasks.extend(
            redis
                .into_iter()
                .flat_map(|redis| redis.tasks(books.clone(), memories.clone(), threads.clone())),
        );
        Some(Self {
            stage,
            shutdown_timeout,
            store,
            unmatched: Arc::new(metrics.http.route(UNMATCHED)),
            metrics,
            logger: Arc::new(logger),
            life,
            redis_health,
            books,
            spent: Arc::new(Spent::new(max_keys)),
            shared_limits,
            known,
            members,
            ledger,
            rooms: Rooms::new(),
            connectors: Connectors::new(),
            threads,
            tasks: Mutex::new(tasks),
        })
    }

    /// What serves by the policies in force.
    pub fn front(&self, in_force: &InForce) -> (Gateway, FrontParts) {
        let gateway = Gateway {
            in_force: in_force.clone(),
            metrics: self.metrics.clone(),
            unmatched: self.unmatched.clone(),
            websockets: self.metrics.websockets(),
            logger: self.logger.clone(),
        };
        let front = FrontParts {
            in_force: in_force.clone(),
            unmatched: self.unmatched.clone(),
            requests: self.metrics.requests(),
            life: self.life.clone(),
            logger: self.logger.clone(),
        };
        (gateway, front)
    }

    /// What a restart would lose.
    pub fn memory(&self, in_force: &InForce) -> Memory {
        Memory {
            limits: self.spent.clone(),
            failures: self.known.failures.clone(),
            books: self.books.clone(),
            in_force: in_force.clone(),
            revoked: self.known.revoked.clone(),
            families: self.known.families.clone(),
            ledger: self.ledger.clone(),
            stale: self.store.as_deref().and_then(Store::unsaid).cloned(),
            api_keys: self.known.stored_keys.clone(),
        }
    }

    /// Whoever takes them runs them.
    pub fn take_tasks(&self) -> Tasks {
        std::mem::take(&mut self.tasks.lock())
    }
}

/// What is kept of answers, and who tells of what is out of date.
fn keeps_answers(
    cache: &CacheConfig,
    redis: Option<&Arc<Redis>>,
    health: &Arc<RedisHealth>,
    metrics: &Metrics,
    tasks: &mut Tasks,
    memories: &mut Vec<Arc<dyn Remembers>>,
) -> Option<Arc<Store>> {
    if cache.memory.0 == 0 {
        return None;
    }
    let tier = redis.filter(|_| cache.redis).map(|redis| {
        let kept = Arc::new(Kept::new(redis.clone(), MOST_KEPT));
        tasks.push(Box::new(Settle(kept.clone())));
        Arc::new(Tier {
            redis: redis.clone(),
            told: Arc::new(Told::new(redis.clone(), kept, health.clone())),
            largest: cache.largest.0 as usize,
        })
    });
    let told = tier.as_ref().map(|tier| tier.told.clone());
    let store = Store::new(cache.memory.0, cache.largest.0, metrics.cache.clone(), tier);
    let store = Arc::new(store);
    if let Some(told) = told {
        let listens = Arc::new(Listens {
            store: store.clone(),
            told,
        });
        tasks.push(Box::new(CatchUp(listens.clone())));
        memories.push(listens);
    }
    Some(store)
}

/// What other services know, as far as this process remembers it.
fn remembered<T: Serialize + DeserializeOwned + Send + Sync>(
    what: &str,
    prefix: &'static str,
    redis: Option<&Arc<Redis>>,
    metrics: &Metrics,
) -> Arc<Cache<T>> {
    /// Of one kind; the least used give way.
    const MOST: usize = 100_000;
    Arc::new(Cache::new(
        MOST,
        prefix,
        redis.cloned(),
        Lookups::of(what, &metrics.lookups),
    ))
}
