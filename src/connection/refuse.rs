//! Answers what never became a request, logs it and counts it: on HTTP/1 the connection ends with it, on HTTP/2 only the
//! stream does.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use ::h2::server::SendResponse;
use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, DATE};
use http::{HeaderValue, Method, Response, StatusCode};
use pingora::protocols::http::date::get_cached_date;
use pingora::protocols::{Digest, Stream};

use super::{Front, FrontParts, address_of, close, peer_address, send};
use crate::admit::request_id::{self, X_REQUEST_ID};
use crate::observe::access_log::Access;
use crate::observe::audit::{Event, Incident};
use crate::observe::registry::UNMATCHED;
use crate::reply::{Refusal, grpc};

/// What there is to tell of a refusal.
struct Told<'a> {
    refusal: &'a Refusal,
    id: &'a str,
    client: IpAddr,
    since: Instant,
    /// Octets of the answer's body that were sent.
    sent: usize,
}

impl Front {
    pub(super) async fn refuse(
        &self,
        mut stream: Stream,
        refusal: Refusal,
        buf: &[u8],
        start: Instant,
    ) {
        let policies = self.parts.in_force.load_full();
        let parts = refusal.parts();
        let id = request_id::generate();
        let id = id.to_str().unwrap_or_default();
        let client = peer_address(&stream);
        let body = refusal.body(id);
        let mut head = Vec::with_capacity(1024);
        head.extend_from_slice(
            format!(
                "HTTP/1.1 {} {}\r\nDate: {}\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: {}\r\n\
                 Cache-Control: no-store\r\nX-Request-ID: {id}\r\nConnection: close\r\n",
                parts.status.as_u16(),
                parts.status.canonical_reason().unwrap_or("Error"),
                jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT"),
                body.len(),
            )
            .as_bytes(),
        );
        if let Refusal::MethodNotAllowed(allow) = &refusal {
            head.extend_from_slice(b"Allow: ");
            head.extend_from_slice(allow.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        policies
            .secure_headers
            .write_to(&mut head, stream.get_ssl().is_some());
        head.extend_from_slice(b"\r\n");
        if !buf.starts_with(b"HEAD ") {
            head.extend_from_slice(&body);
        }
        let sent = send(&mut stream, &head, policies.times.patience).await;
        self.tell(&Told {
            refusal: &refusal,
            id,
            client,
            since: start,
            sent: if sent { body.len() } else { 0 },
        });
        close(stream, sent).await;
    }

    /// The same on one stream of an HTTP/2 connection.
    pub(super) fn refuse_stream(
        &self,
        mut respond: SendResponse<Bytes>,
        refusal: &Refusal,
        method: &Method,
        is_grpc: bool,
        digest: &Digest,
    ) {
        let since = Instant::now();
        let parts = refusal.parts();
        let request_id = request_id::generate();
        let id = request_id.to_str().unwrap_or_default();
        let mut body = Bytes::from(refusal.body(id));
        let mut answer = Response::new(());
        *answer.status_mut() = parts.status;
        let fields = answer.headers_mut();
        fields.insert(DATE, get_cached_date());
        fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        fields.insert(X_REQUEST_ID, request_id.clone());
        self.parts
            .in_force
            .load()
            .secure_headers
            .stamp(fields, digest.ssl_digest.is_some());
        if let Refusal::MethodNotAllowed(allow) = refusal {
            fields.insert(ALLOW, allow.clone());
        }
        if is_grpc {
            grpc::stamp(fields, &parts);
            body.clear();
            *answer.status_mut() = StatusCode::OK;
        } else {
            let kind = HeaderValue::from_static("application/json; charset=utf-8");
            fields.insert(CONTENT_TYPE, kind);
            fields.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        if *method == Method::HEAD {
            body.clear();
        }
        let len = body.len();
        let sent = match respond.send_response(answer, body.is_empty()) {
            Ok(_) if body.is_empty() => true,
            Ok(mut writer) => writer.send_data(body, true).is_ok(),
            Err(_) => false,
        };
        self.tell(&Told {
            refusal,
            id,
            client: address_of(digest.socket_digest.as_deref()),
            since,
            sent: if sent { len } else { 0 },
        });
    }

    /// At most once a second: a connection was ended for what its client does on it.
    pub(super) fn tell_closed(&self, reason: &str, client: IpAddr) {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let now = jiff::Timestamp::now().as_second() as u64;
        if LAST.swap(now, Relaxed) == now {
            return;
        }
        self.parts.logger.write(log::Level::Warn, |line| {
            line.text("context", "connection");
            line.text("reason", reason);
            line.display("ip", &client);
            line.text("msg", "closed");
        });
    }

    fn tell(&self, told: &Told<'_>) {
        let Told {
            refusal,
            id,
            client,
            since,
            sent,
        } = *told;
        let FrontParts {
            unmatched, logger, ..
        } = &self.parts;
        let parts = refusal.parts();
        let status = parts.status.as_u16();
        unmatched.method(None).end(status, since.elapsed(), 0, sent);
        if let Some(event) = Event::of(refusal) {
            logger.audit(&Incident {
                event,
                request_id: id,
                user: None,
                client,
                method: "-",
                target: "-",
                more: &[],
            });
        }
        logger.access(&Access {
            parent: None,
            source: None,
            request_id: id,
            trace_id: None,
            method: "-",
            target: "-",
            client: &client.to_string(),
            route: UNMATCHED,
            service: None,
            exchange: None,
            user: None,
            tenant: None,
            venue: None,
            status,
            code: Some(parts.code),
            error: Some(parts.message.into_owned()),
            elapsed: since.elapsed(),
            request_bytes: 0,
            response_bytes: sent,
            close_code: None,
            headers: None,
        });
    }
}
