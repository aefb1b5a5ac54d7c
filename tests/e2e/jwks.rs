//! The issuer's key set: fetched, renewed, rotated, and what happens while the issuer is away or talks nonsense.

use crate::support::prelude::*;

#[test]
fn the_keys_of_the_set_verify_tokens_each_in_its_own_algorithm() {
    let pairs = [KeyPair::rsa(), KeyPair::p256(), KeyPair::ed25519()];
    let names = ["rsa", "p256", "ed"];
    let keys: Vec<Value> = pairs
        .iter()
        .zip(names)
        .map(|(pair, kid)| pair.jwk(kid))
        .collect();
    let issuer = issuer_of(&keys);
    let (backend, gateway) = start(&issuer, "300s", |gateway| gateway);
    wait_for_keys(&gateway, 3);

    for (pair, kid) in pairs.iter().zip(names) {
        let named = pair.sign(&Token::user("u1").kid(kid));
        assert_eq!(status(&gateway, &named), 200, "{kid}");
        let unnamed = pair.sign(&Token::user("u1"));
        assert_eq!(
            status(&gateway, &unnamed),
            200,
            "{kid}, not named in the token"
        );
        for other in names.iter().filter(|other| **other != kid) {
            let swapped = pair.sign(&Token::user("u1").kid(other));
            assert_eq!(
                status(&gateway, &swapped),
                401,
                "{kid} under the name {other}"
            );
        }
        let confused = Token::user("u1").kid(kid).signed_with(&pair.public_pem);
        assert_eq!(status(&gateway, &confused), 401, "{kid} as an HS256 secret");
        let secret = Token::user("u1").kid(kid).hs256();
        assert_eq!(
            status(&gateway, &secret),
            401,
            "the gateway's secret under {kid}"
        );
    }
    assert_eq!(
        status(&gateway, &token::customer()),
        200,
        "the gateway's own secret counts too"
    );
    assert_eq!(backend.count(), 7);
    let asked = &issuer.requests()[0];
    assert_eq!(
        (asked.method.as_str(), asked.target.as_str()),
        ("GET", "/jwks?v=1")
    );
    assert_eq!(
        asked.header("host"),
        Some(issuer.addr().to_string().as_str())
    );
}

#[test]
fn an_unknown_key_causes_one_fetch_whoever_sends_how_many_of_them() {
    let (old, new) = (KeyPair::p256(), KeyPair::p256());
    let issuer = issuer_of(&[old.jwk("old")]);
    let (_backend, gateway) = start(&issuer, "300s", |gateway| gateway);
    wait_for_keys(&gateway, 1);
    assert_eq!(issuer.count(), 1);

    publish(&issuer, &[old.jwk("old"), new.jwk("new")]);
    assert_eq!(
        status(&gateway, &new.sign(&Token::user("u1").kid("new"))),
        200
    );
    assert_eq!(issuer.count(), 2);
    let since = Instant::now();
    let unknown = |i: usize| {
        let token = Token::user("u1").kid(&format!("unknown-{i}"));
        Request::get("/").bearer(&new.sign(&token))
    };
    for response in burst(gateway.addr(), (0..40).map(unknown).collect(), 8) {
        assert_eq!(response.status, 401);
        assert_eq!(response.json()["code"], "INVALID_TOKEN");
    }
    let fetches = issuer.count();
    // Ten seconds must pass between two of them.
    let allowed = 2 + since.elapsed().as_secs() as usize / 10;
    assert!(fetches <= allowed, "{fetches} fetches");
    assert_eq!(
        status(&gateway, &old.sign(&Token::user("u1").kid("old"))),
        200
    );
}

#[test]
fn requests_with_known_keys_do_not_wait_for_an_issuer_that_is_silent() {
    let pair = KeyPair::p256();
    let issuer = issuer_of(&[pair.jwk("k")]);
    let (_backend, gateway) = start(&issuer, "300s", |gateway| gateway);
    wait_for_keys(&gateway, 1);
    issuer.hold();
    let unknown = pair.sign(&Token::user("u1").kid("unknown"));
    let mut waiting = Client::to(gateway.addr()).connect();
    waiting.send(&Request::get("/").bearer(&unknown).bytes());
    issuer.wait_requests(2);

    let before = Instant::now();
    assert_eq!(
        status(&gateway, &pair.sign(&Token::user("u1").kid("k"))),
        200
    );
    assert_eq!(status(&gateway, &token::customer()), 200);
    assert!(
        before.elapsed() < Duration::from_secs(4),
        "{:?}",
        before.elapsed()
    );
    assert!(
        waiting.stays_open(),
        "it waits for the one fetch that it caused"
    );
    issuer.release();
    assert_eq!(waiting.read_response().status, 401);
}

