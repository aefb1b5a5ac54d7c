//! A log that is a file: whoever rotates it moves it away without telling anybody, and a full disk stops nothing.

use crate::support::prelude::*;
use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

#[test]
fn a_log_that_is_moved_away_goes_on_in_a_new_file_and_no_line_is_lost() {
    let world = World::start(|folder| folder.join("gateway.log"));
    let (log, older) = (world.log(), world.folder.0.join("gateway.log.1"));
    world.send();
    wait_until("the first line is written", || has_requests(&log));

    fs::rename(&log, &older).unwrap();
    world.send_until("another file is written", || has_requests(&log));

    fs::remove_file(&log).unwrap();
    world.send_until("a file that was removed is there again", || {
        has_requests(&log)
    });

    // Without its folder it goes on where it was moved to, and in a new file once there can be one.
    let elsewhere = world.folder.0.with_extension("moved");
    fs::rename(&world.folder.0, &elsewhere).unwrap();
    let before = requests_in(&elsewhere.join("gateway.log")).len();
    world.send_until("the file elsewhere grows", || {
        requests_in(&elsewhere.join("gateway.log")).len() >= before + 15
    });
    fs::create_dir(&world.folder.0).unwrap();
    world.send_until("a new file is written", || has_requests(&log));

    let sent = world.sent.get();
    let written = || {
        let files = [
            elsewhere.join("gateway.log.1"),
            elsewhere.join("gateway.log"),
            log.clone(),
        ];
        files
            .iter()
            .map(|file| requests_in(file))
            .collect::<Vec<_>>()
    };
    wait_until("the last line is written", || {
        written().concat().contains(&format!("rotated-{sent}"))
    });
    let written = written().concat();
    let mut distinct = written.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), written.len(), "no line is written twice");
    // Those of the file that was removed are gone with it; none of the others is missing.
    let first_kept = written
        .iter()
        .filter_map(|id| number_of(id))
        .filter(|n| *n > world.removed_by.get());
    assert_eq!(first_kept.count(), sent - world.removed_by.get());
    let _ = fs::remove_dir_all(&elsewhere);
}

#[test]
fn a_log_that_is_made_is_for_its_owner_and_group_alone() {
    let world = World::start(|folder| folder.join("gateway.log"));
    let mode = || fs::metadata(world.log()).map(|file| file.permissions().mode() & 0o777);
    assert_eq!(mode().unwrap(), 0o640);
    fs::remove_file(world.log()).unwrap();
    world.send_until("another file is written", || world.log().exists());
    assert_eq!(mode().unwrap(), 0o640);
}

#[test]
fn a_full_disk_costs_lines_that_are_counted_and_nothing_else() {
    let world = World::start(|folder| {
        symlink("real.log", folder.join("gateway.log")).unwrap();
        folder.join("gateway.log")
    });
    let point_at = |target: &str| {
        let new = world.folder.0.join("new");
        symlink(target, &new).unwrap();
        fs::rename(&new, world.log()).unwrap();
    };
    assert_eq!(world.dropped(), 0.0);
    point_at("/dev/full");
    world.send_until("lines are dropped", || world.dropped() >= 3.0);

    point_at("again.log");
    let again = world.folder.0.join("again.log");
    world.send_until("lines are written again", || has_requests(&again));
    world.send_until("what was dropped is said", || {
        lines_of(&again).iter().any(|line| {
            let msg = line["msg"].as_str().unwrap_or_default();
            line["level"] == "warn" && msg.ends_with("log lines were dropped")
        })
    });
}

struct World {
    _backend: Upstream,
    gateway: Gateway,
    addr: SocketAddr,
    private: SocketAddr,
    folder: Folder,
    sent: Cell<usize>,
    /// The last request that was sent before the file that holds it was removed.
    removed_by: Cell<usize>,
}

impl World {
    fn start(log_in: impl Fn(&Path) -> PathBuf) -> Self {
        let backend = Upstream::start();
        let folder = Folder::new();
        let log = log_in(&folder.0);
        let gateway = Gateway::with(&format!(
            "log: {{ file: '{}' }}
limits: {{ enabled: false, flood: {{ per_second: 100000 }} }}
health: {{ enabled: false }}
services: {{ s: {{ url: '{}' }} }}
routes: [{{ path: /s/*, service: s, auth: public, limits: [] }}]
",
            log.display(),
            backend.url()
        ));
        let gateway = gateway.spawn();
        let address_of = |listener: &str| {
            let told = within(Duration::from_secs(20), || {
                let line = lines_of(&log)
                    .into_iter()
                    .find(|line| line["listener"] == listener)?;
                line["address"].as_str()?.parse().ok()
            });
            told.unwrap_or_else(|| panic!("no {listener} listener; {}", gateway.raw_output()))
        };
        Self {
            addr: address_of("main"),
            private: address_of("private"),
            _backend: backend,
            gateway,
            folder,
            sent: Cell::new(0),
            removed_by: Cell::new(0),
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.0.join("gateway.log")
    }

    fn send(&self) {
        self.sent.set(self.sent.get() + 1);
        let id = format!("rotated-{}", self.sent.get());
        let response = Request::get("/s/x")
            .header("X-Request-ID", &id)
            .send_to(self.addr);
        assert_eq!(response.status, 200, "{}", self.gateway.raw_output());
    }

    /// The file is looked for at its path once a second at most, and when there is something to write.
    #[track_caller]
    fn send_until(&self, what: &str, is_so: impl Fn() -> bool) {
        let so = within(Duration::from_secs(10), || {
            self.send();
            is_so().then_some(())
        });
        assert!(so.is_some(), "not within 10 s: {what}");
        if what.contains("removed") {
            self.removed_by.set(self.sent.get());
        }
    }

    fn dropped(&self) -> f64 {
        let metrics = Request::get("/metrics").send_to(self.private);
        let line = metrics
            .text()
            .lines()
            .find(|line| line.starts_with("log_lines_dropped "));
        let value = line
            .and_then(|line| line.split(' ').nth(1))
            .expect("the metric is there");
        value.parse().unwrap()
    }
}

/// A folder of its own, gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("gateway-e2e-log-{}-{number}", std::process::id());
        let folder = Self(std::env::temp_dir().join(name));
        fs::create_dir(&folder.0).unwrap();
        folder
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Every line must be JSON, whatever happened to the file.
fn lines_of(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
    whole.lines().map(parse).collect()
}

fn requests_in(file: &Path) -> Vec<String> {
    let lines = lines_of(file)
        .into_iter()
        .filter(|line| line["context"] == "request");
    lines
        .filter_map(|line| Some(line["requestId"].as_str()?.to_owned()))
        .collect()
}

fn has_requests(file: &Path) -> bool {
    !requests_in(file).is_empty()
}

fn number_of(id: &str) -> Option<usize> {
    id.strip_prefix("rotated-")?.parse().ok()
}
