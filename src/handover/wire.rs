//! What two processes say to each other while one takes the other's place: named frames over a pair of sockets that
//! nobody else has, with open sockets beside them.
//!
//! A frame is `agw1`, the length of its body and of its name, then both. Old and new may be of different versions: a name
//! that is not known is passed over by whoever reads it, and nothing is read that is longer than its bound.

use std::fmt;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One end.
#[derive(Debug)]
pub struct Wire(UnixStream);

/// What is said at once.
#[derive(Debug)]
pub struct Frame {
    pub name: String,
    pub body: Vec<u8>,
    pub sockets: Vec<OwnedFd>,
}

/// Nothing was heard, or nothing that can be understood.
#[derive(Debug)]
pub enum Broken {
    /// The other process has ended, or has let go.
    Gone,
    Late,
    /// It is not waited for any more.
    Stopped,
    Garbled(&'static str),
    Io(io::Error),
}

const MAGIC: [u8; 4] = *b"agw1";

/// [`MAGIC`], the body's length, the name's.
const HEADER: usize = 9;

const LONGEST_NAME: usize = 32;

/// Of one frame.
pub const LONGEST_BODY: usize = 64 << 20;

/// Sockets beside one frame: as many as the kernel passes on (SCM_MAX_FD).
pub const MOST_SOCKETS: usize = 253;

/// Between two looks at the clock, and whether the answer is still wanted.
const STEP: Duration = Duration::from_millis(50);

impl Wire {
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(STEP))?;
        stream.set_write_timeout(Some(STEP))?;
        Ok(Self(stream))
    }

    /// # Errors
    /// When the other end is gone, or does not read until `deadline`.
    pub fn send(&self, name: &str, body: &impl Serialize, deadline: Instant) -> Result<(), Broken> {
        let body = serde_json::to_vec(body).map_err(|_| Broken::Garbled("it cannot be written"))?;
        self.send_raw(name, &body, &[], deadline)
    }

    /// The same for a body that is JSON already, with sockets beside it.
    ///
    /// # Errors
    /// As for [`Wire::send`].
    pub fn send_raw(
        &self,
        name: &str,
        body: &[u8],
        sockets: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), Broken> {
        if body.len() > LONGEST_BODY || name.len() > LONGEST_NAME || sockets.len() > MOST_SOCKETS {
            return Err(Broken::Garbled("it is too long"));
        }
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&MAGIC);
        header[4..8].copy_from_slice(&(body.len() as u32).to_be_bytes());
        header[8] = name.len() as u8;
        let mut space = [0; rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(sockets)) {
            return Err(Broken::Garbled("there are too many sockets"));
        }
        loop {
            let sent = sendmsg(
                &self.0,
                &[IoSlice::new(&header)],
                &mut beside,
                SendFlags::NOSIGNAL,
            );
            match sent.map_err(io::Error::from) {
                Ok(HEADER) => break,
                Ok(_) => return Err(Broken::Garbled("a header was cut")),
                Err(e) => patient(e, deadline, &|| false)?,
            }
        }
        for mut rest in [name.as_bytes(), body] {
            while !rest.is_empty() {
                match (&self.0).write(rest) {
                    Ok(0) => return Err(Broken::Gone),
                    Ok(n) => rest = &rest[n..],
                    Err(e) => patient(e, deadline, &|| false)?,
                }
            }
        }
        Ok(())
    }

    /// Waits for a frame, for as long as it is `wanted`.
    ///
    /// # Errors
    /// When none comes until `deadline`.
    pub fn receive(&self, deadline: Instant, wanted: &dyn Fn() -> bool) -> Result<Frame, Broken> {
        let stopped = || !wanted();
        let mut sockets = Vec::new();
        let mut header = [0; HEADER];
        let mut read = 0;
        while read < HEADER {
            let mut space = [0; rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let into = &mut [IoSliceMut::new(&mut header[read..])];
            match recvmsg(&self.0, into, &mut beside, RecvFlags::CMSG_CLOEXEC) {
                Ok(got) if got.bytes == 0 => return Err(Broken::Gone),
                Ok(got) => read += got.bytes,
                Err(e) => patient(e.into(), deadline, &stopped)?,
            }
            for message in beside.drain() {
                if let RecvAncillaryMessage::ScmRights(passed) = message {
                    sockets.extend(passed);
                }
            }
        }
        let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let name_length = usize::from(header[8]);
        if header[..4] != MAGIC || length > LONGEST_BODY || name_length > LONGEST_NAME {
            return Err(Broken::Garbled("what it says is no frame"));
        }
        let name = self.read(name_length, deadline, &stopped)?;
        Ok(Frame {
            name: String::from_utf8(name).map_err(|_| Broken::Garbled("a name is no text"))?,
            body: self.read(length, deadline, &stopped)?,
            sockets,
        })
    }

    fn read(
        &self,
        length: usize,
        deadline: Instant,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, Broken> {
        let mut bytes = vec![0; length];
        let mut read = 0;
        while read < length {
            match (&self.0).read(&mut bytes[read..]) {
                Ok(0) => return Err(Broken::Gone),
                Ok(n) => read += n,
                Err(e) => patient(e, deadline, stopped)?,
            }
        }
        Ok(bytes)
    }
}

impl Frame {
    /// What its body says.
    ///
    /// # Errors
    /// When that is something else.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Broken> {
        serde_json::from_slice(&self.body).map_err(|_| Broken::Garbled("a message cannot be read"))
    }
}

