//! systemd's side of the unit file: what it is told over NOTIFY_SOCKET, what ExecReload runs, which process it follows.

use crate::support::prelude::*;
use crate::upgrade;
use std::os::unix::net::UnixDatagram;

const HUP: i32 = 1;
const TERM: i32 = 15;

#[test]
fn the_manager_follows_the_service_from_its_start_over_a_reload_to_its_stop() {
    let (backend, runtime) = (Upstream::start(), Runtime::new());
    let (manager, gateway) = unit(&runtime, &backend);
    let ready = manager.next();
    assert_eq!(ready.get("READY"), Some("1"));
    assert_eq!(ready.get("MAINPID"), Some(&*gateway.pid().to_string()));
    assert!(
        ready
            .get("STATUS")
            .is_some_and(|status| status.contains("serves")),
        "{ready:?}"
    );
    assert_eq!(
        Request::get("/s/x").send_to(gateway.addr()).status,
        200,
        "ready means that it serves"
    );

    // systemctl reload: ExecReload is a process of its own, and done when it ends.
    let reload = runtime.upgrade();
    assert_eq!(reload.code, 0, "{}", reload.stderr);
    let pid = gateway.successor(1);
    let taken = manager.next();
    assert_eq!(
        (taken.get("READY"), taken.get("MAINPID")),
        (Some("1"), Some(&*pid.to_string()))
    );
    assert_eq!(
        gateway.wait_exit(Duration::from_secs(5)),
        Some(0),
        "the old main process is gone, and not as failed"
    );
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);

    // systemctl stop: to the main process, which is the new one.
    signal(pid, TERM);
    assert_eq!(manager.next().get("STOPPING"), Some("1"));
    wait_until("it has ended", || is_gone(pid));
    assert!(manager.is_silent());
}

#[test]
fn a_reload_that_fails_changes_nothing_for_the_manager() {
    let (backend, runtime) = (Upstream::start(), Runtime::new());
    let (manager, gateway) = unit(&runtime, &backend);
    assert_eq!(manager.next().get("READY"), Some("1"));
    runtime.break_program("#!/bin/sh\nexit 3\n");
    assert_eq!(runtime.upgrade().code, 1);
    assert!(manager.is_silent(), "the main process is the same");
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
    gateway.signal(TERM);
    assert_eq!(manager.next().get("STOPPING"), Some("1"));
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
}

#[test]
fn who_was_told_that_it_stops_is_told_nothing_else() {
    let (backend, runtime) = (Upstream::start(), Runtime::new());
    let (manager, gateway) = unit_with(&runtime, &backend, &[("DRAIN_DELAY", "20s")]);
    assert_eq!(manager.next().get("READY"), Some("1"));
    gateway.signal(TERM);
    assert_eq!(manager.next().get("STOPPING"), Some("1"));
    gateway.signal(HUP);
    gateway.wait_log(|line| line["msg"] == "reload failed, nothing has changed");
    assert!(manager.is_silent());
    gateway.signal(TERM);
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(130));
    assert!(manager.is_silent());
}

#[test]
fn the_manager_hears_of_a_new_main_process_only_when_the_old_one_knows() {
    let (backend, runtime) = (Upstream::start(), Runtime::new());
    let manager = Manager::new(&runtime);
    let socket = manager.path.display().to_string();
    let hello = upgrade::hello_with(1, json!({"confirms": true}));
    let (wire, heir) = upgrade::heir_with(&backend, &hello, &[("NOTIFY_SOCKET", &socket)]);
    assert_eq!(upgrade::read_frame(&wire).0, "ready");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let keys = upgrade::keys().to_string();
    upgrade::send_frame(&wire, "listeners", &keys, Some(&listener));
    upgrade::send_frame(&wire, "end", "null", None);
    assert_eq!(upgrade::read_frame(&wire).0, "serving");
    assert!(manager.stays_silent(), "the old one may still end it");
    upgrade::send_frame(&wire, "known", "null", None);
    let ready = manager.next();
    assert_eq!(ready.get("READY"), Some("1"));
    assert_eq!(ready.get("MAINPID"), Some(&*heir.pid().to_string()));
}

/// The service, as its unit starts it.
fn unit(runtime: &Runtime, backend: &Upstream) -> (Manager, Gateway) {
    unit_with(runtime, backend, &[])
}

fn unit_with(
    runtime: &Runtime,
    backend: &Upstream,
    environment: &[(&str, &str)],
) -> (Manager, Gateway) {
    let manager = Manager::new(runtime);
    let conf = format!(
        "services: {{ s: {{ url: '{}' }} }}\nroutes: [{{ path: /s/*, service: s, auth: public }}]",
        backend.url()
    );
    let gateway = Gateway::with(&conf).env("NOTIFY_SOCKET", manager.path.display());
    let set = |gateway: GatewayBuilder, (name, value): &(&str, &str)| gateway.env(name, value);
    let gateway = environment.iter().fold(gateway, set);
    let gateway = runtime.of(gateway).start();
    (manager, gateway)
}

/// The end of NOTIFY_SOCKET that systemd holds.
struct Manager {
    socket: UnixDatagram,
    path: std::path::PathBuf,
}

/// What was said at once: `KEY=value` lines.
#[derive(Debug)]
struct Said(String);

impl Manager {
    fn new(runtime: &Runtime) -> Self {
        let path = runtime.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        Self { socket, path }
    }

    #[track_caller]
    fn next(&self) -> Said {
        let mut said = [0; 4096];
        let length = self
            .socket
            .recv(&mut said)
            .expect("something is said within 10 s");
        Said(String::from_utf8(said[..length].to_vec()).unwrap())
    }

    /// Nothing is said for a while.
    fn stays_silent(&self) -> bool {
        let limit = |time| self.socket.set_read_timeout(Some(time)).unwrap();
        limit(Duration::from_millis(300));
        let silent = self.socket.recv(&mut [0; 16]).is_err();
        limit(Duration::from_secs(10));
        silent
    }

    /// Nothing was said that was not read.
    fn is_silent(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let silent = self.socket.recv(&mut [0; 16]).is_err();
        self.socket.set_nonblocking(false).unwrap();
        silent
    }
}

impl Said {
    fn get(&self, key: &str) -> Option<&str> {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }
}

fn signal(pid: u32, signal: i32) {
    let sent = std::process::Command::new("kill")
        .arg(format!("-{signal}"))
        .arg(pid.to_string())
        .status();
    assert!(sent.unwrap().success());
}
