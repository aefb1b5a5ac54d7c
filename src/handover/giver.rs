//! The old process' part: it starts the new one, gives it everything, and serves on if that does not come off.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::IntCounterVec;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::oneshot;

use super::memory::Parcel;
use super::wire::{Broken, Frame, Wire};
use super::{
    Clock, END, FAILED, Failed, HELLO, Hello, KNOWN, MARK, Memory, PROTOCOL, READY, Ready, SERVING,
    sockets,
};
use crate::admit::limits::Mark;
use crate::listen::Doors;
use crate::observe::access_log::Logger;
use crate::server::Life;
use crate::server::control::Control;

/// How this process was started: so the next one is.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

/// Replaces this process, one attempt at a time.
pub struct Upgrades {
    pub program: Program,
    pub life: Arc<Life>,
    pub doors: Arc<Doors>,
    pub memory: Memory,
    /// For the new process to be ready.
    pub limit: Duration,
    pub control: Option<Arc<Control>>,
    pub logger: Arc<Logger>,
    /// `upgrades_total{outcome}`
    pub outcomes: IntCounterVec,
    /// While an upgrade is under way.
    pub child: Mutex<Option<Child>>,
    /// Who took over, and what it was told up to.
    pub successor: Mutex<Option<(Wire, Mark)>>,
}

/// The id of the new process, or why this one serves on.
pub type Outcome = Result<u32, String>;

/// For the new process to take over, from the moment on at which this one no longer accepts: clients wait.
const PAUSE: Duration = Duration::from_secs(10);

/// For the new process to hear that a write has ended: it does nothing else.
const TO_HEAR: Duration = Duration::from_secs(1);

/// For the new process to end by itself, when it has let go of its socket.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Program {
    /// As it was called, not what that leads to: a link may lead to the next version later.
    pub fn of_this_process(search_path: Option<&str>) -> std::io::Result<Self> {
        let mut arguments = std::env::args_os();
        let called = PathBuf::from(arguments.next().unwrap_or_default());
        let named = match called.components().count() {
            0 => None,
            1 if !called.has_root() && !called.to_string_lossy().contains('/') => search_path
                .unwrap_or_default()
                .split(':')
                .map(|folder| Path::new(folder).join(&called))
                .find(|path| path.is_file()),
            _ => std::path::absolute(&called).ok(),
        };
        let path = match named.filter(|path| path.is_file()) {
            Some(path) => path,
            None => std::env::current_exe()?,
        };
        Ok(Self {
            path,
            arguments: arguments.collect(),
        })
    }
}

impl Upgrades {
    /// Begins to replace this process, on a thread of its own. The outcome is logged, and told to whoever waits for it.
    pub fn begin(self: &Arc<Self>) -> oneshot::Receiver<Outcome> {
        let (tell, outcome) = oneshot::channel();
        let may_begin = match std::process::id() {
            // When it ends all others of its namespace are killed, the new one among them (pid_namespaces(7)).
            1 => Err("process 1 cannot be replaced: in a container, start another container"),
            _ => self.life.begin_upgrade(),
        };
        if let Err(why) = may_begin {
            self.say_failed(why);
            let _ = tell.send(Err(why.to_owned()));
            return outcome;
        }
        let this = self.clone();
        let begun = std::thread::Builder::new()
            .name("upgrade".into())
            .spawn(move || {
                let outcome = this.upgrade();
                let is_replaced = outcome.is_ok();
                // Whoever asked may be gone.
                let _ = tell.send(outcome);
                if is_replaced {
                    this.tell_ends();
                }
            });
        if begun.is_err() {
            self.life.upgrade_failed();
            self.say_failed("no thread can be started");
        }
        outcome
    }

