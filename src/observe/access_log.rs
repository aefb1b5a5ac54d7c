//! One line for every request, with the documented fields; one more when it was slow.

use std::cell::RefCell;
use std::fmt::{self, Display};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;

use super::sink::Sink;
use super::{Format, Level, LogSettings, logging, redact};
use crate::forward::exchange::Exchange;
use crate::forward::retry::Failure;

/// Writes structured lines.
pub struct Logger {
    sink: Sink,
    level: Level,
    format: Format,
    slow: Duration,
    /// `"service":"…",` as it stands in every line.
    service: String,
}

/// What is known of a request when it is over. Texts that clients chose are escaped here.
pub struct Access<'a> {
    pub request_id: &'a str,
    /// The request that this one of ours is made for.
    pub parent: Option<&'a str>,
    /// What it asks for an aggregate.
    pub source: Option<&'a str>,
    pub trace_id: Option<String>,
    pub method: &'a str,
    pub target: &'a str,
    pub client: &'a str,
    pub route: &'a str,
    pub service: Option<&'a str>,
    pub exchange: Option<&'a Exchange>,
    pub user: Option<&'a str>,
    pub tenant: Option<&'a str>,
    pub venue: Option<&'a str>,
    pub status: u16,
    pub code: Option<&'a str>,
    pub error: Option<String>,
    pub elapsed: Duration,
    pub request_bytes: usize,
    pub response_bytes: usize,
    /// It was a WebSocket, and ended so.
    pub close_code: Option<u16>,
    /// Logged at debug, with secrets replaced.
    pub headers: Option<&'a HeaderMap>,
}

/// `10.0.0.1:3001 connect, 10.0.0.2:3001 503`: the attempts before the last one.
struct Ended<'a>(&'a [(Arc<str>, Failure)]);

/// A line in the making.
pub struct Line<'a> {
    out: &'a mut Vec<u8>,
    format: Format,
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Logger {
    pub fn new(settings: &LogSettings, sink: Sink) -> Self {
        Self {
            sink,
            level: settings.level,
            format: settings.format,
            slow: settings.slow_request,
            service: format!(
                "\"service\":{},",
                serde_json::Value::from(settings.service_name.as_str())
            ),
        }
    }

    pub fn dropped(&self) -> u64 {
        self.sink.dropped()
    }

    /// For who ends the process: its last words are written, at most for this long.
    pub fn flush(&self, limit: Duration) {
        self.sink.flush(limit);
    }

    pub fn is_debug(&self) -> bool {
        self.level >= Level::Debug
    }

    /// The line of a request that is over.
    pub fn access(&self, access: &Access<'_>) {
        let level = match access.status {
            500.. => log::Level::Error,
            400..=499 => log::Level::Warn,
            _ => log::Level::Info,
        };
        self.write(level, |line| access.write(line));
        // How long a WebSocket stays open says nothing about how slow it is.
        if access.elapsed > self.slow && access.close_code.is_none() {
            self.write(log::Level::Warn, |line| {
                line.text("context", "performance");
                line.text("metric", "slow_request");
                line.text("requestId", access.request_id);
                line.millis("responseTime", access.elapsed);
                line.text("method", access.method);
                line.target("url", access.target);
                line.text("msg", "slow_request");
            });
        }
    }

    /// Writes a line of any kind, if its level is on.
    pub fn write(&self, level: log::Level, fill: impl FnOnce(&mut Line<'_>)) {
        let on = match level {
            log::Level::Error => true,
            log::Level::Warn => self.level >= Level::Warn,
            log::Level::Info => self.level >= Level::Info,
            log::Level::Debug | log::Level::Trace => self.level >= Level::Debug,
        };
        if !on {
            return;
        }
        BUFFER.with_borrow_mut(|out| {
            out.clear();
            match self.format {
                Format::Json => {
                    out.extend_from_slice(b"{\"level\":\"");
                    out.extend_from_slice(logging::level_name(level).as_bytes());
                    out.extend_from_slice(b"\",\"time\":");
                    out.extend_from_slice(
                        itoa::Buffer::new()
                            .format(logging::unix_millis())
                            .as_bytes(),
                    );
                    out.push(b',');
                    out.extend_from_slice(self.service.as_bytes());
                }
                Format::Pretty => {
                    out.extend_from_slice(logging::clock().as_bytes());
                    out.push(b' ');
                    out.extend_from_slice(logging::colored(level).as_bytes());
                }
            }
            fill(&mut Line {
                out,
                format: self.format,
            });
            if self.format == Format::Json {
                // The comma of the last field.
                out.pop();
                out.push(b'}');
            }
            out.push(b'\n');
            self.sink.put(out);
        });
    }
}

impl Access<'_> {
    fn write(&self, line: &mut Line<'_>) {
        let context = self.source.map_or("request", |_| "source");
        line.text("context", context);
        line.text("requestId", self.request_id);
        line.optional("parentRequestId", self.parent);
        line.optional("source", self.source);
        if let Some(trace) = &self.trace_id {
            line.text("traceId", trace);
        }
        line.optional("venueId", self.venue);
        line.optional("userId", self.user);
        line.optional("tenantId", self.tenant);
        line.text("method", self.method);
        line.target("url", self.target);
        line.text("ip", self.client);
        line.text("route", self.route);
        line.optional("upstreamService", self.service);
        if let Some((exchange, instance)) = self.exchange.and_then(|e| Some((e, e.instance()?))) {
            line.text("upstream", instance);
            line.number("attempts", u64::from(exchange.attempts()));
            if !exchange.ended().is_empty() {
                line.display("retries", &Ended(exchange.ended()));
            }
        }
        line.number("statusCode", u64::from(self.status));
        line.optional("code", self.code);
        line.optional("err", self.error.as_deref());
        line.millis("responseTime", self.elapsed);
        line.number("requestBytes", self.request_bytes as u64);
        line.number("responseBytes", self.response_bytes as u64);
        if let Some(code) = self.close_code {
            line.text("protocol", "websocket");
            line.number("closeCode", u64::from(code));
        }
        if let Some(headers) = self.headers {
            line.headers("headers", headers);
        }
        line.message(self.method, self.target, self.status);
    }
}