#[test]
fn the_gateway_starts_without_its_issuer_and_takes_the_keys_up_when_it_comes() {
    let pair = KeyPair::p256();
    let issuer = issuer_of(&[pair.jwk("k")]);
    issuer.stop();
    let (_backend, gateway) = start(&issuer, "1s", |gateway| gateway.without_env("JWT_SECRET"));
    assert_eq!(Request::get("/ready").send_to(gateway.addr()).status, 200);
    let request = Request::get("/").bearer(&pair.sign(&Token::user("u1").kid("k")));
    assert_eq!(request.send_to(gateway.addr()).status, 401);

    issuer.restart();
    let accepted = within(Duration::from_secs(15), || {
        (request.send_to(gateway.addr()).status == 200).then_some(())
    });
    assert!(
        accepted.is_some(),
        "the issuer is back, its token is refused still"
    );
}

#[test]
fn a_token_that_came_before_its_key_was_known_is_good_once_it_is() {
    let (first, second) = (KeyPair::p256(), KeyPair::p256());
    // The keys come late, while there is a secret as well.
    let issuer = issuer_of(&[first.jwk("first")]);
    issuer.set(|_| Reply::status(503));
    let (_backend, gateway) = start(&issuer, "1s", |gateway| gateway);
    let named = first.sign(&Token::user("u1").kid("first"));
    let unnamed = first.sign(&Token::user("u1"));
    assert_eq!(status(&gateway, &named), 401);
    assert_eq!(status(&gateway, &unnamed), 401);
    publish(&issuer, &[first.jwk("first")]);
    wait_for_keys(&gateway, 1);
    assert_eq!(
        status(&gateway, &first.sign(&Token::user("u2").kid("first"))),
        200
    );
    assert_eq!(status(&gateway, &named), 200, "the same token as before");
    assert_eq!(
        status(&gateway, &unnamed),
        200,
        "the same token as before, without a kid"
    );

    // The key behind a name is replaced.
    let renamed = second.sign(&Token::user("u1").kid("first"));
    assert_eq!(status(&gateway, &renamed), 401);
    publish(&issuer, &[second.jwk("first"), first.jwk("other")]);
    wait_for_keys(&gateway, 2);
    assert_eq!(
        status(&gateway, &renamed),
        200,
        "the same token as before its key"
    );
}

