//! Which tokens no longer count, although their signatures hold (decision 15). A local set: asking it costs nothing.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use tokio::sync::Notify;

use super::keys::{Family, RevocationKey, blacklisted};
use super::own::{Own, OwnPage};

/// What revocation looks at in a token.
#[derive(Clone, Debug)]
pub struct TokenFacts {
    pub user: Box<str>,
    pub tenant: Box<str>,
    pub jti: Option<String>,
    pub family: Option<Family>,
    /// Unix seconds; 0 when the token does not say.
    pub issued: i64,
    /// Unix seconds.
    pub expires: i64,
}

/// The revocations that are known to this process.
#[derive(Debug, Default)]
pub struct Revoked {
    /// Nearly always nothing is revoked: then no lock is taken.
    any: AtomicBool,
    /// There is more in Redis, and none of it was read yet.
    is_unread: AtomicBool,
    known: RwLock<Known>,
    /// Something may be revoked that was not before.
    news: Notify,
}

#[derive(Debug, Default)]
struct Known {
    /// What Redis says.
    sets: Sets,
    own: Own,
}

#[derive(Debug, Default)]
pub struct Sets {
    tokens: Set<Box<[u8]>>,
    jtis: Set<Box<str>>,
    /// Tokens issued before this time (unix seconds) are revoked.
    users: Times,
    tenants: Times,
    /// As their keys spell them.
    families: Set<Box<str>>,
}

impl Revoked {
    pub fn is_revoked(&self, token: &[u8], facts: &TokenFacts) -> bool {
        self.any.load(Ordering::Acquire) && self.is_signed_part_revoked(signed_part(token), facts)
    }

    /// The same, for who kept only the [`signed_part`].
    pub fn is_signed_part_revoked(&self, signed: &[u8], facts: &TokenFacts) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let Known { sets, own } = &*self.known.read();
        sets.tokens.contains(signed)
            || own.has_token(signed)
            || facts
                .jti
                .as_deref()
                .is_some_and(|jti| sets.jtis.contains(jti))
            || sets
                .users
                .get(&facts.user)
                .is_some_and(|before| facts.issued < *before)
            || sets
                .tenants
                .get(&facts.tenant)
                .is_some_and(|before| facts.issued < *before)
            || facts.family.as_ref().is_some_and(|family| {
                sets.families.contains(family.tagged())
                    || sets.families.contains(family.name())
                    || own.has_family(family)
            })
    }

    /// Takes a full reading's place: what it does not name is no longer revoked, but for what this process has revoked.
    pub fn replace(&self, sets: Sets) {
        self.change(|known| known.sets = sets);
        self.is_unread.store(false, Ordering::Release);
    }

    /// A full reading will come.
    pub fn await_reading(&self) {
        self.is_unread.store(true, Ordering::Release);
    }

    /// Whether nothing was heard of Redis since the start: what is revoked there is not known.
    pub fn is_unread(&self) -> bool {
        self.is_unread.load(Ordering::Acquire)
    }

    /// Follows one key: its value, or `None` when it is gone.
    pub fn update(&self, key: &[u8], value: Option<&[u8]>) {
        self.change(|known| known.sets.set(key, value));
    }

    /// Revokes a token in this process, at once. Times are unix seconds.
    pub fn revoke_token(&self, token: &[u8], until: i64, now: i64) {
        self.change(|known| known.own.add_token(signed_part(token), until, now));
    }

    /// Revokes a family's tokens in this process, at once. Times are unix seconds.
    pub fn revoke_family(&self, family: &Family, until: i64, now: i64) {
        self.change(|known| known.own.add_family(family, until, now));
    }

    /// What this process has revoked itself, for the next one.
    pub fn carried(&self) -> Vec<OwnPage> {
        self.known.read().own.carried()
    }

    /// Adds what another process has revoked itself.
    ///
    /// # Errors
    /// When it cannot be told from anything else here.
    pub fn take_over(&self, page: OwnPage, now: i64) -> Result<usize, &'static str> {
        let mut outcome = Ok(0);
        self.change(|known| outcome = known.own.take_over(page, now));
        outcome
    }

    /// What Redis says, as far as it is known here, as keys with their values; for a process that cannot reach it.
    pub fn carried_keys(&self) -> Vec<(String, String)> {
        self.known.read().sets.carried()
    }

    /// Takes another process' last known set for its own, unless it has read its own meanwhile.
    pub fn take_over_keys(&self, keys: Vec<(String, String)>) -> usize {
        if !self.is_unread() {
            return 0;
        }
        let count = keys.len();
        let mut sets = Sets::default();
        for (key, value) in keys {
            sets.set(key.as_bytes(), Some(value.as_bytes()));
        }
        self.replace(sets);
        count
    }

    /// Waits until something may have been revoked since the last time. For one who waits.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        let mut known = self.known.write();
        change(&mut known);
        let any = !known.sets.is_empty() || !known.own.is_empty();
        self.any.store(any, Ordering::Release);
        drop(known);
        self.news.notify_one();
    }
}

// === impl Sets ===

impl Sets {
    pub fn set(&mut self, key: &[u8], value: Option<&[u8]>) {
        let Some(named) = RevocationKey::parse(key) else {
            return;
        };
        match (named, value) {
            (RevocationKey::Token(token), value) => {
                follow(&mut self.tokens, signed_part(token).into(), value.is_some())
            }
            (RevocationKey::Jti(jti), value) => follow(&mut self.jtis, jti.into(), value.is_some()),
            (RevocationKey::User(id), value) => follow_time(&mut self.users, id, value),
            (RevocationKey::Tenant(id), value) => follow_time(&mut self.tenants, id, value),
            (RevocationKey::Family(name), value) => {
                follow(&mut self.families, name.into(), value.is_some())
            }
        }
    }

