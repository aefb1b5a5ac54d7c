use super::*;

fn breaker(volume: u32, reset_ms: u64) -> Arc<Breaker> {
    let config = BreakerConfig {
        volume,
        reset: config::Duration::millis(reset_ms),
        ..Default::default()
    };
    let gauge = IntGauge::new("state", "state").unwrap();
    Arc::new(config.build("s", gauge, None))
}

fn send(breaker: &Arc<Breaker>, outcome: Outcome) {
    breaker
        .admit(Instant::now(), true)
        .unwrap_or_else(|_| panic!("it is open"))
        .end(outcome);
}

#[test]
fn it_opens_at_the_threshold_and_not_before_the_volume() {
    let breaker = breaker(4, 60_000);
    for outcome in [Outcome::Failure, Outcome::Success, Outcome::Failure] {
        send(&breaker, outcome);
        assert_eq!(breaker.state(), State::Closed);
    }
    send(&breaker, Outcome::Unknown);
    assert_eq!(breaker.state(), State::Closed, "unknown ends do not count");
    send(&breaker, Outcome::Failure);
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(breaker.standing.gauge.get(), 1);
    let rejected = breaker.admit(Instant::now(), true).err().unwrap();
    assert!(
        rejected.retry_after <= Duration::from_secs(60)
            && rejected.retry_after > Duration::from_secs(59)
    );
}

#[test]
fn one_probe_at_a_time_decides_what_follows() {
    let breaker = breaker(1, 50);
    send(&breaker, Outcome::Failure);
    let later = Instant::now() + Duration::from_millis(60);
    let probe = breaker.admit(later, true).ok().unwrap();
    assert_eq!(breaker.state(), State::HalfOpen);
    assert!(
        breaker.admit(later, true).is_err(),
        "the probe is under way"
    );
    probe.end(Outcome::Failure);
    assert_eq!(breaker.state(), State::Open);
    let probe = breaker
        .admit(later + Duration::from_millis(60), true)
        .ok()
        .unwrap();
    drop(probe); // the client went away: the next request probes
    breaker
        .admit(later, true)
        .ok()
        .unwrap()
        .end(Outcome::Success);
    assert_eq!(breaker.state(), State::Closed);
    assert_eq!(breaker.standing.gauge.get(), 0);
}

#[test]
fn under_new_rules_it_stays_open_and_what_was_counted_stays_counted() {
    let gauge = || IntGauge::new("state", "state").unwrap();
    let rules = |volume, window| BreakerConfig {
        volume,
        window: config::Duration::secs(window),
        ..Default::default()
    };
    let first = breaker(4, 60_000);
    send(&first, Outcome::Failure);
    let second = Arc::new(rules(2, 10).build("s", gauge(), Some(&first)));
    send(&second, Outcome::Failure);
    assert_eq!(second.state(), State::Open, "two of two, the first before");
    let third = Arc::new(rules(100, 20).build("s", gauge(), Some(&second)));
    assert_eq!((third.state(), first.state()), (State::Open, State::Open));
    assert!(third.admit(Instant::now(), true).is_err());
    assert_eq!(first.standing.gauge.get(), 1, "one gauge for all of them");
}
