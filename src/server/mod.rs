//! From a configuration to a running process: stores, pools, routes, listeners; and its orderly end.

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
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::admit::address::TrustedProxies;
use crate::admit::auth::api_key::StoredKeys;
use crate::admit::auth::{self, Attempts};
use crate::admit::limits::{Books, Shared};
use crate::admit::permissions::Roles;
use crate::config::{self, Duration as Time, File, Problems, ServiceName};
use crate::connection::{Front, FrontParts};
use crate::forward::pool::{Defaults, HealthChecks, Pools};
use crate::gateway::Gateway;
use crate::listen::{Bound, Listen};
use crate::observe::access_log::Logger;
use crate::observe::registry::{Metrics, UNMATCHED};
use crate::observe::sink::Sink;
use crate::observe::{LogSettings, TracingConfig};
use crate::ops::{Ops, Private};
use crate::policies::{Policies, Times};
use crate::route::{self, Table};
use crate::state::{CACHES, Cache, Home, Lookups, Redis, RedisHealth, Remembers, Revoked};

#[derive(Debug, Deserialize)]
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
    /// For what is in flight when the process is told to end.
    pub shutdown_timeout: Time,
    /// Idle connections to backends that are kept, for each thread.
    pub upstream_connections: usize,
    /// `SWAGGER_HOST`: accepted for the API documentation, which is not served yet.
    pub public_host: String,
}

/// A configuration that was compiled: what runs is built from it without a further fault.
pub struct Compiled {
    gateway: Gateway,
    front: FrontParts,
    home: Home,
    tasks: Vec<Box<dyn BackgroundService + Send + Sync>>,
    pools: Arc<Pools>,
    ops: Arc<Ops>,
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
            shutdown_timeout: Time::secs(30),
            upstream_connections: 1024,
            public_host: "api-gateway:3000".into(),
        }
    }
}

/// How the log is to be written: needed before the rest is compiled, which may have to say something.
pub fn log_settings(file: &mut File, problems: &mut Problems) -> LogSettings {
    let ServiceName(name) = std::mem::take(&mut file.service_name);
    std::mem::take(&mut file.log).compile(file.environment, name, problems)
}

