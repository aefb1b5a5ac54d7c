//! The control socket: `api-gateway upgrade` and `api-gateway reload` ask the running process here, and hear what came of it.
//!
//! It is in a directory of the service's own, and only root and the user of the process are answered.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use rustix::io::Errno;
use rustix::net::sockopt::get_socket_peercred;
use rustix::process::{Pid, geteuid, test_kill_process};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::Reload;
use crate::handover::Upgrades;

/// A socket that is bound, and found by others once it is published.
pub struct Control {
    listener: Mutex<Option<std::os::unix::net::UnixListener>>,
    /// Its name until then: the process that is replaced has the other one.
    unpublished: PathBuf,
    path: PathBuf,
    /// The device and number of the file: one that another process has put in its place is not ours to remove.
    file: (u64, u64),
    /// Who made it: ourselves.
    uid: u32,
    is_published: AtomicBool,
}

/// What came of what was asked.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reply {
    pub done: bool,
    pub message: String,
}

/// Answers what is asked.
pub struct Listen {
    pub control: Arc<Control>,
    pub upgrades: Arc<Upgrades>,
    pub reload: Reload,
}

/// Within the runtime directory.
const NAME: &str = "control.sock";

/// Before the number of its process, until it has that name.
const UNPUBLISHED: &str = ".control.";

/// For a question to arrive, and for an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// A longer question is none.
const LONGEST_QUESTION: usize = 32;

/// Who ask at once.
const MOST: usize = 8;

/// Longer than anything that is asked for can take.
const LONGEST_WAIT: Duration = Duration::from_secs(900);

fn unpublished(pid: u32) -> String {
    format!("{UNPUBLISHED}{pid}")
}

/// Takes away what processes have left that were killed in the midst of an upgrade.
fn sweep(directory: &Path) {
    for file in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = file.path();
        if is_left(&path) {
            log::info!("{}: its process has ended, it is removed", path.display());
            // Another one that begins at the same time may have done it.
            let _ = fs::remove_file(path);
        }
    }
}

/// Whether it is a socket of ours, and of a process that has ended. One of another container may have the same directory,
/// and no number here: so it is asked at the socket, too.
fn is_left(path: &Path) -> bool {
    let pid = path.file_name().and_then(|name| name.to_str());
    let pid = pid.and_then(|name| name.strip_prefix(UNPUBLISHED)?.parse().ok());
    let Some(pid) = pid.and_then(Pid::from_raw) else {
        return false;
    };
    let is_ours = fs::symlink_metadata(path)
        .is_ok_and(|file| file.file_type().is_socket() && file.uid() == geteuid().as_raw());
    let has_ended = || test_kill_process(pid) == Err(Errno::SRCH);
    let is_refused =
        || BlockingStream::connect(path).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
    is_ours && has_ended() && is_refused()
}

impl Control {
    /// Binds a socket in this directory, which must be there.
    ///
    /// # Errors
    /// When it cannot be made, or others could replace it.
    pub fn bind(directory: &Path) -> Result<Self, String> {
        let unpublished = directory.join(unpublished(std::process::id()));
        let in_vain = |e: io::Error| {
            format!(
                "no control socket can be made in {}: {e}",
                directory.display()
            )
        };
        let metadata = fs::metadata(directory).map_err(in_vain)?;
        let refused = |why: &str| {
            let directory = directory.display();
            Err(format!("no control socket is made in {directory}: {why}"))
        };
        if metadata.permissions().mode() & 0o022 != 0 {
            return refused("others can write there (chmod 0700)");
        }
        // Whose it is can put another one in the place.
        let owner = metadata.uid();
        if owner != 0 && owner != geteuid().as_raw() {
            return refused(&format!("it is user {owner}'s (chown)"));
        }
        sweep(directory);
        let bind = || {
            // One of the same number that was killed has left it.
            let _ = fs::remove_file(&unpublished);
            let listener = std::os::unix::net::UnixListener::bind(&unpublished)?;
            fs::set_permissions(&unpublished, fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok((listener, fs::symlink_metadata(&unpublished)?))
        };
        let (listener, file) = bind().map_err(in_vain)?;
        Ok(Self {
            listener: Mutex::new(Some(listener)),
            unpublished,
            path: directory.join(NAME),
            file: (file.dev(), file.ino()),
            uid: file.uid(),
            is_published: AtomicBool::new(false),
        })
    }

    /// From now on it is the one that is found. At one stroke: nobody finds none.
    pub fn publish(&self) {
        self.is_published.store(true, Ordering::Relaxed);
        if let Err(e) = fs::rename(&self.unpublished, &self.path) {
            log::warn!("{} cannot be made: {e}", self.path.display());
        }
    }

    /// Another process is to take over: it may put its own in the place, and ours must be there to be put back.
    pub fn keep(&self) {
        if self.is_ours(&self.path) {
            let _ = fs::remove_file(&self.unpublished);
            if let Err(e) = fs::hard_link(&self.path, &self.unpublished) {
                log::debug!("{} has no second name: {e}", self.path.display());
            }
        }
    }

    /// The other process has not taken over.
    pub fn restore(&self) {
        if !self.is_ours(&self.unpublished) {
            return;
        }
        let restored = match self.is_ours(&self.path) {
            true => fs::remove_file(&self.unpublished),
            false => fs::rename(&self.unpublished, &self.path),
        };
        if let Err(e) = restored {
            log::warn!("{} cannot be made: {e}", self.path.display());
        }
    }

    /// Takes away what another process has bound and not published: it has ended.
    pub fn clear(&self, pid: u32) {
        let left = self.path.with_file_name(unpublished(pid));
        // Mostly there is none.
        let _ = fs::remove_file(left);
    }

    /// Takes it away, if it is ours still.
    pub fn withdraw(&self) {
        for path in [&self.unpublished, &self.path] {
            if self.is_ours(path) {
                let _ = fs::remove_file(path);
            }
        }
    }

    fn is_ours(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|file| (file.dev(), file.ino()) == self.file)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if !self.is_published.load(Ordering::Relaxed) {
            self.withdraw();
        }
    }
}

