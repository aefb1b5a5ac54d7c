//! A reload and what belongs to the process: its certificates, its end, its service manager. What is said to be in force is.

use crate::support::prelude::*;
use std::net::TcpListener;
use std::process::Command;
use std::thread;

#[test]
fn a_certificate_that_is_renewed_during_a_reload_is_the_one_that_stays() {
    let authority = Authority::new();
    let pair = authority.sign("one", "DNS:a.test");
    let backend = Upstream::start();
    let (before, during) = (conf(&backend, &tls(&pair), ""), slow());
    let gateway = Gateway::with(&before).start();
    let (https, private) = (gateway.listener("https"), gateway.private_addr());
    let client = TlsClient::new(&authority.ca(), "a.test");
    let shown = || client.connect(https).wire().certificate();
    let first = shown();

    // The reload has read the files, and looks at the new service.
    gateway.rewrite_conf(&conf(&backend, &tls(&pair), &during.service));
    let reload = thread::spawn(move || Request::post("/reload").send_to(private).status);
    let held = during.listener.accept().unwrap();
    authority.sign("one", "DNS:a.test");
    wait_until("the watch has taken it up", || shown() != first);
    let renewed = shown();
    drop((held, during.listener));
    assert_eq!(reload.join().unwrap(), 200);
    // What the reload had read may be shown for one look of the watch.
    wait_until("the renewed one is shown", || shown() == renewed);
}

#[test]
fn a_renewed_certificate_is_told_by_the_reload_that_finds_it() {
    let authority = Authority::new();
    let pair = authority.sign("one", "DNS:a.test");
    let backend = Upstream::start();
    let gateway = Gateway::with(&conf(&backend, &tls(&pair), "")).start();
    authority.sign("one", "DNS:a.test");
    let told = reload(&gateway);
    assert_eq!(told["changes"], json!(["tls.certificates: changed"]));
    assert_eq!(reload(&gateway)["changes"], json!([]));
}

#[test]
fn the_first_certificate_and_the_end_of_the_last_need_a_restart() {
    let authority = Authority::new();
    let pair = authority.sign("one", "DNS:a.test");
    let backend = Upstream::start();
    let (with, without) = (
        conf(&backend, &tls(&pair), ""),
        conf(&backend, "tls: { min_version: '1.3' }", ""),
    );
    let gateway = Gateway::with(&without).start();
    gateway.rewrite_conf(&with);
    for _ in 0..2 {
        let told = reload(&gateway);
        assert_eq!(told["changes"], json!([]));
        let named = ["server.listeners", "tls.certificates", "tls.min_version"];
        assert_eq!(sorted(&told["needsRestart"]), named);
    }

    let gateway = Gateway::with(&with).start();
    let https = gateway.listener("https");
    gateway.rewrite_conf(&without);
    let told = reload(&gateway);
    assert_eq!(told["changes"], json!([]));
    assert!(sorted(&told["needsRestart"]).contains(&"tls.certificates"));
    let client = TlsClient::new(&authority.ca(), "a.test");
    let response = client.send(&Request::get("/s/x"), https);
    assert_eq!(response.status, 200, "it is shown still, as was said");
    gateway.rewrite_conf(&with);
    let told = reload(&gateway);
    assert_eq!(
        (&told["changes"], &told["needsRestart"]),
        (&json!([]), &json!([]))
    );
}

#[test]
fn what_is_no_file_is_not_read_as_one() {
    let authority = Authority::new();
    let (cert, key) = authority.sign("one", "DNS:a.test");
    let pipe = authority.path("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    for bad in ["/dev/zero", &pipe] {
        let yaml = format!(
            "tls: {{ certificates: [{{ certificate: '{bad}', key: '{key}' }}, {{ certificate: '{cert}', key: '{bad}' }}] }}
auth: {{ jwt: {{ public_key: '{bad}' }} }}
redis: {{ host: r, tls: {{ ca: '{bad}' }} }}
services: {{ s: {{ url: 'https://127.0.0.1:1', tls: {{ ca: '{bad}', cert: '{bad}', key: '{key}' }} }} }}
"
        );
        let exit = Gateway::with(&yaml).arg("--test").run_to_exit();
        assert_eq!(exit.code, 1);
        for place in [
            "tls.certificates[0].certificate",
            "tls.certificates[1].key",
            "auth.jwt.public_key",
            "redis.tls.ca",
            "services.s.tls.ca",
            "services.s.tls.cert",
        ] {
            let of = |line: &&str| line.contains(place) && line.contains("it is no file");
            let told = exit.stderr.lines().any(|line| of(&line));
            assert!(told, "{bad} at {place}: {}", exit.stderr);
        }
    }
}

#[test]
fn a_reload_waits_for_nobody_to_write_a_pipe() {
    let backend = Upstream::start();
    let file = TempFile::new("yaml", &conf(&backend, "", ""));
    let path = file.path();
    let gateway = Gateway::platform().arg("--conf").arg(path.display());
    let gateway = gateway.start();
    std::fs::remove_file(path).unwrap();
    for make in ["mkfifo", "mkdir"] {
        let made = Command::new(make).arg(path).status().unwrap();
        assert!(made.success());
        for _ in 0..2 {
            let told = Request::post("/reload").send_to(gateway.private_addr());
            assert_eq!(told.status, 422, "{make}: {}", told.text());
            assert!(told.text().contains("it is no file"), "{}", told.text());
        }
        let _ = std::fs::remove_file(path).or_else(|_| std::fs::remove_dir(path));
    }
    let more = "limits: { enabled: false }";
    file.rewrite(&conf(&backend, more, ""));
    assert_eq!(reload(&gateway)["status"], "reloaded");
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
}

/// A service that takes a while to be looked at: whoever asks it waits for as long as `listener` has it.
struct Slow {
    listener: TcpListener,
    service: String,
}

fn slow() -> Slow {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    Slow {
        service: format!("  slow: {{ url: '{url}', health: {{ timeout: 10s }} }}\n"),
        listener,
    }
}

fn tls((cert, key): &(String, String)) -> String {
    format!(
        "tls: {{ certificates: [{{ certificate: '{cert}', key: '{key}' }}] }}
server: {{ listeners: [{{ address: '127.0.0.1:0', protocol: https }}] }}"
    )
}

fn conf(backend: &Upstream, more: &str, services: &str) -> String {
    format!(
        "{more}
services:
  s: {{ url: '{}', health: {{ enabled: false }} }}
{services}routes: [{{ path: /s/*, service: s, auth: public }}]
",
        backend.url()
    )
}

#[track_caller]
fn reload(gateway: &Gateway) -> Value {
    let response = Request::post("/reload").send_to(gateway.private_addr());
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

/// The texts of a list, in an order that says nothing.
fn sorted(list: &Value) -> Vec<&str> {
    let list = list.as_array().expect("a list");
    let mut texts: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
    texts.sort_unstable();
    texts
}