    fn upgrade(&self) -> Outcome {
        let mut attempt = Attempt {
            of: self,
            why: Some("it broke off".to_owned()),
        };
        let outcome = self.start().and_then(|(wire, pid)| {
            match self.give(&wire) {
                Ok(mark) => {
                    self.doors.hand_over();
                    self.memory.leave(mark, &Clock::now());
                    *self.successor.lock() = Some((wire, mark));
                    Ok(pid)
                }
                // It is ended before it could see the wire go: it would take that for this process' end.
                Err(why) => Err(self.end_child(&why)),
            }
        });
        attempt.why = outcome.as_ref().err().cloned();
        if let Ok(pid) = &outcome {
            self.say(
                log::Level::Info,
                "upgrade: the new process serves",
                "pid",
                &pid.to_string(),
            );
            self.outcomes.with_label_values(&["ok"]).inc();
            if let Some(control) = &self.control {
                control.withdraw();
            }
            let child = self.child.lock().take();
            if let (true, Some(child)) = (self.life.replaced(), child) {
                // The signal was meant for whoever serves. One that has ended needs none.
                let _ = kill_process(Pid::from_child(&child), Signal::Term);
            }
        }
        outcome
    }

    /// Nobody has taken its place.
    fn serves_on(&self, why: &str) {
        self.abort(); // if it was not ended
        self.memory.goes_on();
        self.doors.resume();
        if let Some(control) = &self.control {
            control.restore();
        }
        self.say_failed(why);
        self.life.upgrade_failed();
    }

    fn start(&self) -> Result<(Wire, u32), String> {
        let pair = UnixStream::pair().and_then(|(ours, theirs)| Ok((Wire::new(ours)?, theirs)));
        let (ours, theirs) = pair.map_err(|e| format!("no pair of sockets can be had: {e}"))?;
        let Program { path, arguments } = &self.program;
        let child = Command::new(path)
            .args(arguments)
            .env(MARK, std::process::id().to_string())
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .map_err(|e| format!("{} cannot be started: {e}", path.display()))?;
        let pid = child.id();
        if let Some(control) = &self.control {
            control.keep();
        }
        *self.child.lock() = Some(child);
        self.say(
            log::Level::Info,
            "upgrade: a new process is started",
            "pid",
            &pid.to_string(),
        );
        Ok((ours, pid))
    }

    /// Gives everything to the new process, once it is ready.
    fn give(&self, wire: &Wire) -> Result<Mark, Failure> {
        let deadline = Instant::now() + self.limit;
        let hello = Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listeners: self.doors.keys(),
            has_control: self.control.is_some(),
            confirms: true,
            writes: Some(self.memory.ledger.place()),
        };
        wire.send(HELLO, &hello, deadline)
            .map_err(Failure::before("was ready"))?;
        // Until it has the sockets it is not needed where this one is told to end.
        let wanted = || !self.life.is_told();
        let ready: Ready = await_word(wire, READY, deadline, "was ready", &wanted)?;

