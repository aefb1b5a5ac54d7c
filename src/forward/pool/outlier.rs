//! Which instances stand out? Passive health: what requests meet, beside what checks find.
//!
//! An instance is ejected for failures in a row, and, compared with the others of its pool, for its share of failures
//! or its latency. A whole pool that is bad has no outliers: that is the breaker's matter.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::members::{ANSWERED, FAILED, KINDS, Member, TIME, UNTIMED};
use crate::config::{self, Problems};

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutlierConfig {
    pub enabled: bool,
    /// Failures in a row that eject an instance.
    pub consecutive: u32,
    /// For how long the first time; twice as long each time after.
    pub ejection: config::Duration,
    pub max_ejection: config::Duration,
    /// Fewer available instances than this share of a pool: all are tried.
    pub panic_percent: u32,
}

/// The compiled rules.
#[derive(Clone, Debug)]
pub struct Outlier {
    enabled: bool,
    pub consecutive: u32,
    ejection: Duration,
    max_ejection: Duration,
    panic_percent: u32,
}

/// Why an instance is ejected.
#[derive(Debug, PartialEq)]
pub enum Reason {
    InARow(u32),
    ErrorRate { percent: u64, others: u64 },
    Latency { millis: u64, others: u64 },
}

/// Fewer requests in the window than this say nothing about rates.
const VOLUME: u64 = 20;

/// An error rate stands out from this many percent on, if it is also so many times that of the others together.
const ERROR_PERCENT: u64 = 30;
const ERROR_FACTOR: u64 = 3;

/// A latency stands out at five times the median of the others (2.32 octaves), and not under so many milliseconds above
/// it: among fast instances a factor is soon noise.
const LATENCY_OCTAVES: u64 = 149;
const LATENCY_EXCESS_MS: u64 = 50;

impl Default for OutlierConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            // As Envoy's `consecutive_5xx`.
            consecutive: 5,
            ejection: config::Duration::secs(5),
            // As Envoy's `max_ejection_time`.
            max_ejection: config::Duration::secs(300),
            panic_percent: 10,
        }
    }
}

impl OutlierConfig {
    pub fn compile(self, place: &str, problems: &mut Problems) -> Outlier {
        let Self {
            enabled,
            consecutive,
            ejection,
            max_ejection,
            panic_percent,
        } = self;
        if consecutive == 0 {
            problems.add(format!("{place}.consecutive"), "must be at least 1");
        }
        if ejection.0.is_zero() {
            problems.add(format!("{place}.ejection"), "must be longer than nothing");
        }
        if max_ejection < ejection {
            problems.add(
                format!("{place}.max_ejection"),
                "must not be shorter than `ejection`",
            );
        }
        if panic_percent > 100 {
            problems.add(format!("{place}.panic_percent"), "must be from 0 to 100");
        }
        Outlier {
            enabled,
            consecutive,
            ejection: ejection.0,
            max_ejection: max_ejection.0,
            panic_percent,
        }
    }
}

impl Outlier {
    /// Whether so many failures in a row are too many.
    pub fn is_too_many(&self, in_a_row: u32) -> bool {
        self.enabled && in_a_row >= self.consecutive
    }

    /// Whether so few available instances cannot carry the load of all.
    pub fn panics(&self, available: usize, all: usize) -> bool {
        available == 0 || available * 100 < all * self.panic_percent as usize
    }

    /// Twice the last one; but who has been back for longer than that begins anew.
    pub fn next_ejection(&self, last: Duration, back_for: Option<Duration>) -> Duration {
        if last.is_zero() || back_for.is_some_and(|time| time > last * 2) {
            return self.ejection;
        }
        (last * 2).min(self.max_ejection)
    }

    /// Those that stand out among `members`.
    pub fn judge<'a>(
        &self,
        members: &'a [Arc<Member>],
        now: Instant,
    ) -> Vec<(&'a Arc<Member>, Reason)> {
        if !self.enabled || members.len() < 2 {
            return Vec::new();
        }
        let sums: Vec<[u64; KINDS]> = members.iter().map(|m| m.recent.sums(now)).collect();
        let reasons = (0..members.len()).filter_map(|i| Some((&members[i], stands_out(&sums, i)?)));
        reasons.collect()
    }
}

