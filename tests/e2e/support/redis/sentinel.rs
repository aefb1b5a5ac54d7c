//! A master, its replica, and three Sentinels that watch them.

use super::{Redis, TRIES, await_up, free_addr};
use crate::support::gateway::TempFile;
use crate::support::wait::within;
use std::net::SocketAddr;
use std::process::{Child, Command};
use std::time::Duration;

/// The name under which the master is watched.
pub const MASTER: &str = "tickets";

/// Sentinels tell each other every two seconds that they are there.
const SETTLED: Duration = Duration::from_secs(30);

pub struct Watched {
    /// The first one is the master from the start.
    pub servers: Vec<Redis>,
    pub sentinels: Vec<Redis>,
    _files: Vec<TempFile>,
}

impl Watched {
    /// Waits until every Sentinel knows all the others, and the replica. `password` is that of the Sentinels.
    #[track_caller]
    pub fn start(password: &str) -> Self {
        Self::start_with(password, None)
    }

    /// The same, with TLS between all of them. The certificate is among the arguments.
    #[track_caller]
    pub fn start_over_tls(password: &str, certificate: &[String]) -> Self {
        let between = ["--tls-replication".to_owned(), "yes".to_owned()];
        Self::start_with(password, Some([certificate, &between].concat()))
    }

    #[track_caller]
    fn start_with(password: &str, tls: Option<Vec<String>>) -> Self {
        let server = |words: &[&str]| Redis::start_with_tls(words, tls.as_deref());
        let master = server(&["--repl-diskless-sync-delay", "0"]);
        let port = master.client_port().to_string();
        let replica = server(&["--replicaof", "127.0.0.1", &port]);
        let linked = within(SETTLED, || {
            let info = replica.command(&["INFO", "replication"]);
            info.contains("master_link_status:up").then_some(())
        });
        assert!(linked.is_some(), "the replica does not find its master");
        let (mut sentinels, mut files) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let (sentinel, file) = sentinel(master.client_port(), password, tls.as_deref());
            sentinels.push(sentinel);
            files.push(file);
        }
        let watched = Self {
            servers: vec![master, replica],
            sentinels,
            _files: files,
        };
        let known = within(SETTLED, || {
            let mut infos = watched
                .sentinels
                .iter()
                .map(|sentinel| sentinel.command(&["INFO"]));
            infos
                .all(|info| info.contains("status=ok") && info.contains("slaves=1,sentinels=3"))
                .then_some(())
        });
        assert!(known.is_some(), "the sentinels do not find each other");
        watched
    }

    /// As REDIS_SENTINELS has them.
    pub fn addresses(&self) -> String {
        let addresses: Vec<String> = self
            .sentinels
            .iter()
            .map(|one| format!("127.0.0.1:{}", one.client_port()))
            .collect();
        addresses.join(",")
    }

    /// The server that this Sentinel names by now.
    pub fn named_by(&self, sentinel: usize) -> &Redis {
        let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER];
        let named = self.sentinels[sentinel].command(&words);
        let is_it = |server: &&Redis| named == format!("127.0.0.1 {}", server.client_port());
        let mut servers = self.servers.iter();
        servers
            .find(is_it)
            .unwrap_or_else(|| panic!("the sentinel names {named}"))
    }
}

fn sentinel(master: u16, password: &str, tls: Option<&[String]>) -> (Redis, TempFile) {
    for _ in 0..TRIES {
        let addr = free_addr();
        let tls_port = tls.map(|_| free_addr().port());
        let mut encrypted = tls_port.map_or_else(String::new, |port| format!("tls-port {port}\n"));
        for pair in tls.unwrap_or_default().chunks(2) {
            encrypted += &format!("{} {}\n", pair[0].trim_start_matches("--"), pair[1]);
        }
        let file = TempFile::new(
            "conf",
            &format!(
                "port {}
{encrypted}bind 127.0.0.1
requirepass {password}
sentinel monitor {MASTER} 127.0.0.1 {master} 2
sentinel down-after-milliseconds {MASTER} 500
sentinel failover-timeout {MASTER} 5000
",
                addr.port(),
            ),
        );
        if let Some(child) = spawn(&file, addr, password) {
            let sentinel = Redis {
                addr,
                password: Some(password.to_owned()),
                arguments: Vec::new(),
                tls_port,
                child: Some(child),
            };
            return (sentinel, file);
        }
    }
    panic!("no sentinel started on any of {TRIES} free ports");
}

fn spawn(file: &TempFile, addr: SocketAddr, password: &str) -> Option<Child> {
    let mut command = Command::new("redis-server");
    command.arg(file.path()).arg("--sentinel");
    await_up(&mut command, addr, Some(password))
}
