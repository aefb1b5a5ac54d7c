//! An instance of a service as a process of its own (`examples/one_backend.rs`): one that can be
//! killed with requests in its hands, frozen, and started again on its port.

use super::gateway::{Lines, collect, send_signal};
use super::lock;
use super::upstream::reserve_port;
use super::wait::{SOON, within};
use socket2::Socket;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, Once};
use std::thread::JoinHandle;
use std::time::Instant;

const STOP: i32 = 19;
const CONTINUE: i32 = 18;

/// A service's instance, running or not. Killed when dropped.
pub struct Instance {
    addr: SocketAddr,
    /// Bound and not listening: the port stays this instance's while it is down, and refuses.
    _reserved: Socket,
    running: Mutex<Option<(Child, JoinHandle<()>)>>,
    said: Lines,
}

impl Instance {
    /// A running instance that answers with its port as its name.
    #[track_caller]
    pub fn start() -> Self {
        let (reserved, addr) = reserve_port();
        let instance = Self {
            addr,
            _reserved: reserved,
            running: Mutex::default(),
            said: Lines::default(),
        };
        instance.restart();
        instance
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends it with SIGKILL. When this returns, its port refuses and its connections are gone.
    /// Gives the moments just before and just after.
    #[track_caller]
    pub fn kill(&self) -> (Instant, Instant) {
        let (mut child, reader) = lock(&self.running).take().expect("it is running");
        let before = Instant::now();
        child.kill().expect("it has not been waited for");
        child.wait().expect("it can be waited for");
        let after = Instant::now();
        reader.join().expect("its output can be read");
        (before, after)
    }

    /// Starts it on its port again after [`Instance::kill`], and waits until it listens.
    #[track_caller]
    pub fn restart(&self) {
        let mut running = lock(&self.running);
        assert!(running.is_none(), "the instance was not killed");
        let mut child = Command::new(program())
            .arg(self.addr.port().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("an instance can be run");
        let output = child.stdout.take().expect("stdout is piped");
        *running = Some((child, collect(output, &self.said)));
        within(SOON, || TcpStream::connect(self.addr).ok())
            .unwrap_or_else(|| panic!("{} does not listen within {SOON:?}", self.addr));
    }

    /// Stops it with SIGSTOP: the kernel still takes connections and bytes for it.
    #[track_caller]
    pub fn freeze(&self) {
        self.signal(STOP);
    }

    #[track_caller]
    pub fn thaw(&self) {
        self.signal(CONTINUE);
    }

    /// Every request of all its lives but those to `/health`, as `GET /s/x?y`.
    pub fn requests(&self) -> Vec<String> {
        let said = lock(&self.said);
        let is_request = |line: &&String| !line.starts_with("listening on");
        said.iter().filter(is_request).cloned().collect()
    }

    #[track_caller]
    fn signal(&self, signal: i32) {
        let running = lock(&self.running);
        let (child, _) = running.as_ref().expect("it is running");
        assert!(
            send_signal(child.id(), signal),
            "{} cannot be sent signal {signal}",
            self.addr
        );
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some((mut child, reader)) = lock(&self.running).take() {
            // Each fails only for a process that has ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            let _ = reader.join();
        }
    }
}

/// The example, built when it is not there or older than its source: `cargo test` builds the
/// examples, but `cargo test --test e2e` does not.
fn program() -> PathBuf {
    static BUILD: Once = Once::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/one_backend.rs");
    // The test program is TARGET/PROFILE/deps/e2e-HASH.
    let test = std::env::current_exe().expect("the test knows its program");
    let profile_dir = test.ancestors().nth(2).expect("it is in a target folder");
    let program = profile_dir.join("examples/one_backend");
    BUILD.call_once(|| {
        let changed = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
        if changed(&program) < changed(&source) {
            build(profile_dir);
        }
    });
    program
}

fn build(profile_dir: &Path) {
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(named) => named,
    };
    let built = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--example", "one_backend"])
        .args(["--profile", profile, "--target-dir"])
        .arg(profile_dir.parent().expect("a profile is in the target"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo can be run");
    assert!(built.success(), "the example one_backend cannot be built");
}
