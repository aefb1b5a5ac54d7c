//! Logout: auth-service has let somebody go, and the token and its refresh family die with it, in every process (decision
//! 15).

use std::sync::Arc;
use std::time::Duration;

use super::refresh::Families;
use super::token::{LEEWAY, unix_now};
use crate::state::{Family, Revoked, TokenFacts, blacklisted};

pub struct Logout {
    families: Arc<Families>,
    revoked: Arc<Revoked>,
}

/// Redis takes no longer life than it can count; a token that outlives this was not meant to end.
const LONGEST: i64 = 100 * 365 * 24 * 3600;

impl Logout {
    pub fn new(families: Arc<Families>, revoked: Arc<Revoked>) -> Self {
        Self { families, revoked }
    }

    /// Revokes the token here, at once, and then in Redis: within a command's time, or when it is back. Its family ends with
    /// it, and that of the refresh token beside it.
    pub async fn revoke(&self, token: &str, facts: &TokenFacts, beside: Option<&Family>) {
        let now = unix_now();
        let until = facts.expires.saturating_add(LEEWAY);
        self.revoked.revoke_token(token.as_bytes(), until, now);
        let life = until.saturating_sub(now).clamp(1, LONGEST);
        let mut blacklist = redis::cmd("SET");
        blacklist.arg(blacklisted(token)).arg(1).arg("EX").arg(life);
        let token_ends = async {
            if let Some(kept) = self.families.kept() {
                kept.write(blacklist, Duration::from_secs(life as u64))
                    .await;
            }
        };
        let family_ends = async {
            for family in facts.family.iter().chain(beside) {
                self.families.kill(family).await;
            }
        };
        futures::join!(token_ends, family_ends);
    }
}
