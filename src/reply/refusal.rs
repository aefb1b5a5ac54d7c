//! Every answer that the gateway makes because it will not, or cannot, forward a request. One table.
//!
//! Clients read the stable `code`; what went wrong inside stays in the log. The body is the documented one:
//! `{statusCode, error, message, code, details?, requestId, timestamp}`.

use std::borrow::Cow;

use http::{HeaderValue, StatusCode};

use crate::admit::auth::{AuthError, MissingPermission, Source, TenantsDiffer};
use crate::admit::cors::OriginNotAllowed;
use crate::admit::head::HeadFault;
use crate::admit::idempotency::NotRun;
use crate::admit::limits::Exceeded;
use crate::admit::lookup::NotFoundOut;
use crate::admit::path::PathFault;
use crate::admit::schema::Faults;
use crate::admit::size::TooLarge;
use crate::connection::streams::TooManyStreams;
use crate::forward::deadline::NotATime;
use crate::route::NoRoute;

/// A refusal: what the client is told. Status, code and message come from one table, [`Refusal::parts`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The message is not HTTP as RFC 9112 has it, or is ambiguous. The connection is closed.
    Malformed(&'static str),
    /// The path is spelled in a way that another component could read differently.
    BadPath(&'static str),
    /// A header field has no meaning that we could go by.
    BadHeader(&'static str),
    /// Neither has a parameter of the query.
    BadQuery(&'static str),
    /// Neither has the body, where a policy needs to know what it says.
    BadBody(&'static str),
    /// The request does not look as its route's schemas have it.
    Invalid(Box<Faults>),
    /// A venue is named in a way that two readers could read differently.
    AmbiguousVenue(&'static str),
    /// The body is in a form that cannot be judged.
    UnsupportedMediaType,
    /// What cannot be one of several requests in one: it streams, is a webhook, or is a batch itself.
    NotInABatch,
    AuthRequired,
    InvalidToken,
    TokenExpired,
    Forbidden(&'static str),
    NotFound,
    /// Not the caller's: told as if there were none (decision 18).
    ForeignVenue {
        venue: Box<str>,
        source: Source,
    },
    ForeignTenant(Box<str>),
    /// Carries the value of `Allow` (RFC 9110, section 15.5.6).
    MethodNotAllowed(HeaderValue),
    RequestTimeout,
    PayloadTooLarge,
    /// The host is none that we have a certificate for.
    Misdirected,
    UriTooLong,
    ExpectationFailed,
    HeadersTooLarge,
    VersionNotSupported,
    RateLimited(Exceeded),
    /// The caller has as many WebSockets and event streams open as it may.
    TooManyStreams,
    /// A version of the WebSocket protocol that is not spoken here.
    WebSocketVersion,
    /// A write that runs once neither runs nor gets its answer.
    NotRun(NotRun),
    /// Who is calling cannot be found out at the moment.
    CannotTell,
    /// The service has no instance that answers: connection refused, none healthy, or its breaker is open.
    Unavailable {
        service: Box<str>,
        retry_after_secs: u32,
    },
    /// The service has as much to do as it can.
    Overloaded(Box<str>),
    /// The upstream's answer was no answer: reset, garbage, closed half-way.
    BadGateway,
    GatewayTimeout,
    /// The client wants it only if it is kept, and it is not (RFC 9111, section 5.2.1.7).
    NotCached,
    /// Stripe and its like try again on a 500, and only then (decision 32).
    WebhookFailed,
    Internal,
}

/// One row of the table.
pub struct Parts {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: Cow<'static, str>,
}

// === impl Refusal ===

impl Refusal {
    pub fn parts(&self) -> Parts {
        use StatusCode as S;
        let (status, code, message): (_, _, Cow<'static, str>) = match self {
            Refusal::Malformed(why) => (S::BAD_REQUEST, "BAD_REQUEST", (*why).into()),
            Refusal::BadPath(why)
            | Refusal::BadHeader(why)
            | Refusal::BadQuery(why)
            | Refusal::BadBody(why)
            | Refusal::AmbiguousVenue(why) => (S::BAD_REQUEST, "BAD_REQUEST", (*why).into()),
            Refusal::Invalid(_) => (
                S::UNPROCESSABLE_ENTITY,
                "VALIDATION_ERROR",
                "Request validation failed".into(),
            ),
            Refusal::AuthRequired => (
                S::UNAUTHORIZED,
                "AUTH_REQUIRED",
                "Missing or invalid Authorization header".into(),
            ),
            Refusal::InvalidToken => (
                S::UNAUTHORIZED,
                "INVALID_TOKEN",
                "Invalid or expired token".into(),
            ),
            Refusal::TokenExpired => (
                S::UNAUTHORIZED,
                "TOKEN_EXPIRED",
                "Invalid or expired token".into(),
            ),
            Refusal::Forbidden(why) => (S::FORBIDDEN, "FORBIDDEN", (*why).into()),
            Refusal::NotFound | Refusal::ForeignVenue { .. } | Refusal::ForeignTenant(_) => {
                (S::NOT_FOUND, "NOT_FOUND", "Resource not found".into())
            }
            Refusal::MethodNotAllowed(_) => (
                S::METHOD_NOT_ALLOWED,
                "METHOD_NOT_ALLOWED",
                "This method is not allowed here".into(),
            ),
            Refusal::RequestTimeout => (
                S::REQUEST_TIMEOUT,
                "REQUEST_TIMEOUT",
                "The request did not arrive in time".into(),
            ),
            Refusal::PayloadTooLarge => (
                S::PAYLOAD_TOO_LARGE,
                "PAYLOAD_TOO_LARGE",
                "The request body is too large".into(),
            ),
            Refusal::UnsupportedMediaType => (
                S::UNSUPPORTED_MEDIA_TYPE,
                "UNSUPPORTED_MEDIA_TYPE",
                "This Content-Type, charset or Content-Encoding is not accepted here".into(),
            ),
            Refusal::NotInABatch => (
                S::BAD_REQUEST,
                "BAD_REQUEST",
                "This cannot be called in a batch".into(),
            ),
            Refusal::Misdirected => (
                S::MISDIRECTED_REQUEST,
                "MISDIRECTED_REQUEST",
                "This host is not served here".into(),
            ),
            Refusal::UriTooLong => (
                S::URI_TOO_LONG,
                "URI_TOO_LONG",
                "The request target is too long".into(),
            ),
            Refusal::ExpectationFailed => (
                S::EXPECTATION_FAILED,
                "EXPECTATION_FAILED",
                "Only 100-continue is understood in Expect".into(),
            ),
            Refusal::HeadersTooLarge => (
                S::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "HEADERS_TOO_LARGE",
                "The request header fields are too large".into(),
            ),
            Refusal::VersionNotSupported => (
                S::HTTP_VERSION_NOT_SUPPORTED,
                "HTTP_VERSION_NOT_SUPPORTED",
                "HTTP/1.1 is spoken here".into(),
            ),
            Refusal::RateLimited(_) => (
                S::TOO_MANY_REQUESTS,
                "RATE_LIMIT_ERROR",
                "Rate limit exceeded".into(),
            ),
            Refusal::TooManyStreams => (
                S::TOO_MANY_REQUESTS,
                "RATE_LIMIT_ERROR",
                "Too many streams are open".into(),
            ),
            Refusal::WebSocketVersion => (
                S::UPGRADE_REQUIRED,
                "UPGRADE_REQUIRED",
                "Version 13 of the WebSocket protocol is spoken here".into(),
            ),
            Refusal::NotRun(NotRun::NoKey) => (
                S::BAD_REQUEST,
                "IDEMPOTENCY_KEY_REQUIRED",
                "This request needs an Idempotency-Key".into(),
            ),
            Refusal::NotRun(NotRun::Reused) => (
                S::UNPROCESSABLE_ENTITY,
                "IDEMPOTENCY_KEY_REUSED",
                "This Idempotency-Key stands for another request".into(),
            ),
            Refusal::NotRun(NotRun::InProgress) => (
                S::CONFLICT,
                "REQUEST_IN_PROGRESS",
                "A request with this Idempotency-Key is being processed".into(),
            ),
            Refusal::NotRun(NotRun::Unknown) => (
                S::CONFLICT,
                "OUTCOME_UNKNOWN",
                "A request with this Idempotency-Key was sent and has no answer: ask whether it took effect"
                    .into(),
            ),
            Refusal::NotRun(NotRun::Unkept(status)) => (
                S::CONFLICT,
                "ANSWER_NOT_KEPT",
                format!(
                    "A request with this Idempotency-Key was answered with {}, and the answer was not kept",
                    status.as_u16()
                )
                .into(),
            ),
            Refusal::NotRun(NotRun::CannotTell) => (
                S::SERVICE_UNAVAILABLE,
                "SERVICE_UNAVAILABLE",
                "Idempotency keys cannot be checked at the moment: nothing was done".into(),
            ),
            Refusal::CannotTell => (
                S::SERVICE_UNAVAILABLE,
                "SERVICE_UNAVAILABLE",
                "The credentials cannot be checked at the moment".into(),
            ),
            Refusal::Unavailable { service, .. } => (
                S::SERVICE_UNAVAILABLE,
                "SERVICE_UNAVAILABLE",
                format!("Service unavailable: {service}").into(),
            ),
            Refusal::Overloaded(service) => (
                S::SERVICE_UNAVAILABLE,
                "SERVICE_UNAVAILABLE",
                format!("Service overloaded: {service}").into(),
            ),
            Refusal::BadGateway => (S::BAD_GATEWAY, "BAD_GATEWAY", "Bad Gateway".into()),
            Refusal::GatewayTimeout => (
                S::GATEWAY_TIMEOUT,
                "GATEWAY_TIMEOUT",
                "Gateway Timeout".into(),
            ),
            Refusal::NotCached => (
                S::GATEWAY_TIMEOUT,
                "NOT_CACHED",
                "Nothing that may be used is kept of this".into(),
            ),
            Refusal::WebhookFailed => (
                S::INTERNAL_SERVER_ERROR,
                "WEBHOOK_FAILED",
                "The webhook could not be delivered; send it again".into(),
            ),
            Refusal::Internal => (
                S::INTERNAL_SERVER_ERROR,
                "INTERNAL_ERROR",
                "An unexpected error occurred".into(),
            ),
        };
        Parts {
            status,
            code,
            message,
        }
    }

    /// Whole seconds for `Retry-After`, on 429 and 503, and on a 409 that will pass.
    pub fn retry_after_secs(&self) -> Option<u32> {
        match self {
            Refusal::RateLimited(Exceeded {
                retry_after_secs, ..
            })
            | Refusal::Unavailable {
                retry_after_secs, ..
            } => Some((*retry_after_secs).max(1)),
            Refusal::NotRun(NotRun::InProgress | NotRun::CannotTell) => Some(1),
            Refusal::Overloaded(_) | Refusal::CannotTell | Refusal::TooManyStreams => Some(1),
            _ => None,
        }
    }

    /// The challenge of a 401 (RFC 6750, section 3).
    pub fn challenge(&self) -> Option<&'static str> {
        match self {
            Refusal::AuthRequired => Some("Bearer realm=\"tickettoken\""),
            Refusal::InvalidToken => Some("Bearer realm=\"tickettoken\", error=\"invalid_token\""),
            Refusal::TokenExpired => Some(
                "Bearer realm=\"tickettoken\", error=\"invalid_token\", error_description=\"the token expired\"",
            ),
            _ => None,
        }
    }

    /// After these the message boundaries on the connection cannot be trusted any more, or the peer is too slow.
    pub fn closes_connection(&self) -> bool {
        matches!(
            self,
            Refusal::Malformed(_)
                | Refusal::RequestTimeout
                | Refusal::PayloadTooLarge
                | Refusal::Misdirected
                | Refusal::UriTooLong
                | Refusal::HeadersTooLarge
                | Refusal::VersionNotSupported
                | Refusal::ExpectationFailed
        )
    }

    /// The documented JSON body.
    pub fn body(&self, request_id: &str) -> Vec<u8> {
        let Parts {
            status,
            code,
            message,
        } = self.parts();
        let (reason, details) = match self {
            // As documented.
            Refusal::Invalid(faults) => (
                "Validation Error",
                format!("\"details\":{},", faults.details()),
            ),
            _ => (status.canonical_reason().unwrap_or("Error"), String::new()),
        };
        let timestamp = jiff::Timestamp::now();
        let message = serde_json::Value::from(message.as_ref());
        // The request id is ours, or made of `A-Za-z0-9._-`: it needs no escaping.
        format!(
            "{{\"statusCode\":{},\"error\":\"{reason}\",\"message\":{message},\"code\":\"{code}\",{details}\
             \"requestId\":\"{request_id}\",\"timestamp\":\"{timestamp:.3}\"}}",
            status.as_u16(),
        )
        .into_bytes()
    }
}

// === what each room says, and what the client is told of it ===

impl From<HeadFault> for Refusal {
    fn from(fault: HeadFault) -> Self {
        match fault {
            HeadFault::Malformed(why) => Refusal::Malformed(why),
            HeadFault::TargetTooLong => Refusal::UriTooLong,
            HeadFault::TooLarge => Refusal::HeadersTooLarge,
            HeadFault::Version => Refusal::VersionNotSupported,
            HeadFault::Connect => Refusal::MethodNotAllowed(HeaderValue::from_static(
                "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
            )),
            HeadFault::Expectation => Refusal::ExpectationFailed,
        }
    }
}

impl From<PathFault> for Refusal {
    fn from(PathFault(why): PathFault) -> Self {
        Refusal::BadPath(why)
    }
}

impl From<NotATime> for Refusal {
    fn from(_: NotATime) -> Self {
        Refusal::BadHeader("X-Request-Deadline is not a time in milliseconds since 1970")
    }
}

impl From<NoRoute> for Refusal {
    fn from(no_route: NoRoute) -> Self {
        match no_route {
            NoRoute::Path => Refusal::NotFound,
            NoRoute::Method { allow } => Refusal::MethodNotAllowed(allow),
        }
    }
}

impl From<TooLarge> for Refusal {
    fn from(_: TooLarge) -> Self {
        Refusal::PayloadTooLarge
    }
}

impl From<OriginNotAllowed> for Refusal {
    fn from(_: OriginNotAllowed) -> Self {
        Refusal::Forbidden("This origin is not allowed")
    }
}

impl From<TooManyStreams> for Refusal {
    fn from(_: TooManyStreams) -> Self {
        Refusal::TooManyStreams
    }
}

impl From<AuthError> for Refusal {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::NoCredentials => Refusal::AuthRequired,
            AuthError::Invalid => Refusal::InvalidToken,
            AuthError::Expired => Refusal::TokenExpired,
            AuthError::CannotTell => Refusal::CannotTell,
            AuthError::TooManyFailures(exceeded) => Refusal::RateLimited(exceeded),
        }
    }
}

impl From<NotFoundOut> for Refusal {
    fn from(unknown: NotFoundOut) -> Self {
        match unknown {
            NotFoundOut::Unavailable(service) => Refusal::Unavailable {
                service,
                retry_after_secs: 1,
            },
            NotFoundOut::TooLate => Refusal::GatewayTimeout,
        }
    }
}

impl From<MissingPermission> for Refusal {
    fn from(_: MissingPermission) -> Self {
        Refusal::Forbidden("Insufficient permissions")
    }
}

impl From<TenantsDiffer> for Refusal {
    fn from(_: TenantsDiffer) -> Self {
        Refusal::Forbidden("The API key and the token belong to different tenants")
    }
}

impl From<Exceeded> for Refusal {
    fn from(exceeded: Exceeded) -> Self {
        Refusal::RateLimited(exceeded)
    }
}
