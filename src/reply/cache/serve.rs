//! Answers from what is kept, before Pingora's cache begins: most requests end here.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, PRAGMA, TRANSFER_ENCODING};
use http::{HeaderValue, Method, StatusCode, Version};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora_proxy::Session;
use pingora_timeout::timeout;

use super::conditional::{self, Part};
use super::directives::Asked;
use super::entry::{Entry, unix_millis};
use super::key::Keys;
use super::status::{self, Outcome};
use super::wanted::Wanted;
use super::{Cached, suits, suits_meanwhile};
use crate::admit::cors::Cors;
use crate::admit::request_id::X_REQUEST_ID;
use crate::context::Ctx;
use crate::gateway::Gateway;
use crate::inner::revalidation::Revalidation;
use crate::listen::tls;
use crate::reply::{self, Refusal};
use crate::route::METHODS;

thread_local! {
    /// For keys to be built in.
    static OCTETS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Gateway {
    /// Answers a request that was admitted, where something is kept that is good for it. `false`: it goes on, and
    /// `ctx.cached` says what the cache has to do with it.
    pub async fn recall(&self, session: &mut Session, ctx: &mut Ctx) -> pingora::Result<bool> {
        // A body on HTTP/2 needs no field that says so.
        let is_http2 = session.req_header().version == Version::HTTP_2;
        let has_body = is_http2 && !session.as_mut().is_body_empty();
        let found = match self.look_up(session, has_body, ctx) {
            Some(found) => Some(found),
            // Boxed: few ask so.
            None if wants_what_is_kept(ctx).is_some() => {
                let kept = Box::pin(elsewhere(ctx)).await;
                kept.map(|entry| (entry, None))
            }
            None => None,
        };
        let Some((entry, detail)) = found else {
            let is_wanted_at_once = wants_what_is_kept(ctx).is_some();
            if is_wanted_at_once {
                reply::refuse(session, ctx, &Refusal::NotCached).await?;
            }
            return Ok(is_wanted_at_once);
        };
        answer(session, ctx, &entry, detail).await?;
        Ok(true)
    }

    /// What is kept and good, and why where it is stale. Otherwise the request is prepared for the way through Pingora's
    /// cache.
    fn look_up(&self, session: &Session, has_body: bool, ctx: &mut Ctx) -> Option<Found> {
        let (route, caching) = (ctx.route.as_ref()?, ctx.policies.caching.as_ref()?);
        let cache = route.cache.as_deref()?;
        let method = &METHODS[ctx.method?.0];
        if !matches!(*method, Method::GET | Method::HEAD) || ctx.handshake.is_some() {
            return None;
        }
        let request = session.req_header();
        let fields = &request.headers;
        let asked = match fields.contains_key(CACHE_CONTROL) || fields.contains_key(PRAGMA) {
            true => Asked::of(fields),
            false => Asked::default(),
        };
        let has_body = has_body
            || fields.contains_key(TRANSFER_ENCODING)
            || fields
                .get(CONTENT_LENGTH)
                .is_some_and(|length| length != "0");
        if asked.no_store || has_body || conditional::is_for_origin(fields) {
            ctx.cached = Some(Cached::without(asked));
            return None;
        }
        let store = &caching.store;
        let octets = OCTETS.with(RefCell::take);
        let subject = tls::client_subject(session.digest());
        let mut keys = Keys::of(ctx, subject.as_ref(), route, cache, request, octets);
        let has_credentials = keys.has_credentials;
        let found = store.find_shared(keys.shared(), has_credentials, fields);
        let found = found.or_else(|| store.look(keys.own()?, fields));
        let now = unix_millis();
        if let Some(entry) = found.as_ref().filter(|entry| suits(entry, &asked, now)) {
            OCTETS.with(|place| place.replace(keys.into_octets()));
            return Some((entry.clone(), None));
        }
        let has_others = found.is_none() && store.has_any(keys.shared());
        let whose = ctx.policies.whose(ctx, route, cache, request);
        let wanted = Wanted::new(store.clone(), keys, fields.clone(), whose, cache);
        let mut cached = Cached::of(wanted, asked, caching.largest);
        cached.has_others = has_others;
        let Some(entry) = found.filter(|entry| suits_meanwhile(entry, &asked, now)) else {
            ctx.cached = Some(cached);
            return None;
        };
        if entry.begin_revalidation(now, route.timeouts.budget.as_millis() as u64) {
            cached.asked = Asked::default();
            cached.is_behind = true;
            Revalidation::begin(session, ctx, cached);
        }
        Some((entry, Some("stale-while-revalidate")))
    }
}

/// What the cache has to do with a request that takes what is kept and nothing else.
fn wants_what_is_kept(ctx: &Ctx) -> Option<&Cached> {
    let cached = ctx.cached.as_deref();
    cached.filter(|cached| cached.asked.only_if_cached)
}

/// What is kept in Redis for such a request, which does not come to Pingora's cache: that would ask the backend.
async fn elsewhere(ctx: &mut Ctx) -> Option<Arc<Entry>> {
    let cached = wants_what_is_kept(ctx)?;
    let wanted = cached.wanted.as_ref()?;
    let deadline = ctx.deadline?;
    let found = timeout(deadline.left(Instant::now())?, wanted.find_elsewhere());
    let entry = found.await.ok().flatten()?;
    let is_good = suits(&entry, &cached.asked, unix_millis());
    // It goes on as a hit of memory does.
    is_good.then(|| {
        ctx.cached = None;
        entry
    })
}

/// With why it is given, where it is not fresh.
type Found = (Arc<Entry>, Option<&'static str>);

/// Sends what is kept. `detail`: why, where it is not fresh.
pub async fn answer(
    session: &mut Session,
    ctx: &mut Ctx,
    entry: &Entry,
    detail: Option<&str>,
) -> pingora::Result<()> {
    let (request, now) = (session.req_header(), unix_millis());
    let is_head = request.method == Method::HEAD;
    let is_http2 = request.version == Version::HTTP_2;
    let head = &entry.head;
    let mut parts = http::Response::new(()).into_parts().0;
    parts.status = head.status;
    parts.headers = head.fields.clone();
    let fields = &mut parts.headers;
    let mut body = entry.body.clone();
    if conditional::is_not_modified(&request.headers, head.status, &head.fields) {
        parts.status = StatusCode::NOT_MODIFIED;
        conditional::strip_for_304(fields);
        body.clear();
    } else if !is_head {
        match conditional::part(&request.headers, head.status, &head.fields, body.len()) {
            Part::Whole => {}
            Part::Some(range) => {
                let text = format!("bytes {}-{}/{}", range.start, range.end - 1, body.len());
                body = body.slice(range);
                parts.status = StatusCode::PARTIAL_CONTENT;
                fields.insert(CONTENT_LENGTH, body.len().into());
                fields.insert(CONTENT_RANGE, value(&text));
            }
            Part::None => {
                parts.status = StatusCode::RANGE_NOT_SATISFIABLE;
                fields.insert(CONTENT_RANGE, value(&format!("bytes */{}", body.len())));
                fields.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
                body.clear();
            }
        }
    }
    status::age(fields, head, now);
    status::hit(fields, head, now, detail);
    fields.insert(X_REQUEST_ID, ctx.request_id.clone());
    ctx.policies.secure_headers.stamp(fields, ctx.is_over_tls());
    if let Some(standing) = &ctx.standing {
        standing.stamp(fields);
    }
    Cors::stamp(&ctx.origin, fields);
    ctx.forgive(head.status);
    if let Some(caching) = &ctx.policies.caching {
        let outcome = if detail.is_some() {
            Outcome::Stale
        } else {
            Outcome::Hit
        };
        caching.store.metrics.requests[outcome as usize].inc();
    }
    let has_body = !body.is_empty() && !is_head;
    if session.is_process_shutting_down() {
        session.set_keepalive(None);
    }
    let response = Box::new(ResponseHeader::from(parts));
    let limit = ctx.policies.times.time_to_take(body.len());
    if is_http2 {
        let mut tasks = vec![HttpTask::Header(response, !has_body)];
        if has_body {
            tasks.push(HttpTask::Body(Some(body), true));
        }
        let written = reply::in_time(limit, session.write_response_tasks(tasks));
        return written.await.map(|_| ());
    }
    session.write_response_header(response, !has_body).await?;
    if has_body {
        let written = session.write_response_body(Some(body), true);
        reply::in_time(limit, written).await?;
    }
    Ok(())
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("numbers are a header value")
}
