//! From a configuration to a running process: stores, pools, routes, listeners; and its orderly end.

mod process;
mod reload;
mod upkeep;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use ipnet::IpNet;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::background::{BackgroundService, background_service};
use prometheus::IntGauge;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::admit::address::TrustedProxies;
use crate::admit::auth::{self, Attempts};
use crate::admit::permissions::Roles;
use crate::config::{Bytes, Duration as Time, File, Problems, ServiceName, Tree};
use crate::connection::h2::Http2Config;
use crate::connection::{Front, MinRate};
use crate::forward::pool::{self, Defaults, Pools};
use crate::listen::{Bound, Listen};
use crate::observe::access_log::Logger;
use crate::observe::sink::Sink;
use crate::observe::{LogSettings, TracingConfig};
use crate::ops::{Life, Private};
use crate::policies::{Policies, Times};
use crate::route::{self, Table};
pub use process::Process;
use reload::Reloading;
pub use reload::{NotReloaded, Origin, Reload, Reloaded};
use upkeep::Upkeep;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    pub host: IpAddr,
    /// 0: a free one, told in the log.
    pub port: u16,
    /// 0: one for each core.
    pub threads: usize,
    /// Proxies in front of us whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// For a whole head, from its first byte.
    pub header_timeout: Time,
    /// Between two requests on a connection.
    pub keepalive_timeout: Time,
    /// Between two pieces of a request body, and for the client to take a piece of an answer.
    pub client_timeout: Time,
    /// In a second: of a request's body to come, and of an answer to be taken, over 10 s. 0: any.
    pub min_body_rate: Bytes,
    /// For what is in flight when the process is told to end.
    pub shutdown_timeout: Time,
    pub http2: Http2Config,
    /// Idle connections to backends that are kept, for each thread.
    pub upstream_connections: usize,
    /// Reload when the content of the configuration file changes.
    pub watch: bool,
    /// `SWAGGER_HOST`: accepted for the API documentation, which is not served yet.
    pub public_host: String,
}

/// A configuration that was compiled: what runs is built from it without a further fault.
pub struct Compiled {
    policies: Policies,
    /// Made for it, or the one that is running.
    process: Arc<Process>,
    /// What it says, to be compared with another.
    tree: Tree,
    watch: bool,
    listen: SocketAddr,
    threads: usize,
    shutdown_timeout: Duration,
    upstream_connections: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::from([0, 0, 0, 0]),
            port: 3000,
            threads: 0,
            trusted_proxies: Vec::new(),
            header_timeout: Time::secs(10),
            keepalive_timeout: Time::secs(60),
            client_timeout: Time::secs(30),
            min_body_rate: Bytes::kib(1),
            shutdown_timeout: Time::secs(30),
            http2: Http2Config::default(),
            upstream_connections: 1024,
            watch: false,
            public_host: "api-gateway:3000".into(),
        }
    }
}

/// What a configuration is compiled for.
pub enum Purpose<'a> {
    /// To start a process.
    Start {
        settings: &'a LogSettings,
        sink: Sink,
    },
    /// To take the place of another in this process.
    Reload {
        process: Arc<Process>,
        before: &'a Policies,
    },
}

/// How the log is to be written: needed before the rest is compiled, which may have to say something.
pub fn log_settings(file: &File, problems: &mut Problems) -> LogSettings {
    let ServiceName(name) = file.service_name.clone();
    file.log.clone().compile(file.environment, name, problems)
}

