//! Whose turn is it? The five ways to choose among a service's instances, all of them weighted, and all but the hash
//! gentle with an instance that has just come back: whose key it is does not change for a while.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::header::COOKIE;
use http::{HeaderMap, HeaderName};
use pingora::protocols::l4::socket::SocketAddr as Address;
use pingora_load_balancing::selection::consistent::KetamaHashing;
use pingora_load_balancing::selection::{BackendIter, BackendSelection};
use pingora_load_balancing::{Backend, Extensions};
use serde::{Deserialize, Serialize};

use super::members::{Candidate, Member, View};
use crate::config::{self, Problems};

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BalanceConfig {
    pub strategy: Strategy,
    /// What `consistent_hash` hashes: `user`, `header:NAME` or `cookie:NAME`; where a request has none, its client's address.
    pub hash_on: Option<String>,
    /// How long an instance that comes back gets less than its share.
    pub slow_start: config::Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The better of two drawn by chance, by latency and requests in flight.
    #[default]
    PeakEwma,
    RoundRobin,
    LeastConnections,
    Random,
    ConsistentHash,
}

/// The compiled choice.
#[derive(Clone, Debug)]
pub struct Balance {
    strategy: Strategy,
    hash_on: HashOn,
    pub slow_start: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HashOn {
    User,
    Header(HeaderName),
    Cookie(Box<str>),
}

/// The order in which a view's candidates take turns.
pub struct Turns {
    /// Places among the candidates, each as often as its weight, evenly mixed.
    order: Vec<u16>,
    next: AtomicUsize,
}

/// For `consistent_hash`: all instances, so that one that is away moves only its own keys.
pub type Ring = Option<Arc<KetamaHashing>>;

/// What there is to hash.
pub struct Affinity<'a> {
    pub headers: &'a HeaderMap,
    pub user: Option<&'a str>,
    pub client: &'a [u8],
}

/// The longest order of turns: weights beyond it are rounded.
const LONGEST_ORDER: usize = 4096;

/// An instance that comes back begins with this share of its weight.
const FIRST_SHARE: f32 = 0.1;

/// No instance has more than this many times its share of the requests in flight, whatever the keys hash to: the
/// factor of "Consistent Hashing with Bounded Loads" (Mirrokni, Thorup, Zadimoghaddam), c = 1 + 0.25.
const BOUND: f32 = 1.25;

/// So many in flight never move a key, however quiet the pool is: a client may well ask for two things at a time.
const NEVER_TOO_MANY: f32 = 4.0;

/// Points of the ring that are looked at for one request.
const MOST_POINTS: usize = 4096;

impl Default for BalanceConfig {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            hash_on: None,
            slow_start: config::Duration::secs(10),
        }
    }
}

impl BalanceConfig {
    pub fn compile(self, place: &str, problems: &mut Problems) -> Balance {
        let Self {
            strategy,
            hash_on,
            slow_start,
        } = self;
        let place = format!("{place}.hash_on");
        if hash_on.is_some() && strategy != Strategy::ConsistentHash {
            problems.add(
                &place,
                "only the strategy `consistent_hash` has a use for it",
            );
        }
        let hash_on = match hash_on.as_deref().map(|text| (text, text.split_once(':'))) {
            None | Some(("user", _)) => HashOn::User,
            Some((_, Some(("header", name)))) if name.parse::<HeaderName>().is_ok() => {
                HashOn::Header(name.parse().expect("it was tried just now"))
            }
            // The name of a cookie is a token, as that of a header is (RFC 6265, section 4.1.1).
            Some((_, Some(("cookie", name)))) if name.parse::<HeaderName>().is_ok() => {
                HashOn::Cookie(name.into())
            }
            Some((text, _)) => {
                let expected = "is none of `user`, `header:NAME` and `cookie:NAME`";
                problems.add(&place, format!("`{text}` {expected}"));
                HashOn::User
            }
        };
        Balance {
            strategy,
            hash_on,
            slow_start: slow_start.0,
        }
    }
}

// === impl Balance ===

impl Balance {
    /// Some 160 points for each instance and unit of weight: made when the instances change, not with every view.
    pub fn ring(&self, all: &[Arc<Member>]) -> Ring {
        if self.strategy != Strategy::ConsistentHash {
            return None;
        }
        let divisor = all.iter().map(|m| m.instance.weight).fold(0, gcd).max(1);
        let backends: BTreeSet<Backend> = all
            .iter()
            .map(|member| Backend {
                addr: Address::Inet(member.ring_key),
                weight: member.instance.weight / divisor,
                ext: Extensions::new(),
            })
            .collect();
        Some(Arc::new(KetamaHashing::build(&backends)))
    }

