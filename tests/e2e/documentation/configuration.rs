//! When it is there, what it may not stand in the way of, and that it follows the configuration in force.

use super::*;

const ONE: &str = "routes: [{ path: /things, service: s, auth: public }]";

#[test]
fn it_is_there_but_in_production_unless_the_file_says_otherwise() {
    for (stage, settings, is_there) in [
        ("development", "", true),
        ("staging", "", true),
        ("production", "", false),
        ("production", "documentation: { enabled: true }\n", true),
        ("staging", "documentation: { enabled: false }\n", false),
    ] {
        let gateway = small(&format!("{settings}{ONE}"))
            .env("NODE_ENV", stage)
            .start();
        for path in [
            "/documentation",
            "/documentation/json",
            "/documentation/static/page.js",
        ] {
            let response = Request::get(path).send_to(gateway.addr());
            let expected = if is_there { 200 } else { 404 };
            assert_eq!(response.status, expected, "{stage} {settings} {path}");
        }
    }
}

#[test]
fn no_route_takes_its_place() {
    let test = |settings: &str| small(settings).arg("--test").run_to_exit();
    for (place, settings) in [
        (
            "routes[0].path",
            "routes: [{ path: /documentation, service: s, auth: public }]",
        ),
        (
            "routes[0].path",
            "routes: [{ path: /documentation/*, service: s, auth: public }]",
        ),
        (
            "routes[0].path",
            "aliases: { /documentation: /things }\nroutes: [{ path: /things, service: s, auth: public }]",
        ),
        (
            "batch.path",
            "batch: { path: /documentation/json }\nroutes: [{ path: /things, service: s, auth: public }]",
        ),
    ] {
        let exit = test(settings);
        assert_eq!(exit.code, 1, "{settings}");
        let told =
            exit.stderr.contains(place) && exit.stderr.contains("documentation.enabled: false");
        assert!(told, "{settings}: {}", exit.stderr);
        let off = test(&format!("documentation: {{ enabled: false }}\n{settings}"));
        assert_eq!(off.code, 0, "{settings}: {}", off.stderr);
    }
    // Wider patterns give way, as they do to /live.
    let gateway = small("routes: [{ path: '/*', service: s, auth: public }]").start();
    assert_eq!(
        Request::get("/documentation")
            .send_to(gateway.addr())
            .status,
        200
    );
    assert!(names(&document(&gateway)).contains("GET /{rest}"));
}

#[test]
fn faulty_values_are_told_with_their_places() {
    for (place, settings) in [
        ("documentation.title", "documentation: { title: '' }"),
        ("documentation.version", "documentation: { version: ' ' }"),
        ("server.public_host", "server: { public_host: 'a b' }"),
        ("server.public_host", "server: { public_host: 'ftp://a' }"),
    ] {
        let exit = small(&format!("{settings}\n{ONE}"))
            .arg("--test")
            .run_to_exit();
        assert_eq!(exit.code, 1, "{settings}");
        assert!(exit.stderr.contains(place), "{settings}: {}", exit.stderr);
    }
}

#[test]
fn a_reload_gives_another_document() {
    let yaml = |title: &str, path: &str| {
        format!(
            "
services: {{ s: {{ url: 'http://127.0.0.1:1' }} }}
health: {{ enabled: false }}
documentation: {{ title: {title} }}
routes: [{{ path: {path}, service: s, auth: public }}]
"
        )
    };
    let gateway = Gateway::with(&yaml("First", "/a"))
        .env("NODE_ENV", "staging")
        .start();
    let first = Request::get("/documentation/json").send_to(gateway.addr());
    assert_eq!(first.json()["info"]["title"], "First");
    gateway.rewrite_conf(&yaml("Second", "/b"));
    gateway.signal(1);
    wait_until("it says something else", || {
        document(&gateway)["info"]["title"] == "Second"
    });
    assert!(document(&gateway)["paths"]["/b"].is_object());
    let etag = first.header("etag").unwrap();
    let again = Request::get("/documentation/json").header("If-None-Match", etag);
    assert_eq!(again.send_to(gateway.addr()).status, 200);
}

#[test]
fn it_can_be_printed_without_a_gateway() {
    let backend = backend();
    let gateway = platform(&backend).start();
    let exit = platform(&backend)
        .env("NODE_ENV", "production")
        .arg("--print-openapi")
        .run_to_exit();
    assert_eq!(exit.code, 0, "{}", exit.stderr);
    let printed: Value = serde_json::from_str(&exit.stdout).unwrap();
    assert_eq!(printed, document(&gateway));
    let faulty = small("routes: []").arg("--print-openapi").run_to_exit();
    assert_eq!((faulty.code, faulty.stdout.as_str()), (1, ""));
}

