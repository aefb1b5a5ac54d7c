//! Who is calling? Tokens and API keys, what is wrong with them, and what the backend is told (decisions 12 to 14, 19).

use crate::support::prelude::*;
use jsonwebtoken::{EncodingKey, crypto};
use sha2::{Digest, Sha256};
use std::time::{SystemTime, UNIX_EPOCH};

const KEY: &str = "partner-key-0123456789";
const EXPIRED_KEY: &str = "partner-key-of-last-year";

#[test]
fn the_tenant_comes_from_the_token_and_never_from_a_header() {
    let (backend, gateway) = start(Gateway::with);
    let spoofed = |path: &str| {
        Request::get(path)
            .header("X-Tenant-ID", "victim")
            .header("x-tenant-id", "victim")
            .header("X-Tenant-Source", "jwt")
            .header("X_Tenant_Id", "victim")
            .bearer(&Token::user("u1").tenant("acme").hs256())
    };
    assert_eq!(spoofed("/token").send_to(gateway.addr()).status, 200);
    assert_eq!(spoofed("/public").send_to(gateway.addr()).status, 200);

    let [verified, public] = &backend.wait_requests(2)[..] else {
        panic!("two requests")
    };
    assert_eq!(verified.headers_named("x-tenant-id"), ["acme"]);
    assert_eq!(verified.headers_named("x-tenant-source"), ["jwt"]);
    assert_eq!(verified.header_count("x_tenant_id"), 0);
    for name in ["x-tenant-id", "x-tenant-source", "x_tenant_id"] {
        assert_eq!(public.header_count(name), 0, "{name}: nobody was verified");
    }
}

#[test]
fn without_a_bearer_token_the_answer_is_auth_required() {
    let (backend, gateway) = start(Gateway::with);
    let good = token::customer();
    let cases: [(&str, Option<String>); 8] = [
        ("no header", None),
        ("Basic", Some("Basic dXNlcjpwYXNz".into())),
        ("a token as Basic", Some(format!("Basic {good}"))),
        ("no scheme", Some(good.clone())),
        ("an empty value", Some(String::new())),
        ("nothing behind the scheme", Some("Bearer".into())),
        ("blanks behind the scheme", Some("Bearer   ".into())),
        ("no blank behind the scheme", Some(format!("Bearer{good}"))),
    ];
    for (what, authorization) in cases {
        let mut request = Request::get("/token");
        if let Some(value) = authorization {
            request = request.header("Authorization", &value);
        }
        let response = request.send_to(gateway.addr());
        assert_refused(what, &response, "AUTH_REQUIRED");
        let challenge = response.header("WWW-Authenticate").unwrap();
        assert!(!challenge.contains("error="), "{what}: {challenge}");
    }
    assert_eq!(backend.heads_seen(), 0);
}

#[test]
fn what_is_no_token_at_all_is_an_invalid_token() {
    let (backend, gateway) = start(Gateway::with);
    let good = token::customer();
    let other = Token::user("u2").hs256();
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (other_message, _) = other.rsplit_once('.').unwrap();
    let (header, claims) = message.split_once('.').unwrap();
    let huge = Token::user("u1").claim("padding", "x".repeat(9000)).hs256();
    let cases = [
        ("a word", "abc".into()),
        ("dots", "..".into()),
        ("no base64", "!!!.???.***".into()),
        ("two parts", message.to_owned()),
        ("four parts", format!("{good}.x")),
        ("five parts", format!("{good}.x.y")),
        ("two tokens", format!("{good}, {other}")),
        ("an empty signature", format!("{message}.")),
        ("a cut signature", good[..good.len() - 4].to_owned()),
        (
            "another token's signature",
            format!("{other_message}.{signature}"),
        ),
        (
            "claims that are no JSON",
            format!("{header}.e30x.{signature}"),
        ),
        (
            "header and claims swapped",
            format!("{claims}.{header}.{signature}"),
        ),
        ("padded base64", format!("{good}=")),
        ("another spelling of the last digit", respelled(&good)),
        ("a blank within", good.replacen('.', " .", 1)),
        ("more than 8 KiB, well signed", huge),
        ("30 KB of garbage", "a".repeat(30_000)),
    ];
    for (what, token) in cases {
        let response = Request::get("/token")
            .bearer(&token)
            .send_to(gateway.addr());
        assert_refused(what, &response, "INVALID_TOKEN");
        let challenge = response.header("WWW-Authenticate").unwrap();
        assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    }
    let twice = Request::get("/token").bearer(&good).bearer(&good);
    let response = twice.send_to(gateway.addr());
    assert_refused("two Authorization headers", &response, "INVALID_TOKEN");
    assert_eq!(backend.heads_seen(), 0);
}