    /// The instance for a request; `None` when there is no candidate at all.
    pub fn choose(
        &self,
        view: &View,
        affinity: &Affinity<'_>,
        now: Instant,
        now_ms: u32,
    ) -> Option<Arc<Member>> {
        if let [only] = &view.open[..] {
            return Some(only.member.clone());
        }
        let chosen = match self.strategy {
            Strategy::PeakEwma => self.better_of_two(view, now, now_ms)?,
            Strategy::RoundRobin => self.in_turn(view, now)?,
            Strategy::LeastConnections => self.least_busy(view, now)?,
            Strategy::Random => self.draw(view, now)?,
            Strategy::ConsistentHash => return self.by_hash(view, affinity),
        };
        Some(view.open[chosen].member.clone())
    }

    /// An instance for another try, which those in `tried` had already: the one that looks best.
    pub fn choose_another(
        &self,
        view: &View,
        tried: &[Address],
        now: Instant,
        now_ms: u32,
    ) -> Option<Arc<Member>> {
        let left = view
            .open
            .iter()
            .filter(|candidate| !tried.contains(&candidate.member.address));
        let best = left.min_by(|a, b| {
            let (a, b) = (self.cost(a, now, now_ms), self.cost(b, now, now_ms));
            a.total_cmp(&b)
        });
        best.map(|candidate| candidate.member.clone())
    }

    /// Draws two, and takes the first unless the second is clearly better: while all are alike, the weights alone decide.
    fn better_of_two(&self, view: &View, now: Instant, now_ms: u32) -> Option<usize> {
        const CLEARLY: f32 = 0.75;
        let first = self.draw(view, now)?;
        let mut second = self.draw(view, now)?;
        if second == first {
            second = (first + 1 + fastrand::usize(..view.open.len() - 1)) % view.open.len();
            if self.is_too_soon(&view.open[second], now) {
                return Some(first);
            }
        }
        let cost = |i: usize| self.cost(&view.open[i], now, now_ms);
        Some(if cost(second) < cost(first) * CLEARLY {
            second
        } else {
            first
        })
    }

    /// The time until an answer, as it looks from here: latency, times those who wait for one already.
    fn cost(&self, candidate: &Candidate, now: Instant, now_ms: u32) -> f32 {
        /// An instance that has not answered yet is asked once, before it is asked more often: in microseconds.
        const UNKNOWN: f32 = 1_000_000.0;
        let in_flight = candidate.member.in_flight.load(Relaxed) as f32;
        let is_awaited = candidate.member.unanswered.load(Relaxed) > 0;
        match candidate.member.latency.average(now_ms, is_awaited) {
            Some(latency) => {
                let share = candidate.weight * self.ramp(candidate, now);
                latency * (1.0 + in_flight / share)
            }
            None => in_flight * UNKNOWN,
        }
    }

    /// By weight, and seldom one that has just come back.
    fn draw(&self, view: &View, now: Instant) -> Option<usize> {
        let order = &view.turns.order;
        self.not_too_soon(view, now, || {
            Some(usize::from(
                *order.get(fastrand::usize(..order.len().max(1)))?,
            ))
        })
    }

    fn in_turn(&self, view: &View, now: Instant) -> Option<usize> {
        self.not_too_soon(view, now, || view.turns.next())
    }

    /// Takes what `next` says, unless that has come back only now: then mostly what it says after that.
    fn not_too_soon(
        &self,
        view: &View,
        now: Instant,
        next: impl Fn() -> Option<usize>,
    ) -> Option<usize> {
        const TRIES: usize = 4;
        let mut chosen = next()?;
        for _ in 1..TRIES {
            if !self.is_too_soon(&view.open[chosen], now) {
                break;
            }
            chosen = next()?;
        }
        Some(chosen)
    }

    /// By chance: the sooner after its return, the likelier.
    fn is_too_soon(&self, candidate: &Candidate, now: Instant) -> bool {
        candidate.returned.is_some() && fastrand::f32() >= self.ramp(candidate, now)
    }

    /// Between those that are equally busy it goes in turn.
    fn least_busy(&self, view: &View, now: Instant) -> Option<usize> {
        let busy = |i: usize| {
            let candidate = &view.open[i];
            let in_flight = candidate.member.in_flight.load(Relaxed) as f32;
            in_flight / (candidate.weight * self.ramp(candidate, now))
        };
        let mut best = self.in_turn(view, now)?;
        let mut least = busy(best);
        for i in 0..view.open.len() {
            let busy = busy(i);
            if busy < least {
                (best, least) = (i, busy);
            }
        }
        Some(best)
    }

