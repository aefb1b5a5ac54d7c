//! Certificates are renewed while the process runs: their files are looked at once a second, and what they hold is taken
//! up when all of it fits together.
//!
//! Looked at rather than watched: it works on every file system and through the symbolic links that Kubernetes swaps, and
//! costs a few system calls a second. A file that is being written, or a certificate whose key has not come yet, changes
//! nothing: the old pair serves on until the next look finds a good one.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;

use super::config::Settings;
use super::material::Material;
use super::{Loaded, Tls};
use crate::observe::access_log::Logger;
use crate::server::threads::aside;

const EVERY: Duration = Duration::from_secs(1);

/// The background task that looks.
pub struct Watch {
    pub tls: Arc<Tls>,
    pub logger: Arc<Logger>,
}

/// What was looked at: which of the settings that were in force one after the other, and their files.
#[derive(Default, PartialEq)]
struct Seen {
    generation: u64,
    stamps: Vec<Stamp>,
}

/// What changes with a file: device and inode, size, and when it was written.
type Stamp = Option<(u64, u64, u64, i64, i64, i64, i64)>;

#[async_trait]
impl BackgroundService for Watch {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        // What was read before the first look may have changed since: it is read once more.
        let mut seen = Seen::default();
        loop {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                _ = shutdown.wait_for(|down| *down) => return,
            }
            let (tls, logger) = (self.tls.clone(), self.logger.clone());
            let before = std::mem::take(&mut seen);
            let looked = aside(move || look(&tls, &logger, before)).await;
            seen = looked.unwrap_or_default();
        }
    }
}

/// Takes up what the files hold when it is new. Gives what was looked at.
fn look(tls: &Tls, logger: &Logger, before: Seen) -> Seen {
    let (settings, generation) = {
        let source = tls.source.lock();
        (source.settings.clone(), source.generation)
    };
    // Before the files are read: one that changes in between is read again.
    let stamps: Vec<Stamp> = files(&settings).map(stamp).collect();
    // A reload has read its files before it puts them in force: what it installs after a look is looked at once more.
    let seen = Seen { generation, stamps };
    if seen == before {
        return seen;
    }
    match Material::read(&settings) {
        Ok(material) => {
            let mut source = tls.source.lock();
            // What a reload has installed meanwhile may name other files; the next look is at these.
            if source.digest == material.digest || source.generation != generation {
                return seen;
            }
            tls.replace(&mut source, Loaded { settings, material });
            logger.write(log::Level::Info, |line| {
                line.text("context", "tls");
                line.text(
                    "msg",
                    "the certificates have changed: the new ones are in force",
                );
            });
        }
        Err(faults) => {
            let faults: Vec<String> = faults
                .into_iter()
                .map(|(place, fault)| format!("{place}: {fault}"))
                .collect();
            logger.write(log::Level::Error, |line| {
                line.text("context", "tls");
                line.text("err", &faults.join("; "));
                line.text(
                    "msg",
                    "the certificates have changed and are faulty: the old ones stay in force",
                );
            });
        }
    }
    seen
}

fn files(settings: &Settings) -> impl Iterator<Item = &Path> {
    let pairs = settings.certificates.iter();
    pairs
        .flat_map(|files| [&*files.certificate, &*files.key])
        .chain(settings.client_ca.as_deref())
}

fn stamp(file: &Path) -> Stamp {
    let file = std::fs::metadata(file).ok()?;
    Some((
        file.dev(),
        file.ino(),
        file.size(),
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec(),
    ))
}
