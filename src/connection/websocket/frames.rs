//! Where do frames begin and end? The headers of one direction of a WebSocket (RFC 6455, section 5.2), as they pass.
//!
//! Payloads are skipped over, not looked at, but for the status code of a Close.

/// The longest header: two bytes, eight of length, four of the mask.
pub const LONGEST_HEADER: usize = 14;

/// Follows one direction, frame by frame.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    rules: Rules,
    /// The header at hand, as far as it has passed.
    head: [u8; LONGEST_HEADER],
    have: usize,
    /// Bytes to come of the payload at hand.
    left: u64,
    opcode: u8,
    mask: [u8; 4],
    /// A fragmented message is under way.
    in_message: bool,
    code: Option<u8>,
    /// The Close that ends this direction, once it has passed whole.
    closed: Option<u16>,
}

/// What frames may be.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whose frames: a client masks its own, a server does not.
    pub of: Side,
    /// permessage-deflate is agreed on (RFC 7692): the first frame of a message may have RSV1.
    pub deflate: bool,
    /// Bytes of a payload.
    pub largest: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// Why a frame does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is none (RFC 6455, section 7.4.1: 1002).
    Protocol,
    /// It is larger than is allowed (1009).
    TooLarge,
}

/// What becomes of a header that is not whole yet at the end of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It is held back: nobody knows yet whether its frame may pass.
    Hold,
    /// It has passed: it was looked at before as part of more data.
    Pass,
}

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// A Close that says nothing, and none at all (RFC 6455, section 7.4.1).
pub const NO_STATUS: u16 = 1005;
pub const ABNORMAL: u16 = 1006;

const LARGEST_CONTROL: u64 = 125;

