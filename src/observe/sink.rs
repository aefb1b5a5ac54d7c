//! Where log lines go: appended to a bounded buffer, written by a thread of its own. A request never waits for a
//! disk or a terminal; when the buffer is full, or the disk, lines are dropped and counted.
//!
//! A file may be moved away or removed while it is written to, by whoever rotates logs: the writer sees that another one,
//! or none, is at the path, and goes on in a new one. Nobody has to tell it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Bytes that may wait for the writer: about ten thousand lines.
const MOST_WAITING: usize = 4 << 20;

/// The writer rests this long between two writes, so that busy times cost few of them.
const REST: Duration = Duration::from_millis(5);

/// How often, at most, it is looked whether the file is still at its path, and said that lines were dropped.
const LOOK: Duration = Duration::from_secs(1);

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

/// The other end.
struct Out<W> {
    to: W,
    /// The last write broke off within a line.
    is_torn: bool,
}

/// A file that is found by its path, and when it was last looked for there.
struct Followed {
    path: PathBuf,
    looked: Instant,
}

// === impl Sink ===

impl Sink {
    /// Opens the log and starts its writer.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread not be started.
    pub fn open(file: Option<&Path>) -> io::Result<Self> {
        let out = Out::new(match file {
            Some(path) => append(path)?,
            None => File::from(io::stdout().as_fd().try_clone_to_owned()?),
        });
        let followed = file.map(|path| Followed {
            path: path.to_owned(),
            looked: Instant::now(),
        });
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
            .spawn(move || shared.write_all(out, followed))?;
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

    /// Lines that were dropped because the writer could not keep up, or could not write.
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

// === impl Shared ===

impl Shared {
    fn write_all(&self, mut out: Out<File>, mut followed: Option<Followed>) {
        // What is appended to a file stays together; elsewhere another process may write in between (0021).
        let most = match out.to.metadata() {
            Ok(file) if file.is_file() => usize::MAX,
            _ => UNDIVIDED,
        };
        let mut batch = Vec::with_capacity(64 << 10);
        let (mut told, mut told_at) = (0, Instant::now());
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
            if let Some(file) = followed.as_mut().and_then(|f| f.moved(&out.to)) {
                out = Out::new(file);
            }
            // A log that cannot be written has nowhere to say so; when it can be again, it does.
            let lost = pieces(&batch, most).map(|piece| out.write(piece)).sum();
            let dropped = self.dropped.fetch_add(lost, Ordering::Relaxed) + lost;
            if lost == 0 && dropped > told && told_at.elapsed() >= LOOK {
                log::warn!("{} log lines were dropped", dropped - told);
                (told, told_at) = (dropped, Instant::now());
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

// === impl Out ===

impl<W: Write> Out<W> {
    fn new(to: W) -> Self {
        Self { to, is_torn: false }
    }

    /// Writes whole lines. Returns how many of them were not written, or not to their end.
    fn write(&mut self, lines: &[u8]) -> u64 {
        // What comes after a line that broke off must not look like the rest of it.
        if self.is_torn && self.to.write_all(b"\n").is_ok() {
            self.is_torn = false;
        }
        let mut left = lines;
        while !left.is_empty() && !self.is_torn {
            match self.to.write(left) {
                Ok(0) => break,
                Ok(n) => left = &left[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let written = &lines[..lines.len() - left.len()];
        self.is_torn |= !left.is_empty() && written.last().is_some_and(|b| *b != b'\n');
        memchr::memchr_iter(b'\n', left).count() as u64
    }
}

// === impl Followed ===

impl Followed {
    /// The file that is at the path now, if it is another one than `ours`. Where none can be opened ours goes on.
    fn moved(&mut self, ours: &File) -> Option<File> {
        if self.looked.elapsed() < LOOK {
            return None;
        }
        self.looked = Instant::now();
        let id = |of: std::fs::Metadata| (of.dev(), of.ino());
        let there = std::fs::metadata(&self.path).map(id).ok();
        match there.is_some() && there == ours.metadata().map(id).ok() {
            true => None,
            false => append(&self.path).ok(),
        }
    }
}

/// One that is made is for its owner and the group that reads logs: addresses and users stand in it.
fn append(path: &Path) -> io::Result<File> {
    const MODE: u32 = 0o640;
    let mut file = File::options();
    file.create(true).append(true).mode(MODE).open(path)
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

    /// Takes so many bytes, then none until it is given more room.
    struct Disk {
        room: usize,
        text: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.room);
            if n == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= n;
            self.text.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_costs_the_lines_that_do_not_fit_and_no_other() {
        let text = Vec::new();
        let mut out = Out::new(Disk { room: 6, text });
        assert_eq!(out.write(b"one\ntwo\nthree\n"), 2);
        assert_eq!(out.write(b"four\n"), 1, "still full");
        out.to.room = 100;
        assert_eq!(out.write(b"five\n"), 0);
        assert_eq!(out.to.text, b"one\ntw\nfive\n");

        let text = Vec::new();
        let mut out = Out::new(Disk { room: 4, text });
        assert_eq!(out.write(b"one\ntwo\n"), 1);
        out.to.room = 100;
        assert_eq!(out.write(b"five\n"), 0);
        assert_eq!(
            out.to.text, b"one\nfive\n",
            "it broke off between two lines"
        );
    }
}
