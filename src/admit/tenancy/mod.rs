//! Whose venues? Every venue that a request names must be one of its caller's (decision 18).
//!
//! A caller's venues are those that its token or its API key says, and for users those that venue-service says. Who
//! names another's is told what who names none that exists is told. Only the role `admin` crosses venues, and nobody tenants.

mod config;
mod content;
pub mod names;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{COOKIE, HeaderName};
use pingora_proxy::Session;
use prometheus::IntCounter;
use serde::{Deserialize, Serialize};

use super::auth::{Caller, Source};
use super::body::{self, Body, Size};
use super::budget::{Budget, Full, Held};
use super::lookup::{Behalf, Lookup, Membership, NotFoundOut};
use crate::context::Ctx;
use crate::gateway::Gateway;
use crate::reply::Refusal;
use crate::route::Route;
pub use config::TenancyConfig;
pub use content::Hold;
use content::{Content, Judged, Step};
pub use names::{Ambiguous, Named, announces_tenant, announces_venue};

/// Where a route's requests are looked at for venues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VenueRule {
    /// In the path, the query, the header fields and the body.
    #[default]
    Everywhere,
    /// In all but the body, which streams: for uploads.
    Head,
    /// Nowhere: the route's service answers everybody.
    Any,
}

pub const X_VENUE_ID: HeaderName = HeaderName::from_static("x-venue-id");

/// The venues that somebody may name without further ado.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Venues {
    /// The one that is meant where none is named.
    pub usual: Option<Box<str>>,
    these: Box<[Box<str>]>,
}

/// Finds out who belongs to which venue.
pub struct Tenancy {
    members: Option<Lookup<Membership>>,
    checks: Checks,
    /// For bodies that are held back.
    room: Arc<Budget>,
}

/// `venue_checks_total{outcome}`.
pub struct Checks {
    /// The credential names it.
    claim: IntCounter,
    /// venue-service does.
    member: IntCounter,
    stranger: IntCounter,
    /// Nobody could tell.
    unknown: IntCounter,
}

/// What a request's head says about venues, in the order in which it counts.
#[derive(Debug, Default)]
pub struct Head {
    target: Named,
    fields: Named,
    /// The path speaks of venues in general: in the body a plain `id` is one's.
    of_venues: bool,
}

/// Why a request does not go on.
#[derive(Debug, PartialEq, Eq)]
pub enum Denied {
    /// It names a venue that is not the caller's.
    Venue {
        venue: Box<str>,
        source: Source,
    },
    /// It names a tenant that is not the caller's.
    Tenant {
        tenant: Box<str>,
    },
    Unknown(NotFoundOut),
}

// === impl Head ===

impl Head {
    /// Reads what a request's head says. `path` is what the route leaves open of it, segment by segment.
    ///
    /// # Errors
    /// When two readers could read different venues.
    pub fn read(session: &Session, route: &Route, path: &PathVenues) -> Result<Self, Ambiguous> {
        let request = session.req_header();
        let mut head = Self {
            of_venues: path.is_collection,
            ..Self::default()
        };
        for segment in &path.odd {
            names::check_segment(segment)?;
        }
        for segment in &path.venues {
            names::in_segment(segment, &mut head.target)?;
        }
        for segment in &path.tenants {
            names::in_tenant_segment(segment, &mut head.target)?;
        }
        let query = request.uri.query().unwrap_or_default();
        names::in_form(query.as_bytes(), head.of_venues, &mut head.target)?;
        for name in request.headers.keys() {
            // Most names show at once that they are no venue's.
            let name_has_v = memchr::memchr(b'v', name.as_str().as_bytes()).is_some();
            if name_has_v && name.as_str().contains("venue") {
                names::in_field(name, &request.headers, &mut head.fields)?;
            }
        }
        for name in &route.forward_headers {
            match *name == COOKIE {
                true => names::in_cookies(&request.headers, &mut head.fields)?,
                false => names::in_values(name, &request.headers, &mut head.fields)?,
            }
        }
        Ok(head)
    }

    fn names_nothing(&self) -> bool {
        self.target.is_empty() && self.fields.is_empty()
    }
}

/// What a path says about venues, as it stands there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PathVenues {
    pub venues: Vec<Box<str>>,
    pub tenants: Vec<Box<str>>,
    /// Segments that could name one in a way of their own.
    pub odd: Vec<Box<str>>,
    /// It speaks of venues without naming one.
    pub is_collection: bool,
}

// === impl Gateway ===

impl Gateway {
    /// Sees to it that a request names its caller's venues only, as far as that can be told before it is sent.
    pub async fn keep_to_own_venues(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        head: Result<Head, Ambiguous>,
        body: &mut Option<Body>,
    ) -> Result<(), Refusal> {
        let head = head?; // 400
        let Some(route) = ctx.route.clone() else {
            return Err(Refusal::Internal);
        };
        let size = match route.venues {
            VenueRule::Everywhere => Size::announced(session),
            VenueRule::Head | VenueRule::Any => Size::None,
        };
        if head.names_nothing() && size == Size::None {
            return Ok(());
        }
        // Boxed: most requests that read name nothing, and must not carry this about.
        Box::pin(self.judge(session, ctx, head, size, body)).await
    }

