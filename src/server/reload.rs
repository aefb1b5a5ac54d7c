//! Another configuration in the place of the one in force, as one snapshot and without a restart
//! (docs/decisions/0016-reload.md).
//!
//! SIGHUP, a change of the file, `POST /reload` on the private listener and whoever else holds a [`Reload`] ask for it; one
//! reload follows the other. Until the very last step nothing has changed, so that a faulty file changes nothing.

use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use pingora::server::ShutdownWatch;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::notify::Notify;
use super::spare::Spare;
use super::threads::aside;
use super::upkeep::Running;
use super::{Compiled, LIMIT, Process, Purpose, compile, log_settings};
use crate::config::{self, Diff, Environment, Problems, Source, Tree};
use crate::listen::tls::Tls;
use crate::policies::{InForce, Policies};

/// Where the configuration comes from, each time that it is read.
#[derive(Clone)]
pub struct Origin {
    pub source: Source,
    pub environment: Environment,
    /// [`Source::mark`] before it was read for the first time.
    pub mark: Option<u64>,
}

/// What the process began with.
pub struct Began {
    pub origin: Origin,
    /// What is in force.
    pub tree: Tree,
    pub watch: bool,
    pub notify: Notify,
    /// SIGHUP, also from before there was somebody to reload.
    pub hangups: Signal,
    /// What https listeners show, where there are some.
    pub tls: Option<Arc<Tls>>,
}

/// Asks for reloads.
#[derive(Clone)]
pub struct Reload(mpsc::Sender<oneshot::Sender<Outcome>>);

/// What a reload has changed.
#[derive(Debug)]
pub struct Reloaded {
    /// One text for each.
    pub changes: Vec<String>,
    /// Keys whose running values stay in force.
    pub needs_restart: Vec<String>,
}

/// Why nothing has changed.
#[derive(Debug)]
pub enum NotReloaded {
    Faulty(Problems),
    /// The process is told to end.
    Ending,
    /// A new process has read the configuration already, and may be the one that serves by it.
    Upgrading,
}

type Outcome = Result<Reloaded, NotReloaded>;

/// Carries reloads out, and keeps up to date what is in force.
pub struct Reloading {
    pub process: Arc<Process>,
    in_force: InForce,
    origin: Origin,
    asks: mpsc::Receiver<oneshot::Sender<Outcome>>,
    hangups: Signal,
    /// What is in force.
    tree: Arc<Tree>,
    watch: bool,
    file: Watched,
    /// The service manager knows of a reload from its beginning to its end.
    notify: Notify,
    tls: Option<Arc<Tls>>,
    running: Running,
    spare: Option<Spare>,
}

/// What may come into force.
struct New {
    compiled: Compiled,
    /// From what is in force.
    diff: Diff,
}

/// The configuration file, as it is looked at. By content: Kubernetes swaps a link to its directory, editors write it
/// anew, and both may leave its time and size as they were.
struct Watched {
    /// What was read for the configuration in force, or found faulty.
    read: Option<u64>,
    /// What stood there the last time, if it was something else.
    seen: Option<u64>,
}

/// Whoever asks while so many wait waits to ask.
const ASKERS: usize = 16;

/// Between two looks at the file. What is new must be the same twice: it may be half written.
const LOOK: Duration = Duration::from_millis(500);

// === impl Reload ===

impl Reload {
    /// Reads the configuration anew, and puts it in force.
    ///
    /// # Errors
    /// When it is faulty, or the process is ending. Nothing has changed then.
    pub async fn reload(&self) -> Outcome {
        let (answer, outcome) = oneshot::channel();
        self.0.send(answer).await.map_err(|_| NotReloaded::Ending)?;
        outcome.await.unwrap_or(Err(NotReloaded::Ending))
    }
}

// === impl Reloading ===

