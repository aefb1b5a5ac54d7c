//! The second tier: answers in Redis, for all processes. One key an answer; where answers differ by caller or by what `Vary`
//! names, a signpost stands under the key that all share. What others have put there is believed as far as its key goes: a
//! value of another form, version or key is none. While Redis is away, or what is out of date in it is not known, it is
//! not asked.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::LONGEST_LIFE;
use super::entry::{Entry, Head, Times, Varied, Whose, said, scrub, unix_millis};
use super::invalid::{Place, SKEW};
use super::told::Told;
use crate::state::Redis;

pub struct Tier {
    pub redis: Arc<Redis>,
    pub told: Arc<Told>,
    /// One value, head and body.
    pub largest: usize,
}

/// What stands before the body, behind [`FORM`] and its own length.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    /// Its own key.
    key: String,
    status: u16,
    fields: Vec<(String, String)>,
    vary: Vec<(String, Option<String>)>,
    since: u64,
    at: u64,
    age: u64,
    life: u64,
    while_revalidate: u64,
    if_error: u64,
    never_stale: bool,
    is_for_all: bool,
    tenant: String,
    path: String,
    target: String,
    places: Vec<Place>,
}

/// Where to look instead.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signpost {
    key: String,
    /// Each caller has its own.
    own: bool,
    /// It depends on these fields.
    vary: Vec<String>,
}

/// An answer, in the first version of its form.
const FORM: &[u8] = b"agc1";

/// As well.
const SIGNPOST: &[u8] = b"ags1";

/// For a head, beside the octets of the largest answer.
const HEAD: usize = 64 << 10;

/// Signposts are followed so often: for the caller, and for what it says.
const MOST_SIGNPOSTS: usize = 2;

/// Whose keys an answer may stand under.
pub struct Keys<'a> {
    /// `cache:event:` and the like.
    pub prefix: &'a str,
    pub shared: &'a [u8],
    pub own: Option<&'a [u8]>,
}

impl Tier {
    /// The answer to a request, with whether it is its caller's own.
    pub async fn recall(
        &self,
        keys: &Keys<'_>,
        has_credentials: bool,
        request: &HeaderMap,
    ) -> Option<Entry> {
        if !self.told.knows_all() {
            return None;
        }
        let mut octets = keys.shared;
        let mut place = place(keys.prefix, octets, &[]);
        for _ in 0..=MOST_SIGNPOSTS {
            let mut get = redis::cmd("GETRANGE");
            get.arg(&place).arg(0).arg(self.largest + HEAD);
            let value: Vec<u8> = self.redis.run(&get).await.ok()?;
            if value.is_empty() || value.len() > self.largest + HEAD {
                return None;
            }
            let Some(signpost) = signpost(&value, &place) else {
                let entry = read(Bytes::from(value), &place)?;
                let is_allowed = entry.head.is_for_all || !has_credentials || octets != keys.shared;
                return Some(entry).filter(|entry| is_allowed && entry.head.is_for(request));
            };
            let names = signpost
                .vary
                .iter()
                .map(|name| HeaderName::try_from(name).ok());
            let names: Vec<HeaderName> = names.collect::<Option<_>>()?;
            octets = if signpost.own { keys.own? } else { octets };
            let varied: Vec<Varied> = names
                .into_iter()
                .map(|name| (name.clone(), said(request, &name)))
                .collect();
            let next = self::place(keys.prefix, octets, &varied);
            if next == place {
                return None;
            }
            place = next;
        }
        None
    }