/// Whether it is worth trying again.
fn patient(e: io::Error, deadline: Instant, stopped: &dyn Fn() -> bool) -> Result<(), Broken> {
    match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => return Err(Broken::Gone),
        _ => return Err(Broken::Io(e)),
    }
    if stopped() {
        return Err(Broken::Stopped);
    }
    match Instant::now() < deadline {
        true => Ok(()),
        false => Err(Broken::Late),
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("it has ended"),
            Self::Late => f.write_str("it took too long"),
            Self::Stopped => f.write_str("the process was told to end"),
            Self::Garbled(what) => f.write_str(what),
            Self::Io(e) => write!(f, "it cannot be talked to: {e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    fn pair() -> (Wire, Wire) {
        let (one, other) = UnixStream::pair().unwrap();
        (Wire::new(one).unwrap(), Wire::new(other).unwrap())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn a_socket_that_was_passed_on_is_the_same_socket() {
        let (one, other) = pair();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        one.send_raw("listeners", b"[1]", &[listener.as_fd()], soon())
            .unwrap();
        one.send("more", &"text", soon()).unwrap();
        drop(listener);
        let first = other.receive(soon(), &|| true).unwrap();
        assert_eq!(
            (&*first.name, first.parse::<[u8; 1]>().unwrap()),
            ("listeners", [1])
        );
        let [socket] = <[OwnedFd; 1]>::try_from(first.sockets).unwrap();
        let second = other.receive(soon(), &|| true).unwrap();
        assert_eq!(second.parse::<String>().unwrap(), "text");
        assert!(second.sockets.is_empty());
        TcpStream::connect(address).unwrap();
        TcpListener::from(socket).accept().unwrap();
    }

    #[test]
    fn whoever_is_gone_late_or_says_nonsense_is_told_apart() {
        let (one, other) = pair();
        let late = other.receive(Instant::now(), &|| true);
        assert!(matches!(late, Err(Broken::Late)));
        let stopped = other.receive(soon(), &|| false);
        assert!(matches!(stopped, Err(Broken::Stopped)));
        (&one.0).write_all(b"#!/bin/sh nonsense").unwrap();
        let garbled = other.receive(soon(), &|| true);
        assert!(matches!(garbled, Err(Broken::Garbled(_))));
        let (one, other) = pair();
        (&one.0).write_all(b"agw1\xff\xff\xff\xff\x01x").unwrap();
        let huge = other.receive(soon(), &|| true);
        assert!(matches!(huge, Err(Broken::Garbled(_))));
        let (one, other) = pair();
        (&one.0).write_all(b"agw1\0\0").unwrap();
        drop(one);
        let gone = other.receive(soon(), &|| true);
        assert!(matches!(gone, Err(Broken::Gone)));
        let full = other.send_raw("x", &[b'x'; 1000], &[], soon());
        assert!(matches!(full, Err(Broken::Gone)));
    }
}