impl Reloading {
    pub fn new(process: Arc<Process>, in_force: InForce, began: Began) -> (Reload, Self) {
        let Began {
            origin,
            tree,
            watch,
            notify,
            hangups,
            tls,
        } = began;
        let (asker, asks) = mpsc::channel(ASKERS);
        let reloading = Self {
            process,
            in_force,
            file: Watched {
                read: origin.mark,
                seen: None,
            },
            origin,
            asks,
            hangups,
            tree: Arc::new(tree),
            watch,
            notify,
            tls,
            running: Running::default(),
            spare: None,
        };
        (Reload(asker), reloading)
    }

    /// Until the process is told to end.
    pub async fn run(mut self, mut shutdown: ShutdownWatch) {
        self.running.only(self.in_force.load().tasks());
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asker = tokio::select! {
                () = ended(&mut shutdown) => return,
                Some(asker) = self.asks.recv() => Some(asker),
                Some(()) = self.hangups.recv() => None,
                _ = looks.tick(), if self.watch => {
                    // Nobody waits for it: what it finds can be read when that may be.
                    if self.may_reload().is_err()
                        || !self.file.has_changed(&self.origin.source).await
                    {
                        continue;
                    }
                    None
                }
            };
            let outcome = match self.may_reload() {
                Ok(()) => self.reload().await,
                Err(why) => Err(why),
            };
            self.tell(&outcome);
            if let Some(asker) = asker {
                // Who asked may have gone.
                let _ = asker.send(outcome);
            }
        }
    }

    async fn reload(&mut self) -> Outcome {
        self.notify.reloading();
        let outcome = self.try_reload().await;
        self.notify.reloaded(match &outcome {
            Ok(_) => "reloaded",
            Err(_) => "the reload failed, nothing has changed",
        });
        outcome
    }

    async fn try_reload(&mut self) -> Outcome {
        self.file.is_read(&self.origin.source).await;
        let before = self.in_force.load_full();
        let new = self.compile(&before).await.map_err(NotReloaded::Faulty)?;
        let policies = &new.compiled.policies;
        policies.first_look(&before, LIMIT).await;
        self.may_reload()?;
        let reloaded = self.put_in_force(new, &before);
        if let Ok(spare) = self.spare().await {
            tokio::spawn(let_go(before, spare));
        }
        Ok(reloaded)
    }

    fn may_reload(&self) -> Result<(), NotReloaded> {
        let life = &self.process.life;
        match (life.is_ending(), life.is_upgrading()) {
            (true, _) => Err(NotReloaded::Ending),
            (_, true) => Err(NotReloaded::Upgrading),
            _ => Ok(()),
        }
    }

    /// Away from what keeps everything else up to date: it takes a while, and reads files.
    async fn compile(&mut self, before: &Arc<Policies>) -> Result<New, Problems> {
        let (origin, process) = (self.origin.clone(), self.process.clone());
        let (before, running) = (before.clone(), self.tree.clone());
        let compile = move || {
            let file = config::load_again(&origin.source, &origin.environment)?;
            let mut problems = Problems::default();
            log_settings(&file, &mut problems);
            let before = &before;
            let mut compiled = compile(file, Purpose::Reload { process, before }, problems)?;
            let diff = Diff::between(&running, &compiled.tree);
            compiled.tree = diff.in_force(&running, compiled.tree);
            Ok(New { compiled, diff })
        };
        let compiled = match self.spare().await {
            Ok(spare) => spare.run(compile).await,
            // Where there is no thread for it, requests wait a little rather than the operator for ever.
            Err(e) => aside(compile).await.ok_or(e),
        };
        compiled.unwrap_or_else(|e| {
            let mut problems = Problems::default();
            problems.add("reload", format!("was not finished: {e}"));
            Err(problems)
        })
    }

    /// From the first reload on.
    async fn spare(&mut self) -> io::Result<Spare> {
        if let Some(spare) = &self.spare {
            return Ok(spare.clone());
        }
        let started = aside(Spare::start).await;
        let spare = started.ok_or_else(|| io::Error::other("it has panicked"))??;
        Ok(self.spare.insert(spare).clone())
    }

    /// The one moment at which something changes. What else belongs to a snapshot, as certificates do, is swapped here.
    fn put_in_force(&mut self, new: New, before: &Policies) -> Reloaded {
        let New { compiled, diff } = new;
        let Compiled {
            policies,
            process: _, // the one that runs
            tree,
            watch,
            entrances,
            // What follows is a part of the process: `Diff` says so where it differs.
            threads: _,
            ending: _,
            upstream_connections: _,
        } = compiled;
        let policies = Arc::new(policies);
        policies.auth.begins();
        self.in_force.store(policies.clone());
        if let (Some(tls), Some(loaded)) = (&self.tls, entrances.tls) {
            tls.install(loaded);
        }
        before.pools.retire(&policies.pools);
        self.running.only(policies.tasks());
        self.watch = watch;
        self.tree = Arc::new(tree);
        Reloaded {
            changes: diff.changes(),
            needs_restart: diff.needs_restart(),
        }
    }

    fn tell(&self, outcome: &Outcome) {
        let reloads = &self.process.metrics.reloads;
        match outcome {
            Ok(Reloaded {
                changes,
                needs_restart,
            }) => {
                reloads.with_label_values(&["reloaded"]).inc();
                self.process.logger.write(log::Level::Info, |line| {
                    line.text("context", "reload");
                    line.list("changes", changes);
                    line.list("needsRestart", needs_restart);
                    line.text("msg", "reloaded");
                });
            }
            Err(why) => {
                reloads.with_label_values(&["failed"]).inc();
                self.process.logger.write(log::Level::Error, |line| {
                    line.text("context", "reload");
                    line.list("faults", &why.lines());
                    line.text("msg", "reload failed, nothing has changed");
                });
            }
        }
    }
}

