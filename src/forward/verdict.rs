//! What an attempt that failed means: for the client (502, 503 or 504, decision 24), and for the breaker.

use pingora::{Error, ErrorSource, ErrorType};

use super::breaker::Outcome;
use crate::reply::Refusal;

/// What the client is told when the last attempt ended in `error`; `None` when there is nobody left to tell.
pub fn refusal(error: &Error, service: &str) -> Option<Refusal> {
    use ErrorType as E;
    match (error.esource(), error.etype()) {
        (ErrorSource::Downstream, E::ReadTimedout) => Some(Refusal::RequestTimeout),
        (ErrorSource::Downstream, _) if breaks_framing(error) => {
            Some(Refusal::Malformed("the chunked body is not well-formed"))
        }
        (
            ErrorSource::Downstream,
            E::WriteError | E::WriteTimedout | E::ReadError | E::ConnectionClosed,
        ) => None,
        (ErrorSource::Downstream, _) => Some(Refusal::Malformed("the request is not well-formed")),
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

/// What the log says of an error: its kind and where it arose, and our own words; never what came over the wire.
pub fn cause(error: &Error) -> String {
    let mut text = format!("{} {}", error.esource().as_str(), error.etype().as_str());
    let root = error.root_cause();
    if let Some(io) = root.downcast_ref::<std::io::Error>() {
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

/// The chunked body was broken: `connection::guard` says so with this kind of error.
fn breaks_framing(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::InvalidData)
}

/// What the breaker learns from an attempt that ended in `error`.
pub fn outcome(error: &Error) -> Outcome {
    match error.esource() {
        ErrorSource::Upstream => Outcome::Failure,
        ErrorSource::Downstream | ErrorSource::Internal | ErrorSource::Unset => Outcome::Unknown,
    }
}
