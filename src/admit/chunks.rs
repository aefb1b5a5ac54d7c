//! Is the body framed as RFC 9112, section 7.1, has it? Every byte of a chunked body, before any other parser sees it.
//!
//! What a lenient parser would take for the end of a body, or skip, is refused: a size without digits, a line that
//! ends with LF alone, control characters in an extension, a trailer line that is no field.

/// Follows the framing of one chunked body.
#[derive(Debug)]
pub struct ChunkReader {
    expect: Expect,
    /// Bytes of the line at hand, and of all trailers: both are bounded.
    line: usize,
    trailers: usize,
}

/// The framing is broken: the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkFault(pub &'static str);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// Digits read so far, and their value.
    Size {
        digits: u8,
        size: u64,
    },
    /// White space behind a size: an extension or the end of the line follows.
    AfterSize {
        size: u64,
    },
    Extension {
        size: u64,
    },
    SizeLf {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    End,
}

/// Extensions are ignored by everybody; long ones only cost (RFC 9112, section 7.1.1).
const LONGEST_EXTENSION: usize = 256;

/// All trailer fields together.
const MOST_TRAILER_BYTES: usize = 8 << 10;

/// Hex digits of a size: 15 hold more than any body limit.
const MOST_DIGITS: u8 = 15;

impl Default for ChunkReader {
    fn default() -> Self {
        Self {
            expect: Expect::Size { digits: 0, size: 0 },
            line: 0,
            trailers: 0,
        }
    }
}

impl ChunkReader {
    /// Follows the next bytes. What comes behind the end of the body is not looked at.
    ///
    /// # Errors
    /// At the first byte that is out of place.
    pub fn read(&mut self, mut bytes: &[u8]) -> Result<(), ChunkFault> {
        while let [b, rest @ ..] = bytes {
            if let Expect::Data { left } = self.expect {
                let here = left.min(bytes.len() as u64);
                bytes = &bytes[here as usize..];
                self.expect = match left - here {
                    0 => Expect::DataCr,
                    left => Expect::Data { left },
                };
                continue;
            }
            if self.expect == Expect::End {
                return Ok(());
            }
            self.expect = self.next(*b)?;
            bytes = rest;
        }
        Ok(())
    }

    /// The whole body was read.
    pub fn is_at_end(&self) -> bool {
        self.expect == Expect::End
    }

    fn next(&mut self, b: u8) -> Result<Expect, ChunkFault> {
        let is_text = |b: u8| b == b'\t' || (b >= 0x20 && b != 0x7f);
        Ok(match (self.expect, b) {
            (Expect::Size { digits, size }, _) if b.is_ascii_hexdigit() => {
                if digits == MOST_DIGITS {
                    return Err(ChunkFault("a chunk is too large"));
                }
                let digit = u64::from(char::from(b).to_digit(16).unwrap_or_default());
                Expect::Size {
                    digits: digits + 1,
                    size: size << 4 | digit,
                }
            }
            (Expect::Size { digits: 0, .. }, _) => return Err(ChunkFault("a chunk has no size")),
            (Expect::Size { size, .. }, b' ' | b'\t') => {
                self.line = 0;
                Expect::AfterSize { size }
            }
            (Expect::AfterSize { size }, b' ' | b'\t') if self.line < LONGEST_EXTENSION => {
                self.line += 1;
                Expect::AfterSize { size }
            }
            (Expect::Size { size, .. } | Expect::AfterSize { size }, b';') => {
                self.line = 0;
                Expect::Extension { size }
            }
            (
                Expect::Size { size, .. } | Expect::AfterSize { size } | Expect::Extension { size },
                b'\r',
            ) => Expect::SizeLf { size },
            (Expect::Extension { size }, _) if is_text(b) && self.line < LONGEST_EXTENSION => {
                self.line += 1;
                Expect::Extension { size }
            }
            (Expect::Size { .. } | Expect::AfterSize { .. } | Expect::Extension { .. }, _) => {
                return Err(ChunkFault("a chunk's size line is malformed"));
            }
            (Expect::SizeLf { size: 0 }, b'\n') => Expect::TrailerStart,
            (Expect::SizeLf { size }, b'\n') => Expect::Data { left: size },
            (Expect::DataCr, b'\r') => Expect::DataLf,
            (Expect::DataLf, b'\n') => Expect::Size { digits: 0, size: 0 },
            (Expect::DataCr | Expect::DataLf, _) => {
                return Err(ChunkFault("a chunk is longer than its size"));
            }
            (Expect::TrailerStart, b'\r') => Expect::EndLf,
            (Expect::EndLf, b'\n') => Expect::End,
            (Expect::TrailerLf, b'\n') => Expect::TrailerStart,
            (Expect::SizeLf { .. } | Expect::EndLf | Expect::TrailerLf, _) => {
                return Err(ChunkFault("a line ends with CR alone"));
            }
            (Expect::TrailerStart | Expect::TrailerName | Expect::TrailerValue, _) => {
                self.trailer(b, is_text(b))?
            }
            (Expect::Data { .. } | Expect::End, _) => self.expect,
        })
    }

