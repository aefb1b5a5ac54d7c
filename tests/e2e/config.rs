//! What an operator writes, as file and as environment: what wins, what is refused and how it is said, and the
//! command line.

use crate::support::prelude::*;
use serde_yaml::{Mapping, Value as Yaml};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

const REFERENCE: &str = include_str!("../../conf/gateway.yaml");

/// Little enough that reading it takes no time; two services whose variables are tried.
const ONE_ROUTE: &str = "
services:
  auth-service: { url: 'http://127.0.0.1:1' }
  minting-service: { url: 'http://127.0.0.1:1' }
routes: [{ path: /s, service: auth-service, auth: public }]
";

/// A variable, its place in the file, values that are refused, and one that is accepted.
const VARIABLES: &[(&str, &str, &[&str], &str)] = &[
    (
        "NODE_ENV",
        "environment",
        &["prod", "PRODUCTION", "test"],
        "staging",
    ),
    (
        "PORT",
        "server.port",
        &["http", "-1", "65536", "30.5"],
        "3000",
    ),
    (
        "HOST",
        "server.host",
        &["localhost:80", "300.1.1.1", "*"],
        "127.0.0.1",
    ),
    ("REDIS_PORT", "redis.port", &["redis", "65536"], "6379"),
    ("REDIS_DB", "redis.db", &["zero"], "3"),
    ("REDIS_TLS", "redis.tls.enabled", &["maybe"], "true"),
    (
        "REDIS_CLUSTER_NODES",
        "redis.cluster.nodes",
        &["redis-1", "redis-1:6379,:6379", "redis://a:6379"],
        "redis-1:6379, [::1]:6380",
    ),
    (
        "JWT_SECRET",
        "auth.jwt.secret",
        &["too-short"],
        token::SECRET,
    ),
    (
        "JWT_ACCESS_SECRET",
        "auth.jwt.access_secret",
        &["too-short"],
        token::SECRET,
    ),
    (
        "JWT_REFRESH_SECRET",
        "auth.refresh.secret",
        &["too-short"],
        token::SECRET,
    ),
    (
        "JWT_EXPIRES_IN",
        "auth.refresh.access_life",
        &["24", "a day"],
        "24h",
    ),
    (
        "JWT_ACCESS_EXPIRY",
        "auth.refresh.access_life",
        &["24", "soon"],
        "15m",
    ),
    (
        "JWT_REFRESH_EXPIRY",
        "auth.refresh.refresh_life",
        &["7", "7w"],
        "7d",
    ),
    (
        "JWT_PUBLIC_KEY",
        "auth.jwt.public_key",
        &["/nonexistent.pem"],
        "",
    ),
    (
        "JWT_JWKS_URL",
        "auth.jwt.jwks_url",
        &["jwks", "ftp://x/jwks"],
        "https://idp.example.com/jwks",
    ),
    (
        "ALLOWED_ORIGINS",
        "cors.allowed_origins",
        &["frontend", "http://a/path", "http://a, nonsense"],
        "https://a.example.com, http://b:1",
    ),
    (
        "RATE_LIMIT_ENABLED",
        "limits.enabled",
        &["maybe", "2"],
        "false",
    ),
    (
        "RATE_LIMIT_GLOBAL_MAX",
        "limits.global.max",
        &["0", "many", "-1"],
        "100",
    ),
    (
        "RATE_LIMIT_GLOBAL_WINDOW",
        "limits.global.window",
        &["0", "60s", "1.5"],
        "60000",
    ),
    (
        "RATE_LIMIT_TICKET_MAX",
        "limits.ticket.max",
        &["0", "x"],
        "5",
    ),
    (
        "RATE_LIMIT_TICKET_WINDOW",
        "limits.ticket.window",
        &["0", "x"],
        "60000",
    ),
    (
        "RATE_LIMIT_TICKET_BLOCK",
        "limits.ticket.block",
        &["x"],
        "300000",
    ),
    (
        "CIRCUIT_BREAKER_TIMEOUT",
        "timeouts.attempt_cap",
        &["0", "10s"],
        "10000",
    ),
    (
        "CIRCUIT_BREAKER_ERROR_THRESHOLD",
        "breaker.error_percent",
        &["0", "101", "50%"],
        "50",
    ),
    (
        "CIRCUIT_BREAKER_RESET_TIMEOUT",
        "breaker.reset",
        &["0", "x"],
        "30000",
    ),
    (
        "CIRCUIT_BREAKER_VOLUME_THRESHOLD",
        "breaker.volume",
        &["0", "x"],
        "10",
    ),
    ("TIMEOUT_DEFAULT", "timeouts.default", &["0", "x"], "10000"),
    ("TIMEOUT_PAYMENT", "timeouts.payment", &["0", "x"], "30000"),
    (
        "TIMEOUT_NFT_MINTING",
        "timeouts.nft_minting",
        &["0", "x"],
        "120000",
    ),
    ("LOG_LEVEL", "log.level", &["loud", "INFO!"], "trace"),
    ("LOG_FORMAT", "log.format", &["xml"], "pretty"),
    ("ENABLE_METRICS", "ops.metrics", &["perhaps"], "false"),
    ("ENABLE_TRACING", "tracing.enabled", &["perhaps"], "true"),
    ("SERVER_THREADS", "server.threads", &["-1", "x"], "2"),
    (
        "TRUSTED_PROXIES",
        "server.trusted_proxies",
        &["10.0.0.0/33", "proxy"],
        "10.0.0.0/8, ::1/128",
    ),
    (
        "OPS_LISTEN",
        "ops.listen",
        &["9464", "localhost"],
        "127.0.0.1:9464",
    ),
    (
        "LIMITS_FLOOD_MAX",
        "limits.flood.per_second",
        &["0", "x"],
        "500",
    ),
    (
        "AUTH_SERVICE_URL",
        "services.auth-service.url",
        &["auth-service:3001", "http://"],
        "http://a:1,http://b:2",
    ),
    (
        "MINTING_SERVICE_URL",
        "services.minting-service.url",
        &["nowhere"],
        "http://a:1",
    ),
    (
        "SERVER_PROTOCOL",
        "server.protocol",
        &["spdy", "https"],
        "redirect",
    ),
    (
        "TLS_CERTIFICATE",
        "tls.certificates",
        &["/nowhere/cert.pem"],
        "",
    ),
    ("TLS_KEY", "tls.certificates", &["/nowhere/key.pem"], ""),
    ("TLS_CLIENT_CA", "tls.client.ca", &[], "/nowhere/ca.pem"),
    (
        "MAX_CONNECTIONS",
        "server.connections.max",
        &["0", "many"],
        "7",
    ),
    (
        "MAX_CONNECTIONS_PER_ADDRESS",
        "server.connections.per_address",
        &["-1"],
        "0",
    ),
    ("SERVICE_NAME", "service_name", &[], "gateway-2"),
    ("REDIS_HOST", "redis.host", &[], "redis"),
    ("REDIS_PASSWORD", "redis.password", &[], "p"),
    ("JWT_ISSUER", "auth.jwt.issuer", &[], "someone"),
    (
        "SWAGGER_HOST",
        "server.public_host",
        &["a b", "ftp://gw", "gw/path"],
        "gw:1",
    ),
];

