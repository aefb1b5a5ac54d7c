//! Connections to every master, each of which pushes what changes there, as long as these are the masters.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::try_join_all;
use pingora_timeout::timeout;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, PushInfo, RedisResult};
use tokio::sync::mpsc::UnboundedSender;

use super::cluster::masters;
use super::connection::Connection;
use super::topology::{Node, Place, Topology, is_master, refused, silent};

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(2);

/// One connection to each master.
pub struct Watch {
    pub masters: Vec<MultiplexedConnection>,
    /// Reaches every key, wherever it is now.
    pub reader: Connection,
    standing: Standing,
}

/// What must not change under us.
enum Standing {
    /// One server, whatever it is.
    Server,
    /// It is the master.
    Master,
    /// These are the masters, and the order of [`Watch::masters`].
    Cluster(BTreeSet<Node>),
}

impl Topology {
    /// Connects to every master, in RESP3: what they push goes into `pushes`, the loss of a connection with it.
    pub(super) async fn watch(
        &self,
        patience: Duration,
        pushes: UnboundedSender<PushInfo>,
    ) -> RedisResult<Watch> {
        timeout(patience, self.watched(patience, pushes))
            .await
            .map_err(|_| silent())?
    }

    async fn watched(
        &self,
        patience: Duration,
        pushes: UnboundedSender<PushInfo>,
    ) -> RedisResult<Watch> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(patience))
            .set_response_timeout(Some(ANSWER))
            .set_push_sender(pushes);
        let Place::Cluster(nodes) = &self.place else {
            let node = self.master().await?;
            let server = self.open(&node, ProtocolVersion::RESP3, &config).await?;
            return Ok(Watch {
                reader: Connection::Server(server.clone()),
                masters: vec![server],
                standing: match self.place {
                    Place::Sentinel { .. } => Standing::Master,
                    Place::Server(_) | Place::Cluster(_) => Standing::Server,
                },
            });
        };
        let (through, view) = self.cluster_view(nodes, patience).await?;
        let masters = view
            .iter()
            .map(|node| self.open(node, ProtocolVersion::RESP3, &config));
        let mut watch = Watch {
            masters: try_join_all(masters).await?,
            reader: Connection::Cluster(self.cluster(&through, patience).await?),
            standing: Standing::Cluster(view),
        };
        watch.still_stands().await?;
        Ok(watch)
    }
}

impl Watch {
    /// Every connection answers, and these are the masters still.
    pub async fn still_stands(&mut self) -> RedisResult<()> {
        match &self.standing {
            Standing::Server => self.reader.ping().await,
            Standing::Master => is_master(&mut self.masters[0]).await,
            Standing::Cluster(nodes) => {
                let views = self.masters.iter_mut().zip(nodes);
                let views = views.map(|(master, node)| masters(master, &node.host));
                // Any of them may be the last to know.
                match try_join_all(views).await?.iter().all(|view| view == nodes) {
                    true => Ok(()),
                    false => Err(refused("the masters of the cluster have changed")),
                }
            }
        }
    }
}

/// Some of a master's keys under a prefix, and where to go on; 0: these were the last.
pub async fn scan(
    master: &mut MultiplexedConnection,
    prefix: &str,
    cursor: u64,
) -> RedisResult<(u64, Vec<Vec<u8>>)> {
    redis::cmd("SCAN")
        .arg(cursor)
        .arg("MATCH")
        .arg(format!("{prefix}*"))
        .arg("COUNT")
        .arg(1000)
        .query_async(master)
        .await
}