/// Compiles a configuration.
///
/// # Errors
/// Every dangling name and impossible value, each with its place.
///
/// `problems` are those that were found before.
pub fn compile(
    file: File,
    purpose: Purpose<'_>,
    mut problems: Problems,
) -> Result<Compiled, Problems> {
    let p = &mut problems;
    let tree = Tree::of(&file);
    let File {
        environment: stage,
        service_name: _, // `log_settings` has it
        server,
        ops,
        log: _, // as well
        tracing: TracingConfig { enabled: tracing },
        redis,
        sizes,
        cors,
        secure_headers,
        auth,
        tenancy,
        roles,
        limits,
        streams,
        timeouts,
        breaker,
        retry,
        balance,
        outlier,
        health,
        overload,
        services,
        aliases,
        routes,
    } = file;
    let ServerConfig {
        host,
        port,
        threads,
        trusted_proxies,
        header_timeout,
        keepalive_timeout,
        client_timeout,
        min_body_rate,
        shutdown_timeout,
        http2,
        upstream_connections,
        watch,
        public_host: _, // for the API documentation
    } = server;
    for (name, time) in [
        ("header_timeout", header_timeout),
        ("keepalive_timeout", keepalive_timeout),
        ("client_timeout", client_timeout),
    ] {
        if time.0.is_zero() {
            p.add(format!("server.{name}"), "must be longer than nothing");
        }
    }
    let threads = if threads == 0 {
        std::thread::available_parallelism().map_or(1, usize::from)
    } else {
        threads
    };
    let (process, before) = match purpose {
        Purpose::Start { settings, sink } => {
            let logger = Logger::new(settings, sink);
            match Process::begin(stage, logger, redis, threads, limits.max_keys, p) {
                Some(process) => (Arc::new(process), None),
                None => return Err(problems),
            }
        }
        Purpose::Reload { process, before } => {
            // Looked at, for its faults: what runs keeps what it began with.
            redis.topology(p);
            (process, Some(before))
        }
    };
    let Process { stage, metrics, .. } = &*process;
    let (head, body) = sizes.compile(p);
    let http2 = http2.compile(&head, &metrics.http2_closed, p);
    let roles = Arc::new(Roles::compile(roles, p));
    let limits = limits.compile(process.spent.clone(), process.shared_limits.clone(), p);
    let attempts = Attempts {
        success: metrics
            .authentication_attempts
            .with_label_values(&["success"]),
        failure: metrics
            .authentication_attempts
            .with_label_values(&["failure"]),
        refreshes: metrics.token_refreshes.clone(),
    };
    let timeouts = timeouts.compile(p);
    let defaults = Defaults {
        breaker,
        retry,
        balance,
        outlier,
        health,
        overload,
    };
    let parts = pool::Parts {
        defaults,
        metrics,
        connectors: &process.connectors,
        before: before.map(|before| &*before.pools),
    };
    let pools = Arc::new(Pools::compile(services, timeouts, &parts, p));
    let streams = streams.compile(shutdown_timeout, p);
    let parts = auth::Parts {
        stage: *stage,
        roles: &roles,
        known: &process.known,
        pools: &pools,
        streams,
        attempts,
        before: before.map(|before| &before.auth),
    };
    let auth = auth.compile(parts, p);
    let tenancy = tenancy.compile(
        &pools,
        process.members.clone(),
        process.room.clone(),
        &metrics.venue_checks,
        p,
    );
    let parts = route::Parts {
        pools: &pools,
        roles: &roles,
        limits: &limits,
        body,
        http: &metrics.http,
        before: before.map(|before| &before.table),
    };
    let table = Table::compile(routes, &aliases, &parts, p);
    let ops = ops.compile(&process, pools.clone(), p);
    let secure_headers = secure_headers.compile(p);
    let cors = cors.compile(*stage, p);
    let shares_upstreams = pools.iter().any(|pool| pool.http2);
    problems.none_or(())?;

    Ok(Compiled {
        policies: Policies {
            head,
            times: Times {
                header: header_timeout.0,
                idle: keepalive_timeout.0,
                patience: client_timeout.0,
                rate: MinRate::new(min_body_rate.0, client_timeout.0),
            },
            trusted: TrustedProxies::new(trusted_proxies),
            pools,
            ops,
            admin: roles.id("admin"),
            limits,
            cors,
            table,
            auth,
            tenancy,
            secure_headers,
            tracing,
            http2,
            shares_upstreams,
        },
        process,
        tree,
        watch,
        listen: SocketAddr::new(host, port),
        threads,
        shutdown_timeout: shutdown_timeout.0,
        upstream_connections,
    })
}