impl Display for Ended<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (instance, failure)) in self.0.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{instance} {failure}")?;
        }
        Ok(())
    }
}

// === impl Line ===

impl Line<'_> {
    pub fn text(&mut self, name: &str, value: &str) {
        self.open(name);
        self.quote();
        self.push_escaped(value);
        self.quote();
        self.close();
    }

    pub fn optional(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    /// As many as a line may well hold, and how many more there are.
    pub fn list(&mut self, name: &str, values: &[String]) {
        const MOST: usize = 100;
        self.open(name);
        self.out.push(b'[');
        let more = values.len().saturating_sub(MOST);
        let more = (more > 0).then(|| format!("and {more} more"));
        for (i, value) in values.iter().take(MOST).chain(&more).enumerate() {
            if i > 0 {
                self.out.push(b',');
            }
            self.out.push(b'"');
            self.push_escaped(value);
            self.out.push(b'"');
        }
        self.out.push(b']');
        self.close();
    }

    /// A request target, without the values of secret parameters.
    pub fn target(&mut self, name: &str, target: &str) {
        self.open(name);
        self.quote();
        self.push_target(target);
        self.quote();
        self.close();
    }

    /// A value whose text needs no escaping: numbers and addresses.
    pub fn display(&mut self, name: &str, value: &dyn Display) {
        self.open(name);
        self.quote();
        let _ = write!(self.out, "{value}");
        self.quote();
        self.close();
    }

    pub fn number(&mut self, name: &str, value: u64) {
        self.open(name);
        self.out
            .extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        self.close();
    }

    /// Milliseconds with three places.
    pub fn millis(&mut self, name: &str, time: Duration) {
        self.open(name);
        let micros = time.as_micros() as u64;
        let mut digits = itoa::Buffer::new();
        self.out
            .extend_from_slice(digits.format(micros / 1000).as_bytes());
        self.out.push(b'.');
        let thousandths = digits.format(1000 + micros % 1000);
        self.out.extend_from_slice(&thousandths.as_bytes()[1..]);
        self.close();
    }

    fn headers(&mut self, name: &str, headers: &HeaderMap) {
        self.open(name);
        self.out.push(b'{');
        for (i, (name, value)) in headers.iter().enumerate() {
            if i > 0 {
                self.out.push(b',');
            }
            self.out.push(b'"');
            self.push_escaped(name.as_str());
            self.out.extend_from_slice(b"\":\"");
            match redact::is_secret_header(name) {
                true => self.out.extend_from_slice(redact::REDACTED.as_bytes()),
                false => self.push_escaped(&String::from_utf8_lossy(value.as_bytes())),
            }
            self.out.push(b'"');
        }
        self.out.push(b'}');
        self.close();
    }

    /// `POST /api/v1/tickets/purchase - 200`.
    fn message(&mut self, method: &str, target: &str, status: u16) {
        self.open("msg");
        self.quote();
        self.push_escaped(method);
        self.out.push(b' ');
        self.push_target(target);
        self.out.extend_from_slice(b" - ");
        self.out
            .extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
        self.quote();
        self.close();
    }

    fn push_target(&mut self, target: &str) {
        redact::push_target(self.out, target, push_escaped);
    }

    fn push_escaped(&mut self, text: &str) {
        push_escaped(self.out, text);
    }

    fn open(&mut self, name: &str) {
        match self.format {
            Format::Json => {
                self.out.push(b'"');
                self.out.extend_from_slice(name.as_bytes());
                self.out.extend_from_slice(b"\":");
            }
            Format::Pretty => {
                self.out.push(b' ');
                self.out.extend_from_slice(name.as_bytes());
                self.out.push(b'=');
            }
        }
    }

    fn quote(&mut self) {
        if self.format == Format::Json {
            self.out.push(b'"');
        }
    }

    fn close(&mut self) {
        if self.format == Format::Json {
            self.out.push(b',');
        }
    }
}

/// Appends a text as the inside of a JSON string (RFC 8259, section 7).
fn push_escaped(out: &mut Vec<u8>, text: &str) {
    // Without a branch in the loop, so that the compiler looks at many bytes at once.
    let is_special =
        |b: u8| u8::from(!(0x20..0x7f).contains(&b)) | u8::from(b == b'"') | u8::from(b == b'\\');
    if text.bytes().fold(0, |any, b| any | is_special(b)) == 0 {
        return out.extend_from_slice(text.as_bytes());
    }
    for c in text.chars() {
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            // Terminals obey C1 controls (U+0080 to U+009F) as well.
            _ if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_text_is_json_whatever_it_holds() {
        for text in [
            "",
            "plain",
            "q\"uote\\",
            "line\nbreak\r\t\0\x1b[31m",
            "é☃",
            "\u{7f}",
        ] {
            let mut out = b"\"".to_vec();
            push_escaped(&mut out, text);
            out.push(b'"');
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }
}
