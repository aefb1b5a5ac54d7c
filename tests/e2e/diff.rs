//! `api-gateway diff`: what a reload would change, before it does.

use crate::support::prelude::*;

const OLD: &str = "
auth: { jwt: { access_secret: 'the-first-secret-of-32-characters' } }
services:
  a: { url: 'http://127.0.0.1:1' }
  b: { url: 'http://127.0.0.1:2', timeout: 60s }
routes:
  - { path: /a, service: a, auth: public }
  - { path: /b, service: b, auth: public }
";

#[test]
fn every_change_is_one_line_with_its_place_and_no_secret_is_shown() {
    let new = "
server: { threads: 3, header_timeout: 9s }
auth: { jwt: { access_secret: 'another-secret-of-32-characters!!' } }
services:
  a: { instances: [{ url: 'http://127.0.0.1:1', weight: 2 }] }
  c: { url: 'http://127.0.0.1:3' }
routes:
  - { path: /c, service: c, auth: public }
  - { path: /a, service: a, auth: token }
";
    let exit = diff(OLD, new);
    assert_eq!((exit.code, &*exit.stderr), (0, ""));
    let expected = "\
server.header_timeout: changed
auth.jwt.access_secret: changed
services.a: changed (url, instances)
services.c: added
services.b: removed
routes[0]: added
routes[1]: changed (auth)
routes[1]: removed
server.threads: needs a restart";
    assert_eq!(exit.stdout, expected);
}

#[test]
fn what_says_the_same_in_other_words_is_no_change() {
    let same = "
tracing: { enabled: false }
auth: { jwt: { access_secret: 'the-first-secret-of-32-characters' } }
services:
  b: { url: 'http://127.0.0.1:2', timeout: 60s, breaker: {} }
  a: { url: 'http://127.0.0.1:1', instances: [] }
routes:
  - { path: /b, service: b, auth: public, methods: [] }
  - { path: /a, service: a, auth: public }
";
    let exit = diff(OLD, same);
    assert_eq!((exit.code, &*exit.stdout), (0, "no change"));
    assert_eq!(diff(OLD, OLD).stdout, "no change");
}

#[test]
fn without_a_file_the_other_is_compared_with_the_built_in_one() {
    let reference = include_str!("../../conf/gateway.yaml");
    let new = TempFile::new(
        "yaml",
        &reference.replace("max_retries: 5", "max_retries: 4"),
    );
    let exit = Gateway::platform()
        .arg("diff")
        .arg(new.path().display())
        .run_to_exit();
    assert_eq!(exit.stdout, "services.minting-service: changed (retry)");
}

#[test]
fn a_fault_in_either_file_is_told_and_nothing_is_compared() {
    let faulty = OLD.replace("service: b", "service: nobody");
    for (old, new) in [(OLD, &*faulty), (&*faulty, OLD)] {
        let exit = diff(old, new);
        assert_eq!((exit.code, &*exit.stdout), (1, ""));
        let fault = "routes[1].service: there is no service `nobody`";
        assert!(exit.stderr.contains(fault), "{}", exit.stderr);
    }
    let missing = Gateway::with(OLD)
        .arg("diff")
        .arg("/nonexistent.yaml")
        .run_to_exit();
    assert_eq!(missing.code, 1);
    assert!(
        missing.stderr.contains("/nonexistent.yaml"),
        "{}",
        missing.stderr
    );
    let none = Gateway::with(OLD).arg("diff").run_to_exit();
    assert_eq!(none.code, 2, "{}", none.stderr);
}

fn diff(old: &str, new: &str) -> Exit {
    let new = TempFile::new("yaml", new);
    Gateway::with(old)
        .arg("diff")
        .arg(new.path().display())
        .run_to_exit()
}
