//! From what was compiled to a process that serves: sockets, services, and, for a process that takes another's place, the
//! moment at which it does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownWatch};
use pingora::services::background::{BackgroundService, background_service};

use super::control::{self, Control};
use super::drain::Drain;
use super::entrances;
use super::life::Life;
use super::notify::Notify;
use super::reload::{Began, Origin, Reloading};
use super::signals::{Early, Signals};
use super::threads::{self, aside};
use super::upkeep::Upkeep;
use super::{Compiled, Ending, LIMIT};
use crate::admit::idempotency::NotCarried;
use crate::connection::Front;
use crate::forward::pool::Pools;
use crate::handover::{Heir, Memory, Program, Succession, Upgrades};
use crate::listen::{Doors, tls};
use crate::observe::sink::Sink;
use crate::ops::Private;
use crate::state::{RedisHealth, RedisState};

/// Threads of each runtime beside the loops, for names: those of all services are looked up at once.
const MOST_LOOKING_UP: usize = 32;

/// How the process was started.
pub struct Start {
    pub program: Program,
    pub notify: Notify,
    pub early: Early,
    /// It is to take another's place.
    pub heir: Option<Heir>,
}

/// Serves until a signal ends it, or another process takes its place.
///
/// # Errors
/// When the process cannot listen.
pub fn run(origin: Origin, compiled: Compiled, sink: Sink, start: Start) -> Result<(), String> {
    let Compiled {
        policies,
        process,
        tree,
        watch,
        entrances,
        threads,
        ending,
        upstream_connections,
    } = compiled;
    let Start {
        program,
        notify,
        early: Early { hangup, usr2 },
        heir,
    } = start;
    let Ending {
        limit,
        delay: drain_delay,
        upgrade_limit,
        runtime_dir,
    } = ending;
    let life = process.life.clone();
    let conf = ServerConf {
        // Those that serve are `server::threads`.
        threads: 1,
        // The end is ours to time: `Drain` leaves as soon as nothing is in flight.
        grace_period_seconds: Some(limit.as_secs() + 2),
        graceful_shutdown_timeout_seconds: Some(1),
        upstream_keepalive_pool_size: upstream_connections,
        max_blocking_threads: Some(MOST_LOOKING_UP),
        blocking_threads_ttl_seconds: Some(threads::FOR_GOOD.as_secs()),
        // `forward::retry` decides; this is only a last stop.
        max_retries: 16,
        ..ServerConf::default()
    };
    let started = process.threads.start();
    started.map_err(|e| format!("the threads that serve cannot be started: {e}"))?;
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();

    let doors = Arc::new(Doors::new(heir.as_ref().map(Heir::offered)));
    let control = match runtime_dir.as_deref().map(Control::bind) {
        Some(Ok(control)) => Some(Arc::new(control)),
        // Who could be asked for an upgrade must be able to after it, too.
        Some(Err(why)) if heir.as_ref().is_some_and(Heir::needs_control) => return Err(why),
        Some(Err(why)) => {
            log::warn!("{why}; `api-gateway upgrade` and `reload` are not heard, signals are");
            None
        }
        None => None,
    };
    let source = origin.source.to_string();
    policies.auth.begins();
    let in_force = Arc::new(ArcSwap::from_pointee(policies));
    let memory = process.memory(&in_force);
    let (redis, outcomes) = (
        process.redis_health.clone(),
        process.metrics.upgrades.clone(),
    );
    let (gateway, front) = process.front(&in_force);
    let logger = process.logger.clone();
    let connections = process.metrics.connections.clone();
    let proxy = pingora_proxy::http_proxy(&server.configuration, gateway);
    let front = Arc::new(Front::new(proxy, front));
    let tls = entrances.open(&mut server, front, &in_force, &doors, &process)?;
    let mut tasks = process.take_tasks();
    tasks.extend(tls.clone().map(|tls| {
        let logger = logger.clone();
        Box::new(tls::Watch { tls, logger }) as Box<_>
    }));
    let private = in_force.load().ops.listen;
    let began = Began {
        origin,
        tree,
        watch,
        notify: notify.clone(),
        hangups: hangup,
        tls,
    };
    let (reload, reloading) = Reloading::new(process, in_force.clone(), began);
    if let Some(address) = private {
        let app = Private {
            in_force: in_force.clone(),
            reload: reload.clone(),
        };
        server.add_service(entrances::private(address, app, logger.clone(), &doors)?);
    }
    first_look(&in_force.load().pools)?;
    server.add_service(background_service("upkeep", Upkeep::new(tasks, reloading)));
    let upgrades = Arc::new(Upgrades {
        program,
        life: life.clone(),
        doors: doors.clone(),
        memory: memory.clone(),
        limit: upgrade_limit,
        control: control.clone(),
        logger,
        outcomes,
        child: Default::default(),
        successor: Default::default(),
    });
    if let Some(control) = &control {
        let listen = control::Listen {
            control: control.clone(),
            upgrades: upgrades.clone(),
            reload,
        };
        server.add_service(background_service("control", listen));
    }
    let begin = Begin {
        heir,
        doors: doors.clone(),
        memory,
        redis,
        life: life.clone(),
        control: control.clone(),
        notify: notify.clone(),
        sink: sink.clone(),
    };
    server.add_service(background_service("begin", begin));
    server.add_service(background_service(
        "drain",
        Drain {
            connections,
            limit,
            life: life.clone(),
            upgrades: upgrades.clone(),
            doors: doors.clone(),
            control,
            sink: sink.clone(),
        },
    ));
    log::info!(
        "api-gateway {} with {source}, {threads} threads",
        env!("CARGO_PKG_VERSION")
    );
    server.run(RunArgs {
        shutdown_signal: Box::new(Signals {
            life,
            upgrades,
            notify,
            sink,
            usr2: Mutex::new(Some(usr2)),
            drain_delay,
        }),
    });
    Ok(())
}