#[test]
fn the_algorithm_of_a_token_never_chooses_how_it_is_checked() {
    let (backend, gateway) = start(Gateway::with);
    let user = || Token::user("u1").role("admin");
    let none = |alg: &str| user().with_header(json!({"alg": alg})).unsigned_none();
    let as_hs256 = user().with_header(json!({"alg": "none"})).hs256();
    let cases = [
        ("none", none("none")),
        ("None", none("None")),
        ("NONE", none("NONE")),
        ("no alg", user().with_header(json!({"alg": null})).hs256()),
        ("none, but signed", as_hs256),
        (
            "HS384 with our secret",
            user().sign(Algorithm::HS384, token::SECRET),
        ),
        (
            "HS512 with our secret",
            user().sign(Algorithm::HS512, token::SECRET),
        ),
        (
            "RS256 said, HS256 meant",
            user().with_header(json!({"alg": "RS256"})).hs256(),
        ),
        (
            "a list",
            user().with_header(json!({"alg": ["HS256"]})).hs256(),
        ),
        ("crit", user().with_header(json!({"crit": ["exp"]})).hs256()),
        (
            "an empty crit",
            user().with_header(json!({"crit": []})).hs256(),
        ),
        (
            "b64",
            user()
                .with_header(json!({"crit": ["b64"], "b64": false}))
                .hs256(),
        ),
        (
            "another secret",
            user().signed_with("another-secret-0123456789-abcdefghijkl"),
        ),
        ("an empty secret", user().signed_with("")),
        (
            "alg twice",
            raw_token(
                r#"{"alg":"none","alg":"HS256"}"#,
                &user().claims().to_string(),
            ),
        ),
    ];
    for (what, token) in cases {
        let response = Request::get("/token")
            .bearer(&token)
            .send_to(gateway.addr());
        assert_refused(what, &response, "INVALID_TOKEN");
    }
    assert_eq!(backend.heads_seen(), 0);
}

