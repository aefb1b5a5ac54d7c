//! Follows what others change in Redis: every revocation, and what this process remembers of the rest.
//!
//! A full read of the revocations at connect, then every change as Redis pushes it (client-side tracking in broadcast
//! mode, RESP3). A lost connection is taken up again with a full read, and what was remembered is forgotten. Over a Cluster
//! every master is followed; over Sentinels the one that they name.

use std::sync::Arc;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use prometheus::IntCounter;
use redis::{PushInfo, PushKind, RedisResult, Value};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::changes::Remembers;
use super::connection::Connection;
use super::health::{RedisHealth, RedisState};
use super::keys::{CACHE_PURGE, CACHES, FORGET, REVOCATIONS, RevocationKey, TRACKED};
use super::revoked::{Revoked, Sets};
use super::topology::{LONGEST_CONNECT, PING_EVERY, RECONNECT, Topology};
use super::watch::{Watch, scan};
use crate::observe::registry::RedisMetrics;

/// The background task.
pub struct Follow {
    topology: Arc<Topology>,
    revoked: Arc<Revoked>,
    pub(super) memories: Vec<Arc<dyn Remembers>>,
    health: Arc<RedisHealth>,
    reconnects: IntCounter,
}

impl Follow {
    pub(super) fn new(
        topology: Arc<Topology>,
        revoked: Arc<Revoked>,
        health: Arc<RedisHealth>,
        metrics: &RedisMetrics,
    ) -> Self {
        Self {
            topology,
            revoked,
            memories: Vec::new(),
            health,
            reconnects: metrics.follower_reconnects.clone(),
        }
    }

    /// Connects and follows until a connection is lost, or the masters are others.
    async fn follow(&self) -> RedisResult<()> {
        let (mut redis, mut pushes) = self.connect().await?;
        self.read_all(&mut redis).await?;
        self.health.follower.set(|| RedisState::Ok);
        log::info!("revocations are followed in {}", self.topology);
        let mut ping = tokio::time::interval(PING_EVERY);
        loop {
            tokio::select! {
                push = pushes.recv() => match push {
                    Some(PushInfo { kind: PushKind::Invalidate, data }) => self.take_up(&mut redis, data).await?,
                    Some(PushInfo { kind: PushKind::Message, data }) => self.take_out(&mut redis.reader, data).await?,
                    Some(PushInfo { kind: PushKind::Disconnection, .. }) | None => return Ok(()),
                    Some(_) => {}
                },
                _ = ping.tick() => redis.still_stands().await?,
            }
        }
    }

    async fn connect(&self) -> RedisResult<(Watch, UnboundedReceiver<PushInfo>)> {
        let (sender, pushes) = unbounded_channel();
        // A network that drops what we send would let one try outlast its return.
        let patience = self.topology.connect_timeout.min(LONGEST_CONNECT);
        let mut redis = self.topology.watch(patience, sender).await?;
        let mut tracking = redis::cmd("CLIENT");
        tracking.arg("TRACKING").arg("ON").arg("BCAST");
        for prefix in REVOCATIONS.iter().chain(&TRACKED) {
            tracking.arg("PREFIX").arg(prefix);
        }
        for master in &mut redis.masters {
            tracking.query_async::<()>(master).await?;
        }
        // What is said to one node of a cluster is heard at all of them.
        redis.masters[0].subscribe(FORGET).await?;
        // Who may not listen there goes without: revocations matter more.
        let heard = redis.masters[0].subscribe(CACHE_PURGE).await;
        if let Err(e) = &heard {
            log::warn!("{CACHE_PURGE} is not heard, answers in redis are not used: {e}");
        }
        let hears = heard.is_ok();
        self.memories
            .iter()
            .for_each(|memory| memory.hears_purges(hears));
        Ok((redis, pushes))
    }

    /// Tracking is on already, on every master: a key written or moved during the scan is pushed as well.
    async fn read_all(&self, redis: &mut Watch) -> RedisResult<()> {
        let mut sets = Sets::default();
        for master in &mut redis.masters {
            for prefix in REVOCATIONS {
                let mut cursor = 0u64;
                loop {
                    let (next, keys) = scan(master, prefix, cursor).await?;
                    for (key, value) in values_of(&mut redis.reader, keys).await? {
                        sets.set(&key, value.as_deref());
                    }
                    cursor = next;
                    if cursor == 0 {
                        break;
                    }
                }
            }
        }
        self.revoked.replace(sets);
        for memory in &self.memories {
            memory.forget_all();
        }
        Ok(())
    }

