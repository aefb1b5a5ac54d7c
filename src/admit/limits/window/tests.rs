use super::*;

fn ask(key: u64, max: u32, window_ms: u64) -> Ask {
    Ask {
        key,
        max,
        window: Duration::from_millis(window_ms),
        block: Duration::ZERO,
    }
}

#[test]
fn max_in_a_row_pass_and_the_next_waits_for_the_window() {
    let windows = Windows::new(1000);
    let asks = [ask(1, 3, 1000)];
    let at = |ms| windows.epoch + Duration::from_millis(ms);
    for remaining in [2, 1, 0] {
        assert_eq!(windows.spend(&asks, at(10)).unwrap().remaining, remaining);
    }
    assert_eq!(
        windows.spend(&asks, at(11)),
        Err(Exceeded {
            limit: 3,
            retry_after_secs: 1,
            block_began: false,
        })
    );
    assert!(
        windows.spend(&asks, at(1010)).is_err(),
        "a whole window must have passed"
    );
    assert!(windows.spend(&asks, at(1011)).is_ok());
}

#[test]
fn no_window_ever_holds_more_than_max() {
    let windows = Windows::new(1000);
    for (max, window) in [(1, 100), (7, 250), (600, 1000), (5000, 2000)] {
        let asks = [ask(u64::from(max), max, window)];
        let mut granted: Vec<u64> = Vec::new();
        let mut ms = 0;
        while ms < window * 4 {
            ms += fastrand::u64(0..3);
            for _ in 0..fastrand::u32(0..max.div_ceil(20) + 2) {
                if windows
                    .spend(&asks, windows.epoch + Duration::from_millis(ms))
                    .is_ok()
                {
                    granted.push(ms);
                }
            }
        }
        for (i, start) in granted.iter().enumerate() {
            let within = granted[i..]
                .iter()
                .take_while(|t| **t < start + window)
                .count();
            assert!(
                within <= max as usize,
                "{within} in {window} ms, {max} are allowed"
            );
        }
        assert!(
            granted.len() >= 2 * max as usize,
            "{} of {max} a window",
            granted.len()
        );
    }
}

#[test]
fn who_exceeds_a_limit_that_blocks_is_kept_out_once_and_not_longer_for_trying() {
    let windows = Windows::new(1000);
    let blocking = Ask {
        block: Duration::from_secs(5),
        ..ask(1, 2, 1000)
    };
    let at = |ms| windows.epoch + Duration::from_millis(ms);
    let spend = |ms| windows.spend(&[blocking], at(ms));
    assert!(spend(0).is_ok() && spend(1).is_ok());
    let exceeded = |secs, block_began| {
        Err(Exceeded {
            limit: 2,
            retry_after_secs: secs,
            block_began,
        })
    };
    assert_eq!(spend(10), exceeded(6, true));
    assert_eq!(spend(2000), exceeded(4, false));
    assert_eq!(spend(5010), exceeded(1, false));
    assert!(spend(5011).is_ok() && spend(5012).is_ok());
}

#[test]
fn what_others_have_spent_is_followed() {
    let windows = Windows::new(1000);
    let (now, ask) = (windows.epoch + Duration::from_millis(5), ask(1, 10, 1000));
    let remaining = |now| windows.spend(&[ask], now).unwrap().remaining;
    windows.follow(&ask, 7, 0, now);
    assert_eq!(remaining(now), 2);
    windows.follow(&ask, 3, 0, now);
    assert_eq!(remaining(now), 6, "a part was taken back");
    windows.follow(&ask, 0, 0, now);
    assert_eq!(remaining(now), 9, "all of it");
    windows.follow(&ask, 10, 0, now + Duration::from_millis(500));
    let later = now + Duration::from_millis(1400);
    assert_eq!(remaining(later), 0, "ours has left the window");
    assert!(windows.spend(&[ask], later).is_err(), "the others have not");
}

#[test]
fn what_one_limit_refuses_spends_nothing_on_another() {
    let windows = Windows::new(1000);
    let now = windows.epoch + Duration::from_millis(5);
    let (wide, tight) = (ask(1, 10, 1000), ask(2, 1, 1000));
    assert_eq!(
        windows.spend(&[wide, tight], now).unwrap(),
        Standing {
            limit: 1,
            remaining: 0,
            reset_secs: 1
        }
    );
    for _ in 0..5 {
        assert!(windows.spend(&[wide, tight], now).is_err());
    }
    assert_eq!(windows.spend(&[wide], now).unwrap().remaining, 8);
}

#[test]
fn the_number_of_keys_is_bounded() {
    let windows = Windows::new(SHARDS * 16);
    let hasher = ahash::RandomState::with_seed(1);
    for i in 0..50_000u64 {
        let now = windows.epoch + Duration::from_millis(i / 10);
        windows
            .spend(&[ask(hasher.hash_one(i), 5, 60_000)], now)
            .unwrap();
    }
    let keys: usize = windows.shards.iter().map(|s| s.lock().0.len()).sum();
    assert!(keys <= SHARDS * 17, "{keys}");
}

#[test]
fn threads_that_race_are_granted_max_together() {
    let windows = Windows::new(1000);
    let asks = [ask(3, 100, 60_000), ask(7 << 40, 150, 60_000)];
    let granted: usize = std::thread::scope(|scope| {
        let spend = || {
            (0..500)
                .filter(|_| windows.spend(&asks, Instant::now()).is_ok())
                .count()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(spend)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(granted, 100);
}
