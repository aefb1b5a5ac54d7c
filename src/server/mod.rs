//! From a configuration to a running process: stores, pools, routes, listeners; and its orderly end.

pub mod control;
mod drain;
mod entrances;
mod life;
mod notify;
mod process;
mod reload;
mod run;
mod signals;
mod spare;
pub mod threads;
mod upkeep;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::admit::address::TrustedProxies;
use crate::admit::auth::{self, Attempts};
use crate::admit::permissions::Roles;
use crate::admit::schema;
use crate::config::{Bytes, Duration as Time, File, Problems, ServiceName, Tree};
use crate::connection::MinRate;
use crate::connection::h2::Http2Config;
use crate::forward::batch;
use crate::forward::pool::{self, Defaults, Pools};
use crate::listen::{ConnectionsConfig, ListenConfig, ListenerConfig, Protocol, TcpConfig};
use crate::observe::access_log::Logger;
use crate::observe::sink::Sink;
use crate::observe::{LogSettings, TracingConfig};
use crate::ops::documentation::{self, Printed};
use crate::policies::{Policies, Times};
use crate::route::{self, Table};
use entrances::Entrances;
pub use life::Life;
pub use notify::Notify;
pub use process::Process;
use process::Size;
pub use reload::{NotReloaded, Origin, Reload, Reloaded};
pub use run::{Start, run};
pub use signals::Early;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    pub host: IpAddr,
    /// 0: a free one, told in the log.
    pub port: u16,
    /// 0: one for each core.
    pub threads: usize,
    /// How the main listener speaks.
    pub protocol: Protocol,
    /// Further ones.
    pub listeners: Vec<ListenerConfig>,
    /// What `redirect` listeners name in Location; 443: none.
    pub redirect_port: u16,
    pub tcp: TcpConfig,
    pub connections: ConnectionsConfig,
    /// Proxies in front of us whose `X-Forwarded-For` and PROXY headers are believed.
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
    /// While the process drains, for the next request on a connection: one may be on its way.
    pub keepalive_drain: Time,
    /// Between the signal to end, from which on /ready says 503, and the end of the listeners.
    pub drain_delay: Time,
    /// For a new process to be ready to take this one's place.
    pub upgrade_timeout: Time,
    /// Where the control socket is; none: there is no such socket. What systemd sets names several, separated by colons.
    pub runtime_dir: Option<String>,
    pub http2: Http2Config,
    /// Idle connections to backends that are kept, in all.
    pub upstream_connections: usize,
    /// Reload when the content of the configuration file changes.
    pub watch: bool,
    /// Where clients find the gateway, for the API documentation: a host, or `https://` and a host; empty: nobody knows.
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
    entrances: Entrances,
    threads: usize,
    ending: Ending,
    upstream_connections: usize,
}

impl Compiled {
    #[cfg(any(fuzzing, test))]
    pub fn into_policies(self) -> Policies {
        self.policies
    }

    /// Its API documentation in full, of one host or of all, where it has one.
    pub fn document(&self, host: Option<&str>) -> Option<Printed> {
        let documentation = self.policies.documentation.as_ref()?;
        Some(documentation.print(&self.policies.table, host))
    }
}

