//! A listener that sends every client to https, and does nothing else: no route, no policy and no path of our own is
//! behind it.
//!
//! The head is judged as on every listener, so that the host and the target are of characters that mean nothing else in
//! Location. Where we have certificates, only their hosts are redirected to: whatever a client writes into Host, nobody is
//! sent to a place that is not ours.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;

use super::{Arrival, Arrived, Front, FrontParts, close, peer_address, send};
use crate::admit::request_id;
use crate::listen::tls::Tls;
use crate::observe::access_log::Access;
use crate::observe::registry::UNMATCHED;
use crate::reply::Refusal;

/// The application of redirecting listeners.
pub struct Redirect {
    front: Arc<Front>,
    /// What Location names beside the host; 443 is left out.
    port: u16,
    /// Whose hosts are ours; `None`: TLS is spoken elsewhere, and every host is.
    tls: Option<Arc<Tls>>,
}

const STATUS: u16 = 308;

impl Redirect {
    pub fn new(front: Arc<Front>, port: u16, tls: Option<Arc<Tls>>) -> Self {
        Self { front, port, tls }
    }

    /// Where a request is sent to.
    fn location(&self, head: &[u8]) -> Result<String, Refusal> {
        let Asked { target, host, .. } =
            Asked::of(head).ok_or(Refusal::Malformed("there is no Host"))?;
        let (host, name) = split_port(host);
        if self.tls.as_ref().is_some_and(|tls| !tls.is_for(name)) {
            return Err(Refusal::Misdirected);
        }
        let target = if target == "*" { "/" } else { target };
        Ok(match self.port {
            443 => format!("https://{host}{target}"),
            port => format!("https://{host}:{port}{target}"),
        })
    }

    async fn send(&self, mut stream: Stream, head: &[u8], location: &str, start: Instant) {
        let FrontParts {
            unmatched, logger, ..
        } = &self.front.parts;
        let policies = self.front.parts.in_force.load_full();
        let id = request_id::generate();
        let id = id.to_str().unwrap_or_default();
        let mut answer = format!(
            "HTTP/1.1 {STATUS} Permanent Redirect\r\nDate: {}\r\nLocation: {location}\r\nContent-Length: 0\r\n\
             Cache-Control: no-store\r\nX-Request-ID: {id}\r\nConnection: close\r\n",
            jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT"),
        )
        .into_bytes();
        policies.secure_headers.write_to(&mut answer, false);
        answer.extend_from_slice(b"\r\n");
        let sent = send(&mut stream, &answer, policies.times.patience).await;
        unmatched.method(None).end(STATUS, start.elapsed(), 0, 0);
        let asked = Asked::of(head);
        logger.access(&Access {
            parent: None,
            source: None,
            request_id: id,
            trace_id: None,
            method: asked.as_ref().map_or("-", |asked| asked.method),
            target: asked.as_ref().map_or("-", |asked| asked.target),
            client: &peer_address(&stream).to_string(),
            route: UNMATCHED,
            service: None,
            exchange: None,
            user: None,
            tenant: None,
            venue: None,
            status: STATUS,
            code: None,
            error: None,
            elapsed: start.elapsed(),
            request_bytes: 0,
            response_bytes: 0,
            close_code: None,
            headers: None,
        });
        close(stream, sent).await;
    }
}

#[async_trait]
impl ServerApp for Redirect {
    async fn process_new(
        self: &Arc<Self>,
        mut stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let mut shutdown = shutdown.clone();
        let wait = self.front.times().header;
        let arrived = self
            .front
            .read_head(&mut stream, wait, false, &mut shutdown);
        match arrived.await {
            Arrived::Head(Arrival { head, .. }) => {
                let start = Instant::now();
                match self.location(&head) {
                    Ok(location) => self.send(stream, &head, &location, start).await,
                    Err(refusal) => self.front.refuse(stream, refusal, &head, start).await,
                }
            }
            Arrived::Refused(refusal, buf, start) => {
                self.front.refuse(stream, refusal, &buf, start).await;
            }
            Arrived::Http2(_) | Arrived::Nothing => {}
        }
        None
    }
}

/// What a well-formed head asks for.
struct Asked<'a> {
    method: &'a str,
    target: &'a str,
    host: &'a str,
}

impl<'a> Asked<'a> {
    /// `None` without a Host, which HTTP/1.0 may leave out.
    fn of(head: &'a [u8]) -> Option<Self> {
        let mut lines = head.split(|&b| b == b'\n');
        let request = std::str::from_utf8(lines.next()?).ok()?;
        let mut parts = request.split(' ');
        let (method, target) = (parts.next()?, parts.next()?);
        let field = lines
            .take_while(|line| *line != b"\r")
            .filter_map(|line| line.split_at_checked(5))
            .find(|(name, _)| name.eq_ignore_ascii_case(b"host:"))?;
        let host = std::str::from_utf8(field.1).ok()?.trim();
        Some(Self {
            method,
            target,
            host,
        })
    }
}

/// The host without its port, as it stands in a URI; and its name or address alone.
fn split_port(authority: &str) -> (&str, &str) {
    if let Some(rest) = authority.strip_prefix('[') {
        let address = rest.split(']').next().unwrap_or(rest);
        return (
            &authority[..(address.len() + 2).min(authority.len())],
            address,
        );
    }
    let host = authority.split(':').next().unwrap_or(authority);
    (host, host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(port: u16, head: &str) -> Option<String> {
        let Asked { target, host, .. } = Asked::of(head.as_bytes())?;
        let (host, _) = split_port(host);
        Some(format!("https://{host}:{port}{target}"))
    }

    #[test]
    fn the_host_is_taken_without_its_port() {
        for (authority, split) in [
            ("example.com", ("example.com", "example.com")),
            ("example.com:80", ("example.com", "example.com")),
            ("example.com:", ("example.com", "example.com")),
            ("[::1]:80", ("[::1]", "::1")),
            ("[::1]", ("[::1]", "::1")),
            ("10.0.0.1:8080", ("10.0.0.1", "10.0.0.1")),
        ] {
            assert_eq!(split_port(authority), split, "{authority}");
        }
    }

    #[test]
    fn what_stands_in_a_body_is_no_host() {
        let head = "POST /x HTTP/1.0\r\nContent-Length: 12\r\n\r\nHost: evil\r\n";
        assert_eq!(location(1, head), None);
        let head = "GET //evil/x?y HTTP/1.1\r\nhost:\t a.b:80 \r\nX: 1\r\n\r\n";
        assert_eq!(location(8443, head).unwrap(), "https://a.b:8443//evil/x?y");
    }
}
