//! What the operator says of Redis.

use std::sync::Arc;

use redis::RedisConnectionInfo;
use serde::{Deserialize, Serialize};

use super::client::Redis;
use super::follow::Follow;
use super::health::RedisHealth;
use super::tls::TlsConfig;
use super::topology::{Node, Place, Topology};
use super::{Connected, Revoked};
use crate::config::{Duration, Problems, Secret};
use crate::observe::registry::RedisMetrics;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisConfig {
    /// One server. Neither this nor `sentinel` nor `cluster`: everything is kept in this process.
    pub host: Option<String>,
    pub port: u16,
    pub username: Option<String>,
    pub password: Option<Secret>,
    pub db: i64,
    pub tls: TlsConfig,
    pub sentinel: SentinelConfig,
    pub cluster: ClusterConfig,
    pub connect_timeout: Duration,
    /// For one command on the path of a request: after it the request goes on without Redis.
    pub command_timeout: Duration,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SentinelConfig {
    /// The name of the master that they watch.
    pub master: Option<String>,
    /// `host:port`
    pub nodes: Vec<String>,
    /// Of the Sentinels themselves.
    pub username: Option<String>,
    pub password: Option<Secret>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// `host:port` of some nodes: they name the others.
    pub nodes: Vec<String>,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            host: None,
            port: 6379,
            username: None,
            password: None,
            db: 0,
            tls: TlsConfig::default(),
            sentinel: SentinelConfig::default(),
            cluster: ClusterConfig::default(),
            connect_timeout: Duration::secs(5),
            command_timeout: Duration::millis(50),
        }
    }
}

impl RedisConfig {
    pub fn compile(
        self,
        revoked: Arc<Revoked>,
        health: Arc<RedisHealth>,
        loops: usize,
        metrics: &RedisMetrics,
        problems: &mut Problems,
    ) -> Option<Connected> {
        let topology = Arc::new(self.topology(problems)?);
        health.begin(topology.mode());
        revoked.await_reading();
        let follow = Follow::new(topology.clone(), revoked, health.clone(), metrics);
        let commands = Redis::new(loops, topology, health, metrics);
        Some(Connected {
            follow,
            commands: Arc::new(commands),
        })
    }

    /// Where Redis is; `None` where it is not configured.
    pub fn topology(self, problems: &mut Problems) -> Option<Topology> {
        let Self {
            host,
            port,
            username,
            password,
            db,
            tls,
            sentinel,
            cluster,
            connect_timeout,
            command_timeout,
        } = self;
        for (name, time) in [
            ("connect_timeout", connect_timeout),
            ("command_timeout", command_timeout),
        ] {
            if time.0.is_zero() {
                problems.add(format!("redis.{name}"), "must be longer than nothing");
            }
        }
        if username.is_some() && password.is_none() {
            problems.add("redis.username", "needs a password beside it");
        }
        let settings = settings(username, password).set_db(db);
        let tls = tls.compile(problems);
        let server = host.map(|host| Place::Server(Node { host, port }));
        let is_cluster = !cluster.nodes.is_empty();
        let sentinel = sentinel.compile(problems);
        let places = [
            ("redis.host", server),
            ("redis.sentinel", sentinel),
            ("redis.cluster", cluster.compile(problems)),
        ];
        let mut set = places
            .into_iter()
            .filter_map(|(name, place)| Some((name, place?)));
        let (name, place) = set.next()?;
        for (other, _) in set {
            problems.add(other, format!("excludes {name}: set one of them"));
        }
        if is_cluster && db != 0 {
            problems.add("redis.db", "a cluster has only database 0");
        }
        Some(Topology {
            place,
            settings,
            tls,
            connect_timeout: connect_timeout.0,
            command_timeout: command_timeout.0,
        })
    }
}

impl SentinelConfig {
    fn compile(self, problems: &mut Problems) -> Option<Place> {
        let Self {
            master,
            nodes,
            username,
            password,
        } = self;
        if master.is_none() && nodes.is_empty() {
            return None;
        }
        if master.as_deref().is_none_or(str::is_empty) {
            let fault = "must be the name of the master that the sentinels watch";
            problems.add("redis.sentinel.master", fault);
        }
        if nodes.is_empty() {
            let fault = "must name at least one sentinel, as in sentinel-1:26379";
            problems.add("redis.sentinel.nodes", fault);
        }
        if username.is_some() && password.is_none() {
            problems.add("redis.sentinel.username", "needs a password beside it");
        }
        Some(Place::Sentinel {
            master: master.unwrap_or_default(),
            nodes: compile_nodes(nodes, "redis.sentinel.nodes", problems),
            settings: settings(username, password),
        })
    }
}

impl ClusterConfig {
    fn compile(self, problems: &mut Problems) -> Option<Place> {
        let Self { nodes } = self;
        if nodes.is_empty() {
            return None;
        }
        let nodes = compile_nodes(nodes, "redis.cluster.nodes", problems);
        (!nodes.is_empty()).then_some(Place::Cluster(nodes))
    }
}

fn settings(username: Option<String>, password: Option<Secret>) -> RedisConnectionInfo {
    // Our name is nothing that we should need a right to say.
    let mut settings = RedisConnectionInfo::default().set_skip_set_lib_name();
    if let Some(username) = username {
        settings = settings.set_username(username);
    }
    if let Some(password) = password {
        settings = settings.set_password(password.expose());
    }
    settings
}

fn compile_nodes(nodes: Vec<String>, place: &str, problems: &mut Problems) -> Vec<Node> {
    let mut compiled = Vec::new();
    for (i, text) in nodes.iter().enumerate() {
        match node(text) {
            Some(node) => compiled.push(node),
            None => {
                let fault = format!("`{text}` is not a host and a port, as in redis-1:6379");
                problems.add(format!("{place}[{i}]"), fault);
            }
        }
    }
    compiled
}

/// `host:port`, `10.0.0.1:6379` or `[::1]:6379`.
fn node(text: &str) -> Option<Node> {
    let (host, port) = text.rsplit_once(':')?;
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host = match bracketed {
        Some(v6) => v6,
        None if host.contains([':', '/', '@', '[', ']']) => return None,
        None => host,
    };
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let host = (!host.is_empty()).then(|| host.to_owned())?;
    Some(Node { host, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_a_host_and_a_port() {
        for (text, host, port) in [
            ("redis-1:6379", "redis-1", 6379),
            ("10.0.0.1:1", "10.0.0.1", 1),
            ("[::1]:26379", "::1", 26379),
        ] {
            let host = host.to_owned();
            assert_eq!(node(text), Some(Node { host, port }), "{text}");
        }
        for text in [
            "",
            "redis",
            "redis:",
            ":6379",
            "redis:0",
            "redis:65536",
            "::1:6379",
            "redis://a:6379",
            "[]:6379",
        ] {
            assert_eq!(node(text), None, "{text}");
        }
    }
}
