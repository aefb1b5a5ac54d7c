//! The seams of an upgrade: what the old process still learns after it, which socket is whose, and who is asked when it
//! comes to nothing.

use crate::support::prelude::*;
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::net::{UnixListener, UnixStream};

/// Nobody.
const NOBODY: u32 = 65534;

#[test]
fn who_logs_out_at_the_old_process_after_the_upgrade_is_out_at_the_new_one_too() {
    let (backend, runtime) = (Upstream::start(), Runtime::new());
    let gateway = Gateway::platform_unchecked().all_services_at(&backend.url());
    let gateway = runtime.of(gateway).start();
    wait_until("it can be asked", || runtime.control().exists());
    let mut kept = Client::to(gateway.addr()).connect();
    assert_eq!(kept.request(&Request::get("/live")).status, 200);
    assert_eq!(runtime.upgrade().code, 0);

    let logout = |token: &str| {
        let request = Request::post("/api/v1/auth/logout").bearer(token);
        request.json(&json!({}))
    };
    let (here, there) = (Token::user("u1").hs256(), Token::user("u2").hs256());
    // The old process has revoked nothing when it hands over, and the new one something of its own before it hears more.
    assert_eq!(logout(&here).send_to(gateway.addr()).status, 200);
    assert_eq!(kept.request(&logout(&there)).status, 200);
    await_last_words(&gateway);
    for token in [here, there] {
        let request = Request::get("/api/v1/tickets/x").bearer(&token);
        assert_eq!(request.send_to(gateway.addr()).status, 401);
    }
}

#[test]
fn what_the_old_process_counts_after_the_upgrade_counts_though_it_had_counted_nobody() {
    let (_backend, runtime, gateway) = world("limits: { global: { max: 3, window: 60s } }");
    let mut kept = Client::to(gateway.addr()).connect();
    assert_eq!(kept.request(&Request::get("/live")).status, 200);
    assert_eq!(runtime.upgrade().code, 0);
    assert_eq!(get(gateway.addr()), 200);
    assert_eq!(kept.request(&Request::get("/s/x")).status, 200);
    await_last_words(&gateway);
    assert_eq!([get(gateway.addr()), get(gateway.addr())], [200, 429]);
}

#[test]
fn listeners_at_any_port_are_found_again_each_its_own() {
    let any = "{ address: '127.0.0.1:0' }";
    let redirect = "{ address: '127.0.0.1:0', protocol: redirect }";
    let (_backend, runtime, gateway) = world(&format!(
        "server: {{ listeners: [{any}, {redirect}, {any}] }}\nlimits: {{ enabled: false }}"
    ));
    wait_until("all are told", || further_listeners(&gateway).len() == 3);
    let further = further_listeners(&gateway);
    for count in 1..=2 {
        assert_eq!(runtime.upgrade().code, 0);
        gateway.successor(count);
        for (address, status) in &further {
            assert_eq!(get(*address), *status, "{address} after upgrade {count}");
        }
    }
}

#[test]
fn a_process_that_serves_on_is_found_again_whatever_the_other_has_put_in_its_place() {
    let (_backend, runtime, gateway) = world("");
    // Says that it is ready, takes the place of the control socket, and ends.
    let ready = r#"printf 'agw1\000\000\000\033\005ready{"wants_revocations":false}' >&0"#;
    let replace = r#": > "$RUNTIME_DIRECTORY/x" && mv -f "$RUNTIME_DIRECTORY/x" "$RUNTIME_DIRECTORY/control.sock""#;
    for ready in ["", ready] {
        runtime.break_program(&format!("#!/bin/sh\n{ready}\n{replace}\nexit 7\n"));
        let failed = runtime.upgrade();
        assert_eq!(failed.code, 1, "{}", failed.stdout);
        assert!(
            failed.stderr.contains("ended before it"),
            "{}",
            failed.stderr
        );
        let asked = runtime.ask("reload");
        assert_eq!((asked.code, &*asked.stderr), (0, ""));
    }
    let folder = runtime.control().parent().unwrap().to_owned();
    assert_eq!(fs::read_dir(folder).unwrap().count(), 1, "nothing is left");
    runtime.mend();
    assert_eq!(runtime.upgrade().code, 0);
    gateway.successor(1);
    assert_eq!(get(gateway.addr()), 200);
    wait_until("only the new one's is left", || {
        let folder = runtime.control().parent().unwrap().to_owned();
        fs::read_dir(folder).unwrap().count() == 1
    });
    assert_eq!(runtime.ask("reload").code, 0);
}