    /// Puts an answer there, behind the requests' backs.
    pub fn keep(self: &Arc<Self>, keys: &Keys<'_>, is_own: bool, entry: &Arc<Entry>) {
        let head = &entry.head;
        let is_secret =
            |(name, _): &Varied| *name == AUTHORIZATION || *name == COOKIE || name == "x-api-key";
        if !self.told.knows_all() || head.vary.iter().any(is_secret) {
            return;
        }
        let octets = if is_own {
            keys.own.unwrap_or(keys.shared)
        } else {
            keys.shared
        };
        let base = place(keys.prefix, keys.shared, &[]);
        let place = place(keys.prefix, octets, &head.vary);
        let times = head.times;
        let stays =
            times.life.saturating_sub(head.age) + times.if_error.max(times.while_revalidate);
        let life = Duration::from_millis(stays).min(LONGEST_LIFE);
        let Some(value) = write(entry, &place).filter(|value| value.len() <= self.largest + HEAD)
        else {
            return;
        };
        let signpost = (place != base).then(|| Signpost {
            key: base.clone(),
            own: is_own,
            vary: head
                .vary
                .iter()
                .map(|(name, _)| name.as_str().to_owned())
                .collect(),
        });
        let tier = self.clone();
        tokio::spawn(async move {
            if let Some(text) = signpost.and_then(|signpost| serde_json::to_vec(&signpost).ok()) {
                tier.set(&base, &[SIGNPOST, &text].concat(), life).await;
            }
            tier.set(&place, &value, life).await;
        });
    }

    async fn set(&self, key: &str, value: &[u8], life: Duration) {
        let mut set = redis::cmd("SET");
        set.arg(key).arg(value).arg("EX").arg(life.as_secs().max(1));
        let _: Result<(), _> = self.redis.run(&set).await; // it is asked for again then
    }
}

/// `PREFIX` and a digest of all that tells one answer from another.
fn place(prefix: &str, octets: &[u8], vary: &[Varied]) -> String {
    use std::fmt::Write;
    let mut digest = Sha256::new();
    digest.update((octets.len() as u64).to_be_bytes());
    digest.update(octets);
    for (name, said) in vary {
        let said = said.as_deref();
        digest.update((name.as_str().len() as u64).to_be_bytes());
        digest.update(name.as_str());
        digest.update((said.map_or(u64::MAX, |said| said.len() as u64)).to_be_bytes());
        digest.update(said.unwrap_or_default());
    }
    let mut key = prefix.to_owned();
    for octet in digest.finalize() {
        let _ = write!(key, "{octet:02x}");
    }
    key
}

fn signpost(value: &[u8], key: &str) -> Option<Signpost> {
    let signpost: Signpost = serde_json::from_slice(value.strip_prefix(SIGNPOST)?).ok()?;
    (signpost.key == key && signpost.vary.len() <= 16).then_some(signpost)
}

fn write(entry: &Entry, key: &str) -> Option<Vec<u8>> {
    let Head {
        status,
        fields,
        vary,
        since,
        at,
        age,
        times,
        is_for_all,
        whose,
    } = &entry.head;
    let text = |octets: &[u8]| String::from_utf8(octets.to_vec()).ok();
    let stored = Stored {
        key: key.to_owned(),
        status: status.as_u16(),
        fields: fields
            .iter()
            .map(|(name, value)| Some((name.as_str().to_owned(), text(value.as_bytes())?)))
            .collect::<Option<_>>()?,
        vary: vary
            .iter()
            .map(|(name, said)| {
                let said = match said {
                    Some(said) => Some(text(said)?),
                    None => None,
                };
                Some((name.as_str().to_owned(), said))
            })
            .collect::<Option<_>>()?,
        since: *since,
        at: *at,
        age: *age,
        life: times.life,
        while_revalidate: times.while_revalidate,
        if_error: times.if_error,
        never_stale: times.never_stale,
        is_for_all: *is_for_all,
        tenant: text(&whose.tenant)?,
        path: whose.path.to_string(),
        target: whose.target.to_string(),
        places: whose.places.to_vec(),
    };
    let head = serde_json::to_vec(&stored).ok()?;
    let length = u32::try_from(head.len()).ok()?.to_be_bytes();
    let digest = whole(&length, &head, &entry.body);
    Some([FORM, &digest, &length, &head, &entry.body].concat())
}

/// By which it is known that nothing of it was changed.
fn whole(length: &[u8], head: &[u8], body: &[u8]) -> [u8; 32] {
    let digest = Sha256::new().chain_update(length).chain_update(head);
    digest.chain_update(body).finalize().into()
}

