//! What is known of users and memberships: asked of the services that know it, through their pools, and remembered in both
//! tiers (decisions 14 and 18).

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::auth::Caller;
use super::request_id::X_REQUEST_ID;
use crate::config::{self, Problems};
use crate::forward::call::{self, Question};
use crate::forward::deadline::{Deadline, X_REQUEST_DEADLINE};
use crate::forward::headers::{TRACEPARENT, X_GATEWAY_FORWARDED, X_TENANT_ID, X_TENANT_SOURCE};
use crate::forward::pool::Pools;
use crate::observe::trace::Trace;
use crate::state::{Cache, LONGEST_LIFE, Unknown, chosen_key_part, key_part};

/// One kind of question to one service.
pub struct Lookup<T> {
    service: Box<str>,
    caller: call::Caller,
    cache: Arc<Cache<T>>,
    timeout: Duration,
    pub lives: Lives,
}

/// How long an answer is remembered.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    pub yes: Duration,
    pub no: Duration,
}

/// On whose behalf it is asked.
#[derive(Clone, Copy)]
pub struct Behalf<'a> {
    pub request_id: &'a HeaderValue,
    pub trace: Option<&'a Trace>,
    pub deadline: Deadline,
}

/// The service that knows has not said it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotFoundOut {
    /// This service is away.
    Unavailable(Box<str>),
    /// The request's own time is over.
    TooLate,
}

/// A user, as auth-service describes it.
#[derive(Debug, Serialize, Deserialize)]
pub struct User {
    pub id: String,
    pub tenant_id: String,
    #[serde(default)]
    pub role: Option<String>,
    #[serde(default)]
    pub permissions: Vec<String>,
    #[serde(default, rename = "venueId")]
    pub venue: Option<String>,
    #[serde(default)]
    pub venues: Vec<String>,
    #[serde(default = "yes")]
    pub active: bool,
}

fn yes() -> bool {
    true
}

/// Whether a user belongs to a venue.
#[derive(Debug, Serialize, Deserialize)]
pub struct Membership {
    pub tenant_id: String,
    pub venue: String,
    pub user: String,
    pub member: bool,
}

/// How a lookup is set up.
pub struct Setup<'a> {
    /// The place in the configuration.
    pub place: &'a str,
    pub service: &'a str,
    /// The configuration asks for it: without the service it is at fault.
    pub is_asked_for: bool,
    pub yes: config::Duration,
    pub no: config::Duration,
    pub timeout: config::Duration,
}

impl<T> Lookup<T> {
    /// `None` where the configuration has no such service.
    pub fn compile(
        setup: Setup<'_>,
        pools: &Pools,
        cache: Arc<Cache<T>>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let Setup {
            place,
            service,
            is_asked_for,
            yes,
            no,
            timeout,
        } = setup;
        for (name, life) in [("life", yes), ("life_of_no", no)] {
            if life < config::Duration::secs(1) || life.0 > LONGEST_LIFE {
                problems.add(format!("{place}.{name}"), "must be from 1s to 24h");
            }
        }
        if timeout.0.is_zero() {
            problems.add(format!("{place}.timeout"), "must be longer than nothing");
        }
        if is_asked_for && pools.get(service).is_none() {
            problems.add(
                format!("{place}.service"),
                format!("there is no service `{service}`"),
            );
        }
        let pool = pools.get(service)?.clone();
        Some(Self {
            service: service.into(),
            caller: call::Caller::new(
                pool,
                pools.connector(),
                pools.connect_timeout().min(timeout.0),
            ),
            cache,
            timeout: timeout.0,
            lives: Lives {
                yes: yes.0,
                no: no.0,
            },
        })
    }

    async fn ask(
        &self,
        path: &str,
        caller: &Caller,
        behalf: Behalf<'_>,
    ) -> Result<call::Answer, Unknown> {
        let until = Instant::now() + self.timeout;
        let fields = fields(caller, behalf, until);
        let question = Question {
            path,
            fields: &fields,
            tenant: caller.tenant.as_bytes(),
            until,
            patience: self.timeout,
        };
        let answer = self.caller.ask(&question).await.map_err(|_| Unknown)?;
        match answer.status {
            StatusCode::OK | StatusCode::NOT_FOUND => Ok(answer),
            status => {
                log::warn!("{} answers {status} to {path}", self.service);
                Err(Unknown)
            }
        }
    }