    /// The first on the ring that may be chosen and does not have too much to do.
    fn by_hash(&self, view: &View, affinity: &Affinity<'_>) -> Option<Arc<Member>> {
        let in_flight: u32 = view
            .open
            .iter()
            .map(|c| c.member.in_flight.load(Relaxed))
            .sum();
        let mean = (in_flight + 1) as f32 / view.open.len() as f32;
        let mut ring = view.ring.as_ref()?.iter(self.key(affinity));
        let mut first = None;
        for _ in 0..MOST_POINTS {
            let Some(backend) = ring.next() else {
                break;
            };
            let is_here = |c: &&Candidate| backend.addr.as_inet() == Some(&c.member.ring_key);
            let Some(candidate) = view.open.iter().find(is_here) else {
                continue;
            };
            let bound = (BOUND * mean * candidate.weight).ceil().max(NEVER_TOO_MANY);
            if (candidate.member.in_flight.load(Relaxed) as f32) < bound {
                return Some(candidate.member.clone());
            }
            first = first.or(Some(candidate));
        }
        first
            .or(view.open.first())
            .map(|candidate| candidate.member.clone())
    }

    fn key<'a>(&self, affinity: &Affinity<'a>) -> &'a [u8] {
        let key = match &self.hash_on {
            HashOn::User => affinity.user.map(str::as_bytes),
            HashOn::Header(name) => affinity.headers.get(name).map(|value| value.as_bytes()),
            HashOn::Cookie(name) => cookie(affinity.headers, name),
        };
        key.filter(|key| !key.is_empty()).unwrap_or(affinity.client)
    }

    /// The share of its weight that an instance gets.
    fn ramp(&self, candidate: &Candidate, now: Instant) -> f32 {
        candidate.returned.map_or(1.0, |returned| {
            let back = now.saturating_duration_since(returned).as_secs_f32();
            (back / self.slow_start.as_secs_f32()).clamp(FIRST_SHARE, 1.0)
        })
    }
}

// === impl Turns ===

impl Turns {
    /// `weights` are those of the candidates, in their order.
    pub fn new(weights: &[usize]) -> Self {
        Self {
            order: mixed(weights),
            next: AtomicUsize::new(fastrand::usize(..LONGEST_ORDER)),
        }
    }

    fn next(&self) -> Option<usize> {
        let turn = self.next.fetch_add(1, Relaxed) % self.order.len().max(1);
        self.order.get(turn).copied().map(usize::from)
    }
}

/// Each place as often as its weight, spread as evenly as can be: nginx's smooth weighted round robin, written out.
fn mixed(weights: &[usize]) -> Vec<u16> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let mut shares: Vec<i64> = weights.iter().map(|w| (w / divisor) as i64).collect();
    let mut total: i64 = shares.iter().sum();
    if total > LONGEST_ORDER as i64 {
        let scale = LONGEST_ORDER as f64 / total as f64;
        for share in &mut shares {
            *share = ((*share as f64 * scale) as i64).max(1);
        }
        total = shares.iter().sum();
    }
    let mut credit = vec![0; shares.len()];
    let mut order = Vec::with_capacity(total as usize);
    for _ in 0..total {
        for (credit, share) in credit.iter_mut().zip(&shares) {
            *credit += share;
        }
        let Some(most) = (0..credit.len()).rev().max_by_key(|i| credit[*i]) else {
            break;
        };
        credit[most] -= total;
        order.push(most as u16);
    }
    order
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The value of a cookie (RFC 6265, section 4.2.1).
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let pairs = headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b';'));
    pairs
        .map(<[u8]>::trim_ascii)
        .find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_mixed_evenly_by_weight() {
        assert_eq!(mixed(&[2, 2, 2]), [0, 1, 2]);
        assert_eq!(mixed(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(mixed(&[]), [0; 0]);
        let many = mixed(&[1000, 999, 1000, 999, 1000, 997]);
        assert!((LONGEST_ORDER - 6..=LONGEST_ORDER).contains(&many.len()));
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, "a=1; xsid=no; sid=yes; sid=second".parse().unwrap());
        assert_eq!(cookie(&headers, "sid"), Some(&b"yes"[..]));
        assert_eq!(cookie(&headers, "si"), None);
    }
}
