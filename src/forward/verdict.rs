//! What an attempt that failed means: for the client (502, 503 or 504, decision 24), and for the instance.

use std::io::{self, ErrorKind};
use std::time::Duration;

use http::{HeaderName, StatusCode};
use pingora::{Error, ErrorSource, ErrorType, RetryType};
use pingora_proxy::Session;

use super::retry::{Failure, Repeatable};
use crate::connection::End;
use crate::reply::Refusal;

/// The time was over on a connection to a backend that others share. A read time-out by Pingora's own name would mean to it
/// that the connection hangs: it would give it no more streams. Everything else takes it for the time-out that it is.
pub const OVERDUE: ErrorType = ErrorType::Custom("ReadTimedout");

/// What the client is told when the last attempt ended in `error`; `None` when there is nobody left to tell.
pub fn refusal(error: &Error, service: &str) -> Option<Refusal> {
    use ErrorType as E;
    match (error.esource(), error.etype()) {
        (ErrorSource::Downstream, E::ReadTimedout) => Some(Refusal::RequestTimeout),
        (ErrorSource::Downstream, _) if has_cause(error, ErrorKind::TimedOut) => {
            Some(Refusal::RequestTimeout)
        }
        (ErrorSource::Downstream, _) if has_cause(error, ErrorKind::InvalidData) => {
            Some(Refusal::Malformed("the chunked body is not well-formed"))
        }
        (
            ErrorSource::Downstream,
            E::WriteError | E::WriteTimedout | E::ReadError | E::ConnectionClosed,
        ) => None,
        (ErrorSource::Downstream, _) => Some(Refusal::Malformed("the request is not well-formed")),
        (ErrorSource::Upstream, kind) if *kind == OVERDUE => Some(Refusal::GatewayTimeout),
        (ErrorSource::Upstream, kind) => Some(match kind {
            E::ConnectTimedout | E::TLSHandshakeTimedout | E::ReadTimedout | E::WriteTimedout => {
                Refusal::GatewayTimeout
            }
            E::ConnectRefused
            | E::ConnectNoRoute
            | E::ConnectError
            | E::ConnectProxyFailure
            | E::SocketError => Refusal::Unavailable {
                service: service.into(),
                retry_after_secs: 1,
            },
            _ => Refusal::BadGateway,
        }),
        (ErrorSource::Internal | ErrorSource::Unset, _) => Some(Refusal::Internal),
    }
}

/// What a client is told whose answer was ended by us before it had begun.
pub fn ended(end: End, service: &str) -> Refusal {
    match end {
        End::Revoked | End::KeyChanged | End::Expired => Refusal::InvalidToken,
        // Another process may serve it, with the same credentials.
        End::Draining | End::Idle => Refusal::Unavailable {
            service: service.into(),
            retry_after_secs: 1,
        },
    }
}

/// What stands for an answer that its client does not get; `again`: another attempt follows.
pub fn not_passed_on(status: StatusCode, again: bool) -> Box<Error> {
    let status = ErrorType::HTTPStatus(status.as_u16());
    let mut error = Error::explain(status, "the backend failed").into_up();
    error.set_retry(again);
    error
}

/// No phase behind `admit` is reached without one.
pub fn without_a_route() -> Box<Error> {
    Error::explain(
        ErrorType::InternalError,
        "a request without a route was let through",
    )
}

/// What the log says of an error: its kind and where it arose, and our own words; never what came over the wire.
pub fn cause(error: &Error) -> String {
    let mut text = format!("{} {}", error.esource().as_str(), error.etype().as_str());
    let root = error.root_cause();
    if let Some(io) = root.downcast_ref::<io::Error>() {
        text = format!("{text}: {io}");
    } else if let Some(context) = &error.context {
        let context = context.as_str();
        // Pingora quotes what it could not parse behind this word.
        text = format!(
            "{text}: {}",
            context.split("buf:").next().unwrap_or_default().trim_end()
        );
    }
    text
}

