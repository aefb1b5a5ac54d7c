//! A listener in the file system: who may open it, whose its connections are, and what becomes of an old one.

use crate::support::gateway::GatewayBuilder;
use crate::support::prelude::*;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

#[test]
fn requests_are_served_and_are_nobodys() {
    let world = World::start("proxy_protocol: false", "127.0.0.0/8");
    let mode = std::fs::metadata(&world.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let request = Request::get("/s/x")
        .header("X-Forwarded-For", "127.0.0.1")
        .header("Connection", "close");
    assert!(world.ask(&request.bytes()).starts_with("HTTP/1.1 200 "));
    let seen = &world.backend.wait_requests(1)[0];
    assert_eq!(
        seen.header("x-forwarded-for"),
        Some("0.0.0.0"),
        "nobody is believed"
    );
    let metrics = Request::get("/metrics").header("Connection", "close");
    assert!(world.ask(&metrics.bytes()).starts_with("HTTP/1.1 403 "));
    world
        .gateway
        .wait_metric("downstream_connections", |open| open == 0.0);
}

#[test]
fn who_may_open_it_is_believed_where_it_is_marked() {
    // Without trusted proxies: its mode says who they are.
    let world = World::start("proxy_protocol: true", "");
    let request = Request::get("/s/x").header("Connection", "close").bytes();
    let declared = [
        b"PROXY TCP4 8.8.4.4 1.1.1.1 1 2\r\n".to_vec(),
        request.clone(),
    ]
    .concat();
    assert!(world.ask(&declared).starts_with("HTTP/1.1 200 "));
    let seen = &world.backend.wait_requests(1)[0];
    assert_eq!(seen.header("x-forwarded-for"), Some("8.8.4.4"));
    assert_eq!(world.ask(&request), "", "without a header");
}

#[test]
fn an_old_socket_is_replaced_and_one_in_use_is_not() {
    let world = World::start("proxy_protocol: false", "");
    let again = World::builder(&world.path, "", &world.backend, "").run_to_exit();
    assert_eq!(again.code, 1);
    assert!(
        again.stderr.contains("cannot listen on unix:"),
        "{}",
        again.stderr
    );
    let request = Request::get("/s/x").header("Connection", "close").bytes();
    assert!(
        world.ask(&request).starts_with("HTTP/1.1 200 "),
        "the first serves on"
    );

    let path = free_path();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a process that ended has left it");
    let gateway = World::builder(&path, "", &world.backend, "").start();
    assert!(UnixStream::connect(&path).is_ok());
    drop(gateway);

    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    let exit = World::builder(&path, "", &world.backend, "").run_to_exit();
    assert_eq!(exit.code, 1);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
}

struct World {
    backend: Upstream,
    gateway: Gateway,
    path: PathBuf,
}

impl World {
    fn start(listener: &str, trusted: &str) -> Self {
        let backend = Upstream::start();
        let path = free_path();
        let gateway = Self::builder(&path, listener, &backend, trusted).start();
        Self {
            backend,
            gateway,
            path,
        }
    }

    fn builder(path: &Path, listener: &str, backend: &Upstream, trusted: &str) -> GatewayBuilder {
        Gateway::with(&format!(
            "server:
  trusted_proxies: [{trusted}]
  listeners: [{{ address: 'unix:{}', {listener} }}]
services: {{ s: {{ url: '{}' }} }}
routes: [{{ path: /s/*, service: s, auth: public }}]
",
            path.display(),
            backend.url()
        ))
    }

    /// All that is answered until the connection ends.
    fn ask(&self, bytes: &[u8]) -> String {
        wait_until("it listens", || UnixStream::connect(&self.path).is_ok());
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // A connection that is refused may end with a reset.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn free_path() -> PathBuf {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("gateway-e2e-{}-{number}.sock", std::process::id()))
}
