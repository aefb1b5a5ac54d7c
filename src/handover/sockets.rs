//! The sockets that listen, on their way from one process to the next. A frame holds no more of them than the kernel passes
//! on at once, so there are as many frames as it takes; the last one has another name than those before it, and until
//! that is here nothing is taken over.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::wire::{Broken, MOST_SOCKETS, Wire};
use super::{LISTENERS, MORE_LISTENERS};
use crate::listen::Key;

/// Frames of one hand-over: more sockets than any chain of configurations comes to, which is some hundreds.
const MOST_FRAMES: usize = 16;

/// # Errors
/// When there are too many, or nobody takes them in time.
pub fn give(
    wire: &Wire,
    held: &[(Key, Arc<dyn AsFd + Send + Sync>)],
    deadline: Instant,
) -> Result<(), Broken> {
    if held.len() > MOST_FRAMES * MOST_SOCKETS {
        return Err(Broken::Garbled("there are too many sockets"));
    }
    let frames = held.len().div_ceil(MOST_SOCKETS).max(1);
    let mut rest = held;
    for left in (0..frames).rev() {
        let (frame, behind) = rest.split_at(rest.len().min(MOST_SOCKETS));
        let keys: Vec<_> = frame.iter().map(|(key, _)| key).collect();
        let keys = serde_json::to_vec(&keys)
            .map_err(|_| Broken::Garbled("its names cannot be written"))?;
        let sockets: Vec<_> = frame.iter().map(|(_, socket)| socket.as_fd()).collect();
        let name = if left == 0 { LISTENERS } else { MORE_LISTENERS };
        wire.send_raw(name, &keys, &sockets, deadline)?;
        rest = behind;
    }
    Ok(())
}

/// # Errors
/// When not all of them come.
pub fn take(wire: &Wire, deadline: Instant) -> Result<Vec<(Key, OwnedFd)>, Broken> {
    let mut taken = Vec::new();
    for _ in 0..MOST_FRAMES {
        let frame = wire.receive(deadline, &|| true)?;
        let is_last = match &*frame.name {
            LISTENERS => true,
            MORE_LISTENERS => false,
            _ => return Err(Broken::Garbled("it says what it should not")),
        };
        let keys: Vec<Key> = frame.parse()?;
        if keys.len() != frame.sockets.len() {
            return Err(Broken::Garbled("some of its sockets are missing"));
        }
        taken.extend(keys.into_iter().zip(frame.sockets));
        if is_last {
            return Ok(taken);
        }
    }
    Err(Broken::Garbled("there are too many sockets"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    fn wires() -> (Wire, Wire) {
        let (one, other) = UnixStream::pair().unwrap();
        (Wire::new(one).unwrap(), Wire::new(other).unwrap())
    }

    fn key(number: usize) -> Key {
        Key {
            name: number.to_string(),
            wanted: String::new(),
            address: String::new(),
        }
    }

    /// So many names for one socket.
    fn held(count: usize) -> Vec<(Key, Arc<dyn AsFd + Send + Sync>)> {
        let (one, _) = UnixStream::pair().unwrap();
        let socket: Arc<dyn AsFd + Send + Sync> = Arc::new(one);
        (0..count).map(|n| (key(n), socket.clone())).collect()
    }

    #[test]
    fn as_many_sockets_as_there_are_come_over_with_their_names() {
        for count in [0, 1, MOST_SOCKETS, MOST_SOCKETS + 1, 3 * MOST_SOCKETS + 7] {
            let (one, other) = wires();
            let taken = std::thread::scope(|scope| {
                let held = held(count);
                scope.spawn(move || give(&one, &held, soon()).unwrap());
                take(&other, soon()).unwrap()
            });
            let names: Vec<_> = taken.iter().map(|(of, _)| of.clone()).collect();
            assert_eq!(names, (0..count).map(key).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_socket_behind_the_first_frame_is_the_one_of_its_name() {
        let last = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = last.local_addr().unwrap();
        let mut held = held(MOST_SOCKETS);
        held.push((key(7), Arc::new(last)));
        let (one, other) = wires();
        let mut taken = std::thread::scope(|scope| {
            scope.spawn(move || give(&one, &held, soon()).unwrap());
            take(&other, soon()).unwrap()
        });
        let (name, socket) = taken.pop().unwrap();
        assert_eq!(name, key(7));
        TcpStream::connect(address).unwrap();
        TcpListener::from(socket).accept().unwrap();
    }

    #[test]
    fn sockets_without_the_last_frame_are_none() {
        let (one, other) = wires();
        one.send_raw(MORE_LISTENERS, b"[]", &[], soon()).unwrap();
        drop(one);
        assert!(matches!(take(&other, soon()), Err(Broken::Gone)));
        let (one, other) = wires();
        let held = held(MOST_FRAMES * MOST_SOCKETS + 1);
        assert!(matches!(give(&one, &held, soon()), Err(Broken::Garbled(_))));
        drop(one);
        assert!(matches!(take(&other, soon()), Err(Broken::Gone)));
    }
}