#[test]
fn every_claim_is_checked() {
    let (backend, gateway) = start(Gateway::with);
    let t = || Token::user("u1");
    let now = unix_now();
    let duplicate = |claim: &str| {
        let claims = t().claims().to_string();
        raw_token(
            r#"{"alg":"HS256"}"#,
            &claims.replacen('{', &format!("{{{claim},"), 1),
        )
    };
    let invalid = [
        ("no exp", t().without("exp").hs256()),
        ("exp null", t().claim("exp", json!(null)).hs256()),
        (
            "exp a text",
            t().claim("exp", (now + 60).to_string()).hs256(),
        ),
        ("exp negative", t().claim("exp", -1).hs256()),
        ("exp beyond all time", t().claim("exp", 1e300).hs256()),
        ("nbf in a minute", t().claim("nbf", now + 60).hs256()),
        (
            "nbf a text",
            t().claim("nbf", (now + 60).to_string()).hs256(),
        ),
        ("no iss", t().without("iss").hs256()),
        ("iss of another", t().claim("iss", "evil").hs256()),
        (
            "iss in other letters",
            t().claim("iss", "TicketToken-API").hs256(),
        ),
        (
            "iss a list with ours",
            t().claim("iss", json!([token::ISSUER])).hs256(),
        ),
        ("iss null", t().claim("iss", json!(null)).hs256()),
        ("type refresh", t().claim("type", "refresh").hs256()),
        ("type Access", t().claim("type", "Access").hs256()),
        ("no type", t().without("type").hs256()),
        ("no tenant", t().without("tenant_id").hs256()),
        ("tenant empty", t().claim("tenant_id", "").hs256()),
        ("tenant null", t().claim("tenant_id", json!(null)).hs256()),
        ("tenant a number", t().claim("tenant_id", 7).hs256()),
        (
            "tenant a list",
            t().claim("tenant_id", json!(["t1"])).hs256(),
        ),
        ("tenant blank", t().claim("tenant_id", " ").hs256()),
        (
            "tenant with a line break",
            t().tenant("t1\r\nX-Role: admin").hs256(),
        ),
        ("tenant endless", t().tenant(&"t".repeat(257)).hs256()),
        ("nobody", t().without("sub").hs256()),
        ("sub empty", t().claim("sub", "").hs256()),
        (
            "sub empty beside an id",
            t().claim("sub", "").claim("id", "u1").hs256(),
        ),
        ("sub a number", t().claim("sub", 1).hs256()),
        ("permissions a text", t().claim("permissions", "*").hs256()),
        ("sub twice", duplicate(r#""sub":"admin""#)),
        ("tenant twice", duplicate(r#""tenant_id":"victim""#)),
        ("role twice", duplicate(r#""role":"admin""#)),
        ("exp twice", duplicate(r#""exp":99999999999"#)),
        ("type twice", duplicate(r#""type":"access""#)),
        (
            "expired and signed by another",
            t().expires_in(-60).signed_with("no"),
        ),
        (
            "claims that are a list",
            raw_token(r#"{"alg":"HS256"}"#, "[]"),
        ),
    ];
    for (what, token) in invalid {
        let response = Request::get("/token")
            .bearer(&token)
            .send_to(gateway.addr());
        assert_refused(what, &response, "INVALID_TOKEN");
    }
    for (what, seconds) in [("a minute ago", -60), ("past the leeway of 5 s", -7)] {
        let token = t().expires_in(seconds).hs256();
        for _ in 0..2 {
            let response = Request::get("/token")
                .bearer(&token)
                .send_to(gateway.addr());
            assert_refused(what, &response, "TOKEN_EXPIRED");
        }
    }
    assert_eq!(backend.heads_seen(), 0);
}

#[test]
fn all_spellings_of_a_good_token_are_accepted() {
    let (_backend, gateway) = start(Gateway::with);
    let t = || Token::user("u1");
    let now = unix_now();
    let good = t().hs256();
    let spellings = [
        ("expired within the leeway", bearer(&t().expires_in(-2))),
        ("lower case", format!("bearer {good}")),
        ("upper case", format!("BEARER {good}")),
        ("two blanks", format!("Bearer  {good}")),
        ("a blank behind", format!("Bearer {good} ")),
        ("id for sub", bearer(&t().without("sub").claim("id", "u1"))),
        ("nbf within the leeway", bearer(&t().claim("nbf", now + 4))),
        ("nbf in the past", bearer(&t().claim("nbf", now - 60))),
        (
            "exp with a fraction",
            bearer(&t().claim("exp", now as f64 + 60.5)),
        ),
        ("role null", bearer(&t().claim("role", json!(null)))),
        (
            "some audience",
            bearer(&t().claim("aud", json!(["a", "b"]))),
        ),
        (
            "a kid that nobody asks for",
            bearer(&t().kid("../../etc/passwd")),
        ),
        ("no jti, no iat", bearer(&t().without("jti").without("iat"))),
    ];
    for (what, authorization) in spellings {
        let request = Request::get("/token").header("Authorization", &authorization);
        let response = request.send_to(gateway.addr());
        assert_eq!(response.status, 200, "{what}: {}", response.text());
    }
}

#[test]
fn a_token_without_an_end_in_sight_is_good_each_time_it_comes() {
    let (_backend, gateway) = start(Gateway::with);
    for exp in [
        json!(99_999_999_999_999_u64),
        json!(1e18),
        json!(i64::MAX),
        json!(1e19),
    ] {
        let token = Token::user("u1").claim("exp", exp.clone()).hs256();
        for time in ["first", "second"] {
            let mut connection = Client::to(gateway.addr()).connect();
            connection.send(&Request::get("/token").bearer(&token).bytes());
            match connection.try_read_response() {
                Ok(response) => assert_eq!(response.status, 200, "exp {exp}, the {time} time"),
                Err(broken) => panic!("exp {exp}, the {time} time: {broken}"),
            }
        }
    }
}

#[test]
fn a_token_that_expires_while_it_is_remembered_is_refused() {
    let (_backend, gateway) = start(Gateway::with);
    let request = Request::get("/token").bearer(&Token::user("u1").expires_in(-2).hs256());
    assert_eq!(request.send_to(gateway.addr()).status, 200);

    let refused = within(Duration::from_secs(15), || {
        Some(request.send_to(gateway.addr())).filter(|response| response.status != 200)
    });
    assert_refused("its time is over", &refused.unwrap(), "TOKEN_EXPIRED");
}

#[test]
fn a_token_that_came_too_early_is_accepted_once_its_time_has_come() {
    let (_backend, gateway) = start(Gateway::with);
    // 5 s of leeway, and 4 s to go.
    let token = Token::user("u1").claim("nbf", unix_now() + 9).hs256();
    let request = Request::get("/token").bearer(&token);
    let early = request.send_to(gateway.addr());
    assert_refused("too early", &early, "INVALID_TOKEN");

    let accepted = within(Duration::from_secs(15), || {
        (request.send_to(gateway.addr()).status == 200).then_some(())
    });
    assert!(
        accepted.is_some(),
        "nbf is long past, the token is refused still"
    );
}

#[test]
fn the_access_secret_wins_over_the_jwt_secret() {
    let access = "another-secret-for-access-tokens-0123456789";
    let (_backend, gateway) = start(|yaml| Gateway::with(yaml).env("JWT_ACCESS_SECRET", access));
    let status = |token: &str| {
        Request::get("/token")
            .bearer(token)
            .send_to(gateway.addr())
            .status
    };
    assert_eq!(status(&Token::user("u1").signed_with(access)), 200);
    assert_eq!(status(&Token::user("u1").hs256()), 401);
}

#[test]
fn the_issuer_is_the_configured_one() {
    let (_backend, gateway) = start(|yaml| Gateway::with(yaml).env("JWT_ISSUER", "acme-auth"));
    let token = Token::user("u1").claim("iss", "acme-auth").hs256();
    let status = |token: &str| {
        Request::get("/token")
            .bearer(token)
            .send_to(gateway.addr())
            .status
    };
    assert_eq!(status(&token), 200);
    assert_eq!(status(&token::customer()), 401);
}

#[test]
fn a_public_key_has_the_algorithm_of_its_kind_whichever_way_it_is_given() {
    let (rsa, p256, ed25519) = (KeyPair::rsa(), KeyPair::p256(), KeyPair::ed25519());
    let file = TempFile::new("pem", &rsa.public_pem);
    let ed25519_file = TempFile::new("pem", &ed25519.public_pem);
    let path = |file: &TempFile| file.path().display().to_string();
    let escaped = |pem: &str| pem.trim_end().replace('\n', "\\n");
    let cases = [
        ("RSA as PEM", &rsa, rsa.public_pem.clone()),
        ("RSA with escapes", &rsa, escaped(&rsa.public_pem)),
        ("RSA as a file", &rsa, path(&file)),
        ("P-256 as PEM", &p256, p256.public_pem.clone()),
        ("P-256 with escapes", &p256, escaped(&p256.public_pem)),
        ("Ed25519 as a file", &ed25519, path(&ed25519_file)),
    ];
    for (what, pair, given) in cases {
        let (backend, gateway) = start(|yaml| {
            let gateway = Gateway::with(yaml).without_env("JWT_SECRET");
            gateway.env("JWT_PUBLIC_KEY", given)
        });
        let status = |token: &str| {
            Request::get("/token")
                .bearer(token)
                .send_to(gateway.addr())
                .status
        };
        let user = Token::user("u1");
        assert_eq!(status(&pair.sign(&user)), 200, "{what}");
        for (how, token) in forgeries(pair, &user) {
            assert_eq!(status(&token), 401, "{what}: {how}");
        }
        assert_eq!(backend.count(), 1, "{what}");
    }
}

#[test]
fn a_secret_and_a_public_key_are_each_good_for_their_own_algorithm() {
    let pair = KeyPair::p256();
    let (_backend, gateway) =
        start(|yaml| Gateway::with(yaml).env("JWT_PUBLIC_KEY", &pair.public_pem));
    let status = |token: &str| {
        Request::get("/token")
            .bearer(token)
            .send_to(gateway.addr())
            .status
    };
    let user = Token::user("u1");
    assert_eq!(status(&user.hs256()), 200);
    assert_eq!(status(&pair.sign(&user)), 200);
    assert_eq!(status(&user.signed_with(&pair.public_pem)), 401);
    let expired = user.clone().expires_in(-60);
    for token in [expired.hs256(), pair.sign(&expired)] {
        let response = Request::get("/token")
            .bearer(&token)
            .send_to(gateway.addr());
        assert_refused("expired", &response, "TOKEN_EXPIRED");
    }
}

#[test]
fn without_usable_keys_production_does_not_start_and_says_why() {
    let short = "0123456789-0123456789-012345678";
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 7] = [
        ("no secret", &[("JWT_SECRET", "")], "JWT_SECRET"),
        (
            "no secret in staging",
            &[("JWT_SECRET", ""), ("NODE_ENV", "staging")],
            "JWT_SECRET",
        ),
        ("31 characters", &[("JWT_SECRET", short)], "JWT_SECRET"),
        (
            "31 in staging",
            &[("JWT_SECRET", short), ("NODE_ENV", "staging")],
            "JWT_SECRET",
        ),
        (
            "31 for access",
            &[("JWT_ACCESS_SECRET", short)],
            "JWT_ACCESS_SECRET",
        ),
        (
            "31 for refresh",
            &[("JWT_REFRESH_SECRET", short)],
            "JWT_REFRESH_SECRET",
        ),
        (
            "no such file",
            &[("JWT_PUBLIC_KEY", "/no/such/key.pem")],
            "public_key",
        ),
    ];
    let secrets = [short, token::SECRET];
    for (what, environment, named) in cases {
        let mut gateway = Gateway::platform();
        for (name, value) in environment {
            gateway = gateway.env(name, value);
        }
        let exit = gateway.run_to_exit();
        assert_eq!(exit.code, 1, "{what}");
        assert!(exit.stderr.contains(named), "{what}: {}", exit.stderr);
        for secret in secrets {
            assert!(!exit.stderr.contains(secret), "{what}: {}", exit.stderr);
            assert!(!exit.stdout.contains(secret), "{what}: {}", exit.stdout);
        }
    }
}

#[test]
fn what_is_no_usable_public_key_is_a_fault_of_the_configuration() {
    let p384 = openssl_public_key(&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]);
    let pair = KeyPair::p256();
    let private = &pair.private_pem;
    let body = private.lines().nth(1).unwrap();
    let broken = pair.public_pem.replacen("MFkw", "MFkx", 1);
    let cases = [
        (
            "words",
            "-----BEGIN PUBLIC KEY-----\nnonsense\n-----END PUBLIC KEY-----",
        ),
        ("P-384", &p384),
        ("broken DER", &broken),
        ("a private key", private),
    ];
    let mut accepted = Vec::new();
    for (what, key) in cases {
        let exit = Gateway::platform()
            .env("JWT_PUBLIC_KEY", key)
            .arg("--test")
            .run_to_exit();
        let said = exit.stderr + &exit.stdout;
        assert!(!said.contains(body), "{what}: {said}");
        match exit.code {
            1 => assert!(said.contains("public_key"), "{what}: {said}"),
            _ => accepted.push(what),
        }
    }
    assert!(
        accepted.is_empty(),
        "taken as keys for RS256, ES256 or EdDSA: {accepted:?}"
    );
}

#[test]
fn development_without_a_secret_starts_with_a_random_one_and_a_warning() {
    let (_backend, gateway) = start(|yaml| {
        let gateway = Gateway::with(yaml).env("NODE_ENV", "development");
        gateway.without_env("JWT_SECRET")
    });
    gateway.wait_log(warns_of_the_secret);
    for guessed in ["", "secret", token::SECRET] {
        let token = Token::user("u1").signed_with(guessed);
        let response = Request::get("/token")
            .bearer(&token)
            .send_to(gateway.addr());
        assert_refused(guessed, &response, "INVALID_TOKEN");
    }
}

#[test]
fn development_with_too_short_a_secret_starts_with_a_random_one_and_a_warning() {
    let (_backend, gateway) = start(|yaml| {
        let gateway = Gateway::with(yaml).env("NODE_ENV", "development");
        gateway.env("JWT_SECRET", "short")
    });
    gateway.wait_log(warns_of_the_secret);
    let token = Token::user("u1").signed_with("short");
    let response = Request::get("/token")
        .bearer(&token)
        .send_to(gateway.addr());
    assert_refused("the short secret", &response, "INVALID_TOKEN");
}

#[test]
fn only_the_documented_paths_are_public() {
    let backend = Upstream::start();
    let gateway = platform(&backend).start();
    let public = [
        ("POST", "/api/v1/auth/login"),
        ("POST", "/api/v1/auth/register"),
        ("POST", "/api/v1/auth/refresh"),
        ("POST", "/api/v1/auth/forgot-password"),
        ("POST", "/api/v1/auth/reset-password"),
        ("POST", "/api/v1/auth/verify-email"),
        ("GET", "/api/v1/payments/health"),
        ("HEAD", "/api/v1/payments/health"),
        ("GET", "/api/v1/payments/metrics"),
        ("POST", "/api/v1/payments/webhooks/paypal"),
        ("POST", "/api/v1/webhooks/stripe"),
        ("POST", "/api/v1/webhooks/square"),
        ("GET", "/api/v1/webhooks/square"),
        ("GET", "/api/v1/search/health"),
        ("GET", "/api/v1/marketplace/health"),
        ("GET", "/api/v1/notifications/metrics"),
        ("GET", "/api/v1/compliance/health"),
        ("GET", "/api/v1/queue/health"),
        ("GET", "/api/v1/analytics/health"),
        ("GET", "/api/v1/files/health"),
        ("GET", "/api/v1/monitoring/health"),
        ("GET", "/api/v1/integrations/health"),
    ];
    for (method, path) in public {
        let response = Request::method(method, path).send_to(gateway.addr());
        assert_eq!(response.status, 200, "{method} {path}");
    }
    assert_eq!(backend.heads_seen(), public.len());
}

#[test]
fn everything_else_needs_a_token_or_is_not_there() {
    let backend = Upstream::start();
    let gateway = platform(&backend).start();
    let closed = [
        ("GET", "/api/v1/auth/login", 405),
        ("DELETE", "/api/v1/auth/register", 405),
        ("POST", "/api/v1/payments/health", 405),
        ("POST", "/api/v1/search/metrics", 405),
        ("GET", "/api/v1/webhooks/stripe", 405),
        ("POST", "/api/v1/auth/login/", 404),
        ("POST", "/api/v1/auth/login/x", 401),
        ("POST", "/api/v1/auth/logins", 401),
        ("POST", "/api/v1/auth/Login", 404),
        ("POST", "/api/v1/auth/login;x", 401),
        ("POST", "/api/v1/auth/login%3f", 401),
        ("POST", "/api/v1/auth/logout", 401),
        ("GET", "/api/v1/auth/me", 401),
        ("POST", "/api/v1/auth/change-password", 401),
        ("GET", "/api/v1/auth", 401),
        ("GET", "/api/v1/search/events?public=/health", 401),
        ("GET", "/api/v1/search/health/x", 401),
        ("GET", "/api/v1/payments/healthz", 401),
        ("POST", "/api/v1/payments/process", 401),
        ("GET", "/api/v1/payments/1/webhooks/x", 401),
        ("GET", "/api/v1/venues", 401),
        ("GET", "/api/v1/events/1", 401),
        ("GET", "/api/v1/event/1", 401),
        ("POST", "/api/v1/tickets/purchase", 401),
        ("GET", "/api/v1/marketplace/x", 401),
        ("GET", "/api/v1/notifications", 401),
        ("GET", "/api/v1/compliance/x", 401),
        ("GET", "/api/v1/queue/x", 401),
        ("GET", "/api/v1/analytics/x", 401),
        ("GET", "/api/v1/files/x", 401),
        ("GET", "/api/v1/monitoring/x", 401),
        ("GET", "/api/v1/integrations/x", 401),
        ("POST", "/api/v1/nft/mint", 401),
        ("GET", "/", 404),
        ("GET", "/api/v1", 404),
        ("GET", "/api/v1/unknown", 404),
        ("POST", "/api/v2/auth/login", 404),
        ("POST", "/auth/login", 404),
        ("GET", "/api/v1/auth/../auth/login", 400),
        ("POST", "/api/v1/auth/x/%2e%2e/login", 400),
    ];
    for (method, path, status) in closed {
        let response = Request::method(method, path).send_to(gateway.addr());
        assert_eq!(response.status, status, "{method} {path}");
    }
    assert_eq!(backend.heads_seen(), 0);
}

#[test]
fn an_api_key_identifies_its_holder_where_the_route_allows_it() {
    let (backend, gateway) = start(Gateway::with);
    let request = Request::get("/either").header("X-API-Key", KEY);
    let response = request
        .header("X-Request-ID", "by-key")
        .send_to(gateway.addr());
    assert_eq!(response.status, 200, "{}", response.text());

    let seen = &backend.wait_requests(1)[0];
    assert_eq!(seen.headers_named("x-tenant-id"), ["tenant-9"]);
    assert_eq!(seen.headers_named("x-tenant-source"), ["api-key"]);
    let line = gateway.access_line("by-key");
    assert_eq!(
        (&line["userId"], &line["tenantId"]),
        (&json!("partner"), &json!("tenant-9"))
    );

    let by_token = Request::get("/either").bearer(&token::customer());
    assert_eq!(by_token.send_to(gateway.addr()).status, 200);
    assert_eq!(
        backend.wait_requests(2)[1].header("x-tenant-source"),
        Some("jwt")
    );

    let elsewhere = Request::get("/token").header("X-API-Key", KEY);
    assert_refused(
        "a token route",
        &elsewhere.send_to(gateway.addr()),
        "AUTH_REQUIRED",
    );
}

#[test]
fn every_credential_that_is_given_must_be_valid() {
    let (backend, gateway) = start(Gateway::with);
    let good = token::customer();
    let expired = Token::user("u1").expires_in(-60).hs256();
    let cases: [(&str, &[&str], Option<&str>, &str); 9] = [
        ("nothing", &[], None, "AUTH_REQUIRED"),
        ("an unknown key", &["nonsense"], None, "INVALID_TOKEN"),
        ("an empty key", &[""], None, "INVALID_TOKEN"),
        ("an endless key", &[&"k".repeat(300)], None, "INVALID_TOKEN"),
        ("an expired key", &[EXPIRED_KEY], None, "TOKEN_EXPIRED"),
        ("a key twice", &[KEY, KEY], None, "INVALID_TOKEN"),
        (
            "a bad key beside a good token",
            &["nonsense"],
            Some(&good),
            "INVALID_TOKEN",
        ),
        (
            "a good key beside a bad token",
            &[KEY],
            Some("a.b.c"),
            "INVALID_TOKEN",
        ),
        (
            "a good key beside an expired token",
            &[KEY],
            Some(&expired),
            "TOKEN_EXPIRED",
        ),
    ];
    for (what, keys, token, code) in cases {
        let mut request = Request::get("/either");
        for key in keys {
            request = request.header("X-API-Key", key);
        }
        if let Some(token) = token {
            request = request.bearer(token);
        }
        assert_refused(what, &request.send_to(gateway.addr()), code);
    }
    assert_eq!(backend.heads_seen(), 0);

    let of_the_key_s_tenant = Token::user("u1").tenant("tenant-9").hs256();
    let both = Request::get("/either")
        .header("X-API-Key", KEY)
        .header("X-Request-ID", "both")
        .bearer(&of_the_key_s_tenant);
    assert_eq!(both.send_to(gateway.addr()).status, 200);
    let seen = &backend.wait_requests(1)[0];
    assert_eq!(seen.headers_named("x-tenant-id"), ["tenant-9"]);
    assert_eq!(seen.headers_named("x-tenant-source"), ["jwt"]);
    let line = gateway.access_line("both");
    assert_eq!(line["userId"], "u1", "the token names the caller");
}

#[test]
fn a_key_and_a_token_together_must_both_allow_it() {
    let (backend, gateway) = start(Gateway::with);
    let customer = || Token::user("u1").tenant("tenant-9").hs256();
    let admin = || Token::user("a1").tenant("tenant-9").role("admin").hs256();
    let send = |key: bool, token: Option<String>| {
        let mut request = Request::method("DELETE", "/either");
        if key {
            request = request.header("X-API-Key", KEY);
        }
        if let Some(token) = token {
            request = request.bearer(&token);
        }
        request.send_to(gateway.addr()).status
    };
    // The key may only view.
    assert_eq!(send(true, None), 403, "the key alone");
    assert_eq!(send(false, Some(customer())), 403, "a customer alone");
    assert_eq!(send(false, Some(admin())), 200, "an admin alone");
    assert_eq!(send(true, Some(customer())), 403, "the key and a customer");
    assert_eq!(backend.count(), 1);
    assert_eq!(send(true, Some(admin())), 403, "the key and an admin");
    assert_eq!(backend.count(), 1);
}

#[test]
fn no_credential_ever_shows_in_the_output_of_the_gateway() {
    let refresh = "refresh-secret-that-nobody-may-see-0123456789";
    let (_backend, gateway) = start(|yaml| {
        let gateway = Gateway::with(yaml).env("LOG_LEVEL", "debug");
        gateway.env("JWT_REFRESH_SECRET", refresh)
    });
    let good = token::customer();
    let bad = Token::user("u1").signed_with("another-secret");
    let expired = Token::user("u1").expires_in(-60).hs256();
    let paths = [
        "/token?token=in-the-query",
        "/public?access_token=in-the-query",
    ];
    for (i, token) in [&good, &bad, &expired].into_iter().enumerate() {
        for (j, path) in paths.into_iter().enumerate() {
            let id = format!("secret-{i}-{j}");
            let request = Request::get(path).header("X-Request-ID", &id).bearer(token);
            request.header("X-API-Key", KEY).send_to(gateway.addr());
            let line = gateway.access_line(&id);
            assert_eq!(line["headers"]["authorization"], "[REDACTED]", "{line}");
        }
    }
    let twice = Request::get("/token").bearer(&good).bearer(&bad);
    twice
        .header("X-Request-ID", "secret-twice")
        .send_to(gateway.addr());
    gateway.access_line("secret-twice");
    let basic = Request::get("/token").header("Authorization", "Basic bXktcGFzc3dvcmQ=");
    basic
        .header("X-Request-ID", "secret-basic")
        .send_to(gateway.addr());
    gateway.access_line("secret-basic");

    let health = Request::get("/health").send_to(gateway.addr());
    let said = gateway.raw_output() + &gateway.metrics() + health.text();
    let signature = |token: &str| token.rsplit('.').next().unwrap().to_owned();
    let secrets = [
        token::SECRET.to_owned(),
        refresh.to_owned(),
        KEY.to_owned(),
        signature(&good),
        signature(&bad),
        signature(&expired),
        "in-the-query".to_owned(),
        "bXktcGFzc3dvcmQ".to_owned(),
    ];
    for secret in secrets {
        assert!(!said.contains(&secret), "{secret} is in the output");
    }
}

#[test]
fn headers_that_carry_tokens_under_other_names_are_not_logged_either() {
    let (_backend, gateway) = start(|yaml| Gateway::with(yaml).env("LOG_LEVEL", "debug"));
    let names = [
        "X-Admin-Token",
        "X-Auth-Token",
        "X-Access-Token",
        "X-CSRF-Token",
        "X-Internal-Key",
        "X-Internal-Signature",
        "Proxy-Authorization",
        "Cookie",
    ];
    let mut shown = Vec::new();
    for name in names {
        let id = format!("named-{name}");
        let request = Request::get("/public").header("X-Request-ID", &id);
        request.header(name, "s3cr3t-v4lu3").send_to(gateway.addr());
        let line = gateway.access_line(&id);
        assert!(
            line["headers"].is_object(),
            "headers are logged at debug: {line}"
        );
        if line.to_string().contains("s3cr3t-v4lu3") {
            shown.push(name);
        }
    }
    assert!(shown.is_empty(), "logged in plain: {shown:?}");
}

#[test]
fn attempts_are_counted_by_outcome_and_failures_are_audited() {
    let (_backend, gateway) = start(Gateway::with);
    let send = |path: &str, token: &str, id: &str| {
        let request = Request::get(path).bearer(token).header("X-Request-ID", id);
        request.send_to(gateway.addr()).status
    };
    let good = token::customer();
    assert_eq!(send("/token", &good, "a-1"), 200);
    assert_eq!(send("/token", &good, "a-2"), 200);
    assert_eq!(send("/token", "a.b.c", "a-3"), 401);
    assert_eq!(
        send("/token", &Token::user("u1").expires_in(-60).hs256(), "a-4"),
        401
    );
    assert_eq!(send("/public", "a.b.c", "a-5"), 200);

    let success = r#"authentication_attempts_total{status="success"}"#;
    let failure = r#"authentication_attempts_total{status="failure"}"#;
    assert_eq!(
        (gateway.metric(success), gateway.metric(failure)),
        (2.0, 2.0)
    );
    let audit = gateway.wait_log(|line| line["context"] == "audit" && line["requestId"] == "a-3");
    assert_eq!(audit["event"], "authentication_failed");
    assert_eq!(
        (&audit["type"], &audit["level"]),
        (&json!("security"), &json!("warn"))
    );
    assert_eq!(audit["ip"], "127.0.0.1");
}

/// A 401 in the documented form.
#[track_caller]
fn assert_refused(what: &str, response: &Response, code: &str) {
    assert_eq!(response.status, 401, "{what}: {}", response.text());
    let body = response.json();
    assert_eq!(body["code"], code, "{what}");
    assert_eq!(
        (&body["statusCode"], &body["error"]),
        (&json!(401), &json!("Unauthorized"))
    );
    assert_eq!(
        body["requestId"].as_str(),
        response.header("X-Request-ID"),
        "{what}"
    );
    let challenge = response.header("WWW-Authenticate").unwrap_or_default();
    assert!(
        challenge.starts_with("Bearer realm="),
        "{what}: {challenge:?}"
    );
}

/// A backend, and a gateway before it with a route of each kind and limits that are out of the way.
#[track_caller]
fn start(gateway: impl FnOnce(&str) -> GatewayBuilder) -> (Upstream, Gateway) {
    let backend = Upstream::start();
    let yaml = format!(
        r#"
limits: {{ flood: {{ per_second: 100000 }}, global: {{ max: 100000, window: 60s }} }}
auth:
  failures: {{ max: 100000, window: 60s }}
  api_keys:
    partner: {{ sha256: {}, tenant_id: tenant-9, permissions: ["events:view"] }}
    old: {{ sha256: {}, tenant_id: tenant-9, permissions: ["*"], expires_at: 2020-01-01T00:00:00Z }}
roles: {{ admin: ["*"], customer: ["events:view"] }}
services: {{ backend: {{ url: "{}", health: {{ enabled: false }} }} }}
routes:
  - {{ path: /token, service: backend, auth: token }}
  - {{ path: /public, service: backend, auth: public }}
  - path: /either
    service: backend
    auth: token-or-key
    permissions: {{ GET: "events:view", DELETE: "events:delete" }}
"#,
        sha256(KEY),
        sha256(EXPIRED_KEY),
        backend.url()
    );
    (backend, gateway(&yaml).start())
}

/// The platform's own configuration, all of it at one backend.
fn platform(backend: &Upstream) -> GatewayBuilder {
    Gateway::platform()
        .env("RATE_LIMIT_GLOBAL_MAX", 10_000)
        .all_services_at(&backend.url())
}

/// What a thief of nothing but the public key may try.
fn forgeries(pair: &KeyPair, user: &Token) -> Vec<(&'static str, String)> {
    let other = match pair.algorithm() {
        Algorithm::RS256 => KeyPair::rsa(),
        Algorithm::ES256 => KeyPair::p256(),
        _ => KeyPair::ed25519(),
    };
    let its_own_key = user
        .clone()
        .with_header(json!({"jwk": other.jwk("x"), "kid": "x"}));
    let mut forgeries = vec![
        (
            "HS256 with the public key as secret",
            user.signed_with(&pair.public_pem),
        ),
        (
            "HS256 with the trimmed public key",
            user.signed_with(pair.public_pem.trim_end()),
        ),
        ("HS256 with the platform's secret", user.hs256()),
        ("none", user.unsigned_none()),
        ("another key", other.sign(user)),
        ("a key of its own in the header", other.sign(&its_own_key)),
        (
            "another alg in the header",
            pair.sign(&user.clone().with_header(json!({"alg": "HS256"}))),
        ),
    ];
    if pair.algorithm() == Algorithm::RS256 {
        forgeries.push(("RS512", user.sign(Algorithm::RS512, &pair.private_pem)));
        forgeries.push(("PS256", user.sign(Algorithm::PS256, &pair.private_pem)));
    }
    forgeries
}

/// The same bits in other letters: the last digit of 43 carries two bits that mean nothing.
fn respelled(token: &str) -> String {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (rest, last) = token.split_at(token.len() - 1);
    let digit = ALPHABET.find(last).unwrap();
    format!("{rest}{}", &ALPHABET[digit + 1..digit + 2])
}

fn bearer(token: &Token) -> String {
    format!("Bearer {}", token.hs256())
}

/// A token of exactly these texts, well signed.
fn raw_token(header: &str, claims: &str) -> String {
    let message = format!("{}.{}", token::base64url(header), token::base64url(claims));
    let key = EncodingKey::from_secret(token::SECRET.as_bytes());
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

fn sha256(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn warns_of_the_secret(line: &Value) -> bool {
    line["level"] == "warn" && line["msg"].to_string().contains("JWT_SECRET")
}

fn openssl_public_key(arguments: &[&str]) -> String {
    let generate = format!(
        "openssl genpkey {} | openssl pkey -pubout",
        arguments.join(" ")
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &generate])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_secs().try_into().unwrap()
}
