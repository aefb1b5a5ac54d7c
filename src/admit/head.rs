//! Is it HTTP? The head of a request, byte for byte, before any other parser sees it.
//!
//! Runs while the bytes arrive, in `connection.rs`. What RFC 9112 allows a proxy to refuse because two parsers may
//! read it differently is refused: bare LF, folded lines, space before a colon, `Content-Length` beside
//! `Transfer-Encoding`, repeated lengths, codings other than `chunked`, more than one `Host`. So everything behind
//! this file may rely on one reading. Paths are `path.rs`'s matter, the meaning of fields that of the later rooms.

use std::ops::Range;

use super::size::HeadLimits;

/// Reads a head as it grows; call [`HeadReader::read`] with the whole buffer each time bytes were added.
#[derive(Debug, Default)]
pub struct HeadReader {
    /// Where the line that is not yet complete begins.
    line_start: usize,
    lines: usize,
    minor_version: u8,
    target: Range<usize>,
    host: Option<Range<usize>>,
    content_length: Option<Range<usize>>,
    transfer_encoding: bool,
    upgrade: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// The end of the head has not arrived yet.
    Partial,
    Complete(Head),
}

/// What is known of a complete and well-formed head.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes of it, with the empty line.
    pub len: usize,
    /// A chunked body follows.
    pub chunked: bool,
    /// A body of so many bytes does.
    pub length: u64,
    /// Another protocol is asked for.
    pub upgrade: bool,
    /// The target is in absolute form (RFC 9112, section 3.2.2): these bytes, scheme and authority, are to be cut
    /// out of it. The authority equals `Host`.
    pub cut: Option<Range<usize>>,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadFault {
    Malformed(&'static str),
    TargetTooLong,
    TooLarge,
    /// A major version that is not spoken here.
    Version,
    /// CONNECT is not for a gateway.
    Connect,
    /// `Expect` holds something else than `100-continue`.
    Expectation,
}

use HeadFault::Malformed;

// === impl HeadReader ===

impl HeadReader {
    /// # Errors
    /// As soon as the bytes at hand show it, not only when the head is complete.
    pub fn read(&mut self, buf: &[u8], limits: &HeadLimits) -> Result<Progress, HeadFault> {
        while let Some(at) = memchr::memchr(b'\n', &buf[self.line_start..]) {
            let end = self.line_start + at;
            if end + 1 > limits.head {
                return Err(HeadFault::TooLarge);
            }
            let Some(line) = buf[self.line_start..end].strip_suffix(b"\r") else {
                return Err(Malformed("a line ends with LF alone"));
            };
            let start = self.line_start;
            self.line_start = end + 1;
            match (self.lines, line) {
                (0, _) => self.request_line(line, limits)?,
                (_, []) => return self.complete(buf).map(Progress::Complete),
                _ => self.field_line(buf, start, line)?,
            }
            self.lines += 1;
            if self.lines > limits.fields + 1 {
                return Err(HeadFault::TooLarge);
            }
        }
        if self.lines == 0 {
            self.refuse_hopeless_start(buf, limits)?;
        }
        if buf.len() > limits.head {
            return Err(HeadFault::TooLarge);
        }
        Ok(Progress::Partial)
    }

    /// An endless first line, a TLS hello, or noise: no need to wait for more of it.
    fn refuse_hopeless_start(&self, buf: &[u8], limits: &HeadLimits) -> Result<(), HeadFault> {
        if buf.len() > limits.target + 64 {
            return Err(HeadFault::TargetTooLong);
        }
        match buf
            .iter()
            .take(16)
            .take_while(|&&b| b != b' ')
            .find(|&&b| !is_token_byte(b))
        {
            Some(_) => Err(Malformed("the request line does not begin with a method")),
            None => Ok(()),
        }
    }

    fn request_line(&mut self, line: &[u8], limits: &HeadLimits) -> Result<(), HeadFault> {
        let mut parts = line.split(|&b| b == b' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Malformed(
                "the request line is not `method SP target SP version`",
            ));
        };
        if method.is_empty() || method.len() > 32 || !method.iter().all(|&b| is_token_byte(b)) {
            return Err(Malformed("the method is not a token"));
        }
        self.minor_version = match version {
            b"HTTP/1.1" => 1,
            b"HTTP/1.0" => 0,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
                if major.is_ascii_digit() && minor.is_ascii_digit() =>
            {
                return Err(HeadFault::Version);
            }
            _ => return Err(Malformed("the version is not an HTTP version")),
        };
        if method == b"CONNECT" {
            return Err(HeadFault::Connect);
        }
        if target.len() > limits.target {
            return Err(HeadFault::TargetTooLong);
        }
        if !is_target(target) {
            return Err(Malformed(
                "the target holds a character that must be percent-encoded",
            ));
        }
        if target[0] == b'*' && (target.len() > 1 || method != b"OPTIONS") {
            return Err(Malformed("`*` alone is a target, and of OPTIONS alone"));
        }
        let start = method.len() + 1;
        self.target = start..start + target.len();
        Ok(())
    }

    fn field_line(&mut self, buf: &[u8], start: usize, line: &[u8]) -> Result<(), HeadFault> {
        let Some(colon) = memchr::memchr(b':', line) else {
            return Err(Malformed("a header line has no colon"));
        };
        let (name, rest) = (&line[..colon], &line[colon + 1..]);
        if matches!(line[0], b' ' | b'\t') {
            return Err(Malformed("a header line is folded"));
        }
        if name.is_empty() || !name.iter().all(|&b| is_token_byte(b)) {
            return Err(Malformed("a header name is not a token"));
        }
        if has_control(rest) {
            return Err(Malformed("a header value holds a control character"));
        }
        // Lengths first: nearly all names end here.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                let value = trim(buf, start + colon + 1..start + line.len());
                if self.host.replace(value).is_some() {
                    return Err(Malformed("there is more than one Host"));
                }
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                let value = trim(buf, start + colon + 1..start + line.len());
                if !buf[value].eq_ignore_ascii_case(b"100-continue") {
                    return Err(HeadFault::Expectation);
                }
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let value = trim(buf, start + colon + 1..start + line.len());
                let digits = &buf[value.clone()];
                if digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit)
                {
                    return Err(Malformed("Content-Length is not a number"));
                }
                if self.content_length.replace(value).is_some() {
                    return Err(Malformed("there is more than one Content-Length"));
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                let value = trim(buf, start + colon + 1..start + line.len());
                if self.transfer_encoding {
                    return Err(Malformed("there is more than one Transfer-Encoding"));
                }
                if !buf[value].eq_ignore_ascii_case(b"chunked") {
                    return Err(Malformed("Transfer-Encoding is not `chunked`"));
                }
                self.transfer_encoding = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn complete(&mut self, buf: &[u8]) -> Result<Head, HeadFault> {
        if self.transfer_encoding && self.content_length.is_some() {
            return Err(Malformed(
                "Content-Length and Transfer-Encoding exclude each other",
            ));
        }
        if self.transfer_encoding && self.minor_version == 0 {
            return Err(Malformed("HTTP/1.0 has no Transfer-Encoding"));
        }
        let host = match &self.host {
            Some(host) => &buf[host.clone()],
            None if self.minor_version == 0 => b"",
            None => return Err(Malformed("there is no Host")),
        };
        if self.host.is_some() && !is_authority(host) {
            return Err(Malformed("Host is not a host"));
        }
        // Nothing but digits, and not too many.
        let digits = self
            .content_length
            .clone()
            .into_iter()
            .flat_map(|at| &buf[at]);
        let length = digits.fold(0, |length, b| length * 10 + u64::from(b - b'0'));
        let target = &buf[self.target.clone()];
        let cut = match target[0] {
            b'/' | b'*' => None,
            _ => Some(self.cut_of_absolute_form(target, host)?),
        };
        Ok(Head {
            len: self.line_start,
            chunked: self.transfer_encoding,
            length,
            upgrade: self.upgrade,
            cut,
        })
    }

    fn cut_of_absolute_form(&self, target: &[u8], host: &[u8]) -> Result<Range<usize>, HeadFault> {
        let prefix = [&b"http://"[..], b"https://"]
            .into_iter()
            .find(|p| target.len() >= p.len() && target[..p.len()].eq_ignore_ascii_case(p))
            .ok_or(Malformed("the target is neither a path nor an http URI"))?;
        let rest = &target[prefix.len()..];
        let Some(path) = memchr::memchr(b'/', rest) else {
            return Err(Malformed("the target has no path"));
        };
        if !rest[..path].eq_ignore_ascii_case(host) {
            return Err(Malformed("the target names another host than Host does"));
        }
        Ok(self.target.start..self.target.start + prefix.len() + path)
    }
}

