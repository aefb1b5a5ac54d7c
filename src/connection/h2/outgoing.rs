//! What we send on an HTTP/2 connection, followed frame by frame as h2 writes it (RFC 9113, section 4.1): how much of it are
//! answers, which a client that holds us up does not take, whatever else it asks for; and how many streams were reset for
//! what their client did, which h2 itself would only count for the whole of a connection's life.

/// Follows what is sent.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// The frame's head that has gone out, and what a RST_STREAM says.
    head: [u8; HEAD + REASON],
    have: usize,
    /// Of the payload.
    skip: usize,
    is_answer: bool,
}

/// What some octets were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Octets of heads and bodies of answers.
    pub answers: u64,
    /// Streams that were reset for what their client did.
    pub faults: u32,
}

const HEAD: usize = 9;
const REASON: usize = 4;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;

impl Outgoing {
    /// Follows the next octets.
    pub fn write(&mut self, mut octets: &[u8]) -> Sent {
        let mut sent = Sent::default();
        while !octets.is_empty() {
            if self.skip > 0 {
                let here = self.skip.min(octets.len());
                self.skip -= here;
                octets = &octets[here..];
                sent.answers += if self.is_answer { here as u64 } else { 0 };
                continue;
            }
            let whole = match self.have {
                HEAD.. => HEAD + REASON,
                _ => HEAD,
            };
            let here = (whole - self.have).min(octets.len());
            self.head[self.have..self.have + here].copy_from_slice(&octets[..here]);
            self.have += here;
            octets = &octets[here..];
            if self.have == whole {
                self.frame(&mut sent);
            }
        }
        sent
    }

    fn frame(&mut self, sent: &mut Sent) {
        let [a, b, c, kind, _, _, _, _, _, reason @ ..] = self.head;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if kind == RST_STREAM && length == REASON {
            if self.have == HEAD {
                return; // why comes next
            }
            sent.faults += u32::from(is_fault(u32::from_be_bytes(reason)));
        } else {
            self.skip = length;
            self.is_answer = matches!(kind, DATA | HEADERS | CONTINUATION);
        }
        self.have = 0;
    }
}

/// PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, COMPRESSION_ERROR: not that a backend
/// failed, or that an answer did not need the whole request.
fn is_fault(reason: u32) -> bool {
    matches!(reason, 1 | 3 | 5 | 6 | 7 | 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let len = (payload.len() as u32).to_be_bytes();
        [&len[1..], &[kind, 0, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn frames_are_told_apart_however_they_are_cut() {
        const PING: u8 = 6;
        let octets = [
            frame(4, &[0; 6]),
            frame(HEADERS, b"head"),
            frame(DATA, b"body"),
            frame(RST_STREAM, &1u32.to_be_bytes()),
            frame(DATA, b""),
            frame(PING, b"01234567"),
            frame(RST_STREAM, &8u32.to_be_bytes()),
            frame(CONTINUATION, b"tail"),
        ]
        .concat();
        for size in 1..=octets.len() {
            let mut outgoing = Outgoing::default();
            let mut all = Sent::default();
            for piece in octets.chunks(size) {
                let sent = outgoing.write(piece);
                all.answers += sent.answers;
                all.faults += sent.faults;
            }
            let expected = Sent {
                answers: 12,
                faults: 1,
            };
            assert_eq!(all, expected, "in pieces of {size}");
        }
    }
}
