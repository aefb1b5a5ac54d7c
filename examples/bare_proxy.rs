//! A Pingora proxy without a single feature: the yardstick of `scripts/bench.sh`.
//!
//! `bare_proxy LISTEN UPSTREAM [THREADS]` takes HTTP/1.1 on LISTEN and passes every request on to
//! UPSTREAM over kept-alive connections. It looks at nothing, changes nothing and logs nothing, so
//! whatever another proxy on Pingora costs above this one is what its own features cost.
//! THREADS defaults to the number of cores.

use std::net::SocketAddr;

use async_trait::async_trait;
use pingora::prelude::*;
use pingora::server::configuration::ServerConf;

struct BareProxy {
    upstream: SocketAddr,
}

#[async_trait]
impl ProxyHttp for BareProxy {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.upstream, false, String::new())))
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (listen, upstream, threads) = match args.as_slice() {
        [listen, upstream] => (listen, upstream, None),
        [listen, upstream, threads] => (listen, upstream, Some(threads)),
        _ => {
            eprintln!("usage: bare_proxy LISTEN UPSTREAM [THREADS]");
            std::process::exit(2);
        }
    };
    let upstream = upstream.parse().expect("UPSTREAM must be ADDRESS:PORT");
    let threads = match threads {
        Some(threads) => threads.parse().expect("THREADS must be a number"),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };

    let conf = ServerConf {
        threads,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut proxy = http_proxy_service(&server.configuration, BareProxy { upstream });
    proxy.add_tcp(listen);
    server.add_service(proxy);
    server.run_forever();
}
