//! What a reload finds again.

use super::*;
use crate::fuzz::compiled;

const ROUTES: &str = r#"
services: { s: { url: "http://127.0.0.1:1" } }
routes:
  - { path: "/a/{id}", service: s, auth: public, methods: [POST] }
  - path: "/a/{id}"
    service: s
    auth: public
    methods: [GET]
    aggregate: { sources: { one: { service: s, path: "/one/{id}" } } }
  - { path: /b, service: s, auth: public, hosts: [b.example.com] }
"#;

#[test]
fn routes_are_found_again_and_so_are_the_sources_of_aggregates() {
    let policies = compiled(ROUTES).expect("it is right").into_policies();
    let (get, post) = (&[MethodIndex(0), MethodIndex(1)][..], &[MethodIndex(2)][..]);
    let all: Vec<MethodIndex> = (0..6).map(MethodIndex).collect();
    let host = ["b.example.com".to_owned()];
    for (path, hosts, methods, is_found) in [
        ("/a/{id}", &[][..], post, true),
        ("/a/{id}", &[], get, true),
        ("/a/{id}", &[], &all, false),
        ("/a/{id}#one", &[], get, true),
        ("/a/{id}#two", &[], get, false),
        ("/a/{id}#one", &host, get, false),
        ("/b", &host, &all, true),
        ("/b", &[], &all, false),
    ] {
        let found = policies.table.same(path, hosts, methods);
        let expected = is_found.then_some(path);
        assert_eq!(found.map(|route| &*route.template), expected, "{path}");
    }
}
