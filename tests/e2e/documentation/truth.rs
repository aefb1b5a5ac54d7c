//! What a document says of one operation holds on the wire: how large a body may be, who may, and what may come back.

use super::*;
use crate::support::gateway::TempFile;

const SECRET: &str = "e2e-refresh-secret-0123456789-abcdefghij";

/// JSON of exactly this length, which names no event twice and no token.
fn json_of(length: usize) -> Vec<u8> {
    let mut text = br#"{"a":""#.to_vec();
    text.resize(length - 2, b'x');
    text.extend(br#""}"#);
    text
}

#[test]
fn the_largest_body_that_it_tells_is_the_largest_that_is_taken() {
    let backend = backend();
    let routes = "
sizes: { body: 100KiB }
limits: { global: { max: 10000 }, ticket: { max: 10000 } }
batch: { path: /batch }
services: { s: { url: 'URL' } }
routes:
  - { path: /plain, service: s, auth: token, methods: [POST] }
  - { path: /small, service: s, auth: token, methods: [POST], body_limit: 1KiB, idempotency: required }
  - { path: /keyed, service: s, auth: token, methods: [POST], idempotency: optional }
  - { path: /needs, service: s, auth: token, methods: [POST], idempotency: required }
  - { path: /event, service: s, auth: token, methods: [POST], limits: [ticket] }
  - { path: /refresh, service: s, auth: public, methods: [POST], session: refresh }
  - { path: /tight, service: s, auth: public, methods: [POST], session: refresh, body_limit: 1KiB }
";
    let yaml = format!(
        "health: {{ enabled: false }}\ndocumentation: {{ operators: true }}\n{}",
        routes.replace("URL", &backend.url())
    );
    let gateway = Gateway::with(&yaml)
        .env("NODE_ENV", "staging")
        .env("JWT_REFRESH_SECRET", SECRET)
        .start();
    let document = document(&gateway);
    let mut number = 0;
    let mut is_taken = |path: &str, has_key: bool, is_announced: bool, length: u64| {
        number += 1;
        let request = Request::post(path)
            .bearer(&token::customer())
            .header("Content-Type", "application/json");
        let body = json_of(length as usize);
        let request = match is_announced {
            true => request.body(body),
            false => request.chunked(body.chunks(8 << 10).collect()),
        };
        let request = match has_key {
            true => request.header("Idempotency-Key", &format!("key-{number}")),
            false => request,
        };
        request.send_to(gateway.addr()).status != 413
    };
    let kib = |count: u64| Some(count << 10);
    for (path, needs_key, most, keyed) in [
        ("/plain", false, kib(100), None),
        ("/small", true, kib(1), None),
        ("/keyed", false, kib(100), kib(64)),
        ("/needs", true, kib(64), None),
        ("/event", false, kib(64), None),
        ("/refresh", false, kib(16), None),
        ("/tight", false, kib(1), None),
        ("/batch", false, kib(1024), None),
    ] {
        let operation = &document["paths"][path]["post"];
        assert_eq!(operation["x-body-limit"].as_u64(), most, "{path}");
        assert_eq!(operation["x-keyed-body-limit"].as_u64(), keyed, "{path}");
        let described = operation["description"].as_str().unwrap();
        for (most, has_key) in [(most, needs_key), (keyed, true)] {
            let Some(most) = most else { continue };
            assert!(described.contains(&most.to_string()), "{path}: {described}");
            for is_announced in [true, false] {
                let how = format!("{path}, announced {is_announced}: {most} bytes");
                assert!(is_taken(path, has_key, is_announced, most), "{how}");
                assert!(
                    !is_taken(path, has_key, is_announced, most + 1),
                    "{how} and one"
                );
            }
        }
    }
}

#[test]
fn content_that_comes_with_any_method_may_be_too_large() {
    let schema = TempFile::new("json", r#"{"type": "object"}"#);
    let gateway = small(&format!(
        "
routes:
  - {{ path: /things, service: s, auth: public, methods: [GET, DELETE], body_limit: 1KiB }}
  - {{ path: /ruled, service: s, auth: public, methods: [DELETE], body_limit: 1KiB, validate: {{ DELETE: {{ body: '{}' }} }} }}
",
        schema.path().display()
    ))
    .start();
    let document = document(&gateway);
    for (method, path) in [
        ("GET", "/things"),
        ("DELETE", "/things"),
        ("DELETE", "/ruled"),
    ] {
        let large = Request::method(method, path)
            .header("Content-Type", "application/json")
            .body(json_of(1025));
        let refused = large.send_to(gateway.addr());
        let code = refused.json()["code"].as_str().unwrap().to_owned();
        let operation = &document["paths"][path][method.to_ascii_lowercase()];
        let told = operation["responses"]["413"]["$ref"].as_str().unwrap();
        assert_eq!(refused.status, 413, "{method} {path}");
        assert!(told.ends_with(&format!("/413-{code}")), "{told}");
    }
    let ruled = &document["paths"]["/ruled"]["delete"];
    assert_eq!(ruled["x-body-limit"], 1024);
    assert!(ruled["requestBody"]["content"]["application/json"].is_object());
    let other = Request::method("DELETE", "/ruled")
        .header("Content-Type", "text/plain")
        .body("x");
    assert_eq!(other.send_to(gateway.addr()).status, 415);
    assert!(ruled["responses"]["415"].is_object());
}

#[test]
fn what_a_required_source_may_refuse_is_an_answer_of_its_aggregate() {
    let strict = Upstream::start_with(|request| match request.path() {
        "/closed" => Reply::status(401),
        "/secret" => Reply::status(403),
        _ => Reply::json(json!({})),
    });
    let routes = "
health: { enabled: false }
documentation: { operators: true }
services: { s: { url: 'URL' } }
routes:
  - { path: /a, service: s, auth: public, methods: [GET], cache: { class: short },
      aggregate: { sources: { one: { service: s, path: /closed, required: true } } } }
  - { path: /b, service: s, auth: public, methods: [GET],
      aggregate: { sources: { one: { service: s, path: /secret, required: true } } } }
  - { path: /c, service: s, auth: public, methods: [GET],
      aggregate: { sources: { one: { service: s, path: /closed } } } }
";
    let gateway = Gateway::with(&routes.replace("URL", &strict.url()))
        .env("NODE_ENV", "staging")
        .start();
    let document = document(&gateway);
    for (path, status) in [("/a", 401), ("/b", 403), ("/c", 200)] {
        let response = Request::get(path).send_to(gateway.addr());
        assert_eq!(response.status, status, "{path}: {}", response.text());
        let responses = &document["paths"][path]["get"]["responses"];
        assert!(
            !responses[status.to_string()].is_null(),
            "{path}: {responses}"
        );
        if status != 200 {
            let told = responses[status.to_string()]["$ref"].as_str().unwrap();
            let code = response.json()["code"].as_str().unwrap().to_owned();
            assert!(told.ends_with(&code), "{path}: {told}");
        }
    }
    let optional = &document["paths"]["/c"]["get"]["responses"];
    assert!(optional["401"].is_null() && optional["404"].is_null());
    // Its sources' answers are kept, not what is made of them.
    let kept = &document["paths"]["/a"]["get"];
    assert!(kept["x-cache"].is_null(), "{kept}");
    let answer = &kept["responses"]["200"]["headers"];
    assert!(answer["Cache-Status"].is_null(), "{answer}");
    let answer = Request::get("/c").send_to(gateway.addr());
    assert_eq!(answer.header("cache-status"), None);
}

#[test]
fn a_cache_that_no_source_takes_is_a_fault() {
    let test = |second: &str| {
        let routes = format!(
            "
routes:
  - {{ path: /a, service: s, auth: public, methods: [GET], cache: {{ class: short }},
      aggregate: {{ sources: {{ one: {{ service: s, path: /x, cache: {{ class: long }} }},
                              two: {{ service: s, path: /y{second} }} }} }} }}
"
        );
        small(&routes).arg("--test").run_to_exit()
    };
    let taken = test("");
    assert_eq!(taken.code, 0, "{}", taken.stderr);
    let idle = test(", cache: { class: long }");
    assert_eq!(idle.code, 1);
    let told = idle.stderr.contains("routes[0].cache") && idle.stderr.contains("does nothing");
    assert!(told, "{}", idle.stderr);
}

#[test]
fn who_may_is_said_with_the_permission_of_what_is_its_owners_alone() {
    let gateway = small(
        "
routes:
  - { path: '/users/{user}', service: s, auth: token, methods: [GET], owner: '{user}', owner_only: true,
      permissions: { GET: 'things:view' } }
  - { path: '/files/{user}', service: s, auth: token, methods: [GET], owner: '{user}', owner_only: true }
",
    )
    .start();
    let document = document(&gateway);
    let said = |path: &str| {
        let operation = &document["paths"][path]["get"];
        operation["description"].as_str().unwrap().to_owned()
    };
    let both = said("/users/{user}");
    assert!(
        both.contains("whose data it is, with `things:view` or `things:view-own`"),
        "{both}"
    );
    let alone = said("/files/{user}");
    assert!(
        alone.contains("whose data it is, and for the role"),
        "{alone}"
    );
    let get = |role: &str| {
        let token = Token::user("u1").role(role).hs256();
        let request = Request::get("/users/u1").bearer(&token);
        request.send_to(gateway.addr()).status
    };
    assert_eq!(get("nobody"), 403, "it is the user's, who may not view");
    assert_ne!(get("customer"), 403);
}

#[test]
fn a_key_that_a_write_needs_is_told_as_needed_whatever_a_schema_says_of_it() {
    let schema = TempFile::new(
        "json",
        r#"{"properties": {"idempotency-key": {"type": "string", "minLength": 8}}}"#,
    );
    let query = TempFile::new(
        "json",
        r#"{"properties": {"idempotency-key": {"type": "string"}}}"#,
    );
    let gateway = small(&format!(
        "
routes:
  - {{ path: /things, service: s, auth: token, methods: [POST], idempotency: required,
      validate: {{ POST: {{ headers: '{}' }} }} }}
  - {{ path: /others, service: s, auth: token, methods: [POST], idempotency: required,
      validate: {{ POST: {{ query: '{}' }} }} }}
",
        schema.path().display(),
        query.path().display()
    ))
    .start();
    let document = document(&gateway);
    let keys = |path: &str| {
        let parameters = document["paths"][path]["post"]["parameters"]
            .as_array()
            .unwrap();
        let is_key = |parameter: &&Value| {
            let name = parameter["name"].as_str().unwrap();
            name.eq_ignore_ascii_case("idempotency-key") && parameter["in"] == "header"
        };
        parameters
            .iter()
            .filter(is_key)
            .cloned()
            .collect::<Vec<_>>()
    };
    let [ruled] = &keys("/things")[..] else {
        panic!("it is there once: {:?}", keys("/things"));
    };
    assert_eq!(
        (&ruled["required"], &ruled["schema"]["minLength"]),
        (&json!(true), &json!(8))
    );
    let [named] = &keys("/others")[..] else {
        panic!("a parameter of the query is another one");
    };
    assert_eq!(named["required"], true);
    let bare = Request::post("/things").bearer(&token::customer());
    assert_eq!(bare.send_to(gateway.addr()).status, 400);
}

#[test]
fn of_a_schema_file_only_what_the_standard_has_words_for_is_shown() {
    let schema = TempFile::new(
        "json",
        r##"{
            "$comment": "ask the team of the inside",
            "x-table": "inside.things",
            "type": "object",
            "required": ["name"],
            "x-before": { "from": "to" },
            "properties": {
                "name": { "type": "string", "x-column": "inside", "examples": ["Anna"] },
                "from": { "$ref": "#/$defs/day" },
                "to": { "$ref": "#/$defs/day" }
            },
            "$defs": {
                "day": { "type": "string", "format": "date", "x-inside": true, "description": "A day" }
            }
        }"##,
    );
    let gateway = small(&format!(
        "routes: [{{ path: /things, service: s, auth: public, methods: [POST], validate: {{ POST: {{ body: '{}' }} }} }}]",
        schema.path().display()
    ))
    .start();
    let response = Request::get("/documentation/json").send_to(gateway.addr());
    assert!(!response.text().contains("inside"), "{}", response.text());
    let document = response.json();
    let body = &document["paths"]["/things"]["post"]["requestBody"]["content"]["application/json"];
    let to = body["schema"]["$ref"].as_str().unwrap();
    let shown = document.pointer(&to[1..]).unwrap();
    assert_eq!(
        shown["properties"]["name"],
        json!({"type": "string", "examples": ["Anna"]})
    );
    assert_eq!(
        shown["x-before"],
        json!({"from": "to"}),
        "requests are judged by it"
    );
    let day = &document["components"]["schemas"]["day"];
    assert_eq!(
        *day,
        json!({"type": "string", "format": "date", "description": "A day"})
    );

    // It is what was read with the configuration: nothing is read for a document.
    schema.rewrite("not even JSON");
    let yaml = Request::get("/documentation/yaml").send_to(gateway.addr());
    assert_eq!(
        serde_yaml::from_str::<Value>(yaml.text()).unwrap(),
        document
    );
}