fn read(value: Bytes, key: &str) -> Option<Entry> {
    let (digest, behind) = value.strip_prefix(FORM)?.split_first_chunk::<32>()?;
    let (length, rest) = behind.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length) as usize;
    let head = rest.get(..length)?;
    let body = value.slice_ref(rest.get(length..)?);
    if whole(&behind[..4], head, &body) != *digest {
        return None;
    }
    let stored: Stored = serde_json::from_slice(head).ok()?;
    let longest = LONGEST_LIFE.as_millis() as u64;
    let is_sane = stored.key == key
        && [stored.life, stored.while_revalidate, stored.if_error]
            .iter()
            .all(|time| *time <= longest)
        && stored.at <= unix_millis() + SKEW / 1000
        && stored.fields.len() <= 256
        && stored.places.len() <= 64;
    if !is_sane {
        return None;
    }
    let mut fields = HeaderMap::with_capacity(stored.fields.len());
    for (name, value) in stored.fields {
        fields.append(
            HeaderName::try_from(name).ok()?,
            HeaderValue::try_from(value).ok()?,
        );
    }
    scrub(&mut fields);
    let length = fields.get(CONTENT_LENGTH).map_or(Some(0), |length| {
        length.to_str().ok()?.parse::<usize>().ok()
    });
    if fields.contains_key(SET_COOKIE) || length? != body.len() {
        return None;
    }
    let varied = |(name, said): (String, Option<String>)| {
        let said = said.map(|said| said.into_bytes().into_boxed_slice());
        Some((HeaderName::try_from(name).ok()?, said))
    };
    let head = Head {
        status: StatusCode::from_u16(stored.status)
            .ok()
            .filter(|status| super::freshness::is_understood(*status))?,
        fields,
        vary: stored.vary.into_iter().map(varied).collect::<Option<_>>()?,
        // Asked for so shortly after what it shows was put out of date, it is not believed to show what came after.
        since: stored.since.saturating_sub(SKEW),
        at: stored.at,
        age: stored.age,
        times: Times {
            life: stored.life,
            while_revalidate: stored.while_revalidate,
            if_error: stored.if_error,
            never_stale: stored.never_stale,
        },
        is_for_all: stored.is_for_all,
        whose: Whose {
            tenant: stored.tenant.into_bytes().into(),
            path: stored.path.into(),
            target: stored.target.into(),
            places: stored.places.into(),
        },
    };
    Some(Entry::new(head, Bytes::copy_from_slice(&body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        let mut fields = HeaderMap::new();
        fields.insert(CONTENT_LENGTH, 4.into());
        let head = Head {
            status: StatusCode::OK,
            fields,
            vary: Box::new([(http::header::ACCEPT, Some(b"a".as_slice().into()))]),
            since: 10_000_000,
            at: 1,
            age: 0,
            times: Times {
                life: 1000,
                ..Times::default()
            },
            is_for_all: true,
            whose: Whose::default(),
        };
        Entry::new(head, Bytes::from_static(b"body"))
    }

    #[test]
    fn what_was_written_is_read_under_its_own_key_only() {
        let value = Bytes::from(write(&entry(), "k").unwrap());
        let read_back = read(value.clone(), "k").unwrap();
        assert_eq!(read_back.body, "body");
        assert_eq!(read_back.head.vary, entry().head.vary);
        assert_eq!(read_back.head.since, 8_000_000);
        assert!(read(value.clone(), "other").is_none());
        for changed in 0..value.len() {
            let mut other = value.to_vec();
            other[changed] ^= 1;
            assert!(read(Bytes::from(other), "k").is_none(), "{changed}");
        }
        for end in 0..value.len() {
            assert!(
                read(value.slice(..end), "k").is_none(),
                "{end} octets of it"
            );
        }
    }

    #[test]
    fn values_of_any_other_form_are_none() {
        for value in [
            &b""[..],
            b"x",
            b"agc1",
            b"agc1\xff\xff\xff\xff",
            b"agc1\0\0\0\x02{}body",
            b"ags1{}",
        ] {
            assert!(read(Bytes::copy_from_slice(value), "k").is_none());
            assert!(signpost(value, "k").is_none());
        }
    }
}
