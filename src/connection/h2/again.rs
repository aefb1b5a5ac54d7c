//! What was read of a request's body, for another attempt, and for what a policy read before the first.

use bytes::{Bytes, BytesMut};

#[derive(Default)]
pub struct Again {
    kept: BytesMut,
    is_truncated: bool,
}

/// As Pingora has it for HTTP/1: what policies read beforehand is sent on from here.
const MOST: usize = 64 << 10;

impl Again {
    pub fn keep(&mut self, data: &[u8]) {
        self.is_truncated |= self.kept.len() + data.len() > MOST;
        match self.is_truncated {
            true => self.kept = BytesMut::new(),
            false => self.kept.extend_from_slice(data),
        }
    }

    pub fn is_truncated(&self) -> bool {
        self.is_truncated
    }

    pub fn whole(&self) -> Option<Bytes> {
        let is_whole = !self.is_truncated && !self.kept.is_empty();
        is_whole.then(|| Bytes::copy_from_slice(&self.kept))
    }
}