/// The verdicts on instances that can be had before the first request.
fn first_look(pools: &Pools) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("no runtime can be started: {e}"))?;
    runtime.block_on(pools.first_look(None, LIMIT));
    Ok(())
}

/// Lets clients in, and says so to whom it concerns.
struct Begin {
    heir: Option<Heir>,
    doors: Arc<Doors>,
    memory: Memory,
    redis: Arc<RedisHealth>,
    life: Arc<Life>,
    control: Option<Arc<Control>>,
    notify: Notify,
    sink: Sink,
}

#[async_trait]
impl BackgroundService for Begin {
    async fn start(&self, _: ShutdownWatch) {
        if let Some(heir) = &self.heir {
            self.await_redis().await;
            if let Err(why) = self.inherit(heir).await {
                log::error!("upgrade: {why}; this process ends");
                if let Some(control) = &self.control {
                    control.withdraw();
                }
                self.sink.flush(Duration::from_secs(1));
                std::process::exit(1);
            }
        }
        self.doors.all_listen().await;
        self.life.serves();
        if let Some(control) = &self.control {
            control.publish();
        }
        let notify = self.notify.clone();
        let ready = move || {
            notify.ready(concat!(
                "api-gateway ",
                env!("CARGO_PKG_VERSION"),
                " serves"
            ));
        };
        let Some(heir) = self.heir.clone() else {
            return ready();
        };
        let teller = heir.clone();
        // It does not panic.
        aside(move || {
            // Until it knows, the old one may still end this one, which must not be the main one then.
            teller.serves();
            ready();
        })
        .await;
        self.keep_running_writes().await;
        let succession = self.succession();
        // Until the old process has ended.
        aside(move || heir.hear_out(&succession)).await;
    }
}

impl Begin {
    /// What is revoked is known, and commands are answered; not for long where Redis is away.
    async fn await_redis(&self) {
        const LIMIT: Duration = Duration::from_secs(5);
        const STEP: Duration = Duration::from_millis(5);
        let deadline = Instant::now() + LIMIT;
        while self.redis.get() == RedisState::Away {
            if Instant::now() >= deadline {
                log::warn!("upgrade: redis is away, the last known revocations are taken over");
                return;
            }
            tokio::time::sleep(STEP).await;
        }
    }

    async fn inherit(&self, heir: &Heir) -> Result<(), String> {
        let (taker, succession) = (heir.clone(), self.succession());
        let wants_revocations = self.memory.revoked.is_unread();
        let version = heir.version().to_owned();
        let taken = aside(move || taker.inherit(&succession, wants_revocations)).await;
        let taken = taken.ok_or_else(|| "the hand-over broke off".to_owned())??;
        self.keep_writes(heir).await?;
        log::info!("upgrade: taken over from version {version}: {taken}");
        self.doors.open();
        Ok(())
    }

    /// Which writes have run is known wherever this process asks for it.
    async fn keep_writes(&self, heir: &Heir) -> Result<(), String> {
        let Err(NotCarried(why)) = self.memory.ledger.settle_carried().await else {
            return Ok(());
        };
        let why = format!("the writes that have run are not taken over: {why}");
        // Where the old process is gone, nobody else serves.
        if heir.fail(&why) {
            return Err(why);
        }
        log::error!("upgrade: {why}");
        Ok(())
    }

    /// The same of those that the old process is at, which begins no more.
    async fn keep_running_writes(&self) {
        if let Err(NotCarried(why)) = self.memory.ledger.settle_elsewhere().await {
            log::error!(
                "upgrade: the writes that still run are known to this process alone for now: {why}"
            );
            let ledger = self.memory.ledger.clone();
            tokio::spawn(async move { ledger.go_on_settling().await });
        }
    }

    fn succession(&self) -> Succession {
        Succession {
            doors: self.doors.clone(),
            memory: self.memory.clone(),
        }
    }
}