    async fn judge(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        head: Head,
        size: Size,
        body: &mut Option<Body>,
    ) -> Result<(), Refusal> {
        let Head {
            target: mut named,
            fields,
            of_venues,
        } = head;
        let in_target = !named.is_empty();
        named.add_all(&fields)?; // 400
        // Who would be refused anyhow need not send its body.
        self.check_venues(ctx, &named).await?; // 404, 503
        if size == Size::None {
            return Ok(());
        }
        let content = Content::of(&session.req_header().headers)?; // 400, 415
        if size == Size::Large && body.is_none() {
            let room = ctx.policies.tenancy.room_for(ctx.caller.as_deref());
            ctx.hold = Some(Box::new(Hold::for_venues(content, of_venues, room)));
            return Ok(());
        }
        let body = match body {
            Some(body) => body,
            None => body.insert(body::read(session, ctx, body::SMALL).await?), // 408
        };
        let named = content.read(body, of_venues, ctx.reads_json())?; // 400
        if !in_target && !named.is_empty() {
            // Before a header field, the body says what the request is about.
            ctx.venue = None;
        }
        self.check_venues(ctx, &named).await // 404, 503
    }

    /// A piece of a body on its way to the service.
    ///
    /// # Errors
    /// When the body, now that it is whole, names what is not the caller's, or does not look as it must. Nothing of it
    /// was sent.
    pub async fn hold_back(
        &self,
        ctx: &mut Ctx,
        body: &mut Option<Bytes>,
        is_end: bool,
    ) -> Result<(), Refusal> {
        let Some(hold) = &mut ctx.hold else {
            return Ok(());
        };
        let taken = hold.take(body.take(), is_end);
        let sent = match taken.map_err(|Full| Refusal::Overloaded("api-gateway".into()))? {
            Step::Wait => Bytes::new(),
            Step::Pass(bytes) => bytes,
            Step::Whole(bytes) => {
                let is_for_venues = hold.is_for_venues();
                let Judged { named, verdict } = hold.judge(bytes.clone()).await?;
                if is_for_venues {
                    self.check_venues(ctx, &named).await?;
                }
                self.settle(ctx, verdict)?;
                bytes
            }
        };
        // Without an end, nothing would say that it is over.
        *body = (!is_end || !sent.is_empty()).then_some(sent);
        Ok(())
    }

    async fn check_venues(&self, ctx: &mut Ctx, named: &Named) -> Result<(), Refusal> {
        let caller = ctx.caller.clone().ok_or(Refusal::Internal)?;
        if ctx.venue.is_none() {
            ctx.venue = named.venues().next().map(Into::into);
        }
        let behalf = ctx.behalf()?;
        let caller = match named.venues().all(|venue| caller.venues.contains(venue)) {
            true => caller,
            // Its role may be one that crosses venues, and its venues may be known elsewhere.
            false => ctx.policies.auth.complete(caller, true, behalf).await?, // 401, 503
        };
        for holder in std::iter::once(&caller).chain(&ctx.beside) {
            ctx.policies
                .tenancy
                .check(holder, ctx.policies.is_admin(holder), named, behalf)
                .await?;
        }
        Ok(())
    }
}

// === impl Tenancy ===

impl Tenancy {
    /// For a body of this caller that is held back.
    pub fn room_for(&self, caller: Option<&Caller>) -> Held {
        let tenant = caller.map(|caller| caller.tenant.as_bytes());
        self.room.of(tenant.unwrap_or_default())
    }

    async fn check(
        &self,
        caller: &Caller,
        crosses_venues: bool,
        named: &Named,
        behalf: Behalf<'_>,
    ) -> Result<(), Denied> {
        let tenant = caller.tenant.to_str().unwrap_or_default();
        if let Some(other) = named.tenants.iter().find(|named| ***named != *tenant) {
            return Err(Denied::Tenant {
                tenant: other.clone(),
            });
        }
        if crosses_venues {
            return Ok(());
        }
        for venue in named.venues() {
            if caller.venues.contains(venue) {
                self.checks.claim.inc();
                continue;
            }
            let member = match (&self.members, caller.source) {
                (Some(members), Source::Jwt) if is_askable(venue) => members
                    .is_member(caller, venue, behalf)
                    .await
                    .map_err(|e| {
                        self.checks.unknown.inc();
                        Denied::Unknown(e)
                    })?,
                // A key's own list is all that there is; and so is a token's where nobody can be asked.
                _ => false,
            };
            if !member {
                self.checks.stranger.inc();
                return Err(Denied::Venue {
                    venue: venue.into(),
                    source: caller.source,
                });
            }
            self.checks.member.inc();
        }
        Ok(())
    }
}

/// Whether somebody may be asked about it: what has no id's form belongs to nobody, and clients do not choose what services
/// are asked with.
fn is_askable(venue: &str) -> bool {
    let is_plain =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~' | b':' | b'@');
    venue.len() <= LONGEST_ASKED && venue.bytes().all(is_plain) && !matches!(venue, "." | "..")
}

/// As long as two UUIDs.
const LONGEST_ASKED: usize = 72;

// === impl Venues ===

impl Venues {
    pub fn new(usual: Option<String>, others: impl IntoIterator<Item = String>) -> Self {
        let usual: Option<Box<str>> = usual.map(Into::into);
        let others = others.into_iter().map(Into::into);
        Self {
            these: usual.clone().into_iter().chain(others).collect(),
            usual,
        }
    }

    pub fn contains(&self, venue: &str) -> bool {
        self.these.iter().any(|known| **known == *venue)
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Venue { venue, source } => Refusal::ForeignVenue { venue, source },
            Denied::Tenant { tenant } => Refusal::ForeignTenant(tenant),
            Denied::Unknown(unknown) => unknown.into(),
        }
    }
}

impl From<Ambiguous> for Refusal {
    fn from(Ambiguous(why): Ambiguous) -> Self {
        Refusal::AmbiguousVenue(why)
    }
}