// === impl NotReloaded ===

impl NotReloaded {
    /// One text for each fault.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Faulty(problems) => problems.lines(),
            Self::Ending | Self::Upgrading => vec![self.to_string()],
        }
    }
}

impl fmt::Display for Reloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            changes,
            needs_restart,
        } = self;
        match changes.len() {
            0 => f.write_str("nothing has changed")?,
            n => write!(f, "{n} changes: {}", changes.join(", "))?,
        }
        if !needs_restart.is_empty() {
            write!(f, "; these need a restart: {}", needs_restart.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for NotReloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Faulty(problems) => problems.fmt(f),
            Self::Ending => f.write_str("the process is ending"),
            Self::Upgrading => f.write_str("an upgrade is under way: ask again when it is over"),
        }
    }
}

// === impl Watched ===

impl Watched {
    /// Whether there is something new to read, and it is not being written any more.
    async fn has_changed(&mut self, source: &Source) -> bool {
        // Between two contents there may be none for a moment.
        let now = mark(source).await;
        let new = now.filter(|_| now != self.read);
        let before = std::mem::replace(&mut self.seen, new);
        new.is_some() && before == new
    }

    /// It is about to be read, whatever it holds.
    async fn is_read(&mut self, source: &Source) {
        self.read = mark(source).await;
        self.seen = None;
    }
}

/// The last request that was judged by these would have to take them apart, in the middle of others: nobody does before us.
async fn let_go(before: Arc<Policies>, spare: Spare) {
    while Arc::strong_count(&before) > 1 {
        tokio::time::sleep(LOOK).await;
    }
    if let Err(e) = spare.run(move || drop(before)).await {
        log::debug!("an old configuration was not taken apart beside the requests: {e}");
    }
}

async fn ended(shutdown: &mut ShutdownWatch) {
    // An error means that the server is gone: the same.
    let _ = shutdown.wait_for(|down| *down).await;
}

async fn mark(source: &Source) -> Option<u64> {
    let source = source.clone();
    aside(move || source.mark()).await.flatten()
}