#[test]
fn each_documented_variable_is_checked_needs_nothing_beside_it_and_is_named_when_it_is_wrong() {
    let mut wrong = Vec::new();
    for (name, place, bad, good) in VARIABLES {
        let test = |value: &str| {
            Gateway::with(ONE_ROUTE)
                .env(name, value)
                .arg("--test")
                .run_to_exit()
        };
        for value in *bad {
            let exit = test(value);
            let told = exit.stderr.contains(name) || exit.stderr.contains(place);
            if exit.code != 1 || !told || exit.stderr.contains("too-short") {
                wrong.push(format!(
                    "{name}={value} gives {}: {}",
                    exit.code, exit.stderr
                ));
            }
        }
        let exit = test(good);
        if exit.code != 0 {
            wrong.push(format!(
                "{name}={good} gives {}: {}",
                exit.code, exit.stderr
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_the_default() {
    let backend = Upstream::start();
    let refused = format!("http://{}", refused_addr());
    let yaml = format!(
        "service_name: of-the-file
log: {{ level: error }}
limits: {{ global: {{ max: 7 }} }}
ops: {{ metrics: false }}
auth: {{ jwt: {{ issuer: of-the-file }} }}
services: {{ event-service: {{ instances: [{{ url: '{refused}' }}] }} }}
routes: [{{ path: /e/*, service: event-service, auth: token }}]
"
    );
    let gateway = Gateway::with(&yaml)
        .env("SERVICE_NAME", "of-the-environment")
        .env("ENABLE_METRICS", "true")
        .env("EVENT_SERVICE_URL", backend.url())
        .start();
    let token = Token::user("u1").claim("iss", "of-the-file").hs256();
    let request = Request::get("/e/x")
        .bearer(&token)
        .header("X-Request-ID", "wins-1");
    let response = request.send_to(gateway.addr());
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(
        response.header("x-ratelimit-limit"),
        Some("7"),
        "the file's"
    );
    assert_eq!(
        gateway.access_line("wins-1")["service"],
        "of-the-environment"
    );
    gateway.wait_metric("downstream_connections", |open| open == 0.0);

    let gateway = Gateway::with(&yaml)
        .env("EVENT_SERVICE_URL", backend.url())
        .env("RATE_LIMIT_GLOBAL_MAX", 9)
        .env("JWT_ISSUER", "of-the-environment")
        .start();
    assert_eq!(
        request.send_to(gateway.addr()).status,
        401,
        "another issuer"
    );
    let token = Token::user("u1").claim("iss", "of-the-environment").hs256();
    let response = Request::get("/e/x").bearer(&token).send_to(gateway.addr());
    assert_eq!(
        (response.status, response.header("x-ratelimit-limit")),
        (200, Some("9"))
    );
    assert_eq!(gateway.access_line("wins-1")["service"], "of-the-file");
    assert_eq!(
        Request::get("/metrics").send_to(gateway.addr()).status,
        404,
        "the file's"
    );
}

#[test]
fn limits_time_outs_and_secrets_come_from_their_variables() {
    let (events, payments) = (Upstream::start(), Upstream::start_with(|_| Reply::hang()));
    let secret = "access-secret-of-enough-characters-0123";
    let gateway = Gateway::platform()
        .env("EVENT_SERVICE_URL", events.url())
        .env("PAYMENT_SERVICE_URL", payments.url())
        .env("MARKETPLACE_SERVICE_URL", payments.url())
        .env("JWT_ACCESS_SECRET", secret)
        .env("RATE_LIMIT_ENABLED", "false")
        .env("TIMEOUT_PAYMENT", 300)
        .env("TIMEOUT_DEFAULT", 400)
        .start();
    let get = |path: &str, token: &str| Request::get(path).bearer(token).send_to(gateway.addr());
    let token = Token::user("a1").role("admin").signed_with(secret);
    let response = get("/api/v1/events/1", &token);
    assert_eq!(
        (response.status, response.header("x-ratelimit-limit")),
        (200, None)
    );
    assert_eq!(
        get("/api/v1/events/1", &token::admin()).status,
        401,
        "JWT_SECRET signs no access tokens now"
    );
    for path in ["/api/v1/payments/1", "/api/v1/marketplace/1"] {
        let start = Instant::now();
        assert_eq!(get(path, &token).status, 504, "{path}");
        assert!(
            start.elapsed() < Duration::from_secs(7),
            "{path}: {:?}",
            start.elapsed()
        );
    }
}

#[test]
fn every_fault_is_told_at_once_and_each_with_its_place() {
    for case in files("bad") {
        let yaml = fs::read_to_string(&case).unwrap();
        let expected = fs::read_to_string(case.with_extension("expected")).unwrap();
        let exit = Gateway::with(&yaml)
            .without_env("OPS_LISTEN")
            .arg("--test")
            .run_to_exit();
        let name = case.file_name().unwrap().to_string_lossy();
        assert_eq!(exit.code, 1, "{name} passes");
        for line in expected.lines() {
            assert!(
                exit.stderr.contains(line),
                "{name}: `{line}` is not in:\n{}",
                exit.stderr
            );
        }
        let faults = exit
            .stderr
            .lines()
            .filter(|line| line.starts_with("  "))
            .count();
        let whole = !expected.lines().any(|line| line == "is not YAML");
        assert!(
            !whole || faults == expected.lines().count(),
            "{name}: {}",
            exit.stderr
        );
        assert_eq!(exit.stdout, "", "{name}");
    }
}

#[test]
fn good_files_pass() {
    for case in files("good") {
        let yaml = fs::read_to_string(&case).unwrap();
        let exit = Gateway::with(&yaml).arg("--test").run_to_exit();
        assert_eq!(exit.code, 0, "{}: {}", case.display(), exit.stderr);
        assert!(exit.stdout.contains(" is good"), "{}", exit.stdout);
    }
}

#[test]
fn an_unknown_key_is_reported_at_every_level_of_the_reference() {
    let mut yaml: Yaml = serde_yaml::from_str(REFERENCE).unwrap();
    let mut places = Vec::new();
    add_unknown_keys(&mut yaml, "", &mut places);
    assert!(places.len() > 40, "{places:?}");
    let exit = Gateway::with(&serde_yaml::to_string(&yaml).unwrap())
        .arg("--test")
        .run_to_exit();
    assert_eq!(exit.code, 1);
    for place in &places {
        let told = exit
            .stderr
            .lines()
            .any(|line| line.trim_start().starts_with(place) && line.contains("no_such_key"));
        assert!(told, "{place} is not told:\n{}", exit.stderr);
    }
}

#[test]
fn any_part_of_the_reference_may_be_left_out() {
    const KEPT: [&str; 5] = ["roles", "services", "aliases", "routes", "limits"];
    let mut whole: Yaml = serde_yaml::from_str(REFERENCE).unwrap();
    // Without most of the services, each of which takes its time to start.
    let few = |service: &Yaml| service == "auth-service" || service == "payment-service";
    whole["services"]
        .as_mapping_mut()
        .unwrap()
        .retain(|name, _| few(name));
    let routes = whole["routes"].as_sequence_mut().unwrap();
    routes.retain(|route| few(&route["service"]) && route.get("aggregate").is_none());
    assert!(routes.len() > 15);
    let mut paths = Vec::new();
    let mut pending: Vec<Vec<Yaml>> = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let place = path.iter().fold(&whole, |yaml, key| &yaml[key]);
        for key in place.as_mapping().into_iter().flat_map(Mapping::keys) {
            let below = [path.as_slice(), std::slice::from_ref(key)].concat();
            let name = key.as_str().unwrap();
            let kept = path.is_empty() && KEPT.contains(&name);
            let is_rules = name == "rules" && path == ["limits"];
            if !kept && !is_rules {
                paths.push(below.clone());
            }
            if !kept || name == "limits" {
                pending.push(below);
            }
        }
    }
    assert!(paths.len() > 80, "{}", paths.len());
    let mut needed = Vec::new();
    for path in &paths {
        let mut less = whole.clone();
        let (key, parents) = path.split_last().unwrap();
        let parent = parents.iter().fold(&mut less, |yaml, key| &mut yaml[key]);
        parent.as_mapping_mut().unwrap().remove(key);
        let exit = Gateway::with(&serde_yaml::to_string(&less).unwrap())
            .arg("--test")
            .run_to_exit();
        if exit.code != 0 && !path.contains(&"rules".into()) {
            needed.push(exit.stderr);
        }
    }
    assert!(needed.is_empty(), "{}", needed.join("\n"));
}

#[test]
fn a_section_that_is_no_mapping_is_a_fault_also_where_a_variable_writes_into_it() {
    for (settings, place) in [
        ("server: 3000", "server"),
        ("server: [host, port]", "server"),
        ("ops: nothing", "ops"),
        ("auth: { jwt: secret }", "auth.jwt"),
        ("log: info", "log"),
    ] {
        let yaml = format!("{settings}{ONE_ROUTE}");
        let exit = Gateway::with(&yaml).arg("--test").run_to_exit();
        assert_eq!(exit.code, 1, "`{settings}` passes");
        let told = exit.stderr.contains(&format!("  {place}: "));
        assert!(told, "`{settings}`: {}", exit.stderr);
    }
    for yaml in ["- a\n- b\n", "just text", "5"] {
        let exit = Gateway::with(yaml).arg("--test").run_to_exit();
        assert_eq!(exit.code, 1, "`{yaml}` passes");
        let read_as_nothing = exit.stderr.contains("routes: there must be");
        assert!(!read_as_nothing, "`{yaml}`: {}", exit.stderr);
    }
}

#[test]
fn a_short_or_missing_secret_stops_the_start_but_in_development() {
    for stage in ["staging", "production"] {
        for secret in [None, Some("hunter2-hunter2")] {
            let builder = Gateway::platform()
                .env("NODE_ENV", stage)
                .without_env("JWT_SECRET");
            let exit = secret
                .iter()
                .fold(builder, |b, s| b.env("JWT_SECRET", s))
                .run_to_exit();
            assert_eq!(exit.code, 1, "{stage}, {secret:?}");
            assert!(exit.stderr.contains("JWT_SECRET"), "{}", exit.stderr);
            assert!(!(exit.stderr + &exit.stdout).contains("hunter2"));
        }
    }
    // In development a random one takes its place: nobody can guess it.
    let weak = "hunter2-hunter2";
    for secret in [None, Some(weak)] {
        let events = Upstream::start();
        let builder = Gateway::platform()
            .env("NODE_ENV", "development")
            .without_env("JWT_SECRET");
        let builder = builder.env("EVENT_SERVICE_URL", events.url());
        let gateway = secret
            .iter()
            .fold(builder, |b, s| b.env("JWT_SECRET", s))
            .start();
        gateway.wait_log(|line| {
            line["level"] == "warn"
                && line["msg"]
                    .as_str()
                    .is_some_and(|m| m.contains("JWT_SECRET"))
        });
        let token = Token::user("u1").signed_with(weak);
        let request = Request::get("/api/v1/events/1").bearer(&token);
        assert_eq!(
            request.send_to(gateway.addr()).status,
            401,
            "{secret:?} is in force"
        );
        assert!(!gateway.raw_output().contains("hunter2"));
    }
}

#[test]
fn no_secret_is_ever_printed() {
    let events = Upstream::start();
    let secret = "hunter2-hunter2-hunter2-hunter2-hunter2";
    let gateway = Gateway::platform()
        .env("LOG_LEVEL", "debug")
        .env("JWT_SECRET", secret)
        .env("JWT_REFRESH_SECRET", secret)
        .env("REDIS_HOST", "127.0.0.1")
        .env("REDIS_PORT", refused_addr().port())
        .env("REDIS_PASSWORD", secret)
        .env("EVENT_SERVICE_URL", events.url())
        .start();
    let token = Token::user("u1").signed_with(secret);
    let request = Request::get("/api/v1/events/1")
        .bearer(&token)
        .header("X-Request-ID", "secret-1");
    assert_eq!(request.send_to(gateway.addr()).status, 200);
    gateway.access_line("secret-1");
    let health = Request::get("/health").send_to(gateway.private_addr());
    let all = gateway.raw_output() + &gateway.metrics() + health.text();
    assert!(!all.contains("hunter2") && !all.contains(&token), "{all}");
    let faulty = Gateway::platform()
        .env("JWT_SECRET", secret)
        .env("REDIS_PASSWORD", secret)
        .env("PORT", "x");
    let exit = faulty.run_to_exit();
    assert!(!(exit.stderr + &exit.stdout).contains("hunter2"));
}

#[test]
fn the_command_line_does_what_it_says() {
    let run = |args: &[&str]| {
        let builder = args.iter().fold(Gateway::platform(), |b, arg| b.arg(arg));
        builder.run_to_exit()
    };
    let help = run(&["--help"]);
    assert_eq!(help.code, 0);
    for flag in [
        "--conf",
        "--test",
        "--print-config",
        "--check-live",
        "--version",
    ] {
        assert!(
            help.stdout.contains(flag),
            "{flag} is not in {}",
            help.stdout
        );
    }
    let version = run(&["--version"]);
    assert_eq!(
        (version.code, version.stdout.as_str()),
        (0, concat!("api-gateway ", env!("CARGO_PKG_VERSION")))
    );
    let printed = run(&["--print-config"]);
    assert_eq!(
        (printed.code, printed.stdout.trim_end()),
        (0, REFERENCE.trim_end())
    );
    assert_eq!(run(&["--test"]).code, 0);
    for wrong in [&["--no-such-flag"][..], &["serve"], &["--conf"]] {
        assert_eq!(run(wrong).code, 2, "{wrong:?}");
    }
    let missing = run(&["--conf", "/nonexistent/gateway.yaml", "--test"]);
    assert_eq!(missing.code, 1);
    assert!(
        missing.stderr.contains("/nonexistent/gateway.yaml"),
        "{}",
        missing.stderr
    );
    let directory = run(&["--conf", "/", "--test"]);
    assert_eq!(directory.code, 1);
}

#[test]
fn check_live_tells_a_living_gateway_from_none() {
    let check = |port: u16| {
        Gateway::platform()
            .env("PORT", port)
            .arg("--check-live")
            .run_to_exit()
            .code
    };
    let gateway = Gateway::platform().start();
    assert_eq!(check(gateway.addr().port()), 0);
    assert_eq!(check(refused_addr().port()), 1);
    let impostor = Upstream::start_with(|_| Reply::status(503));
    assert_eq!(check(impostor.addr().port()), 1);
}

#[test]
fn a_port_in_use_is_told_clearly_and_at_once() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let start = Instant::now();
    for builder in [
        Gateway::with(ONE_ROUTE).env("PORT", addr.port()),
        Gateway::with(ONE_ROUTE).env("OPS_LISTEN", addr),
    ] {
        let exit = builder.run_to_exit();
        assert_eq!(exit.code, 1);
        let told = format!("cannot listen on {addr}");
        assert!(
            exit.stderr.contains(&told),
            "{}\n{}",
            exit.stderr,
            exit.stdout
        );
    }
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}

fn files(kind: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/config")
        .join(kind);
    let entries = fs::read_dir(&directory).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "yaml")
    });
    files.sort();
    assert!(!files.is_empty(), "no files in {}", directory.display());
    files
}

/// Puts an unknown key into every mapping whose keys are fixed, and notes where. Of the routes the first four do.
fn add_unknown_keys(yaml: &mut Yaml, place: &str, places: &mut Vec<String>) {
    const FREE: &[&str] = &[
        "services",
        "aliases",
        "roles",
        "limits.rules",
        "auth.api_keys",
    ];
    match yaml {
        Yaml::Mapping(mapping) => {
            add_to_children(mapping, place, places);
            if !FREE.contains(&place) && !place.ends_with("permissions") {
                mapping.insert("no_such_key".into(), 1.into());
                places.push(place.to_owned());
            }
        }
        Yaml::Sequence(items) => {
            for (i, item) in items.iter_mut().take(4).enumerate() {
                add_unknown_keys(item, &format!("{place}[{i}]"), places);
            }
        }
        _ => {}
    }
}

fn add_to_children(mapping: &mut Mapping, place: &str, places: &mut Vec<String>) {
    for (key, child) in mapping.iter_mut() {
        let key = key.as_str().unwrap();
        let place = if place.is_empty() {
            key.to_owned()
        } else {
            format!("{place}.{key}")
        };
        add_unknown_keys(child, &place, places);
    }
}

#[test]
fn listeners_that_cannot_all_be_had_are_faults() {
    let further = |count: usize| {
        let all = vec!["{ address: '127.0.0.1:0' }"; count].join(", ");
        format!(
            "{ONE_ROUTE}\nserver: {{ port: 3001, listeners: [{{ address: '127.0.0.1:3002' }}, {all}] }}\n"
        )
    };
    for (count, ops, fault) in [
        (125, "127.0.0.1:3003", None),
        (
            126,
            "127.0.0.1:3003",
            Some("server.listeners: must be at most 126"),
        ),
        (1, "127.0.0.1:3001", Some("ops.listen: `127.0.0.1:3001` is")),
        (1, "127.0.0.1:3002", Some("ops.listen: `127.0.0.1:3002` is")),
    ] {
        let gateway = Gateway::with(&further(count)).env("OPS_LISTEN", ops);
        let exit = gateway.without_env("PORT").arg("--test").run_to_exit();
        match fault {
            Some(fault) => assert!(exit.stderr.contains(fault), "{fault}: {}", exit.stderr),
            None => assert_eq!((exit.code, &*exit.stderr), (0, "")),
        }
    }
}