/// Whether a target has nothing in it that must be percent-encoded. The excluded ones are no URI characters (RFC 3986,
/// appendix A); browsers do send `|`, `{`, `^` and, in queries, "`".
pub fn is_target(target: &[u8]) -> bool {
    let path_len = memchr::memchr(b'?', target).unwrap_or(target.len());
    let is_good = |&b: &u8| matches!(b, 0x21..=0x7e) && !matches!(b, b'#' | b'"' | b'<' | b'>');
    !target.is_empty() && target.iter().all(is_good) && !target[..path_len].contains(&b'`')
}

/// `uri-host [ ":" port ]` (RFC 9110, section 7.2), without user information and in ASCII.
pub fn is_authority(host: &[u8]) -> bool {
    let (name, port) = match host {
        [b'[', rest @ ..] => {
            let Some(close) = memchr::memchr(b']', rest) else {
                return false;
            };
            let (address, after) = (&rest[..close], &rest[close + 1..]);
            let port = match after {
                [] => None,
                [b':', port @ ..] => Some(port),
                _ => return false,
            };
            if address.is_empty()
                || !address
                    .iter()
                    .all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'))
            {
                return false;
            }
            (None, port)
        }
        _ => match memchr::memchr(b':', host) {
            Some(colon) => (Some(&host[..colon]), Some(&host[colon + 1..])),
            None => (Some(host), None),
        },
    };
    let name_is_good = name.is_none_or(|name| {
        !name.is_empty()
            && name
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~'))
    });
    let port_is_good =
        port.is_none_or(|port| port.len() <= 5 && port.iter().all(u8::is_ascii_digit));
    name_is_good && port_is_good
}

