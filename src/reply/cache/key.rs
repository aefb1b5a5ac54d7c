//! What tells one answer from another: tenant, route, scheme, host, target, `X-Venue-ID`, and, unless the backend says `public`, who asks.
//! Each part stands behind its length, so that no two requests have the same key by accident or design.

use http::header::{AUTHORIZATION, COOKIE, HOST};
use http::{HeaderMap, HeaderValue};

use super::RouteCache;
use crate::admit::auth::{Caller, Source};
use crate::admit::tenancy::X_VENUE_ID;
use crate::context::Ctx;
use crate::route::{Route, target_of};

/// The keys of one request.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// That of the caller alone; what is before `shared_len` is that of its whole tenant, but for the first octet.
    octets: Vec<u8>,
    shared_len: usize,
    /// Its answers may depend on who asks.
    pub has_credentials: bool,
    /// Nobody was identified by them.
    pub is_unidentified: bool,
}

const SHARED: u8 = b's';
const OWN: u8 = b'u';

const X_API_KEY: &str = "x-api-key";

impl Keys {
    /// `octets`: for the keys to be built in.
    ///
    /// `subject`: whose certificate the client has shown; backends are told.
    pub fn of(
        ctx: &Ctx,
        subject: Option<&HeaderValue>,
        route: &Route,
        cache: &RouteCache,
        request: &pingora::http::RequestHeader,
        mut octets: Vec<u8>,
    ) -> Self {
        let fields = &request.headers;
        octets.clear();
        octets.push(SHARED);
        octets.extend_from_slice(&cache.fingerprint.to_be_bytes());
        octets.push(u8::from(ctx.is_over_tls()));
        let caller = ctx.caller.as_deref();
        octets.push(u8::from(caller.is_some()));
        put(
            &mut octets,
            caller.map_or(b"", |caller| caller.tenant.as_bytes()),
        );
        put_lower(
            &mut octets,
            fields.get(HOST).map_or(b"", |host| host.as_bytes()),
        );
        let target = ctx.target.as_deref().unwrap_or_else(|| target_of(request));
        put(&mut octets, target.as_bytes());
        // Backends may answer by it, and seldom say so in `Vary`.
        for venue in fields.get_all(X_VENUE_ID) {
            octets.push(b'v');
            put(&mut octets, venue.as_bytes());
        }
        octets.push(b'.');
        let shared_len = octets.len();
        for holder in [caller, ctx.beside.as_deref()].into_iter().flatten() {
            put_holder(&mut octets, holder);
        }
        if let Some(subject) = subject {
            octets.push(b'c');
            put(&mut octets, subject.as_bytes());
        }
        let is_unidentified = caller.is_none() && shows_credentials(fields, route);
        let octets_are_own = octets.len() > shared_len;
        Self {
            octets,
            shared_len,
            has_credentials: octets_are_own || is_unidentified,
            is_unidentified,
        }
    }

    /// That of all callers of the tenant.
    pub fn shared(&mut self) -> &[u8] {
        self.octets[0] = SHARED;
        &self.octets[..self.shared_len]
    }

    /// That of this caller alone, where there is one.
    pub fn own(&mut self) -> Option<&[u8]> {
        if self.octets.len() == self.shared_len {
            return None;
        }
        self.octets[0] = OWN;
        Some(&self.octets)
    }

    pub fn split(mut self) -> (Box<[u8]>, Option<Box<[u8]>>) {
        let shared = self.shared().into();
        (shared, self.own().map(Into::into))
    }

    pub fn into_octets(self) -> Vec<u8> {
        self.octets
    }
}

/// Whether a request that nobody was identified by shows something that the backend may know its sender by.
fn shows_credentials(fields: &HeaderMap, route: &Route) -> bool {
    fields.contains_key(AUTHORIZATION)
        || fields.contains_key(X_API_KEY)
        || (fields.contains_key(COOKIE) && route.forward_headers.contains(&COOKIE))
}

fn put_holder(octets: &mut Vec<u8>, holder: &Caller) {
    octets.push(match holder.source {
        Source::Jwt => b'j',
        Source::ApiKey => b'k',
    });
    octets.extend_from_slice(holder.rights.octets());
    put(octets, holder.id.as_bytes());
}

fn put(octets: &mut Vec<u8>, part: &[u8]) {
    octets.extend_from_slice(&(part.len() as u32).to_be_bytes());
    octets.extend_from_slice(part);
}

fn put_lower(octets: &mut Vec<u8>, part: &[u8]) {
    let at = octets.len();
    put(octets, part);
    octets[at + 4..].make_ascii_lowercase();
}