/// Serves until a signal ends it.
///
/// # Errors
/// When the process cannot listen.
pub fn run(origin: Origin, compiled: Compiled, sink: Sink) -> Result<(), String> {
    let Compiled {
        policies,
        process,
        tree,
        watch,
        listen,
        threads,
        shutdown_timeout,
        upstream_connections,
    } = compiled;
    let conf = ServerConf {
        threads,
        // The end is ours to time: `Drain` leaves as soon as nothing is in flight.
        grace_period_seconds: Some(shutdown_timeout.as_secs() + 2),
        graceful_shutdown_timeout_seconds: Some(1),
        upstream_keepalive_pool_size: upstream_connections,
        // `forward::retry` decides; this is only a last stop.
        max_retries: 16,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    first_look(&policies.pools)?;

    let source = origin.source.to_string();
    let private = policies.ops.listen;
    policies.auth.begins();
    let in_force = Arc::new(ArcSwap::from_pointee(policies));
    let (gateway, front) = process.front(&in_force);
    let (connections, logger) = (front.connections.clone(), front.logger.clone());
    let proxy = pingora_proxy::http_proxy(&server.configuration, gateway);
    let life = process.life.clone();
    server.add_service(Listen {
        name: "front",
        threads: None,
        sockets: vec![Bound::to("main", listen)?],
        app: Arc::new(Front::new(proxy, front)),
        home: Some(process.home.clone()),
        logger: logger.clone(),
    });
    let (reload, reloading) = Reloading::new(process, in_force.clone(), origin, tree, watch);
    if let Some(address) = private {
        server.add_service(Listen {
            name: "private",
            threads: Some(1),
            sockets: vec![Bound::to("private", address)?],
            app: Arc::new(Private { in_force, reload }),
            home: None,
            logger,
        });
    }
    server.add_service(background_service("upkeep", Upkeep::new(reloading)));
    server.add_service(background_service(
        "drain",
        Drain {
            connections,
            limit: shutdown_timeout,
            sink,
        },
    ));
    log::info!(
        "api-gateway {} with {source}, {threads} threads",
        env!("CARGO_PKG_VERSION")
    );
    server.run(RunArgs {
        shutdown_signal: Box::new(Signals { life }),
    });
    Ok(())
}

/// A dead instance costs its connection time-out; neither start-up nor a reload waits for more than this.
const LIMIT: Duration = Duration::from_secs(3);

/// The verdicts on instances that can be had before the first request.
fn first_look(pools: &Pools) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("no runtime can be started: {e}"))?;
    runtime.block_on(async {
        // From now on it does not end the process.
        let _ = signal(SignalKind::hangup());
        pools.first_look(None, LIMIT).await;
    });
    Ok(())
}

/// Leaves as soon as nothing is in flight any more.
struct Drain {
    connections: IntGauge,
    limit: Duration,
    sink: Sink,
}

#[async_trait]
impl BackgroundService for Drain {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let _ = shutdown.wait_for(|down| *down).await;
        let deadline = Instant::now() + self.limit;
        // A connection that was just accepted is not counted yet.
        tokio::time::sleep(Duration::from_millis(50)).await;
        while self.connections.get() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        match self.connections.get() {
            0 => log::info!("every request is answered, the process ends"),
            left => log::warn!(
                "{left} connections are still open after {:?}, the process ends",
                self.limit
            ),
        }
        self.sink.flush(Duration::from_secs(1));
        std::process::exit(0);
    }
}

/// SIGTERM and SIGINT both end the process in order; a second one of either ends it at once (decision 35).
struct Signals {
    life: Arc<Life>,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let (mut term, mut int) = match (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        ) {
            (Ok(term), Ok(int)) => (term, int),
            // Without signals only SIGKILL ends the process; it serves on.
            _ => return std::future::pending().await,
        };
        either(&mut term, &mut int).await;
        log::info!("told to end: the listeners close, what is in flight is finished");
        self.life.drain();
        tokio::spawn(async move {
            either(&mut term, &mut int).await;
            log::warn!("told to end again: the process ends at once");
            std::process::exit(130);
        });
        ShutdownSignal::GracefulTerminate
    }
}

async fn either(term: &mut Signal, int: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