fn stands_out(sums: &[[u64; KINDS]], i: usize) -> Option<Reason> {
    let of = |[answered, failed, ..]: &[u64; KINDS]| answered + failed;
    if of(&sums[i]) < VOLUME {
        return None;
    }
    let others = || sums.iter().enumerate().filter(|(j, _)| *j != i);
    let (failed, total) = others().fold((0, 0), |(failed, total), (_, sums)| {
        (failed + sums[FAILED], total + of(sums))
    });
    if total < VOLUME {
        return None;
    }
    let (percent, others_percent) = (sums[i][FAILED] * 100 / of(&sums[i]), failed * 100 / total);
    if percent >= ERROR_PERCENT && percent >= ERROR_FACTOR * others_percent {
        return Some(Reason::ErrorRate {
            percent,
            others: others_percent,
        });
    }
    let mut means: Vec<u64> = others()
        .filter(|(_, sums)| of(sums) >= VOLUME)
        .filter_map(|(_, sums)| mean(sums))
        .collect();
    means.sort_unstable();
    let (own, median) = (mean(&sums[i])?, *means.get(means.len() / 2)?);
    let (millis, others) = (millis(own), millis(median));
    let stands_out = own >= median + LATENCY_OCTAVES && millis >= others + LATENCY_EXCESS_MS;
    stands_out.then_some(Reason::Latency { millis, others })
}

/// Of the times that say something of an instance; none, where so few are left that one of them would decide.
fn mean(sums: &[u64; KINDS]) -> Option<u64> {
    let timed = sums[ANSWERED].saturating_sub(sums[UNTIMED]);
    let is_enough = sums[UNTIMED] == 0 || timed >= VOLUME;
    sums[TIME].checked_div(timed).filter(|_| is_enough)
}

/// The inverse of [`octaves`](super::members::octaves).
fn millis(octaves: u64) -> u64 {
    ((octaves as f32 / 64.0).exp2() / 1000.0) as u64
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::InARow(failures) => write!(f, "{failures} failures in a row"),
            Reason::ErrorRate { percent, others } => {
                write!(f, "{percent} % failures, the others have {others} %")
            }
            Reason::Latency { millis, others } => {
                write!(f, "{millis} ms for an answer, the others take {others} ms")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::pool::members::octaves;

    #[test]
    fn ejections_double_up_to_the_longest_and_are_forgiven() {
        let outlier = OutlierConfig::default().compile("outlier", &mut Problems::default());
        let secs = Duration::from_secs;
        assert_eq!(outlier.next_ejection(secs(0), None), secs(5));
        assert_eq!(outlier.next_ejection(secs(5), Some(secs(1))), secs(10));
        assert_eq!(outlier.next_ejection(secs(5), Some(secs(11))), secs(5));
        assert_eq!(outlier.next_ejection(secs(200), Some(secs(1))), secs(300));
    }

    #[test]
    fn only_what_differs_from_the_others_stands_out() {
        let answers = |count: u64, millis| {
            let each = octaves(Duration::from_millis(millis));
            [count, 0, count * u64::from(each), 0]
        };
        let good = answers(100, 2);
        let bad = [60, 40, good[TIME], 0];
        let error_rate = Some(Reason::ErrorRate {
            percent: 40,
            others: 0,
        });
        assert_eq!(stands_out(&[good, bad, good], 1), error_rate);
        assert_eq!(stands_out(&[good, bad, good], 0), None);
        assert_eq!(stands_out(&[bad, bad, bad], 1), None, "all are bad");
        assert_eq!(
            stands_out(&[good, [4, 6, 40, 0]], 1),
            None,
            "too few requests"
        );
        let slow = answers(100, 100);
        let latency = Some(Reason::Latency {
            millis: 99,
            others: 2,
        });
        assert_eq!(stands_out(&[good, slow, good], 1), latency);
        assert_eq!(
            stands_out(&[slow, slow, good], 1),
            None,
            "the median is slow"
        );
        let twelve = answers(100, 12);
        assert_eq!(stands_out(&[good, twelve, good], 1), None, "not worth it");
        let one_report = [60, 0, answers(59, 20)[TIME] + answers(1, 8000)[TIME], 0];
        let others = answers(100, 20);
        assert_eq!(stands_out(&[others, one_report, others], 1), None);
    }

    #[test]
    fn answers_without_a_time_are_answers_and_do_not_make_the_others_quicker() {
        let time = |count: u64, millis| count * u64::from(octaves(Duration::from_millis(millis)));
        let good = [100, 0, time(100, 2), 0];
        let slow = [100, 0, time(50, 100), 50];
        let latency = Some(Reason::Latency {
            millis: 99,
            others: 2,
        });
        assert_eq!(stands_out(&[good, slow, good], 1), latency);
        let hardly_timed = [100, 0, time(2, 100), 98];
        assert_eq!(stands_out(&[good, hardly_timed, good], 1), None);
        let failing = [60, 40, time(2, 2), 58];
        assert!(stands_out(&[good, failing, good], 1).is_some());
    }
}
