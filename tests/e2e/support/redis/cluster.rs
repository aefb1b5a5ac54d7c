//! A Cluster of three masters, each with a replica.

use super::{Redis, free_addr};
use crate::support::wait::within;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Nodes tell each other every second what they know.
const SETTLED: Duration = Duration::from_secs(30);

/// The slots of the three masters.
const SLOTS: [(u16, u16); 3] = [(0, 5460), (5461, 10922), (10923, 16383)];

pub struct Cluster {
    /// The masters first, then their replicas in the same order.
    pub nodes: Vec<Redis>,
    directory: PathBuf,
}

impl Cluster {
    /// Waits until every node knows that the Cluster is whole.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// The same, with TLS between all of them. The certificate is among the arguments.
    #[track_caller]
    pub fn start_over_tls(certificate: &[String]) -> Self {
        let between = ["--tls-cluster", "yes", "--tls-replication", "yes"].map(str::to_owned);
        Self::start_with(Some([certificate, &between].concat()))
    }

    #[track_caller]
    fn start_with(tls: Option<Vec<String>>) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("gateway-e2e-cluster-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).expect("a directory can be made");
        let mut ports = Vec::new();
        let nodes = (0..2 * SLOTS.len()).map(|number| {
            // Not the port 10,000 above its own, which there may not be.
            let bus = free_addr().port().to_string();
            let file = directory.join(format!("{number}.conf"));
            let words = [
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &bus,
                "--cluster-config-file",
                &file.to_string_lossy(),
                "--cluster-node-timeout",
                "1000",
                "--repl-diskless-sync-delay",
                "0",
            ];
            let node = Redis::start_with_tls(&words, tls.as_deref());
            ports.push(bus);
            node
        });
        let nodes = nodes.collect();
        let cluster = Self { nodes, directory };
        cluster.join(&ports);
        cluster
    }

    /// As REDIS_CLUSTER_NODES has them: only one, which must name the others.
    pub fn seed(&self) -> String {
        format!("127.0.0.1:{}", self.nodes[4].client_port())
    }

    /// The node that has this key now.
    #[track_caller]
    pub fn of_key(&self, key: &str) -> &Redis {
        self.try_of_key(key)
            .unwrap_or_else(|| panic!("no node has {key:?}"))
    }

    /// Sends a command about a key to the node that has it.
    #[track_caller]
    pub fn command(&self, words: &[&str]) -> String {
        self.of_key(words[1]).command(words)
    }

    pub fn try_of_key(&self, key: &str) -> Option<&Redis> {
        // A key of no slot of the node is MOVED.
        let has = |node: &&Redis| node.is_running() && node.try_command(&["EXISTS", key]).is_ok();
        self.nodes.iter().find(has)
    }

    /// The replica of this master is master now, and every node that runs knows of a master for every slot.
    pub fn has_replaced(&self, master: usize) -> bool {
        let successor = self.nodes[master + SLOTS.len()].command(&["ROLE"]);
        let mut running = self.nodes.iter().filter(|node| node.is_running());
        successor.starts_with("master")
            && running.all(|node| {
                let info = node.command(&["CLUSTER", "INFO"]);
                info.contains("cluster_state:ok")
            })
    }

    fn join(&self, buses: &[String]) {
        for (node, epoch) in self.nodes.iter().zip(1..) {
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch.to_string()]);
        }
        for (node, (first, last)) in self.nodes.iter().zip(SLOTS) {
            let range = [first.to_string(), last.to_string()];
            node.command(&["CLUSTER", "ADDSLOTSRANGE", &range[0], &range[1]]);
        }
        for (node, bus) in self.nodes.iter().zip(buses).skip(1) {
            let port = node.client_port().to_string();
            self.nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &port, bus]);
        }
        let everybody = format!("cluster_known_nodes:{}", self.nodes.len());
        self.settle("know each other", |node| {
            let info = node.command(&["CLUSTER", "INFO"]);
            info.contains(&everybody) && info.contains("cluster_state:ok")
        });
        let (masters, replicas) = self.nodes.split_at(SLOTS.len());
        for (master, replica) in masters.iter().zip(replicas) {
            let id = master.command(&["CLUSTER", "MYID"]);
            replica.command(&["CLUSTER", "REPLICATE", &id]);
        }
        self.settle("have their replicas", |node| {
            let info = node.command(&["INFO", "replication"]);
            let linked = info.contains("master_link_status:up") || info.contains("state=online");
            // Everybody must know who replicates whom before one may be missed.
            let nodes = node.command(&["CLUSTER", "NODES"]);
            linked && nodes.matches("slave ").count() == replicas.len()
        });
    }

    #[track_caller]
    fn settle(&self, what: &str, settled: impl Fn(&Redis) -> bool) {
        let all = within(SETTLED, || self.nodes.iter().all(&settled).then_some(()));
        assert!(all.is_some(), "the nodes of the cluster do not {what}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.clear();
        // The next start of the machine clears it otherwise.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