#[test]
fn whatever_the_issuer_answers_instead_of_keys_the_known_ones_stay() {
    let pair = KeyPair::rsa();
    let issuer = issuer_of(&[pair.jwk("k")]);
    let (_backend, gateway) = start(&issuer, "1s", |gateway| gateway);
    wait_for_keys(&gateway, 1);
    let secret = token::base64url(token::SECRET);
    let answers = [
        ("500", Reply::status(500)),
        (
            "404 with keys",
            Reply::status(404).body(set_of(&[pair.jwk("x")]).to_string()),
        ),
        (
            "a redirect",
            Reply::status(302).header("Location", "http://127.0.0.1/"),
        ),
        (
            "no JSON",
            Reply::status(200).body("<html>maintenance</html>"),
        ),
        ("an empty answer", Reply::status(200)),
        ("another document", Reply::json(json!({"error": "later"}))),
        ("no keys", Reply::json(json!({"keys": []}))),
        ("keys that are no list", Reply::json(json!({"keys": "all"}))),
        (
            "only a secret",
            Reply::json(json!({"keys": [{"kty": "oct", "kid": "k", "k": secret}]})),
        ),
        ("endless", Reply::status(200).body(vec![b' '; 300 << 10])),
        (
            "cut off",
            Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{").then_close(),
        ),
        ("reset", Reply::reset()),
    ];
    for (what, answer) in answers {
        let seen = issuer.count();
        issuer.set(move |_| answer.clone());
        // The second one is asked for after the first was looked at.
        let asked = within(Duration::from_secs(15), || {
            (issuer.count() >= seen + 2).then_some(())
        });
        assert!(asked.is_some(), "{what}: the issuer is not asked again");
        assert_eq!(
            status(&gateway, &pair.sign(&Token::user("u1").kid("k"))),
            200,
            "{what}"
        );
        assert_eq!(
            status(&gateway, &pair.sign(&Token::user("u1").kid("x"))),
            401,
            "{what}"
        );
        assert_eq!(
            status(&gateway, &Token::user("u1").kid("k").hs256()),
            401,
            "{what}"
        );
    }
    issuer.stop();
    gateway.wait_log(|line| line["level"] == "warn" && line["msg"].to_string().contains("key set"));
    assert_eq!(
        status(&gateway, &pair.sign(&Token::user("u1").kid("k"))),
        200,
        "away"
    );
}

#[test]
fn a_key_that_the_issuer_took_back_takes_its_tokens_with_it() {
    let (old, new) = (KeyPair::p256(), KeyPair::p256());
    let issuer = issuer_of(&[old.jwk("old"), new.jwk("new")]);
    let (_backend, gateway) = start(&issuer, "1s", |gateway| gateway);
    wait_for_keys(&gateway, 2);
    let stolen = old.sign(&Token::user("u1").kid("old"));
    let unnamed = old.sign(&Token::user("u1"));
    let kept = new.sign(&Token::user("u1").kid("new"));
    let own = token::customer();
    for token in [&stolen, &unnamed, &kept, &own] {
        assert_eq!(status(&gateway, token), 200);
    }
    publish(&issuer, &[new.jwk("new")]);
    wait_for_keys(&gateway, 1);
    assert_eq!(
        status(&gateway, &stolen),
        401,
        "remembered, and its key is gone"
    );
    assert_eq!(status(&gateway, &unnamed), 401, "remembered without a kid");
    assert_eq!(status(&gateway, &kept), 200);
    assert_eq!(
        status(&gateway, &own),
        200,
        "verified with the gateway's own secret"
    );
}

#[test]
fn keys_that_are_not_for_our_signatures_are_left_out() {
    let (good, other) = (KeyPair::rsa(), KeyPair::p256());
    let with = |mut key: Value, name: &str, value: Value| {
        key[name] = value;
        key
    };
    let secret = "a-secret-that-the-issuer-has-published";
    let oct = json!({"kty": "oct", "kid": "oct", "alg": "HS256", "k": token::base64url(secret)});
    let keys = [
        oct,
        json!({"kty": "future", "kid": "future", "q": "?"}),
        json!({"kty": "EC", "crv": "P-521", "kid": "p521", "x": "AA", "y": "AA"}),
        with(good.jwk("enc"), "use", json!("enc")),
        with(good.jwk("hs"), "alg", json!("HS256")),
        with(good.jwk("oaep"), "alg", json!("RSA-OAEP")),
        with(other.jwk("wrong-alg"), "alg", json!("RS256")),
        with(good.jwk("plain"), "extra", json!({"x5t": 1})),
    ];
    let issuer = issuer_of(&keys);
    let (_backend, gateway) = start(&issuer, "300s", |gateway| gateway);
    wait_for_keys(&gateway, 1);
    let user = |kid: &str| Token::user("u1").kid(kid);
    assert_eq!(status(&gateway, &good.sign(&user("plain"))), 200);
    let cases = [
        ("oct", user("oct").signed_with(secret)),
        ("oct, not named", Token::user("u1").signed_with(secret)),
        ("future", good.sign(&user("future"))),
        ("enc", good.sign(&user("enc"))),
        ("hs", user("hs").signed_with(&good.public_pem)),
        ("hs as RS256", good.sign(&user("hs"))),
        ("oaep", good.sign(&user("oaep"))),
        ("wrong-alg", other.sign(&user("wrong-alg"))),
    ];
    for (what, token) in cases {
        assert_eq!(status(&gateway, &token), 401, "{what}");
    }
}

#[test]
fn an_address_that_is_no_url_is_a_fault_of_the_configuration() {
    for url in ["issuer.test/jwks", "ftp://issuer.test/jwks", "http://"] {
        let exit = Gateway::platform()
            .env("JWT_JWKS_URL", url)
            .arg("--test")
            .run_to_exit();
        assert_eq!(exit.code, 1, "{url}");
        assert!(exit.stderr.contains("jwks_url"), "{url}: {}", exit.stderr);
    }
}

fn set_of(keys: &[Value]) -> Value {
    json!({"keys": keys})
}

/// An issuer that publishes these keys.
fn issuer_of(keys: &[Value]) -> Upstream {
    let issuer = Upstream::start();
    publish(&issuer, keys);
    issuer
}

fn publish(issuer: &Upstream, keys: &[Value]) {
    let set = set_of(keys);
    issuer.set(move |_| Reply::json(set.clone()));
}

/// Waits until the newest set that the gateway has taken up holds so many keys.
#[track_caller]
fn wait_for_keys(gateway: &Gateway, count: usize) {
    let message = format!("the issuer's key set has {count} keys");
    gateway.wait_log(|line| line["msg"] == message.as_str());
}

#[track_caller]
fn status(gateway: &Gateway, token: &str) -> u16 {
    Request::get("/")
        .bearer(token)
        .send_to(gateway.addr())
        .status
}

#[track_caller]
fn start(
    issuer: &Upstream,
    refresh: &str,
    change: impl FnOnce(GatewayBuilder) -> GatewayBuilder,
) -> (Upstream, Gateway) {
    let backend = Upstream::start();
    let yaml = format!(
        r#"
limits: {{ flood: {{ per_second: 100000 }}, global: {{ max: 100000, window: 60s }} }}
auth:
  jwt: {{ jwks_url: "{}/jwks?v=1", jwks_refresh: {refresh} }}
  failures: {{ max: 100000, window: 60s }}
services: {{ backend: {{ url: "{}", health: {{ enabled: false }} }} }}
routes: [{{ path: "/*", service: backend, auth: token }}]
"#,
        issuer.url(),
        backend.url()
    );
    (backend, change(Gateway::with(&yaml)).start())
}
