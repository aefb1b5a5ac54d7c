//! Pingora's view of what is kept. What it looks up and fills goes by the request that [`Wanted`] carries with the key: the
//! store and the answer's place in it are found there, so that nothing here is static but the way.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use once_cell::sync::Lazy;
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorType, Result};
use pingora_cache::key::{CacheHashKey, CacheKey};
use pingora_cache::predictor::Predictor;
use pingora_cache::storage::{HandleHit, HandleMiss, MissFinishType};
use pingora_cache::trace::SpanHandle;
use pingora_cache::{
    CacheMeta, HitHandler, MissHandler, PurgeOutcome, PurgeTarget, PurgeType, Storage,
};

use super::entry::{Entry, Head};
use super::wanted::Wanted;
use crate::connection::{Cut, here};

/// The one way from Pingora to every store.
pub struct Way;

pub static WAY: Way = Way;

/// What was not to be kept the last time is not waited for the next time.
pub static PREDICTED: Lazy<Predictor<16>> =
    Lazy::new(|| Predictor::new(MOST_PREDICTED, Some(is_for_now)));

/// Keys that are known not to be kept, for each of 16 shards.
const MOST_PREDICTED: usize = 2048;

/// Why an answer is not kept this time.
pub const FOR_NOW: &str = "for now";

fn is_for_now(reason: &'static str) -> bool {
    reason == FOR_NOW
}

/// Reads an answer that is kept.
struct Kept {
    entry: Arc<Entry>,
    is_read: bool,
}

/// Takes up an answer that is to be kept.
struct Fill {
    wanted: Arc<Wanted>,
    head: Arc<Head>,
    body: BytesMut,
    length: Option<usize>,
    _ahead: RunsAhead,
}

/// While it is there, the client is not waited for.
struct RunsAhead(Arc<Cut>);

// === impl Way ===

#[async_trait]
impl Storage for Way {
    async fn lookup(
        &'static self,
        key: &CacheKey,
        _: &SpanHandle,
    ) -> Result<Option<(CacheMeta, HitHandler)>> {
        let Some(wanted) = wanted(key) else {
            return Ok(None);
        };
        let Some(entry) = wanted.find().await else {
            return Ok(None);
        };
        let meta = meta_of(&entry);
        Ok(Some((
            meta,
            Box::new(Kept {
                entry,
                is_read: false,
            }),
        )))
    }

    async fn get_miss_handler(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        _: &SpanHandle,
    ) -> Result<MissHandler> {
        let (Some(wanted), Some(head)) = (wanted(key), meta.extensions().get::<Arc<Head>>()) else {
            return Error::e_explain(
                ErrorType::InternalError,
                "an answer without a request is kept",
            );
        };
        let length = head
            .fields
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok());
        hold(wanted, length.unwrap_or_default())?;
        Ok(Box::new(Fill {
            wanted: wanted.clone(),
            head: head.clone(),
            // Not more than there is room for.
            body: BytesMut::with_capacity(length.unwrap_or_default()),
            length,
            _ahead: RunsAhead::begin(wanted),
        }))
    }

    async fn purge(
        &'static self,
        _: PurgeTarget<'_>,
        _: PurgeType,
        _: &SpanHandle,
    ) -> Result<PurgeOutcome> {
        Ok(PurgeOutcome::NotFound) // the store does it itself
    }

    /// A 304 has come: the same body has a new head.
    async fn update_meta(
        &'static self,
        key: &CacheKey,
        meta: &CacheMeta,
        _: &SpanHandle,
    ) -> Result<bool> {
        let (Some(wanted), Some(head)) = (wanted(key), meta.extensions().get::<Arc<Head>>()) else {
            return Ok(false);
        };
        let Some(old) = wanted.stale() else {
            return Ok(false);
        };
        let entry = Entry::new(Head::clone(head), old.body.clone());
        wanted.keep(Arc::new(entry));
        Ok(true)
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}

pub fn wanted(key: &CacheKey) -> Option<&Arc<Wanted>> {
    key.extensions.get()
}

/// What Pingora needs to know of an answer that is kept.
fn meta_of(entry: &Arc<Entry>) -> CacheMeta {
    let head = &entry.head;
    let mut meta = meta(head);
    meta.extensions_mut().insert(entry.clone());
    meta
}

pub fn meta(head: &Head) -> CacheMeta {
    let at = |millis: u64| UNIX_EPOCH + Duration::from_millis(millis);
    let made = head.at.saturating_sub(head.age);
    let fresh_until = at(made + head.times.life);
    let seconds = |millis: u64| u32::try_from(millis / 1000).unwrap_or(u32::MAX);
    let mut parts = http::Response::new(()).into_parts().0;
    parts.status = head.status;
    parts.headers = head.fields.clone();
    CacheMeta::new(
        // What is stale from the beginning is so now, too.
        fresh_until.min(SystemTime::now() + Duration::from_millis(head.times.life)),
        at(head.at),
        0, // whoever is given a stale answer while it is asked for anew was given it before
        seconds(head.times.if_error),
        ResponseHeader::from(parts),
    )
}

// === impl Kept ===

#[async_trait]
impl HandleHit for Kept {
    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        let is_read = std::mem::replace(&mut self.is_read, true);
        Ok((!is_read && !self.entry.body.is_empty()).then(|| self.entry.body.clone()))
    }

    async fn finish(
        self: Box<Self>,
        _: &'static (dyn Storage + Sync),
        _: &CacheKey,
        _: &SpanHandle,
    ) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}

// === impl Fill ===

#[async_trait]
impl HandleMiss for Fill {
    async fn write_body(&mut self, data: Bytes, _: bool) -> Result<()> {
        if self.length.is_none() {
            hold(&self.wanted, data.len())?;
        }
        self.body.extend_from_slice(&data);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<MissFinishType> {
        let Self {
            wanted,
            head,
            body,
            length,
            _ahead,
        } = *self;
        if length.is_some_and(|length| length != body.len()) {
            return Error::e_explain(
                ErrorType::ReadError,
                "an answer that is not whole is not kept",
            );
        }
        let size = body.len();
        // In as much room as it needs.
        let body = match body.capacity() == size {
            true => body.freeze(),
            false => Bytes::copy_from_slice(&body),
        };
        let mut head = Head::clone(&head);
        if head.status != StatusCode::NO_CONTENT {
            head.fields.insert(CONTENT_LENGTH, size.into());
        }
        wanted.keep(Arc::new(Entry::new(head, body)));
        Ok(MissFinishType::Created(size))
    }
}

/// # Errors
/// When so much is held already for fetches that are under way, and for clients that do not take what they bring: the answer
/// goes its way, and is not kept.
fn hold(wanted: &Wanted, octets: usize) -> Result<()> {
    match wanted.hold(octets) {
        true => Ok(()),
        false => {
            wanted.store.metrics.over_budget.inc();
            Error::e_explain(ErrorType::InternalError, "too much is being kept at once")
        }
    }
}

impl RunsAhead {
    fn begin(wanted: &Wanted) -> Self {
        let cut = here::cut();
        cut.ahead.run(wanted.store.largest);
        Self(cut)
    }
}

impl Drop for RunsAhead {
    fn drop(&mut self) {
        self.0.ahead.end();
    }
}

/// For the table of who waits: the key that [`Wanted`] chose.
pub fn key(wanted: &Arc<Wanted>) -> CacheKey {
    let mut key = CacheKey::new(wanted.lock_key(), "");
    key.extensions.insert(wanted.clone());
    debug_assert!(key.variance_bin().is_none());
    key
}
