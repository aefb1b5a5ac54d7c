//! The phases of Pingora's cache, for requests that found nothing good: what it may use, what it may keep, and how that is
//! told.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorSource, ErrorType};
use pingora_cache::{
    CacheKey, CacheMeta, CacheOptionOverrides, CachePhase, ForcedFreshness, NoCacheReason,
    RespCacheable,
};
use pingora_proxy::{RangeType, Session};

use super::alone::ALONE;
use super::conditional::{self, Part};
use super::entry::{self, Entry, Head, unix_millis};
use super::freshness::{Exchange, NotKept};
use super::status::{self, Outcome};
use super::storage::{FOR_NOW, PREDICTED, WAY, key, meta};
use super::{Cached, Kept, suits};
use crate::connection::here;
use crate::context::Ctx;
use crate::forward::retry::Repeatable;
use crate::reply::{self, Refusal};

/// Whoever waits for another's answer keeps half of its time for an own one.
const SHARE_OF_WAIT: u32 = 2;

/// How often somebody waits anew, for another who asks.
const MOST_WAITS: usize = 2;

/// Lets Pingora's cache have a request that wants something of it.
pub fn begin(session: &mut Session, ctx: &Ctx) {
    let Some(cached) = ctx
        .cached
        .as_deref()
        .filter(|cached| cached.wanted.is_some())
    else {
        return;
    };
    let left = ctx
        .deadline
        .and_then(|deadline| deadline.left(Instant::now()));
    let mut options = CacheOptionOverrides::default();
    options.wait_timeout = Some(left.unwrap_or(Duration::ZERO) / SHARE_OF_WAIT);
    options.max_lock_retries = Some(MOST_WAITS);
    session
        .cache
        .enable(&WAY, None, Some(&*PREDICTED), Some(&*ALONE), Some(options));
    session.cache.set_max_file_size_bytes(cached.largest);
}

/// # Errors
/// Never: who has no key has not begun.
pub fn key_of(ctx: &Ctx) -> pingora::Result<CacheKey> {
    let wanted = ctx
        .cached
        .as_ref()
        .and_then(|cached| cached.wanted.as_ref());
    wanted
        .map(key)
        .ok_or_else(|| Error::explain(ErrorType::InternalError, "nothing is wanted of the cache"))
}

/// Something is kept. Is it what the request asks for?
pub fn judge_found(meta: &CacheMeta, ctx: &Ctx) -> Option<ForcedFreshness> {
    let cached = ctx.cached.as_deref()?;
    let entry = entry_of(meta)?;
    let now = unix_millis();
    if suits(entry, &cached.asked, now) {
        return Some(ForcedFreshness::ForceFresh);
    }
    // Fresh, and not what is asked for; or the client wants to know it from the backend.
    let must_ask =
        entry.head.left(now) > 0 || cached.asked.no_cache || cached.asked.max_age.is_some();
    Some(match must_ask {
        true => ForcedFreshness::ForceExpired,
        // It may stand in for an error.
        false => ForcedFreshness::ForceExpiredServeStale { expired_at: None },
    })
}

fn entry_of(meta: &CacheMeta) -> Option<&Arc<Entry>> {
    meta.extensions().get()
}

/// The backend is being asked.
pub fn asks(session: &mut Session, ctx: &mut Ctx) {
    let Some(cached) = &mut ctx.cached else {
        return;
    };
    cached.sent = Some(Instant::now());
    if let Some(wanted) = &cached.wanted {
        wanted.asks();
    }
    if session.cache.enabled() && session.cache.is_cache_lock_writer() {
        here::cut().ahead.outlive_client();
        session.set_abort_on_close(false);
    }
}

/// What is not kept is its client's alone.
pub fn release(session: &mut Session, ctx: &mut Ctx) {
    let Some(cached) = &mut ctx.cached else {
        return;
    };
    // Pingora knows it better where it is too large, or may be.
    if cached.kept == Kept::Yes && !session.cache.enabled() {
        cached.kept = Kept::No(NoCacheReason::ResponseTooLarge);
    }
    if cached.kept != Kept::Yes {
        here::cut().ahead.end();
        session.set_abort_on_close(true);
    }
}