#[test]
fn what_is_printed_need_not_be_served() {
    let settings = "
documentation: { enabled: ON }
routes:
  - { path: /documentation, service: s, auth: public, methods: [GET] }
  - { path: /things, service: s, auth: token, methods: [GET] }
";
    for (stage, on) in [
        ("production", "null"),
        ("staging", "false"),
        ("staging", "null"),
    ] {
        let exit = small(&settings.replace("ON", on))
            .env("NODE_ENV", stage)
            .arg("--print-openapi")
            .run_to_exit();
        assert_eq!(exit.code, 0, "{stage} {on}: {}", exit.stderr);
        let printed: Value = serde_json::from_str(&exit.stdout).unwrap();
        let names = names(&printed);
        for name in ["GET /documentation", "GET /things"] {
            assert!(names.contains(name), "{stage} {on}: {names:?}");
        }
    }
}

#[test]
fn what_is_printed_has_the_operations_of_all_hosts_or_of_the_one_that_is_named() {
    let print = |flag: &str| {
        let exit = small(
            "
routes:
  - { path: /things, service: s, auth: public, methods: [GET], hosts: [a.test] }
  - { path: /things, service: s, auth: token, methods: [GET], hosts: ['*.b.test'] }
  - { path: /others, service: s, auth: token, methods: [GET], hosts: ['*.b.test', c.test] }
  - { path: /all, service: s, auth: public, methods: [GET] }
batch: { path: '' }
",
        )
        .arg(flag)
        .run_to_exit();
        assert_eq!(exit.code, 0, "{}", exit.stderr);
        let document: Value = serde_json::from_str(&exit.stdout).unwrap();
        (document, exit.stderr)
    };
    let schema: Value = serde_json::from_str(document::OPENAPI).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();

    let (all, told) = print("--print-openapi");
    assert!(validator.is_valid(&all), "{all}");
    let expected = ["GET /all", "GET /others", "GET /things"];
    assert_eq!(names(&all).into_iter().collect::<Vec<_>>(), expected);
    let servers = |path: &str| all["paths"][path]["get"]["servers"].clone();
    assert_eq!(servers("/things"), json!([{"url": "//a.test"}]));
    let wild = json!({"url": "//{name}.b.test", "variables": {"name": {"default": "www"}}});
    assert_eq!(servers("/others"), json!([wild, {"url": "//c.test"}]));
    assert_eq!(servers("/all"), json!(null));
    assert_eq!(all["paths"]["/things"]["get"]["security"], json!([]));
    // OpenAPI has one place for both.
    assert!(
        told.contains("GET /things of *.b.test is left out"),
        "{told}"
    );
    assert!(told.contains("--print-openapi=HOST"), "{told}");

    let (one, told) = print("--print-openapi=x.b.test");
    assert_eq!(names(&one).into_iter().collect::<Vec<_>>(), expected);
    assert_eq!(
        one["paths"]["/things"]["get"]["security"],
        json!([{"bearer": []}])
    );
    assert!(
        !one.to_string().contains("b.test"),
        "it is read there: {one}"
    );
    assert!(!told.contains("left out"), "{told}");
    let (one, _) = print("--print-openapi=a.test");
    assert_eq!(
        names(&one).into_iter().collect::<Vec<_>>(),
        ["GET /all", "GET /things"]
    );
}

#[test]
fn paths_that_openapi_cannot_tell_apart_are_spelled_so_that_it_can() {
    let gateway = small(
        "
routes:
  - { path: '/a/{x}', methods: [GET], service: s, auth: public }
  - { path: '/a/{y}', methods: [POST], service: s, auth: public }
  - { path: '/a/*', service: s, auth: public }
  - { path: '/seats.v1.Seats/*', service: g, auth: public }
  - { path: '/b/{rest}/*', methods: [PUT], service: s, auth: public }
  - { path: /heads, methods: [HEAD], service: s, auth: public }
  - { path: /options, methods: [OPTIONS], service: s, auth: public }
batch: { path: '' }
",
    )
    .start();
    let names: Vec<String> = names(&document(&gateway)).into_iter().collect();
    let expected = [
        "DELETE /a/{segment}/{rest}",
        "GET /a/{segment}/{rest}",
        "GET /a/{x}",
        "HEAD /heads",
        "OPTIONS /options",
        "PATCH /a/{segment}/{rest}",
        "POST /a/{segment}/{rest}",
        "POST /a/{x}",
        "PUT /a/{segment}/{rest}",
        "PUT /b/{rest}/{rest_}",
    ];
    assert_eq!(names, expected);
}

#[test]
fn every_host_has_its_own() {
    let gateway = small(
        "
routes:
  - { path: /things, service: s, auth: public, methods: [GET], hosts: [a.test] }
  - { path: /things, service: s, auth: token, methods: [GET], hosts: ['*.b.test'] }
  - { path: /all, service: s, auth: public, methods: [GET] }
batch: { path: '' }
",
    )
    .start();
    let at = |host: &str| document_of(&gateway, Request::get("/documentation/json").host(host));
    let security = |document: &Value| document["paths"]["/things"]["get"]["security"].clone();
    assert_eq!(security(&at("a.test")), json!([]));
    assert_eq!(security(&at("x.b.test:80")), json!([{"bearer": []}]));
    let elsewhere = at("c.test");
    assert_eq!(
        names(&elsewhere).into_iter().collect::<Vec<_>>(),
        ["GET /all"]
    );
}
