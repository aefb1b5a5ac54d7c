//! Which tokens no longer count, although their signatures hold (decision 15). A local set: asking it costs nothing.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::keys::RevocationKey;

/// What revocation looks at in a token.
#[derive(Debug)]
pub struct TokenFacts {
    pub user: Box<str>,
    pub tenant: Box<str>,
    pub jti: Option<String>,
    /// Unix seconds; 0 when the token does not say.
    pub issued: i64,
}

/// The revocations that are known to this process.
#[derive(Debug, Default)]
pub struct Revoked {
    /// Nearly always nothing is revoked: then no lock is taken.
    any: AtomicBool,
    sets: RwLock<Sets>,
}

#[derive(Debug, Default)]
pub struct Sets {
    tokens: Set<Box<[u8]>>,
    jtis: Set<Box<str>>,
    /// Tokens issued before this time (unix seconds) are revoked.
    users: Times,
    tenants: Times,
}

impl Revoked {
    pub fn is_revoked(&self, token: &[u8], facts: &TokenFacts) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let sets = self.sets.read();
        sets.tokens.contains(signed_part(token))
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
    }

    /// Takes a full reading's place: what it does not name is no longer revoked.
    pub fn replace(&self, sets: Sets) {
        let mut current = self.sets.write();
        *current = sets;
        self.any.store(!current.is_empty(), Ordering::Release);
    }

    /// Follows one key: its value, or `None` when it is gone.
    pub fn update(&self, key: &[u8], value: Option<&[u8]>) {
        let mut sets = self.sets.write();
        sets.set(key, value);
        self.any.store(!sets.is_empty(), Ordering::Release);
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
        }
    }

    fn is_empty(&self) -> bool {
        self.tokens.is_empty()
            && self.jtis.is_empty()
            && self.users.is_empty()
            && self.tenants.is_empty()
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
fn signed_part(token: &[u8]) -> &[u8] {
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
            issued: 100,
        };
        assert!(!revoked.is_revoked(b"a.b.c", &facts));
        for (key, hit, miss) in [
            ("session:blacklist:a.b.c", "1", None),
            ("session:revoked:jti:j1", "1", None),
            ("session:revoked:user:u1", "101", Some("100")),
            ("session:revoked:tenant:t1", "101", Some("100")),
            ("session:revoked:user:u1", "nonsense", None),
        ] {
            revoked.update(key.as_bytes(), Some(hit.as_bytes()));
            assert!(revoked.is_revoked(b"a.b.c", &facts), "{key}");
            revoked.update(key.as_bytes(), miss.map(str::as_bytes));
            assert!(!revoked.is_revoked(b"a.b.c", &facts), "{key}");
            revoked.update(key.as_bytes(), None);
        }
        revoked.update(b"session:revoked:user:u2", Some(b"999"));
        assert!(!revoked.is_revoked(b"a.b.c", &facts));
    }
}
