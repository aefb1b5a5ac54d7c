//! A write with an `Idempotency-Key` has one effect, and its answer comes again (docs/decisions/0025).

mod answers;
mod faults;
mod gone;
mod late;
mod races;
mod upgrades;

use crate::support::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Requests wait for Redis also on a machine that is busy: for tests that are about other things than the wait.
const PATIENT: &str = "{ command_timeout: 2s }";

/// Redis that is back is taken up within two seconds; more is for a machine that has other things to do.
const TAKEN_UP: Duration = Duration::from_secs(8);

/// Gateways before one backend, with one Redis or none.
struct World {
    backend: Upstream,
    redis: Option<Redis>,
    gateways: Vec<Gateway>,
    conf: Conf,
}

impl World {
    /// One process that keeps everything itself.
    fn alone() -> Self {
        Self::new(None, 1, |conf| conf)
    }

    /// So many processes with one Redis.
    fn shared(gateways: usize) -> Self {
        Self::new(Some(Redis::start()), gateways, |conf| conf)
    }

    /// Both.
    fn both() -> [Self; 2] {
        [Self::alone(), Self::shared(2)]
    }

    fn new(redis: Option<Redis>, count: usize, change: impl Fn(Conf) -> Conf) -> Self {
        let backend = Upstream::start();
        numbered(&backend);
        let conf = Conf::of(&[backend.url()])
            .route("auth", "token")
            .route("idempotency", "optional")
            .top("redis", PATIENT)
            .top("retry", "{ max_retries: 0 }");
        let mut world = Self {
            backend,
            redis,
            gateways: Vec::new(),
            conf: change(conf),
        };
        for _ in 0..count {
            world.start_another();
        }
        world
    }

    #[track_caller]
    fn start_another(&mut self) {
        let mut gateway = self.conf.gateway();
        if let Some(redis) = &self.redis {
            gateway = gateway
                .env("REDIS_HOST", redis.addr().ip())
                .env("REDIS_PORT", redis.port());
        }
        let gateway = gateway.start();
        if self.redis.is_some() {
            gateway.wait_metric("redis_up", |up| up == 1.0);
        }
        self.gateways.push(gateway);
    }

    /// The address of a process, in turns.
    fn addr(&self, turn: usize) -> SocketAddr {
        self.gateways[turn % self.gateways.len()].addr()
    }

    fn redis(&self) -> &Redis {
        self.redis.as_ref().expect("this world has a Redis")
    }

    /// What all processes have counted.
    fn results(&self, result: &str) -> f64 {
        let series = format!(r#"idempotency_requests_total{{result="{result}"}}"#);
        self.gateways.iter().map(|g| g.metric(&series)).sum()
    }

    /// The writes that Redis knows.
    fn keys(&self) -> Vec<String> {
        let keys = self.redis().command(&["KEYS", "idem:*"]);
        keys.split_whitespace().map(str::to_owned).collect()
    }
}

/// Every effect has a number of its own.
fn numbered(backend: &Upstream) {
    let next = AtomicUsize::new(1);
    backend.set(move |request| {
        let number = next.fetch_add(1, Ordering::SeqCst);
        Reply::status(201)
            .header("Content-Type", "application/json; charset=utf-8")
            .header("Location", &format!("/orders/{number}"))
            .header("X-Order", &number.to_string())
            .header("Set-Cookie", "session=1")
            .body(format!(
                "{{\"order\": {number},\n \"of\": {:?}}}",
                request.target
            ))
    });
}

fn token(user: &str) -> String {
    Token::user(user).hs256()
}

/// A payment.
fn pay(user: &str, key: &str) -> Request {
    Request::post("/s/pay")
        .bearer(&token(user))
        .header("Idempotency-Key", key)
        .json(&json!({"amount": 100}))
}

fn code(response: &Response) -> (u16, String) {
    let code = response.json()["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    (response.status, code)
}

fn is_replay(response: &Response) -> bool {
    response.header("idempotent-replayed") == Some("true")
}
