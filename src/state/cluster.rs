//! The nodes of a Cluster: which of them can be asked, and which are its masters.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::select_ok;
use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, RedisResult, TlsMode, Value};

use super::topology::{Node, Topology, refused};
use crate::server::threads::aside;

impl Topology {
    /// The first of these that answers and says that the Cluster is well, and the masters that it knows.
    pub(super) async fn cluster_view(
        &self,
        nodes: &[Node],
        patience: Duration,
    ) -> RedisResult<(Node, BTreeSet<Node>)> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(patience))
            .set_response_timeout(Some(patience));
        let config = &config;
        // All at once: a dead one must not keep us from the others.
        let views = nodes.iter().map(|node| {
            Box::pin(async move {
                let mut redis = self.open(node, ProtocolVersion::RESP2, config).await?;
                let info: String = redis::cmd("CLUSTER")
                    .arg("INFO")
                    .query_async(&mut redis)
                    .await?;
                if !is_well(&info) {
                    return Err(refused("the cluster is not whole"));
                }
                Ok((node.clone(), masters(&mut redis, &node.host).await?))
            })
        });
        select_ok(views).await.map(|(view, _)| view)
    }

    /// A connection to the whole Cluster, which this node is asked about.
    pub(super) async fn cluster(
        &self,
        through: &Node,
        patience: Duration,
    ) -> RedisResult<ClusterConnection> {
        // It connects to all nodes, also to replicas, which nobody needs: one that is silent must not use up our time.
        let each = patience / 2;
        let mut client =
            ClusterClient::builder([self.info(through, self.settings.clone()).await?])
                .connection_timeout(each)
                .response_timeout(each)
                // Redirections are followed; who asks has no time for more.
                .retries(3)
                .min_retry_wait(1)
                .max_retry_wait(10);
        if let Some(tls) = &self.tls {
            let certificates = tls.certificates().await?.clone();
            client = client.tls(TlsMode::Secure).certs(certificates);
        }
        // It reads the certificates' text again.
        let built = aside(move || client.build()).await;
        let client = built.unwrap_or_else(|| Err(refused("the process ends")))?;
        client.get_async_connection().await
    }
}

/// What `CLUSTER INFO` says: every slot has a master.
pub(super) fn is_well(info: &str) -> bool {
    info.lines().any(|line| line == "cluster_state:ok")
}

/// The masters that this node knows. `host` is its own, which it may leave out.
pub(super) async fn masters(
    redis: &mut MultiplexedConnection,
    host: &str,
) -> RedisResult<BTreeSet<Node>> {
    let slots: Vec<Vec<Value>> = redis::cmd("CLUSTER")
        .arg("SLOTS")
        .query_async(redis)
        .await?;
    let masters: BTreeSet<Node> = slots
        .iter()
        // First and last slot, then the master, then its replicas.
        .filter_map(|range| match range.get(2)? {
            Value::Array(node) => node_of(node, host),
            _ => None,
        })
        .collect();
    match masters.is_empty() {
        true => Err(refused("no node of the cluster has slots")),
        false => Ok(masters),
    }
}

fn node_of(fields: &[Value], host: &str) -> Option<Node> {
    let host = match fields.first()? {
        Value::Nil => host.to_owned(),
        Value::BulkString(name) if name.is_empty() => host.to_owned(),
        Value::BulkString(name) => String::from_utf8(name.clone()).ok()?,
        _ => return None,
    };
    let Value::Int(port) = fields.get(1)? else {
        return None;
    };
    Some(Node {
        host,
        port: u16::try_from(*port).ok()?,
    })
}