/// A backend's answer, before anything of it is judged.
pub fn note_answer(response: &ResponseHeader, ctx: &mut Ctx) {
    if let Some(cached) = &mut ctx.cached
        && response.status == StatusCode::NOT_MODIFIED
    {
        cached.not_modified = Some(response.headers.clone());
    }
}

/// May it be kept?
pub fn judge_answer(session: &Session, response: &ResponseHeader, ctx: &mut Ctx) -> RespCacheable {
    let Some(cached) = ctx.cached.as_deref_mut() else {
        return RespCacheable::Uncacheable(NoCacheReason::NeverEnabled);
    };
    let route = ctx.route.as_ref().and_then(|route| route.cache.as_deref());
    let (Some(route), Some(wanted)) = (route, cached.wanted.clone()) else {
        return RespCacheable::Uncacheable(NoCacheReason::Custom(FOR_NOW));
    };
    let old = session.cache.maybe_cache_meta().and_then(entry_of).cloned();
    let renewed = cached.not_modified.take().zip(old);
    let is_renewed = renewed.is_some();
    let (status, mut fields, is_same) = match &renewed {
        Some((not_modified, old)) => {
            let mut fields = old.head.fields.clone();
            let is_same = entry::refresh(&mut fields, not_modified);
            (old.head.status, fields, is_same)
        }
        None => (response.status, response.headers.clone(), true),
    };
    let now = unix_millis();
    // The times and the age are those of the 304 (RFC 9111, section 4.2.3).
    let told = renewed
        .as_ref()
        .map_or(&fields, |(not_modified, _)| not_modified);
    let took = cached
        .sent
        .map_or(0, |sent| sent.elapsed().as_millis() as u64);
    let exchange = Exchange {
        route,
        status,
        has_credentials: wanted.has_credentials,
        is_unidentified: wanted.is_unidentified,
        took,
        now,
    };
    let age = exchange.age(told);
    let told_date = told.contains_key(DATE);
    let verdict = match exchange.judge(&fields) {
        _ if !is_same => Err(NotKept::Now("another one")),
        // How the body ends must be known, or one that was broken off looks whole.
        Ok(_) if !is_renewed && !is_framed(response) => Err(NotKept::Always("framing")),
        verdict => verdict,
    };
    let verdict = verdict.and_then(|verdict| {
        let varied = entry::varied(&fields, &wanted.request).ok_or(NotKept::Always("vary"))?;
        Ok((verdict, varied))
    });
    let (verdict, vary) = match verdict {
        Ok(verdict) => verdict,
        Err(why) => {
            if let Some((_, old)) = &renewed {
                wanted.forget(old);
            }
            let reason = match why {
                NotKept::Always(_) => NoCacheReason::OriginNotCache,
                NotKept::Now(_) => NoCacheReason::Custom(FOR_NOW),
            };
            cached.kept = Kept::No(reason);
            return RespCacheable::Uncacheable(reason);
        }
    };
    entry::scrub(&mut fields);
    // Whoever receives an answer without one says when (RFC 9110, section 6.6.1).
    if !told_date || !fields.contains_key(DATE) {
        let now = httpdate::fmt_http_date(SystemTime::now());
        fields.insert(
            DATE,
            HeaderValue::try_from(now).expect("a date is a header value"),
        );
    }
    let is_for_all = verdict.is_for_all || !wanted.has_credentials;
    if !is_for_all && wanted.waits_with_all() {
        wanted.is_for_me_alone.store(true, Relaxed);
    }
    // A request that went past the cache brings what is kept, unless it asked for less than the whole.
    let is_whole = session.req_header().method == Method::GET && response.status == StatusCode::OK;
    if !session.cache.bypassing() || is_whole {
        cached.kept = Kept::Yes;
    }
    if is_renewed || cached.kept != Kept::Yes {
        here::cut().ahead.end();
    }
    let head = Head {
        status,
        fields,
        vary,
        since: wanted.since.load(Relaxed),
        at: now,
        age,
        times: verdict.times,
        is_for_all: verdict.is_for_all,
        whose: wanted.whose.clone(),
    };
    let mut meta = meta(&head);
    meta.extensions_mut().insert(Arc::new(head));
    RespCacheable::Cacheable(meta)
}