/// Whether a field value holds a control character other than a tab. Without a branch in the loop, so that the compiler
/// looks at many bytes at once.
fn has_control(value: &[u8]) -> bool {
    let is_control = |b: u8| u8::from(b < 0x20) & u8::from(b != b'\t') | u8::from(b == 0x7f);
    value.iter().fold(0, |any, &b| any | is_control(b)) != 0
}

/// Optional white space off both ends of a field value (RFC 9110, section 5.5).
fn trim(buf: &[u8], range: Range<usize>) -> Range<usize> {
    let value = &buf[range.clone()];
    let is_space = |b: &&u8| matches!(**b, b' ' | b'\t');
    let front = value.iter().take_while(is_space).count();
    let back = value[front..].iter().rev().take_while(is_space).count();
    range.start + front..range.end - back
}

/// `tchar` (RFC 9110, section 5.6.2).
pub fn is_token_byte(b: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut b = 0;
        while b < 256 {
            let c = b as u8;
            table[b] = c.is_ascii_alphanumeric()
                || matches!(
                    c,
                    b'!' | b'#'
                        | b'$'
                        | b'%'
                        | b'&'
                        | b'\''
                        | b'*'
                        | b'+'
                        | b'-'
                        | b'.'
                        | b'^'
                        | b'_'
                        | b'`'
                        | b'|'
                        | b'~'
                );
            b += 1;
        }
        table
    };
    TOKEN[usize::from(b)]
}

#[cfg(test)]
mod tests;