#[test]
fn a_control_socket_is_its_directorys_owners_or_it_is_none() {
    let (backend, runtime) = (Upstream::start(), Runtime::new());
    let folder = runtime.control().parent().unwrap().to_owned();
    chown(&folder, Some(NOBODY), None).unwrap();
    let gateway = runtime.of(Gateway::with(&yaml(&backend, ""))).start();
    gateway.wait_log(|line| {
        let message = line["msg"].as_str().unwrap_or_default();
        message.contains("no control socket") && message.contains("user 65534's")
    });
    assert!(!runtime.control().exists());
    drop(gateway);

    // Who serves as nobody may be asked in nobody's directory, and is nobody to ask in another's.
    let id = NOBODY.to_string();
    let setpriv = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"];
    let gateway = Gateway::with(&yaml(&backend, "")).under(&setpriv);
    let gateway = runtime.of(gateway).start();
    wait_until("it can be asked", || {
        UnixStream::connect(runtime.control()).is_ok()
    });
    assert_eq!(runtime.ask("reload").code, 0);
    chown(&folder, Some(0), None).unwrap();
    let asked = runtime.ask("reload");
    assert_eq!(asked.code, 1);
    assert!(asked.stderr.contains("is user 65534's"), "{}", asked.stderr);
    assert_eq!(
        gateway.metric(r#"config_reloads_total{outcome="reloaded"}"#),
        1.0
    );
}

#[test]
fn what_a_killed_process_has_left_goes_with_the_next_start() {
    const KILL: i32 = 9;
    let (backend, runtime, gateway) = world("");
    let folder = runtime.control().parent().unwrap().to_owned();
    let left = |pid: u32| folder.join(format!(".control.{pid}"));
    runtime.break_program("#!/bin/sh\nexec sleep 60\n");
    let mut upgrade = runtime.begin("upgrade");
    wait_until("it has begun", || left(gateway.pid()).exists());
    gateway.signal(KILL);
    upgrade.wait().unwrap();
    // Until it was waited for it has not ended.
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(128 + KILL));
    assert!(left(gateway.pid()).exists(), "it could not take it away");

    let gone = || {
        let mut process = std::process::Command::new("true").spawn().unwrap();
        process.wait().unwrap();
        process.id()
    };
    // Whose process lives, that of another user, no socket, and one that somebody listens on.
    let (ours, theirs) = (left(std::process::id()), left(gone()));
    let (file, heard) = (left(gone()), left(gone()));
    drop(UnixListener::bind(&ours).unwrap());
    drop(UnixListener::bind(&theirs).unwrap());
    chown(&theirs, Some(NOBODY), None).unwrap();
    fs::write(&file, "precious").unwrap();
    let _listener = UnixListener::bind(&heard).unwrap();

    runtime.mend();
    let _next = runtime.of(Gateway::with(&yaml(&backend, ""))).start();
    wait_until("it is swept", || !left(gateway.pid()).exists());
    for path in [ours, theirs, file, heard] {
        assert!(path.exists(), "{} is not ours to remove", path.display());
    }
}

/// The listeners beside the main and the private one, with what they answer.
fn further_listeners(gateway: &Gateway) -> Vec<(SocketAddr, u16)> {
    let lines = gateway.log_lines();
    let further = lines.iter().filter(|line| {
        line["msg"] == "listening" && !matches!(line["listener"].as_str(), Some("main" | "private"))
    });
    let told = further.map(|line| {
        let address = line["address"].as_str().unwrap().parse().unwrap();
        (address, if line["protocol"] == "http" { 200 } else { 308 })
    });
    told.collect()
}

/// The old process has said what it learned last, and ended.
fn await_last_words(gateway: &Gateway) {
    gateway.wait_log(|line| {
        let message = line["msg"].as_str().unwrap_or_default();
        message.contains("the old process has ended")
    });
}

fn world(more: &str) -> (Upstream, Runtime, Gateway) {
    let (backend, runtime) = (Upstream::start(), Runtime::new());
    let gateway = runtime.of(Gateway::with(&yaml(&backend, more))).start();
    wait_until("it can be asked", || runtime.control().exists());
    (backend, runtime, gateway)
}

fn yaml(backend: &Upstream, more: &str) -> String {
    format!(
        "services: {{ s: {{ url: '{}', health: {{ enabled: false }} }} }}
routes: [{{ path: /s/*, service: s, auth: public }}]
{more}
",
        backend.url()
    )
}

fn get(addr: SocketAddr) -> u16 {
    Request::get("/s/x").send_to(addr).status
}
