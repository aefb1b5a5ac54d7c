//! What is remembered of the keys in Redis, and when it no longer is.

use super::*;
use crate::observe::registry::Metrics;

const KEY: &[u8] = b"k";
const RECORD: &[u8] = br#"{"id": "p", "tenant_id": "t"}"#;

/// Keys in a Redis that is away.
fn keys() -> StoredKeys {
    let redis = Arc::new(Redis::that_is_away());
    StoredKeys::new(redis, Metrics::new().unwrap().api_key_lookups())
}

/// A look-up that has begun, and whose answer is still to come.
fn begin(keys: &StoredKeys) -> Ticket {
    begin_for(keys, Digest::of(KEY))
}

fn begin_for(keys: &StoredKeys, digest: Digest) -> Ticket {
    let mut begun = None;
    drop(keys.pending.lock().begin(digest, |ticket| {
        begun = Some(ticket);
        futures::future::pending().boxed().shared()
    }));
    begun.unwrap()
}

fn found() -> Outcome {
    Outcome::Found(Record::parse(RECORD).unwrap().into_key().unwrap())
}

/// The id of who is remembered.
fn recalled(keys: &StoredKeys) -> Option<Result<String, AuthError>> {
    let known = keys.recall(&Digest::of(KEY))?;
    Some(known.map(|caller| caller.id.to_string()))
}

#[test]
fn a_look_up_that_its_key_s_change_overtook_is_not_remembered() {
    let (hashed, plain) = (format!("apikey:sha256:{}", Digest::of(KEY)), "apikey:k");
    for name in [hashed.as_str(), plain] {
        let keys = keys();
        let ticket = begin(&keys);
        keys.forget(name.as_bytes());
        keys.settle(Digest::of(KEY), ticket, &found());
        assert_eq!(recalled(&keys), None, "{name}");
        // The next one asks anew, and the first cannot end it.
        let second = begin(&keys);
        keys.settle(Digest::of(KEY), ticket, &Outcome::Unknown);
        keys.settle(Digest::of(KEY), second, &found());
        assert_eq!(recalled(&keys), Some(Ok("p".to_owned())), "{name}");
        keys.forget(name.as_bytes());
        assert_eq!(recalled(&keys), None, "{name}");
    }
    let keys = keys();
    let ticket = begin(&keys);
    keys.forget_all();
    keys.settle(Digest::of(KEY), ticket, &found());
    assert_eq!(recalled(&keys), None, "all may have changed");
}

#[test]
fn the_change_of_another_key_is_nothing_to_it() {
    let keys = keys();
    let ticket = begin(&keys);
    for other in ["apikey:other", "apikey:sha256:00", "session:user:k", ""] {
        keys.forget(other.as_bytes());
    }
    keys.settle(Digest::of(KEY), ticket, &found());
    keys.forget(b"apikey:other");
    assert_eq!(recalled(&keys), Some(Ok("p".to_owned())));
}

#[test]
fn what_may_have_changed_is_asked_for_anew_and_is_the_last_known_until_then() {
    let keys = Arc::new(keys());
    let given = Given {
        key: KEY,
        digest: Digest::of(KEY),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let look_up = || runtime.block_on(keys.look_up(&given));
    let away = look_up().map(|_| ());
    assert_eq!(away, Err(AuthError::CannotTell), "never seen");
    let ticket = begin(&keys);
    keys.settle(given.digest, ticket, &found());
    keys.forget_all();
    assert_eq!(recalled(&keys), None);
    let last_known = look_up().map(|caller| caller.id.to_string());
    assert_eq!(last_known, Ok("p".to_owned()));
    // That it is none any more is news.
    let ticket = begin(&keys);
    keys.settle(given.digest, ticket, &Outcome::Unknown);
    assert_eq!(recalled(&keys), Some(Err(AuthError::Invalid)));
}

#[test]
fn guessing_does_not_push_the_good_ones_out() {
    let keys = keys();
    let ticket = begin(&keys);
    keys.settle(Digest::of(KEY), ticket, &found());
    for guess in 0..2 * UNKNOWN_KEYS {
        let digest = Digest::of(&guess.to_ne_bytes());
        let begun = begin_for(&keys, digest);
        keys.settle(digest, begun, &Outcome::Unknown);
    }
    assert_eq!(recalled(&keys), Some(Ok("p".to_owned())));
    assert!(keys.unknown.len() <= UNKNOWN_KEYS);
    assert!(keys.pending.lock().by_digest.is_empty());
}
