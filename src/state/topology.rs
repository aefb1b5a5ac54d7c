//! Where Redis is: one server, the master that Sentinels name, or a Cluster; and how it is spoken to.
//!
//! Whoever needs a connection asks [`Topology::connect`]: commands work on it in the same way, whatever is behind it.

use std::fmt;
use std::io;
use std::time::Duration;

use futures::future::select_ok;
use pingora_timeout::timeout;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    ProtocolVersion, RedisConnectionInfo, RedisError, RedisResult, Value,
};

use super::connection::Connection;
use super::tls::Tls;

/// Redis as it is configured.
pub struct Topology {
    pub(super) place: Place,
    /// User, password and database.
    pub(super) settings: RedisConnectionInfo,
    /// For every connection, also to Sentinels.
    pub(super) tls: Option<Tls>,
    pub connect_timeout: Duration,
    /// For one command on the path of a request.
    pub command_timeout: Duration,
}

pub(super) enum Place {
    Server(Node),
    Sentinel {
        master: String,
        nodes: Vec<Node>,
        /// User and password of the Sentinels.
        settings: RedisConnectionInfo,
    },
    Cluster(Vec<Node>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Node {
    pub host: String,
    pub port: u16,
}

/// The pause between two tries to connect, and the longest of these: who is back is taken up again within two seconds.
pub(super) const RECONNECT: Duration = Duration::from_millis(500);
pub(super) const LONGEST_CONNECT: Duration = Duration::from_secs(1);

/// A connection that died silently is noticed after one of these, also when no request comes.
pub(super) const PING_EVERY: Duration = Duration::from_secs(1);

impl Topology {
    /// A connection that answers and, over Sentinels, is to a master; over a Cluster, to all of them.
    ///
    /// # Errors
    /// When there is none within this time.
    pub async fn connect(&self, patience: Duration) -> RedisResult<Connection> {
        let connected = async {
            match &self.place {
                Place::Cluster(nodes) => {
                    let (through, _) = self.cluster_view(nodes, patience).await?;
                    let mut redis = Connection::Cluster(self.cluster(&through, patience).await?);
                    redis.ping().await?;
                    Ok(redis)
                }
                // The time of a command is its caller's to take: another timer for each would be waste.
                Place::Server(_) | Place::Sentinel { .. } => {
                    let config = AsyncConnectionConfig::new()
                        .set_connection_timeout(Some(patience))
                        .set_response_timeout(None);
                    let master = self.master().await?;
                    let redis = self.open(&master, ProtocolVersion::RESP2, &config).await?;
                    Ok(Connection::Server(redis))
                }
            }
        };
        timeout(patience, connected).await.map_err(|_| silent())?
    }

    /// The kind of it, for those who operate the gateway.
    pub fn mode(&self) -> &'static str {
        match self.place {
            Place::Server(_) => "server",
            Place::Sentinel { .. } => "sentinel",
            Place::Cluster(_) => "cluster",
        }
    }

    /// Where the data are: two that are equal lead to the same.
    pub fn identity(&self) -> String {
        let all = |nodes: &[Node]| {
            let mut nodes: Vec<String> = nodes.iter().map(Node::to_string).collect();
            nodes.sort();
            nodes.join(",")
        };
        let db = self.settings.db();
        match &self.place {
            Place::Server(node) => format!("redis {node}/{db}"),
            Place::Sentinel { master, nodes, .. } => {
                format!("redis {master} of {}/{db}", all(nodes))
            }
            Place::Cluster(nodes) => format!("redis cluster {}", all(nodes)),
        }
    }

    /// The keys of one command must lie in one slot.
    pub fn has_slots(&self) -> bool {
        matches!(self.place, Place::Cluster(_))
    }

    /// The one server that takes writes; the first that is known of a Cluster.
    pub(super) async fn master(&self) -> RedisResult<Node> {
        match &self.place {
            Place::Server(node) => Ok(node.clone()),
            Place::Sentinel {
                master,
                nodes,
                settings,
            } => {
                // All at once: a Sentinel that is as dead as the master beside it must not keep us from the others.
                let asked = nodes
                    .iter()
                    .map(|sentinel| Box::pin(self.named(sentinel, settings, master)));
                select_ok(asked).await.map(|(node, _)| node)
            }
            Place::Cluster(nodes) => Ok(nodes[0].clone()),
        }
    }

    /// The master that this Sentinel names, if that agrees.
    async fn named(
        &self,
        sentinel: &Node,
        settings: &RedisConnectionInfo,
        master: &str,
    ) -> RedisResult<Node> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(self.connect_timeout));
        let client = self.client(sentinel, settings, ProtocolVersion::RESP2);
        let client = client.await?;
        let mut sentinel = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let named: Option<(String, u16)> = redis::cmd("SENTINEL")
            .arg("GET-MASTER-ADDR-BY-NAME")
            .arg(master)
            .query_async(&mut sentinel)
            .await?;
        let Some((host, port)) = named else {
            return Err(refused("the sentinel knows no master of this name"));
        };
        let node = Node { host, port };
        let mut redis = self.open(&node, ProtocolVersion::RESP2, &config).await?;
        is_master(&mut redis).await?;
        Ok(node)
    }

    pub(super) async fn open(
        &self,
        node: &Node,
        protocol: ProtocolVersion,
        config: &AsyncConnectionConfig,
    ) -> RedisResult<MultiplexedConnection> {
        self.client(node, &self.settings, protocol)
            .await?
            .get_multiplexed_async_connection_with_config(config)
            .await
    }

    async fn client(
        &self,
        node: &Node,
        settings: &RedisConnectionInfo,
        protocol: ProtocolVersion,
    ) -> RedisResult<Client> {
        Client::open(
            self.info(node, settings.clone().set_protocol(protocol))
                .await?,
        )
    }

    pub(super) async fn info(
        &self,
        node: &Node,
        settings: RedisConnectionInfo,
    ) -> RedisResult<ConnectionInfo> {
        let Node { host, port } = node.clone();
        let address = match &self.tls {
            None => ConnectionAddr::Tcp(host, port),
            Some(tls) => tls.address(host, port).await?,
        };
        Ok(address.into_connection_info()?.set_redis_settings(settings))
    }
}

/// A replica answers, too, until it is asked to write.
pub(super) async fn is_master(redis: &mut MultiplexedConnection) -> RedisResult<()> {
    let role: Vec<Value> = redis::cmd("ROLE").query_async(redis).await?;
    match role.first() {
        Some(Value::BulkString(role)) if role == b"master" => Ok(()),
        _ => Err(refused("it is not the master")),
    }
}

pub(super) fn refused(why: &'static str) -> RedisError {
    RedisError::from((ErrorKind::Client, why))
}

pub(super) fn silent() -> RedisError {
    RedisError::from(io::Error::from(io::ErrorKind::TimedOut))
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Server(node) => write!(f, "redis at {node}"),
            Place::Sentinel { master, .. } => {
                write!(f, "redis, master `{master}` of its sentinels,")
            }
            Place::Cluster(_) => f.write_str("the redis cluster"),
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}
