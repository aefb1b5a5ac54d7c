//! Connections to every master, each of which pushes what changes there, as long as these are the masters.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::{select_ok, try_join_all};
use pingora_timeout::timeout;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, PushInfo, RedisResult, Value};
use tokio::sync::mpsc::UnboundedSender;

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
        let quiet = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(patience))
            .set_response_timeout(Some(ANSWER));
        let config = quiet.clone().set_push_sender(pushes);
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
        // All at once: a dead one must not keep us from the others.
        let views = nodes.iter().map(|node| {
            Box::pin(async {
                let mut node_connection = self.open(node, ProtocolVersion::RESP3, &quiet).await?;
                view(&mut node_connection, &node.host).await
            })
        });
        let (view, _) = select_ok(views).await?;
        let masters = view
            .iter()
            .map(|node| self.open(node, ProtocolVersion::RESP3, &config));
        let client = self.cluster_client(patience, Some(ANSWER))?;
        let mut watch = Watch {
            masters: try_join_all(masters).await?,
            reader: Connection::Cluster(client.get_async_connection().await?),
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
                let views = views.map(|(master, node)| view(master, &node.host));
                // Any of them may be the last to know.
                match try_join_all(views).await?.iter().all(|view| view == nodes) {
                    true => Ok(()),
                    false => Err(refused("the masters of the cluster have changed")),
                }
            }
        }
    }
}

/// The masters that this node knows. `host` is its own, which it may leave out.
async fn view(redis: &mut MultiplexedConnection, host: &str) -> RedisResult<BTreeSet<Node>> {
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
