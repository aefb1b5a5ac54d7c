//! The response cache beyond RFC 9111 (which is in `rfc9111/`): who sees whose answers, what is judged before a hit, one
//! fetch for many, bounds, purging, Redis, reloads.

mod bounds;
mod clients;
mod fills;
mod inner;
mod isolation;
mod life;
mod policies;
mod purge;
mod shared;
mod topologies;
mod words;

use crate::support::prelude::*;

/// One service, whose route `/s/*` is public and cached: only what the backend says makes anything fresh.
fn conf(backend: &Upstream) -> Conf {
    Conf::of(&[backend.url()])
        .top("cache", "{ memory: 64MiB }")
        .service("retry", "{ max_retries: 0 }")
        .route("cache", "{}")
}

/// The same, with this Redis.
fn on(redis: &Redis, conf: &Conf) -> GatewayBuilder {
    conf.gateway()
        .env("REDIS_HOST", redis.addr().ip())
        .env("REDIS_PORT", redis.port())
}

/// Answers that are fresh for a minute, each another.
fn fresh() -> Upstream {
    saying("max-age=60")
}

/// Answers with this Cache-Control: `answer N`, N being how many were asked for before, plus one.
fn saying(cache_control: &'static str) -> Upstream {
    let turn = std::sync::atomic::AtomicUsize::new(0);
    Upstream::start_with(move |_| {
        let turn = turn.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
        Reply::status(200)
            .header("Cache-Control", cache_control)
            .body(format!("answer {turn}"))
    })
}

#[track_caller]
fn get(gateway: &Gateway, path: &str) -> Response {
    Request::get(path).send_to(gateway.addr())
}

/// The text of a 200.
#[track_caller]
fn text(gateway: &Gateway, path: &str) -> String {
    let response = get(gateway, path);
    assert_eq!(response.status, 200, "{}", response.text());
    response.text().to_owned()
}

/// Asks until it is a hit: an answer is stored when its last byte has come, which its client may know before.
#[track_caller]
fn stored(gateway: &Gateway, request: &Request) -> Response {
    let hit = within(Duration::from_secs(5), || {
        let response = request.send_to(gateway.addr());
        is_hit(&response).then_some(response)
    });
    hit.unwrap_or_else(|| panic!("it is not stored; {}", gateway.raw_output()))
}

fn is_hit(response: &Response) -> bool {
    let told = response.headers_named("cache-status").join(", ");
    told.split([';', ',']).any(|part| part.trim() == "hit")
}

/// `POST /cache/purge`, and how many answers it says it took away.
#[track_caller]
fn purge(gateway: &Gateway, what: &Value) -> u64 {
    let response = Request::post("/cache/purge")
        .json(what)
        .send_to(gateway.private_addr());
    assert_eq!(response.status, 200, "{what}: {}", response.text());
    let purged = response.json()["purged"].as_u64();
    purged.unwrap_or_else(|| panic!("{}", response.text()))
}

/// Waits until commands of this gateway reach Redis.
#[track_caller]
fn knows_redis(gateway: &Gateway) {
    crate::support::tenancy::knows_redis(gateway);
}