/// Compiles a configuration.
///
/// # Errors
/// Every dangling name and impossible value, each with its place.
///
/// `problems` are those that were found before.
pub fn compile(
    file: File,
    settings: &LogSettings,
    sink: Sink,
    mut problems: Problems,
) -> Result<Compiled, Problems> {
    let p = &mut problems;
    let File {
        environment: stage,
        service_name: _, // `log_settings` took it
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
        shutdown_timeout,
        upstream_connections,
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
    let metrics = match Metrics::new() {
        Ok(metrics) => Arc::new(metrics),
        Err(e) => {
            p.add("metrics", e.to_string());
            return Err(problems);
        }
    };
    let logger = Arc::new(Logger::new(settings, sink));
    let (revoked, redis_health) = (
        Arc::new(Revoked::default()),
        Arc::new(RedisHealth::default()),
    );
    let threads = if threads == 0 {
        std::thread::available_parallelism().map_or(1, usize::from)
    } else {
        threads
    };
    let redis = redis.compile(
        revoked.clone(),
        redis_health.clone(),
        threads,
        &metrics.redis,
        p,
    );
    let (books, home) = (Arc::new(Books::default()), Home::default());
    let shared = redis
        .as_ref()
        .map(|redis| Shared::new(redis.commands.clone(), books.clone()));
    let stored_keys = redis
        .as_ref()
        .map(|redis| StoredKeys::new(redis.commands.clone(), metrics.api_key_lookups()))
        .map(Arc::new);
    let (head, body) = sizes.compile(p);
    let roles = Arc::new(Roles::compile(roles, p));
    let limits = limits.compile(shared, p);
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
    let pools = Arc::new(Pools::compile(services, timeouts, &defaults, &metrics, p));
    let commands = redis.as_ref().map(|redis| &redis.commands);
    let users = remembered("user", CACHES[0], commands, &metrics);
    let members = remembered("member", CACHES[1], commands, &metrics);

    let parts = auth::Parts {
        stage,
        roles: &roles,
        revoked,
        redis: commands.cloned(),
        stored_keys: stored_keys.clone(),
        pools: &pools,
        known_users: users.clone(),
        attempts,
    };
    let auth = auth.compile(parts, p);
    let tenancy = tenancy.compile(&pools, members.clone(), &metrics.venue_checks, p);
    let parts = route::Parts {
        pools: &pools,
        roles: &roles,
        limits: &limits,
        body,
        http: &metrics.http,
    };
    let table = Table::compile(routes, &aliases, &parts, p);
    let ops = Arc::new(ops.compile(
        pools.clone(),
        redis_health,
        metrics.clone(),
        logger.clone(),
        p,
    ));
    let secure_headers = secure_headers.compile(p);
    let unmatched = Arc::new(metrics.http.route(UNMATCHED));
    let cors = cors.compile(stage, p);
    problems.none_or(())?;

    let mut tasks: Vec<Box<dyn BackgroundService + Send + Sync>> =
        vec![Box::new(HealthChecks::new(pools.clone()))];
    tasks.extend(auth.tasks());
    let mut memories: Vec<Arc<dyn Remembers>> = vec![users, members];
    memories.extend(stored_keys.map(|keys| keys as Arc<_>));
    tasks.extend(
        redis
            .into_iter()
            .flat_map(|redis| redis.tasks(books.clone(), memories.clone(), home.clone())),
    );
    let in_force = Arc::new(ArcSwap::from_pointee(Policies {
        head,
        times: Times {
            header: header_timeout.0,
            idle: keepalive_timeout.0,
            patience: client_timeout.0,
        },
        trusted: TrustedProxies::new(trusted_proxies),
        ops: ops.clone(),
        admin: roles.id("admin"),
        limits,
        cors,
        table,
        auth,
        tenancy,
        secure_headers,
        tracing,
    }));
    Ok(Compiled {
        front: FrontParts {
            in_force: in_force.clone(),
            connections: metrics.connections.clone(),
            unmatched: unmatched.clone(),
            logger: logger.clone(),
        },
        home,
        gateway: Gateway {
            in_force,
            metrics,
            unmatched,
            logger,
        },
        tasks,
        pools,
        ops,
        listen: SocketAddr::new(host, port),
        threads,
        shutdown_timeout: shutdown_timeout.0,
        upstream_connections,
    })
}

/// What other services know, as far as this process remembers it.
fn remembered<T: Serialize + DeserializeOwned + Send + Sync>(
    what: &str,
    prefix: &'static str,
    redis: Option<&Arc<Redis>>,
    metrics: &Metrics,
) -> Arc<Cache<T>> {
    /// Of one kind; the least used give way.
    const MOST: usize = 100_000;
    Arc::new(Cache::new(
        MOST,
        prefix,
        redis.cloned(),
        Lookups::of(what, &metrics.lookups),
    ))
}

/// Serves until a signal ends it.
///
/// # Errors
/// When the process cannot listen.
pub fn run(source: &config::Source, compiled: Compiled, sink: Sink) -> Result<(), String> {
    let Compiled {
        gateway,
        front,
        home,
        tasks,
        pools,
        ops,
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
    first_look(&pools)?;

    let (connections, logger) = (front.connections.clone(), front.logger.clone());
    let proxy = pingora_proxy::http_proxy(&server.configuration, gateway);
    server.add_service(Listen {
        name: "front",
        threads: None,
        sockets: vec![Bound::to("main", listen)?],
        app: Arc::new(Front::new(proxy, front)),
        home: Some(home),
        logger: logger.clone(),
    });
    if let Some(address) = ops.listen {
        server.add_service(Listen {
            name: "private",
            threads: Some(1),
            sockets: vec![Bound::to("private", address)?],
            app: Arc::new(Private(ops.clone())),
            home: None,
            logger,
        });
    }
    server.add_service(background_service("upkeep", Upkeep(tasks)));
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
        shutdown_signal: Box::new(Signals { ops }),
    });
    Ok(())
}

/// The verdicts on instances that can be had before the first request.
fn first_look(pools: &Pools) -> Result<(), String> {
    /// A dead instance costs its connection time-out; start-up does not wait for more than this.
    const LIMIT: Duration = Duration::from_secs(3);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("no runtime can be started: {e}"))?;
    runtime.block_on(pools.first_look(LIMIT));
    Ok(())
}

/// Keeps what lives beside the requests up to date: health, key sets, revocations.
struct Upkeep(Vec<Box<dyn BackgroundService + Send + Sync>>);

#[async_trait]
impl BackgroundService for Upkeep {
    async fn start(&self, shutdown: ShutdownWatch) {
        futures::future::join_all(self.0.iter().map(|task| task.start(shutdown.clone()))).await;
    }
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
    ops: Arc<Ops>,
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
        self.ops.drain();
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