impl Frames {
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            head: [0; LONGEST_HEADER],
            have: 0,
            left: 0,
            opcode: CONTINUATION,
            mask: [0; 4],
            in_message: false,
            code: None,
            closed: None,
        }
    }

    /// Goes over what comes next. Returns how many bytes of it may pass; with a fault, the frame behind them may not.
    /// Behind a Close nothing passes.
    pub fn walk(&mut self, data: &[u8], rest: Rest) -> (usize, Option<Fault>) {
        let mut begun_before = self.have > 0;
        let (mut at, mut passed) = (0, 0);
        while at < data.len() && self.closed.is_none() {
            if self.left > 0 {
                let some = &data[at..];
                let n = usize::try_from(self.left).map_or(some.len(), |left| left.min(some.len()));
                self.payload(&some[..n]);
                at += n;
                passed = at;
                continue;
            }
            self.head[self.have] = data[at];
            self.have += 1;
            at += 1;
            match self.header() {
                Ok(false) => {}
                Ok(true) => {
                    self.have = 0;
                    begun_before = false;
                    passed = at;
                }
                Err(fault) => {
                    self.have = 0;
                    return (passed, Some(fault));
                }
            }
        }
        if self.have > 0 {
            match begun_before || rest == Rest::Pass {
                true => passed = at,
                false => self.have = 0,
            }
        }
        (passed, None)
    }

    /// Between two frames: something may be put in here.
    pub fn is_between(&self) -> bool {
        self.left == 0 && self.have == 0
    }

    /// How many of the next bytes belong to the frame at hand, where its header has passed.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The status code of the Close that has passed.
    pub fn closed(&self) -> Option<u16> {
        self.closed
    }

    /// Takes up the header as far as it is there. Returns whether it is whole.
    fn header(&mut self) -> Result<bool, Fault> {
        let [first, second, ..] = self.head;
        match self.have {
            1 => self.check_first(first)?,
            2 => self.check_second(second)?,
            _ => {}
        }
        let is_masked = second & 0x80 != 0;
        let length_bytes = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let len = 2 + length_bytes + if is_masked { 4 } else { 0 };
        if self.have < 2 || self.have < 2 + length_bytes {
            return Ok(false);
        }
        if self.have == 2 + length_bytes {
            self.check_length(second & 0x7f)?;
        }
        if self.have < len {
            return Ok(false);
        }
        if is_masked {
            self.mask.copy_from_slice(&self.head[len - 4..len]);
        }
        self.left = self.length(second & 0x7f);
        self.begin(first);
        Ok(true)
    }

    fn check_first(&self, first: u8) -> Result<(), Fault> {
        let is_final = first & 0x80 != 0;
        let opcode = first & 0x0f;
        let is_first_of_message = matches!(opcode, TEXT | BINARY);
        let reserved_is_good = match first & 0x70 {
            0 => true,
            0x40 => self.rules.deflate && is_first_of_message,
            _ => false,
        };
        let fits = match opcode {
            CONTINUATION => self.in_message,
            TEXT | BINARY => !self.in_message,
            CLOSE | PING | PONG => is_final,
            _ => false,
        };
        match reserved_is_good && fits {
            true => Ok(()),
            false => Err(Fault::Protocol),
        }
    }

    fn check_second(&self, second: u8) -> Result<(), Fault> {
        let is_masked = second & 0x80 != 0;
        let is_control = self.head[0] & 0x08 != 0;
        let length = u64::from(second & 0x7f);
        let is_good = is_masked == (self.rules.of == Side::Client)
            && !(is_control && length > LARGEST_CONTROL)
            // A Close has a status code, or nothing.
            && !(self.head[0] & 0x0f == CLOSE && length == 1);
        match is_good {
            true => Ok(()),
            false => Err(Fault::Protocol),
        }
    }

    fn check_length(&self, short: u8) -> Result<(), Fault> {
        let length = self.length(short);
        let is_shortest = match short {
            126 => length > LARGEST_CONTROL,
            127 => length > u64::from(u16::MAX) && length >> 63 == 0,
            _ => true,
        };
        match (is_shortest, length <= self.rules.largest) {
            (false, _) => Err(Fault::Protocol),
            (true, false) => Err(Fault::TooLarge),
            (true, true) => Ok(()),
        }
    }

    fn length(&self, short: u8) -> u64 {
        let bytes = match short {
            126 => &self.head[2..4],
            127 => &self.head[2..10],
            short => return u64::from(short),
        };
        bytes.iter().fold(0, |sum, b| sum << 8 | u64::from(*b))
    }

    fn begin(&mut self, first: u8) {
        self.opcode = first & 0x0f;
        let is_final = first & 0x80 != 0;
        match self.opcode {
            TEXT | BINARY | CONTINUATION => self.in_message = !is_final,
            CLOSE if self.left == 0 => self.closed = Some(NO_STATUS),
            _ => {}
        }
    }

    fn payload(&mut self, some: &[u8]) {
        if self.opcode == CLOSE && self.closed.is_none() {
            self.close_code(some);
        }
        self.left -= some.len() as u64;
        if self.opcode == CLOSE && self.left == 0 {
            // The first two bytes were noted as they came: what stands here is never looked at again.
            self.closed = Some(u16::from_be_bytes([self.head[0], self.head[1]]));
            self.code = None;
        }
    }

    /// The first two bytes of a Close's payload, without their mask. `head` is free while a payload passes.
    fn close_code(&mut self, some: &[u8]) {
        let masked = self.rules.of == Side::Client;
        for byte in some {
            let place = match self.code {
                None => 0,
                Some(place @ 0) => place + 1,
                Some(_) => return,
            };
            let mask = if masked {
                self.mask[usize::from(place)]
            } else {
                0
            };
            self.head[usize::from(place)] = byte ^ mask;
            self.code = Some(place);
        }
    }
}

/// A whole Close frame. One for a server is masked, with any mask.
pub fn close(code: u16, reason: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(reason.as_bytes());
    debug_assert!(payload.len() as u64 <= LARGEST_CONTROL, "a short reason");
    let mut frame = vec![0x80 | CLOSE, payload.len() as u8];
    if let Some(mask) = mask {
        frame[1] |= 0x80;
        frame.extend_from_slice(&mask);
        for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
    }
    frame.extend_from_slice(&payload);
    frame
}

#[cfg(test)]
mod tests;
