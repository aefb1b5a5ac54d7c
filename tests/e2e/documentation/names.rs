//! Names of a document come from what is in it: what somebody may not call leaves no number, no gap and no alias behind.

use super::*;

/// To nobody in particular the half of it; to an admin all.
const ROUTES: &str = "
documentation: { title: x }
aliases: { /old: /secret, /short: /open }
routes:
  - { path: /b-c, service: s, auth: token, methods: [GET] }
  - { path: /b/c, service: s, auth: public, methods: [GET] }
  - { path: '/d/{hidden}', service: s, auth: token, methods: [POST] }
  - { path: '/d/{thing}', service: s, auth: public, methods: [GET] }
  - { path: '/e/{hidden}', service: s, auth: token, methods: [GET] }
  - { path: '/e/*', service: s, auth: public, methods: [GET] }
  - { path: /open/*, service: s, auth: public, methods: [GET] }
  - { path: /secret/x, service: s, auth: token, methods: [GET] }
  - { path: /m, service: s, auth: ops, methods: [GET] }
batch: { path: '' }
";

fn ids(document: &Value) -> BTreeSet<String> {
    let operations = operations(document);
    let ids = operations
        .iter()
        .map(|operation| operation.value["operationId"].as_str().unwrap());
    ids.map(str::to_owned).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn what_somebody_may_not_call_gives_nothing_else_a_name() {
    let gateway = small(ROUTES).start();
    let seen = document(&gateway);
    let expected = [
        "GET /b/c",
        "GET /d/{thing}",
        "GET /e/{rest}",
        "GET /open/{rest}",
    ];
    assert_eq!(names(&seen), set(&expected));
    let expected = ["getBC", "getDThing", "getERest", "getOpenRest"];
    assert_eq!(ids(&seen), set(&expected));
    assert_eq!(seen["x-aliases"], json!({"/short": "/open"}));
    for hidden in ["hidden", "segment", "secret", "old"] {
        assert!(!seen.to_string().contains(hidden), "{hidden}: {seen}");
    }

    let admin = Request::get("/documentation/json").bearer(&token::admin());
    let all = document_of(&gateway, admin);
    let expected = [
        "GET /b-c",
        "GET /b/c",
        "GET /d/{hidden}",
        "POST /d/{hidden}",
        "GET /e/{hidden}",
        "GET /e/{segment}/{rest}",
        "GET /open/{rest}",
        "GET /secret/x",
        "GET /m",
    ];
    assert_eq!(names(&all), set(&expected));
    assert_eq!(
        all["x-aliases"],
        json!({"/old": "/secret", "/short": "/open"})
    );
    // What is something else to operators has no number for it.
    let expected = [
        "getBC",
        "getBC2",
        "getDHidden",
        "postDHidden",
        "getEHidden",
        "getESegmentRest",
        "getOpenRest",
        "getSecretX",
        "getM",
    ];
    assert_eq!(ids(&all), set(&expected));
}

#[test]
fn no_number_of_the_platform_tells_of_something_hidden() {
    let backend = backend();
    let gateway = platform(&backend).start();
    for request in [
        Request::get("/documentation/json"),
        Request::get("/documentation/json?role=customer"),
        Request::get("/documentation/json").bearer(&token::customer()),
    ] {
        let ids = ids(&document_of(&gateway, request));
        for id in &ids {
            let bare = id.trim_end_matches(|c: char| c.is_ascii_digit());
            assert!(bare == id || ids.contains(bare), "{id} has no first one");
        }
    }
}
