//! Where log lines go: appended to a bounded buffer, written by a thread of its own. A request never waits for a
//! disk or a terminal; when the buffer is full, lines are dropped and counted.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Bytes that may wait for the writer: about ten thousand lines.
const MOST_WAITING: usize = 4 << 20;

/// The writer rests this long between two writes, so that busy times cost few of them.
const REST: Duration = Duration::from_millis(5);

/// The end of the log that lines are put into. Cheap to clone.
#[derive(Clone)]
pub struct Sink(Arc<Shared>);

struct Shared {
    waiting: Mutex<Vec<u8>>,
    /// The writer sleeps and must be woken.
    idle: AtomicBool,
    wake: Condvar,
    written: Condvar,
    dropped: AtomicU64,
}

/// So many bytes at once are not divided in a pipe (PIPE_BUF, pipe(7)): during an upgrade two processes write to one.
const UNDIVIDED: usize = 4096;

impl Sink {
    /// Opens the log and starts its writer.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread not be started.
    pub fn open(file: Option<&Path>) -> io::Result<Self> {
        let out = match file {
            Some(path) => File::options().create(true).append(true).open(path)?,
            None => File::from(io::stdout().as_fd().try_clone_to_owned()?),
        };
        let sink = Self(Arc::new(Shared {
            waiting: Mutex::new(Vec::with_capacity(64 << 10)),
            idle: AtomicBool::new(false),
            wake: Condvar::new(),
            written: Condvar::new(),
            dropped: AtomicU64::new(0),
        }));
        let shared = sink.0.clone();
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || shared.write_all(out))?;
        Ok(sink)
    }

    /// Adds one line, its line break included.
    pub fn put(&self, line: &[u8]) {
        let mut waiting = self.0.waiting.lock();
        if waiting.len() + line.len() > MOST_WAITING {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.extend_from_slice(line);
        drop(waiting);
        if self.0.idle.load(Ordering::Relaxed) {
            self.0.wake.notify_one();
        }
    }

    /// Lines that were dropped because the writer could not keep up.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Waits until what was put is written, at most for `limit`.
    pub fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut waiting = self.0.waiting.lock();
        while !(waiting.is_empty() && self.0.idle.load(Ordering::Relaxed)) {
            self.0.wake.notify_one();
            if self
                .0
                .written
                .wait_until(&mut waiting, deadline)
                .timed_out()
            {
                return;
            }
        }
    }
}

impl Shared {
    fn write_all(&self, mut out: File) {
        // What is appended to a file stays together; elsewhere another process may write in between (0021).
        let most = match out.metadata() {
            Ok(file) if file.is_file() => usize::MAX,
            _ => UNDIVIDED,
        };
        let mut batch = Vec::with_capacity(64 << 10);
        loop {
            {
                let mut waiting = self.waiting.lock();
                while waiting.is_empty() {
                    self.idle.store(true, Ordering::Relaxed);
                    self.written.notify_all();
                    self.wake.wait(&mut waiting);
                }
                self.idle.store(false, Ordering::Relaxed);
                std::mem::swap(&mut *waiting, &mut batch);
            }
            // A log that cannot be written has nowhere to say so; the lines are counted as dropped.
            for piece in pieces(&batch, most) {
                if out.write_all(piece).is_err() {
                    let lines = memchr::memchr_iter(b'\n', piece).count() as u64;
                    self.dropped.fetch_add(lines, Ordering::Relaxed);
                }
            }
            batch.clear();
            std::thread::sleep(REST);
        }
    }
}

/// Whole lines, as many as fit into `most` bytes; one that is longer is a piece of its own.
fn pieces(batch: &[u8], most: usize) -> impl Iterator<Item = &[u8]> {
    let mut rest = batch;
    std::iter::from_fn(move || {
        let within = &rest[..rest.len().min(most)];
        let end = match memchr::memrchr(b'\n', within) {
            _ if within.len() == rest.len() => rest.len(),
            Some(end) => end + 1,
            None => memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1),
        };
        let (piece, after) = rest.split_at(end);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_whole_whatever_fits() {
        let all = |most| pieces(b"ab\ncd\nlonger\ne\n", most).collect::<Vec<_>>();
        assert_eq!(all(usize::MAX), [&b"ab\ncd\nlonger\ne\n"[..]]);
        assert_eq!(all(6), [&b"ab\ncd\n"[..], b"longer\n", b"e\n"]);
        assert_eq!(all(1), [&b"ab\n"[..], b"cd\n", b"longer\n", b"e\n"]);
        assert_eq!(pieces(b"", 4).count(), 0);
    }
}
