use http::{HeaderName, HeaderValue};
use prometheus::Opts;

use super::*;
use crate::admit::auth::api_key::Given;
use crate::admit::auth::{Rights, Source, Tier};
use crate::admit::permissions::Permissions;
use crate::admit::tenancy::Venues;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

#[test]
fn what_is_found_out_of_a_key_ends_the_streams_of_that_key_alone() {
    let streams = streams();
    let (first, second, other) = (
        open(&streams, "a"),
        open(&streams, "a"),
        open(&streams, "b"),
    );
    streams.settle(digest("a"), None);
    assert_eq!(ended(&first), Some(End::KeyChanged));
    assert_eq!(ended(&second), Some(End::KeyChanged));
    assert_eq!(ended(&other), None);
    drop((first, second));
    assert!(!streams.doubt(digest("a")), "they are gone");
    streams.settle(digest("b"), Some(&holder()));
    assert_eq!(ended(&other), None, "it may what it might");
    drop(other);
    let open = streams.open.lock();
    assert!(open.streams.is_empty() && open.keyed.is_empty());
}

#[test]
fn each_key_is_asked_for_once_and_again_when_it_is_in_doubt_again() {
    let streams = streams();
    let _held: Vec<_> = ["a", "a", "b"].map(|key| open(&streams, key)).into();
    let mut keys: Vec<_> = streams.doubtful_keys().into_keys().collect();
    keys.sort();
    let mut both = [digest("a"), digest("b")];
    both.sort();
    assert!(keys == both);
    assert!(streams.doubtful_keys().is_empty());
    assert!(streams.doubt(digest("a")) && !streams.doubt(digest("c")));
    assert!(streams.doubtful_keys().into_keys().eq([digest("a")]));
    streams.forget_all();
    assert_eq!(streams.doubtful_keys().len(), 2);
}

/// After Redis was away every key is in doubt. Each of the two ways is a look at all streams for each key, were there no
/// index: a hundred million steps under the lock that every new stream takes.
#[test]
fn ten_thousand_keys_are_settled_in_no_time() {
    let streams = streams();
    let names: Vec<String> = (0..10_000).map(|i| format!("key-{i}")).collect();
    let _held: Vec<_> = names.iter().map(|key| open(&streams, key)).collect();
    let holder = holder();
    let keys = streams.doubtful_keys();
    assert_eq!(keys.len(), names.len());
    let start = Instant::now();
    for digest in keys.into_keys() {
        streams.doubt(digest);
        streams.settle(digest, Some(&holder));
    }
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
}

fn streams() -> Arc<Streams> {
    let gauges = IntGaugeVec::new(Opts::new("streams_open", "open"), &["kind"]).unwrap();
    Arc::new(Streams::new(Arc::default(), &gauges))
}

fn open(streams: &Arc<Streams>, key: &str) -> Watch {
    let caller = Arc::new(holder());
    let request = HeaderMap::from_iter([(X_API_KEY, HeaderValue::from_str(key).unwrap())]);
    let given = Given::of(&request).unwrap_or_default();
    let credentials = Credentials::new(None, given.map(|given| given.keep()), Some(&caller), None);
    let cut = Cut::new(Instant::now());
    streams.watch(Kind::Events, credentials, &HeaderMap::new(), &cut)
}

fn ended(watch: &Watch) -> Option<End> {
    watch.cut.ordered()
}

fn digest(key: &str) -> Digest {
    Digest::of(key.as_bytes())
}

fn holder() -> Caller {
    Caller {
        id: "partner".into(),
        role: None,
        rights: Rights::of(None, &[], std::iter::empty()),
        permissions: Permissions::new(Vec::new()),
        tenant: HeaderValue::from_static("t1"),
        source: Source::ApiKey,
        tier: Tier::Standard,
        venues: Venues::new(None, Vec::new()),
        is_complete: true,
        token: None,
        until: None,
    }
}