/// `connection::guard` says with `InvalidData` that a chunked body was broken, and with `TimedOut` that it came too slowly.
fn has_cause(error: &Error, kind: ErrorKind) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == kind)
}

/// Who ended an attempt that was under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    Instance(Failure),
    /// It went away, or sent what is no request.
    Client,
    /// It did not send its request in time.
    SlowClient,
}

/// `whole`: all of the request has come. `was_cut`: by us, when the time was over. `reused`: the connection had served
/// another request before.
pub fn blame(error: &Error, session: &Session, whole: bool, was_cut: bool, reused: bool) -> Blame {
    if *error.esource() == ErrorSource::Upstream {
        // Pingora's own time-outs stand only where a connection is shared, and are met there when the backend does not
        // even take the request.
        let kind = error.etype();
        if matches!(kind, ErrorType::ReadTimedout | ErrorType::WriteTimedout) || *kind == OVERDUE {
            return Blame::Instance(Failure::Timeout);
        }
        if was_not_processed(error) && !session.as_ref().retry_buffer_truncated() {
            return Blame::Instance(Failure::NotProcessed);
        }
    }
    if was_cut {
        // A backend cannot answer what it was not sent, unless it was the one that did not take it.
        let stuck = session.upstream_write_pending_time() > STUCK;
        return match whole || stuck {
            true => Blame::Instance(Failure::Timeout),
            false => Blame::SlowClient,
        };
    }
    match (error.esource(), &error.retry) {
        (ErrorSource::Upstream, RetryType::ReusedOnly) if reused => Blame::Instance(Failure::Stale),
        (ErrorSource::Upstream, _) => Blame::Instance(Failure::Reset),
        (ErrorSource::Downstream | ErrorSource::Internal | ErrorSource::Unset, _) => Blame::Client,
    }
}

/// Whether an HTTP/2 backend has said that it did nothing with the request (RFC 9113, section 8.7).
fn was_not_processed(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<h2::Error>();
    cause.is_some_and(|e| {
        e.is_remote()
            && match e.reason() {
                Some(h2::Reason::REFUSED_STREAM) => e.is_reset(),
                // Streams up to the one that it names are not ended by it.
                Some(h2::Reason::NO_ERROR) => e.is_go_away(),
                _ => false,
            }
    })
}

/// A backend that keeps us waiting for so long before it takes more of a body is not waiting for its client.
const STUCK: Duration = Duration::from_millis(100);

/// Whether the request may be sent again: it does the same twice as once, or says how to tell; its body is still at
/// hand; and nothing of an answer has gone to the client.
pub fn repeatable(session: &Session) -> Repeatable {
    let request = session.req_header();
    let unanswered = session
        .response_written()
        .is_none_or(|head| head.status.is_informational());
    match unanswered && !session.as_ref().retry_buffer_truncated() {
        true if request.method.is_idempotent() => Repeatable::Always,
        true if request.headers.contains_key(IDEMPOTENCY_KEY) => Repeatable::Ended,
        _ => Repeatable::Never,
    }
}

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_on_a_shared_connection_is_told_and_logged_as_any() {
        let of = |kind: ErrorType| Error::explain(kind, "the answer came too slowly").into_up();
        let (shared, own) = (of(OVERDUE), of(ErrorType::ReadTimedout));
        assert_eq!(cause(&shared), cause(&own));
        for error in [&shared, &own] {
            let told = refusal(error, "s").map(|refusal| refusal.parts().status.as_u16());
            assert_eq!(told, Some(504));
        }
        assert_ne!(shared.etype(), own.etype(), "Pingora is to tell them apart");
    }

    #[test]
    fn only_who_has_no_good_credentials_is_told_to_get_others() {
        let status = |end| ended(end, "events").parts().status.as_u16();
        for end in [End::Revoked, End::KeyChanged, End::Expired] {
            assert_eq!(status(end), 401, "{end:?}");
        }
        for end in [End::Draining, End::Idle] {
            assert_eq!(status(end), 503, "{end:?}");
        }
    }
}
