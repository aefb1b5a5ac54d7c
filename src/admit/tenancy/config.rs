//! Isolation as YAML writes it.

use std::sync::Arc;

use prometheus::IntCounterVec;
use serde::{Deserialize, Serialize};

use super::{Checks, Tenancy};
use crate::admit::budget::Budget;
use crate::admit::lookup::{Lookup, Membership, Setup};
use crate::config::{Duration, Problems};
use crate::forward::pool::Pools;
use crate::state::Cache;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TenancyConfig {
    /// Who is asked whether a user belongs to a venue.
    pub service: String,
    /// How long a yes is remembered.
    pub life: Duration,
    pub life_of_no: Duration,
    /// For an answer, retries included.
    pub timeout: Duration,
}

const SERVICE: &str = "venue-service";

impl Default for TenancyConfig {
    fn default() -> Self {
        Self {
            service: SERVICE.into(),
            life: Duration::secs(300),
            life_of_no: Duration::secs(60),
            timeout: Duration::secs(2),
        }
    }
}

impl TenancyConfig {
    pub fn compile(
        self,
        pools: &Pools,
        cache: Arc<Cache<Membership>>,
        room: Arc<Budget>,
        checks: &IntCounterVec,
        problems: &mut Problems,
    ) -> Tenancy {
        let Self {
            service,
            life,
            life_of_no,
            timeout,
        } = self;
        let setup = Setup {
            place: "tenancy",
            service: &service,
            is_asked_for: service != SERVICE,
            yes: life,
            no: life_of_no,
            timeout,
        };
        let outcome = |outcome| checks.with_label_values(&[outcome]);
        Tenancy {
            room,
            members: Lookup::compile(setup, pools, cache, problems),
            checks: Checks {
                claim: outcome("claim"),
                member: outcome("member"),
                stranger: outcome("stranger"),
                unknown: outcome("unknown"),
            },
        }
    }
}