    async fn in_time<R>(
        &self,
        behalf: Behalf<'_>,
        asked: impl Future<Output = Result<R, Unknown>>,
    ) -> Result<R, NotFoundOut> {
        let left = behalf
            .deadline
            .left(Instant::now())
            .ok_or(NotFoundOut::TooLate)?;
        // Who waits for another's question may see that one fail, and ask once more.
        match tokio::time::timeout(left, asked).await {
            Ok(Ok(known)) => Ok(known),
            Ok(Err(Unknown)) => Err(NotFoundOut::Unavailable(self.service.clone())),
            Err(_) => Err(NotFoundOut::TooLate),
        }
    }
}

/// What the service sees of the request behind the question.
fn fields(caller: &Caller, behalf: Behalf<'_>, until: Instant) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(8);
    fields.insert(X_REQUEST_ID, behalf.request_id.clone());
    fields.insert(X_GATEWAY_FORWARDED, HeaderValue::from_static("true"));
    fields.insert(X_TENANT_ID, caller.tenant.clone());
    fields.insert(X_TENANT_SOURCE, caller.source.header());
    let until = Deadline::at_most(until.min(behalf.deadline.at()));
    fields.insert(X_REQUEST_DEADLINE, until.header());
    if let Some(trace) = behalf.trace {
        fields.insert(TRACEPARENT, trace.header());
    }
    fields
}

/// What a path segment may hold as it is (RFC 3986, section 2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

fn segment(text: &str) -> impl Display {
    utf8_percent_encode(text, SEGMENT)
}

impl Lookup<User> {
    /// The user that a token speaks of; `None`: there is none, or none of this tenant.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub async fn user(
        &self,
        caller: &Caller,
        behalf: Behalf<'_>,
    ) -> Result<Option<Arc<User>>, NotFoundOut> {
        // What could be read as a step in a path is nobody.
        if matches!(&*caller.id, "." | "..") {
            return Ok(None);
        }
        let tenant = caller.tenant.to_str().unwrap_or_default();
        let key = format!("session:user:{}", key_part(&caller.id));
        let is_it = |user: &User| *user.id == *caller.id && *user.tenant_id == *tenant;
        let nobody = || User {
            id: caller.id.to_string(),
            tenant_id: tenant.to_owned(),
            role: None,
            permissions: Vec::new(),
            venue: None,
            venues: Vec::new(),
            active: false,
        };
        let found = self.cache.get(tenant, &key, is_it, async || {
            let path = format!("/internal/users/{}", segment(&caller.id));
            let answer = self.ask(&path, caller, behalf).await?;
            if answer.status == StatusCode::NOT_FOUND {
                return Ok((nobody(), self.lives.no));
            }
            let user: User = serde_json::from_slice(&answer.body).map_err(|e| {
                log::warn!(
                    "{} describes a user in a way that cannot be read: {e}",
                    self.service
                );
                Unknown
            })?;
            // Another tenant's user of that name is nobody here.
            let is_here = user.active && is_it(&user);
            Ok(if is_here {
                (user, self.lives.yes)
            } else {
                (nobody(), self.lives.no)
            })
        });
        let user = self.in_time(behalf, found).await?;
        Ok(Some(user).filter(|user| user.active))
    }
}

impl Lookup<Membership> {
    /// Whether the caller belongs to a venue.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub async fn is_member(
        &self,
        caller: &Caller,
        venue: &str,
        behalf: Behalf<'_>,
    ) -> Result<bool, NotFoundOut> {
        let tenant = caller.tenant.to_str().unwrap_or_default();
        let key = format!(
            "cache:venue:member:{}:{}",
            chosen_key_part(venue),
            key_part(&caller.id)
        );
        let is_it = |known: &Membership| {
            *known.user == *caller.id && known.venue == venue && *known.tenant_id == *tenant
        };
        let found = self.cache.get(tenant, &key, is_it, async || {
            let path = format!(
                "/internal/venues/{}/members/{}",
                segment(venue),
                segment(&caller.id)
            );
            let answer = self.ask(&path, caller, behalf).await?;
            let member = answer.status == StatusCode::OK;
            let known = Membership {
                tenant_id: tenant.to_owned(),
                venue: venue.to_owned(),
                user: caller.id.to_string(),
                member,
            };
            Ok((
                known,
                if member {
                    self.lives.yes
                } else {
                    self.lives.no
                },
            ))
        });
        self.in_time(behalf, found).await.map(|known| known.member)
    }
}