    fn trailer(&mut self, b: u8, is_text: bool) -> Result<Expect, ChunkFault> {
        self.trailers += 1;
        if self.trailers > MOST_TRAILER_BYTES {
            return Err(ChunkFault("the trailers are too large"));
        }
        match (self.expect, b) {
            (Expect::TrailerName, b':') => Ok(Expect::TrailerValue),
            (Expect::TrailerStart | Expect::TrailerName, _) if super::head::is_token_byte(b) => {
                Ok(Expect::TrailerName)
            }
            (Expect::TrailerValue, b'\r') => Ok(Expect::TrailerLf),
            (Expect::TrailerValue, _) if is_text => Ok(Expect::TrailerValue),
            _ => Err(ChunkFault("a trailer is not a header field")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &[u8]) -> Result<bool, ChunkFault> {
        // All at once and byte by byte must come to the same.
        let mut whole = ChunkReader::default();
        let outcome = whole.read(body).map(|()| whole.expect == Expect::End);
        let mut slow = ChunkReader::default();
        let by_byte = body
            .iter()
            .try_for_each(|b| slow.read(&[*b]))
            .map(|()| slow.expect == Expect::End);
        assert_eq!(outcome, by_byte);
        outcome
    }

    #[test]
    fn well_framed_bodies_end_where_they_should() {
        for good in [
            &b"0\r\n\r\n"[..],
            b"5\r\nhello\r\n0\r\n\r\n",
            b"A;x=\"y\"\r\n0123456789\r\n00\r\n\r\n",
            b"1 ;x\r\n\n\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\n",
            b"0\r\n\r\nGET / HTTP/1.1\r\n",
        ] {
            assert_eq!(read(good), Ok(true), "{:?}", String::from_utf8_lossy(good));
        }
        for partial in [
            &b""[..],
            b"5",
            b"5\r\nhel",
            b"5\r\nhello\r\n",
            b"0\r\n",
            b"0\r\nX: y\r\n",
        ] {
            assert_eq!(
                read(partial),
                Ok(false),
                "{:?}",
                String::from_utf8_lossy(partial)
            );
        }
    }

    #[test]
    fn broken_framing_is_refused() {
        for bad in [
            &b"\r\n\r\n"[..],
            b"5\nhello\r\n0\r\n\r\n",
            b";x\r\n",
            b" 5\r\n",
            b"0x5\r\n",
            b"+5\r\n",
            b"-1\r\n",
            b"5\r\nhelloo\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"5 x\r\nhello\r\n",
            b"5\t5;x\r\nhello\r\n",
            b"5;x\0y\r\n",
            b"5;x\ny\r\n",
            b"5\r\r\n",
            b"1000000000000000\r\n",
            b"0\r\nno colon\r\n\r\n",
            b"0\r\n: empty\r\n\r\n",
            b"0\r\nX: a\nY: b\r\n\r\n",
            b"0\r\n\rX",
        ] {
            assert!(read(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
        assert!(read(&[b"5;", &[b'x'; 300][..], b"\r\n"].concat()).is_err());
        assert!(read(&[b"0\r\nX: ", &[b'x'; 9000][..], b"\r\n"].concat()).is_err());
    }
}