/// Whether the end of its body can be told from the end of its connection.
fn is_framed(response: &ResponseHeader) -> bool {
    response.version == Version::HTTP_2
        || response.headers.contains_key(CONTENT_LENGTH)
        || response
            .headers
            .contains_key(http::header::TRANSFER_ENCODING)
        || response.status == StatusCode::NO_CONTENT
}

/// Whether a stale answer is given instead of an error. What may be stale for how long was looked at before.
pub fn stands_in(ctx: &mut Ctx, error: Option<&Error>) -> bool {
    let (Some(error), Some(cached)) = (error, ctx.cached.as_deref_mut()) else {
        return false; // while it is asked for anew: `serve` has done that
    };
    if *error.esource() != ErrorSource::Upstream {
        return false;
    }
    cached.stands_in = true;
    if let (ErrorType::HTTPStatus(status), Some(exchange)) = (error.etype(), &mut ctx.exchange)
        && let Ok(status) = StatusCode::from_u16(*status)
    {
        // The breaker hears of it, and nothing is tried again.
        exchange.answered(status, Repeatable::Never);
    }
    true
}

/// A stale answer that may stand in for one that nobody gives.
pub fn stand_in(session: &Session, ctx: &Ctx, refusal: &Refusal) -> Option<Arc<Entry>> {
    ctx.cached.as_ref()?;
    let may = session.cache.can_serve_stale_error() && refusal.parts().status.is_server_error();
    let meta = session.cache.maybe_cache_meta().filter(|_| may)?;
    entry_of(meta).cloned()
}

pub fn is_not_modified(session: &Session, response: &ResponseHeader) -> bool {
    conditional::is_not_modified(
        &session.req_header().headers,
        response.status,
        &response.headers,
    )
}

/// A range of an answer that goes through Pingora's cache.
pub fn range(session: &Session, response: &mut ResponseHeader) -> RangeType {
    if session.req_header().method != Method::GET {
        return RangeType::None; // it has no meaning there (RFC 9110, section 14.2)
    }
    let length = response.headers.get(CONTENT_LENGTH);
    let Some(length) = length.and_then(|length| length.to_str().ok()?.parse().ok()) else {
        return RangeType::None;
    };
    let part = conditional::part(
        &session.req_header().headers,
        response.status,
        &response.headers,
        length,
    );
    let (status, range, length, outcome) = match part {
        Part::Whole => return RangeType::None,
        Part::Some(range) => (
            StatusCode::PARTIAL_CONTENT,
            format!("bytes {}-{}/{length}", range.start, range.end - 1),
            range.len(),
            RangeType::Single(range),
        ),
        Part::None => (
            StatusCode::RANGE_NOT_SATISFIABLE,
            format!("bytes */{length}"),
            0,
            RangeType::Invalid,
        ),
    };
    let changed = response
        .set_status(status)
        .and_then(|()| response.insert_header(http::header::CONTENT_RANGE, range))
        .and_then(|()| response.insert_header(CONTENT_LENGTH, length));
    debug_assert!(changed.is_ok(), "numbers are header values");
    outcome
}

/// Says on an answer what the cache had to do with it.
pub fn stamp(session: &Session, response: &mut ResponseHeader, ctx: &Ctx) {
    if let Some(cached) = ctx.cached.as_deref() {
        reply::rewrite(response, |fields| tell(session, fields, cached, ctx));
    }
}

fn tell(session: &Session, fields: &mut HeaderMap, cached: &Cached, ctx: &Ctx) {
    let entry = session.cache.maybe_cache_meta().and_then(|meta| {
        let renewed = || {
            meta.extensions()
                .get::<Arc<Head>>()
                .map(|head| head.as_ref())
        };
        renewed().or_else(|| entry_of(meta).map(|entry| &entry.head))
    });
    if let Some(head) = entry
        && matches!(
            session.cache.phase(),
            CachePhase::Hit
                | CachePhase::Stale
                | CachePhase::StaleUpdating
                | CachePhase::Revalidated
        )
    {
        status::age(fields, head, unix_millis());
    }
    let outcome: Outcome = status::forwarded(fields, cached, entry, &session.cache);
    if let Some(caching) = ctx.policies.caching.as_ref().filter(|_| !cached.is_behind) {
        caching.store.metrics.requests[outcome as usize].inc();
    }
}
