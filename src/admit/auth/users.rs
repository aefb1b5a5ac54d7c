//! Who is the user that a token speaks of? Asked of auth-service where the token does not say (decision 14).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{AuthError, Caller, Rights, Source, Tier};
use crate::admit::lookup::{Behalf, Lookup, NotFoundOut, Setup, User};
use crate::admit::permissions::{Permissions, Roles};
use crate::admit::tenancy::Venues;
use crate::config::{Duration, Problems};
use crate::forward::pool::Pools;
use crate::state::Cache;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct UsersConfig {
    /// Who is asked.
    pub service: String,
    /// For every token, not only for those without a role.
    pub lookup: bool,
    /// How long an answer is remembered.
    pub life: Duration,
    pub life_of_no: Duration,
    /// For an answer, retries included.
    pub timeout: Duration,
}

/// Completes callers.
pub struct Users {
    lookup: Option<Lookup<User>>,
    pub always: bool,
    roles: Arc<Roles>,
}

/// Why a caller could not be completed.
#[derive(Debug, PartialEq, Eq)]
pub enum Incomplete {
    /// There is no such user.
    Nobody,
    Unknown(NotFoundOut),
}

const SERVICE: &str = "auth-service";

impl Default for UsersConfig {
    fn default() -> Self {
        Self {
            service: SERVICE.into(),
            lookup: false,
            life: Duration::secs(900),
            life_of_no: Duration::secs(10),
            timeout: Duration::secs(2),
        }
    }
}

impl UsersConfig {
    pub fn compile(
        self,
        pools: &Pools,
        cache: Arc<Cache<User>>,
        roles: Arc<Roles>,
        problems: &mut Problems,
    ) -> Users {
        let Self {
            service,
            lookup: always,
            life,
            life_of_no,
            timeout,
        } = self;
        let setup = Setup {
            place: "auth.users",
            service: &service,
            is_asked_for: always || service != SERVICE,
            yes: life,
            no: life_of_no,
            timeout,
        };
        Users {
            lookup: Lookup::compile(setup, pools, cache, problems),
            always,
            roles,
        }
    }
}

// === impl Users ===

impl Users {
    /// The caller with what auth-service says of it.
    ///
    /// # Errors
    /// When it knows no such user, or does not answer.
    pub async fn complete(
        &self,
        caller: Arc<Caller>,
        behalf: Behalf<'_>,
    ) -> Result<Arc<Caller>, Incomplete> {
        let Some(lookup) = &self.lookup else {
            return Ok(caller);
        };
        let user = lookup
            .user(&caller, behalf)
            .await
            .map_err(Incomplete::Unknown)?;
        let user = user.ok_or(Incomplete::Nobody)?;
        let User {
            id: _,
            tenant_id: _,
            role,
            permissions,
            venue,
            venues,
            active: _,
        } = &*user;
        let own = venue.iter().chain(venues).map(String::as_str);
        Ok(Arc::new(Caller {
            rights: Rights::of(role.as_deref(), permissions, own),
            id: caller.id.clone(),
            role: role.as_deref().and_then(|role| self.roles.id(role)),
            permissions: Permissions::new(permissions.iter().cloned()),
            tenant: caller.tenant.clone(),
            source: Source::Jwt,
            tier: Tier::default(),
            venues: Venues::new(venue.clone(), venues.iter().cloned()),
            is_complete: true,
            token: caller.token.clone(),
            until: caller.until,
        }))
    }
}

impl From<Incomplete> for crate::reply::Refusal {
    fn from(incomplete: Incomplete) -> Self {
        match incomplete {
            Incomplete::Nobody => AuthError::Invalid.into(),
            Incomplete::Unknown(unknown) => unknown.into(),
        }
    }
}
