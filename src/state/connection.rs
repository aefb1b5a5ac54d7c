//! A connection to Redis, whatever is behind it: one server, or all masters of a Cluster.

use futures::future::join_all;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo};
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value};

use super::cluster::is_well;
use super::topology::refused;

/// Takes commands, from several tasks at once.
#[derive(Clone)]
pub enum Connection {
    Server(MultiplexedConnection),
    /// Finds a key's node, and follows what is redirected.
    Cluster(ClusterConnection),
}

impl Connection {
    /// Whether it answers: of a Cluster, whether every slot has a master, and each of these answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&mut self) -> RedisResult<()> {
        let cluster = match self {
            Connection::Server(server) => return redis::cmd("PING").query_async(server).await,
            Connection::Cluster(cluster) => cluster,
        };
        let mut info = redis::cmd("CLUSTER");
        info.arg("INFO");
        let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        let Value::Map(answers) = cluster.route_command(info, masters).await? else {
            return Err(refused("the cluster does not say how it is"));
        };
        let size = format!("cluster_size:{}", answers.len());
        for (_, answer) in &answers {
            let text: String = redis::from_redis_value_ref(answer)?;
            // A master that has no connection here is not among the answers.
            if !is_well(&text) || !text.lines().any(|line| line == size) {
                return Err(refused("the cluster is not whole"));
            }
        }
        Ok(())
    }

    /// Sends them all. Each has an answer of its own, in their order.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn each(&mut self, commands: Vec<Cmd>) -> RedisResult<Vec<RedisResult<Value>>> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        match self {
            Connection::Server(server) => {
                let mut pipeline = redis::pipe();
                for command in commands {
                    pipeline.add_command(command);
                }
                pipeline.ignore_errors().query_async(server).await
            }
            // Their keys lie in different slots: no pipeline takes them.
            Connection::Cluster(cluster) => {
                let answers = join_all(commands.iter().map(|command| {
                    let mut cluster = cluster.clone();
                    async move { command.query_async(&mut cluster).await }
                }));
                let answers: Vec<RedisResult<Value>> = answers.await;
                match answers.iter().flat_map(|a| a.as_ref().err()).find(is_lost) {
                    Some(lost) => Err(lost.clone()),
                    None => Ok(answers),
                }
            }
        }
    }
}

/// It is no answer of Redis'.
fn is_lost(error: &&redis::RedisError) -> bool {
    error.code().is_none()
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Connection::Server(server) => server.req_packed_command(cmd),
            Connection::Cluster(cluster) => cluster.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Connection::Server(server) => server.req_packed_commands(cmd, offset, count),
            Connection::Cluster(cluster) => cluster.req_packed_commands(cmd, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Connection::Server(server) => server.get_db(),
            Connection::Cluster(cluster) => cluster.get_db(),
        }
    }
}