#[async_trait]
impl BackgroundService for Listen {
    /// Until the process ends: while it drains it says so.
    async fn start(&self, _: ShutdownWatch) {
        let listener = self.control.listener.lock().take();
        let Some(Ok(listener)) = listener.map(UnixListener::from_std) else {
            log::warn!("the control socket cannot be listened on");
            return;
        };
        let room = Arc::new(Semaphore::new(MOST));
        loop {
            let Ok(place) = room.clone().acquire_owned().await else {
                return;
            };
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            if let Err(why) = self.knows(&stream) {
                log::warn!("at the control socket {why}");
                continue;
            }
            let (upgrades, reload) = (self.upgrades.clone(), self.reload.clone());
            tokio::spawn(async move {
                if let Err(e) = answer(stream, &upgrades, &reload).await {
                    log::debug!("who asked at the control socket is gone: {e}");
                }
                drop(place);
            });
        }
    }
}

impl Listen {
    fn knows(&self, stream: &UnixStream) -> Result<(), String> {
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == 0 || peer.uid() == self.control.uid => Ok(()),
            Ok(peer) => Err(format!("user {} is not answered", peer.uid())),
            Err(e) => Err(format!("nobody can be told from another: {e}")),
        }
    }
}

async fn answer(
    mut stream: UnixStream,
    upgrades: &Arc<Upgrades>,
    reload: &Reload,
) -> io::Result<()> {
    let mut question = Vec::new();
    let read = async {
        while !question.ends_with(b"\n") && question.len() < LONGEST_QUESTION {
            if stream.read_buf(&mut question).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    tokio::time::timeout(PATIENCE, read).await??;
    let outcome = match &*question {
        b"upgrade\n" => match upgrades.begin().await {
            Ok(outcome) => outcome.map(|pid| format!("process {pid} serves")),
            Err(_) => Err("the process does not say what came of it".to_owned()),
        },
        b"reload\n" => match reload.reload().await {
            Ok(reloaded) => Ok(reloaded.to_string()),
            Err(why) => Err(why.to_string()),
        },
        _ => Err("only `upgrade` and `reload` are known here".to_owned()),
    };
    let reply = match outcome {
        Ok(message) => Reply {
            done: true,
            message,
        },
        Err(message) => Reply {
            done: false,
            message,
        },
    };
    let reply = serde_json::to_vec(&reply)?;
    tokio::time::timeout(PATIENCE, stream.write_all(&reply)).await?
}

/// Asks the process whose control socket is in this directory, and waits for what comes of it.
///
/// # Errors
/// When it cannot be asked, or what was asked for did not come off: why.
pub fn ask(directory: &Path, question: &str) -> Result<String, String> {
    let path = directory.join(NAME);
    let in_vain = |e: io::Error| format!("{} does not answer: {e}", path.display());
    let mut stream = BlockingStream::connect(&path).map_err(in_vain)?;
    // The service's directory is its user's, or root's: whoever else answers is not the service.
    let owner = fs::metadata(directory).map_err(in_vain)?.uid();
    let peer = get_socket_peercred(&stream).map_err(|e| in_vain(e.into()))?;
    let peer = peer.uid.as_raw();
    if peer != 0 && peer != owner {
        let path = path.display();
        return Err(format!("{path} is user {peer}'s, its directory is not"));
    }
    let asked = || -> io::Result<Vec<u8>> {
        stream.set_read_timeout(Some(LONGEST_WAIT))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{question}\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.take(1 << 20).read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = asked().map_err(in_vain)?;
    match serde_json::from_slice(&answer) {
        Ok(Reply {
            done: true,
            message,
        }) => Ok(message),
        Ok(Reply {
            done: false,
            message,
        }) => Err(message),
        Err(_) => {
            Err("the process does not answer this user, or has ended; its log says why".to_owned())
        }
    }
}