        self.doors.pause();
        let paused = Instant::now();
        let deadline = Instant::now() + PAUSE;
        let clock = Clock::now();
        let mark = Mark::here(&clock);
        let parcel = self.memory.all(&clock, ready.wants_revocations);
        if parcel.lacks_writes() {
            return Err(Failure::TooMuch);
        }
        self.pass_on(wire, &parcel, deadline)
            .map_err(Failure::before("had everything"))?;
        // It may have let clients in already: when this one is told to end, it is told afterwards, and ends in order.
        let _: () = await_word(wire, SERVING, deadline, "served", &|| true)?;
        // From here on there is no way back, unless it is gone already.
        wire.send(KNOWN, &(), deadline)
            .map_err(Failure::before("could be told"))?;
        log::info!("upgrade: nobody was let in for {:?}", paused.elapsed());
        Ok(mark)
    }

    fn pass_on(&self, wire: &Wire, parcel: &Parcel, deadline: Instant) -> Result<(), Broken> {
        sockets::give(wire, &self.doors.held(), deadline)?;
        for (name, body) in &parcel.parts {
            wire.send_raw(name, body, &[], deadline)?;
        }
        if let Some(left_out) = parcel.left_out() {
            log::warn!(
                "upgrade: there is more than can be handed over, it is left behind: {left_out}"
            );
        }
        wire.send(END, &(), deadline)
    }

    /// Ends the new process, by its id. Returns the whole reason.
    fn end_child(&self, why: &Failure) -> String {
        let Some(mut child) = self.child.lock().take() else {
            return why.to_string();
        };
        let has_let_go = matches!(why, Failure::Broken(Broken::Gone, _) | Failure::Said(_));
        let limit = if has_let_go {
            LAST_WORDS
        } else {
            Duration::ZERO
        };
        let ended = by_itself(&mut child, limit);
        if ended.is_none() {
            // Both fail only for one that has ended meanwhile.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(control) = &self.control {
            control.clear(child.id());
        }
        match (why, ended) {
            (Failure::Broken(Broken::Gone, before), Some(status)) => {
                format!("the new process ended before it {before} ({status})")
            }
            _ => why.to_string(),
        }
    }

    /// Ends of writes are told as they come: who asks the new process for one waits for it. Returns when there are none to
    /// tell; the process may end before that.
    fn tell_ends(&self) {
        while self.memory.ledger.until_one_ends() {
            let mut successor = self.successor.lock();
            let Some((wire, _)) = &*successor else {
                return; // these go with its last words
            };
            let parts = self.memory.ends().parts;
            let told = parts.iter().try_for_each(|(name, body)| {
                wire.send_raw(name, body, &[], Instant::now() + TO_HEAR)
            });
            if let Err(e) = told {
                log::warn!("upgrade: the end of a write could not be passed on: {e}");
                *successor = None; // nothing behind it could be understood
                return;
            }
        }
    }

    /// The process ends: what its last requests changed is told to who took over, if somebody has. Nobody is left behind
    /// half-way. Returns whether all of it was.
    pub fn finish(&self, limit: Duration) -> bool {
        let Some((wire, mark)) = self.successor.lock().take() else {
            return false;
        };
        let deadline = Instant::now() + limit;
        for (name, body) in self.memory.since(mark, &Clock::now()).parts {
            if let Err(e) = wire.send_raw(name, &body, &[], deadline) {
                log::warn!("upgrade: the last changes could not be passed on: {e}");
                return false;
            }
        }
        true
    }

    /// The process ends at once: one that was to take over does, too.
    pub fn abort(&self) {
        if let Some(child) = &mut *self.child.lock() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn say_failed(&self, why: &str) {
        self.outcomes.with_label_values(&["failed"]).inc();
        self.say(
            log::Level::Error,
            "upgrade failed, this process serves on",
            "reason",
            why,
        );
    }

    fn say(&self, level: log::Level, what: &str, name: &str, value: &str) {
        self.logger.write(level, |line| {
            line.text("context", "server");
            line.text(name, value);
            line.text("msg", what);
        });
    }
}

/// Waits for what the new process says next, for as long as it is `wanted`.
fn await_word<T: serde::de::DeserializeOwned>(
    wire: &Wire,
    word: &str,
    deadline: Instant,
    before: &'static str,
    wanted: &dyn Fn() -> bool,
) -> Result<T, Failure> {
    let frame: Frame = wire
        .receive(deadline, wanted)
        .map_err(Failure::before(before))?;
    match &*frame.name {
        FAILED => {
            let failed: Failed = frame.parse().map_err(Failure::before(before))?;
            Err(Failure::Said(failed.reason))
        }
        name if name == word => frame.parse().map_err(Failure::before(before)),
        _ => Err(Failure::Broken(
            Broken::Garbled("it says what it should not"),
            before,
        )),
    }
}

/// Whether the process ends by itself, and how.
fn by_itself(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An upgrade that is under way. Unless it has come off when this is dropped, this process serves on.
struct Attempt<'a> {
    of: &'a Upgrades,
    /// Why it has not.
    why: Option<String>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some(why) = self.why.take() {
            self.of.serves_on(&why);
        }
    }
}

/// Why the new process did not take over.
enum Failure {
    /// It says so itself.
    Said(String),
    /// It would not know of all writes that have run.
    TooMuch,
    Broken(Broken, &'static str),
}

impl Failure {
    fn before(what: &'static str) -> impl Fn(Broken) -> Self {
        move |broken| Self::Broken(broken, what)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Said(reason) => f.write_str(reason),
            Self::TooMuch => {
                f.write_str("there are more writes with a key than can be handed over")
            }
            Self::Broken(Broken::Gone, before) => {
                write!(f, "the new process ended before it {before}")
            }
            Self::Broken(Broken::Late, before) => {
                write!(f, "the new process took too long before it {before}")
            }
            Self::Broken(Broken::Stopped, _) => f.write_str("the process was told to end"),
            Self::Broken(broken, before) => write!(f, "before the new process {before}: {broken}"),
        }
    }
}