    fn carried(&self) -> Vec<(String, String)> {
        let tokens = self.tokens.iter().filter_map(|token| {
            // `set` takes the part behind the last dot for the signature.
            Some(format!(
                "{}.",
                blacklisted(std::str::from_utf8(token).ok()?)
            ))
        });
        let named = |kind: &'static str| move |name: &str| format!("session:revoked:{kind}:{name}");
        let jtis = self.jtis.iter().map(|jti| named("jti")(jti));
        let families = self.families.iter().map(|name| named("family")(name));
        let marks = tokens.chain(jtis).chain(families);
        let marks = marks.map(|key| (key, String::new()));
        let users = self
            .users
            .iter()
            .map(|(id, before)| (named("user")(id), before.to_string()));
        let tenants = self.tenants.iter();
        let tenants = tenants.map(|(id, before)| (named("tenant")(id), before.to_string()));
        marks.chain(users).chain(tenants).collect()
    }

    fn is_empty(&self) -> bool {
        self.tokens.is_empty()
            && self.jtis.is_empty()
            && self.users.is_empty()
            && self.tenants.is_empty()
            && self.families.is_empty()
    }
}

type Set<T> = HashSet<T, ahash::RandomState>;
type Times = HashMap<Box<str>, i64, ahash::RandomState>;

fn follow<T: Eq + std::hash::Hash>(set: &mut Set<T>, key: T, is_there: bool) {
    if is_there {
        set.insert(key);
    } else {
        set.remove(&key);
    }
}

fn follow_time(times: &mut Times, id: &str, value: Option<&[u8]>) {
    match value {
        Some(value) => times.insert(id.into(), issued_before(value)),
        None => times.remove(id),
    };
}

/// A token without its signature: whoever holds an ECDSA-signed one can spell that in a second way.
pub fn signed_part(token: &[u8]) -> &[u8] {
    memchr::memrchr(b'.', token).map_or(token, |dot| &token[..dot])
}

/// A value that is no time revokes everything: whoever wrote it wanted something revoked.
fn issued_before(value: &[u8]) -> i64 {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_revocation_reaches_its_tokens_only() {
        let revoked = Revoked::default();
        let facts = TokenFacts {
            user: "u1".into(),
            tenant: "t1".into(),
            jti: Some("j1".into()),
            family: Family::named("f1"),
            issued: 100,
            expires: 200,
        };
        assert!(!revoked.is_revoked(b"a.b.c", &facts));
        for (key, hit, miss) in [
            ("session:blacklist:a.b.c", "1", None),
            ("session:revoked:jti:j1", "1", None),
            ("session:revoked:user:u1", "101", Some("100")),
            ("session:revoked:tenant:t1", "101", Some("100")),
            ("session:revoked:user:u1", "nonsense", None),
            ("session:revoked:family:f1", "1", None),
            ("session:revoked:family:{refresh:f1}", "1", None),
        ] {
            revoked.update(key.as_bytes(), Some(hit.as_bytes()));
            assert!(revoked.is_revoked(b"a.b.c", &facts), "{key}");
            revoked.update(key.as_bytes(), miss.map(str::as_bytes));
            assert!(!revoked.is_revoked(b"a.b.c", &facts), "{key}");
            revoked.update(key.as_bytes(), None);
        }
        revoked.update(b"session:revoked:user:u2", Some(b"999"));
        revoked.update(b"session:revoked:family:f2", Some(b"1"));
        assert!(!revoked.is_revoked(b"a.b.c", &facts));
    }

    fn facts(family: &str) -> TokenFacts {
        TokenFacts {
            user: "u1".into(),
            tenant: "t1".into(),
            jti: None,
            family: Family::named(family),
            issued: 100,
            expires: 200,
        }
    }

    #[test]
    fn what_this_process_has_revoked_outlives_a_full_reading() {
        let revoked = Revoked::default();
        revoked.revoke_token(b"a.b.c", 200, 100);
        revoked.revoke_family(&Family::named("f1").unwrap(), 200, 100);
        revoked.replace(Sets::default());
        assert!(revoked.is_revoked(b"a.b.other", &facts("f2")));
        assert!(revoked.is_revoked(b"d.e.f", &facts("f1")));
        assert!(!revoked.is_revoked(b"d.e.f", &facts("f2")));
    }

    #[test]
    fn the_last_known_set_and_what_was_revoked_here_hold_in_the_next_process() {
        let (old, new) = (Revoked::default(), Revoked::default());
        old.update(b"session:blacklist:a.b.c", Some(b"1"));
        old.update(b"session:revoked:tenant:t2", Some(b"101"));
        old.revoke_token(b"d.e.f", 200, 100);
        old.revoke_family(&Family::named("f1").unwrap(), 200, 100);
        new.await_reading();
        for page in old.carried() {
            assert_eq!(new.take_over(page, 100), Ok(2));
        }
        new.take_over_keys(old.carried_keys());
        assert!(!new.is_unread());
        for token in [&b"a.b.c"[..], b"d.e.x"] {
            assert!(new.is_revoked(token, &facts("f2")));
        }
        assert!(new.is_revoked(b"x.y.z", &facts("f1")));
        assert!(!new.is_revoked(b"x.y.z", &facts("f2")));
        let other = TokenFacts {
            tenant: "t2".into(),
            ..facts("f2")
        };
        assert!(new.is_revoked(b"x.y.z", &other));
    }
}
