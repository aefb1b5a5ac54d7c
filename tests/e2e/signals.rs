//! Signals and ends at moments that nobody has planned: while the process starts, and when it ends at once.

use crate::support::prelude::*;
use socket2::{Domain, Socket, Type};
use std::io::Write;
use std::net::{TcpListener, TcpStream};

const HUP: i32 = 1;
const USR2: i32 = 12;

#[test]
fn a_process_that_is_starting_acts_on_signals_when_it_serves() {
    let starting = Starting::spawn("127.0.0.1", 0);
    starting.gateway.rewrite_conf(&starting.conf("/b/*"));
    starting.gateway.signal(USR2);
    // Before it goes on: a process that serves would do it, and take no other configuration meanwhile.
    starting.gateway.wait_failed_upgrade("does not serve yet");
    starting.gateway.signal(HUP);
    starting.goes_on();
    let main = |line: &Value| line["msg"] == "listening" && line["listener"] == "main";
    let main = starting.gateway.wait_log(main);
    let addr: SocketAddr = main["address"].as_str().unwrap().parse().unwrap();
    wait_until("the new route is there", || {
        Request::get("/b/x").send_to(addr).status == 200
    });
}

#[test]
fn a_signal_that_comes_before_anything_is_read_does_not_end_the_process() {
    // One that waits for its configuration, for as long as nobody writes it.
    let path = TempFile::new("pipe", "");
    std::fs::remove_file(path.path()).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(path.path())
        .status();
    assert!(made.unwrap().success());
    let gateway = Gateway::platform().arg("--conf").arg(path.path().display());
    let gateway = gateway.spawn();
    // It is open for writing as soon as it is read.
    let mut pipe = std::fs::File::options()
        .write(true)
        .open(path.path())
        .unwrap();
    gateway.signal(HUP);
    gateway.signal(USR2);
    let (slow, backend) = (TcpListener::bind("127.0.0.1:0").unwrap(), Upstream::start());
    let yaml = conf(&backend, &slow, "/a/*");
    drop(slow);
    pipe.write_all(yaml.as_bytes()).unwrap();
    drop(pipe);
    gateway.wait_log(|line| line["msg"] == "listening" && line["listener"] == "main");
    gateway.wait_failed_upgrade("does not serve yet");
}

#[test]
fn a_port_that_somebody_else_listens_on_meanwhile_ends_it_and_the_log_says_so() {
    let other = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    other.set_reuse_address(true).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    other.bind(&any.into()).unwrap();
    let port = other.local_addr().unwrap().as_socket().unwrap().port();
    let starting = Starting::spawn("127.0.0.1", port);
    other.listen(1).unwrap();
    starting.goes_on();
    assert_eq!(starting.gateway.wait_exit(Duration::from_secs(10)), Some(1));
    starting.gateway.wait_log(|line| {
        let message = line["msg"].as_str().unwrap_or_default();
        message.starts_with(&format!("cannot listen on 127.0.0.1:{port}"))
    });
}

/// A gateway whose sockets are bound, and that looks at a service before it listens.
struct Starting {
    gateway: Gateway,
    backend: Upstream,
    slow: TcpListener,
    held: TcpStream,
}

impl Starting {
    fn spawn(host: &str, port: u16) -> Self {
        let (slow, backend) = (TcpListener::bind("127.0.0.1:0").unwrap(), Upstream::start());
        let yaml = conf(&backend, &slow, "/a/*");
        let gateway = Gateway::with(&yaml).env("HOST", host).env("PORT", port);
        let gateway = gateway.spawn();
        let (held, _) = slow.accept().unwrap();
        Self {
            gateway,
            backend,
            slow,
            held,
        }
    }

    fn conf(&self, route: &str) -> String {
        conf(&self.backend, &self.slow, route)
    }

    /// The service is looked at in vain.
    fn goes_on(&self) {
        let _ = self.held.shutdown(std::net::Shutdown::Both);
    }
}

fn conf(backend: &Upstream, slow: &TcpListener, route: &str) -> String {
    format!(
        "services:
  s: {{ url: '{}', health: {{ enabled: false }} }}
  slow: {{ url: 'http://{}', health: {{ timeout: 10s }} }}
routes: [{{ path: {route}, service: s, auth: public }}]
",
        backend.url(),
        slow.local_addr().unwrap()
    )
}
