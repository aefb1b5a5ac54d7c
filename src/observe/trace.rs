//! W3C Trace Context, level 1: a client's trace is continued, or one is begun, and its id stands in the log.

use http::{HeaderMap, HeaderValue};

/// A request's place in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    trace_id: u128,
    sampled: bool,
}

impl Trace {
    /// Continues the trace that a request belongs to. A malformed or repeated `traceparent` begins a new one.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut given = headers.get_all("traceparent").iter();
        let continued = match (given.next(), given.next()) {
            (Some(value), None) => value.to_str().ok().and_then(Self::parse),
            _ => None,
        };
        continued.unwrap_or_else(|| Self {
            trace_id: fastrand::u128(1..),
            sampled: true,
        })
    }

    /// `00-{32 hex}-{16 hex}-{2 hex}`; a higher version may carry more.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, parent, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_hex = |part: &str, len| {
            part.len() == len && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        if !is_hex(version, 2) || version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        if !is_hex(trace, 32)
            || !is_hex(parent, 16)
            || !is_hex(flags, 2)
            || parent.bytes().all(|b| b == b'0')
        {
            return None;
        }
        let trace_id = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
        Some(Self {
            trace_id,
            sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1,
        })
    }

    pub fn id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// `traceparent` for an attempt: a span of its own.
    pub fn header(&self) -> HeaderValue {
        let span = fastrand::u64(1..);
        let text = format!(
            "00-{:032x}-{span:016x}-{:02x}",
            self.trace_id,
            u8::from(self.sampled)
        );
        HeaderValue::try_from(text).expect("hex digits are a header value")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_trace_is_continued_with_a_span_of_our_own() {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", HeaderValue::from_static(GOOD));
        let trace = Trace::of(&headers);
        assert_eq!(trace.id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let sent = trace.header();
        assert!(
            sent.to_str()
                .unwrap()
                .starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-")
        );
        assert_ne!(sent, GOOD);
    }

    #[test]
    fn malformed_parents_are_not_continued() {
        for bad in [
            "",
            "00",
            &GOOD[1..],
            &GOOD.to_uppercase(),
            &GOOD.replace("00-4", "ff-4"),
            &format!("{GOOD}-00"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ] {
            assert_eq!(Trace::parse(bad), None, "{bad}");
        }
        assert!(Trace::parse(&format!("{}-more", GOOD.replacen("00", "01", 1))).is_some());
    }
}