    /// A push names keys, or nothing at all when the whole database was flushed.
    async fn take_up(&self, redis: &mut Watch, data: Vec<Value>) -> RedisResult<()> {
        let Some(Value::Array(keys)) = data.into_iter().next() else {
            return self.read_all(redis).await;
        };
        for key in keys {
            let Value::BulkString(key) = key else {
                continue;
            };
            if TRACKED
                .iter()
                .any(|prefix| key.starts_with(prefix.as_bytes()))
            {
                self.forget(&key);
                continue;
            }
            let value = value_of(&mut redis.reader, &key).await?;
            self.revoked.update(&key, value.as_deref());
        }
        Ok(())
    }

    /// Somebody says that a cached key is out of date.
    async fn take_out(&self, redis: &mut Connection, data: Vec<Value>) -> RedisResult<()> {
        let mut data = data.into_iter();
        let (Some(Value::BulkString(channel)), Some(Value::BulkString(key))) =
            (data.next(), data.next())
        else {
            return Ok(());
        };
        if channel == CACHE_PURGE.as_bytes() {
            self.memories.iter().for_each(|memory| memory.purge(&key));
            return Ok(());
        }
        if CACHES
            .iter()
            .any(|prefix| key.starts_with(prefix.as_bytes()))
        {
            redis::cmd("DEL").arg(&key).query_async::<()>(redis).await?;
            self.forget(&key);
        }
        Ok(())
    }

    fn forget(&self, key: &[u8]) {
        for memory in &self.memories {
            memory.forget(key);
        }
    }
}

/// The values of keys, in one go; those whose values do not matter are not asked for.
async fn values_of(
    redis: &mut Connection,
    keys: Vec<Vec<u8>>,
) -> RedisResult<Vec<(Vec<u8>, Option<Vec<u8>>)>> {
    let is_time = |key: &Vec<u8>| RevocationKey::parse(key).is_some_and(|key| key.has_time());
    let (times, marks): (Vec<_>, Vec<_>) = keys.into_iter().partition(is_time);
    let commands = times
        .iter()
        .map(|key| redis::cmd("GET").arg(key).take())
        .collect();
    let answers = redis.each(commands).await?;
    let mut values: Vec<_> = marks
        .into_iter()
        .map(|key| (key, Some(Vec::new())))
        .collect();
    for (key, answer) in times.into_iter().zip(answers) {
        let value = match answer {
            Ok(value) => redis::from_redis_value(value)?,
            Err(e) if e.code() == Some("WRONGTYPE") => Some(Vec::new()),
            Err(e) => return Err(e),
        };
        values.push((key, value));
    }
    Ok(values)
}

/// A key of another type is there, too: it revokes, and its value is no time.
async fn value_of(redis: &mut Connection, key: &[u8]) -> RedisResult<Option<Vec<u8>>> {
    match redis::cmd("GET").arg(key).query_async(redis).await {
        Err(e) if e.code() == Some("WRONGTYPE") => Ok(Some(Vec::new())),
        outcome => outcome,
    }
}

#[async_trait]
impl BackgroundService for Follow {
    /// Until the process ends: who is revoked while it drains is refused, and cut.
    async fn start(&self, _: ShutdownWatch) {
        let mut told = false;
        loop {
            let lost = self.follow().await;
            // A redis that stays away is told of once.
            if self.health.is_followed() {
                told = false;
            }
            self.health.follower.set(|| RedisState::Away);
            let why = lost
                .err()
                .map_or_else(|| "the connection was closed".to_owned(), |e| e.to_string());
            if !std::mem::replace(&mut told, true) {
                let redis = &self.topology;
                log::warn!("{redis} is away, the last known revocations hold: {why}");
            }
            tokio::time::sleep(RECONNECT).await;
            self.reconnects.inc();
        }
    }
}