/// How this process ends, and is replaced.
struct Ending {
    limit: Duration,
    delay: Duration,
    upgrade_limit: Duration,
    runtime_dir: Option<PathBuf>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::from([0, 0, 0, 0]),
            port: 3000,
            threads: 0,
            protocol: Protocol::default(),
            listeners: Vec::new(),
            redirect_port: 443,
            tcp: TcpConfig::default(),
            connections: ConnectionsConfig::default(),
            trusted_proxies: Vec::new(),
            header_timeout: Time::secs(10),
            keepalive_timeout: Time::secs(60),
            client_timeout: Time::secs(30),
            min_body_rate: Bytes::kib(1),
            shutdown_timeout: Time::secs(30),
            keepalive_drain: Time::millis(100),
            drain_delay: Time::secs(0),
            upgrade_timeout: Time::secs(60),
            runtime_dir: None,
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
        tls,
        ops,
        log: _, // as well
        tracing: TracingConfig { enabled: tracing },
        redis,
        cache,
        sizes,
        cors,
        secure_headers,
        auth,
        tenancy,
        roles,
        limits,
        validation,
        idempotency,
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
        batch,
        documentation,
    } = file;
    let ServerConfig {
        host,
        port,
        threads,
        protocol,
        listeners,
        redirect_port,
        tcp,
        connections,
        trusted_proxies,
        header_timeout,
        keepalive_timeout,
        client_timeout,
        min_body_rate,
        shutdown_timeout,
        keepalive_drain,
        drain_delay,
        upgrade_timeout,
        runtime_dir,
        http2,
        upstream_connections,
        watch,
        public_host,
    } = server;
    for (name, time) in [
        ("header_timeout", header_timeout),
        ("keepalive_timeout", keepalive_timeout),
        ("client_timeout", client_timeout),
        ("upgrade_timeout", upgrade_timeout),
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
            let size = Size {
                threads,
                max_keys: limits.max_keys,
                cache: &cache,
            };
            match Process::begin(stage, shutdown_timeout.0, logger, redis, size, p) {
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
    // That of the process: what the file says of it needs a restart.
    let streams = streams.compile(process.shutdown_timeout, p);
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
        process.rooms.bodies.clone(),
        &metrics.venue_checks,
        p,
    );
    let validation = schema::Parts {
        limits: validation.compile(p),
        failures: &metrics.validation_failures,
    };
    let idempotency = idempotency.compile(process.ledger.clone(), &metrics.idempotency_requests, p);
    let (caching, classes) = cache.compile(process.store.clone(), p);
    let parts = route::Parts {
        pools: &pools,
        roles: &roles,
        limits: &limits,
        body,
        http: &metrics.http,
        aggregate_sources: &metrics.aggregate_sources,
        validation: &validation,
        classes: &classes,
        before: before.map(|before| &before.table),
    };
    let table = Table::compile(routes, &aliases, &parts, p);
    let parts = batch::Parts {
        table: &table,
        http: &metrics.http,
        calls: &metrics.batch_calls,
    };
    let batch = batch.compile(&parts, p);
    let table_has_caches = table.has_caches();
    let parts = documentation::Parts {
        stage: *stage,
        host: documentation::check_host(&public_host, p),
        table: &table,
        aliases: &aliases,
        batch: batch.as_ref(),
        roles: &roles,
        limits: &limits,
        refreshes: auth.refresh.is_some(),
    };
    let documentation = documentation.compile(&parts, p);
    let ops = ops.compile(&process, pools.clone(), p);
    let secure_headers = secure_headers.compile(p);
    let cors = cors.compile(*stage, p);
    let shares_upstreams = pools.iter().any(|pool| pool.http2);
    let has_tls = !tls.certificates.is_empty();
    let tls = tls.compile(http2.is_some(), p);
    let config = ListenConfig {
        main: SocketAddr::new(host, port),
        protocol,
        listeners,
        tcp,
        connections,
        private: ops.listen,
        has_tls,
        has_proxies: !trusted_proxies.is_empty(),
    };
    let entrances = Entrances {
        listeners: config.compile(p),
        redirect_port,
        tls,
    };
    problems.none_or(())?;

    Ok(Compiled {
        policies: Policies {
            head,
            times: Times {
                header: header_timeout.0,
                idle: keepalive_timeout.0,
                patience: client_timeout.0,
                rate: MinRate::new(min_body_rate.0, client_timeout.0),
                drain: keepalive_drain.0,
            },
            trusted: TrustedProxies::new(trusted_proxies),
            pools,
            ops,
            admin: roles.id("admin"),
            limits,
            cors,
            has_inner_requests: batch.is_some() || table.has_aggregates(),
            table,
            batch,
            auth,
            tenancy,
            rooms: process.rooms.clone(),
            idempotency,
            secure_headers,
            caching: caching.filter(|_| table_has_caches),
            documentation,
            tracing,
            http2,
            shares_upstreams,
        },
        process,
        tree,
        watch,
        entrances,
        threads,
        ending: Ending {
            limit: shutdown_timeout.0,
            delay: drain_delay.0,
            upgrade_limit: upgrade_timeout.0,
            runtime_dir: runtime_dir.as_deref().and_then(first_of),
        },
        upstream_connections,
    })
}

/// A dead instance costs its connection time-out; neither start-up nor a reload waits for more than this.
const LIMIT: Duration = Duration::from_secs(3);

/// The first folder of `RUNTIME_DIRECTORY`, which may name several.
pub fn first_of(folders: &str) -> Option<PathBuf> {
    let first = folders
        .split(':')
        .next()
        .filter(|folder| !folder.is_empty());
    first.map(PathBuf::from)
}
