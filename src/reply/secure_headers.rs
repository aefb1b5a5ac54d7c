//! The security headers of every answer, the gateway's own and the backends' alike, as Helmet set them.

use http::header::{
    CONTENT_SECURITY_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
    X_XSS_PROTECTION,
};
use http::{HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};

use crate::config::Problems;

/// The documented Content-Security-Policy.
const CSP: &str = "default-src 'self';style-src 'self' 'unsafe-inline';script-src 'self';img-src 'self' data: https:;\
                   base-uri 'self';font-src 'self' https: data:;form-action 'self';frame-ancestors 'self';\
                   object-src 'none';script-src-attr 'none';upgrade-insecure-requests";

/// 180 days, as Helmet has it.
const HSTS: &str = "max-age=15552000; includeSubDomains";

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecureHeadersConfig {
    /// Empty: the header is not sent.
    pub content_security_policy: String,
    /// Sent over TLS only (RFC 6797, section 7.2); empty: not sent.
    pub strict_transport_security: String,
}

/// Ready-made values: nothing is built per request.
pub struct SecureHeaders {
    csp: Option<HeaderValue>,
    hsts: Option<HeaderValue>,
}

impl Default for SecureHeadersConfig {
    fn default() -> Self {
        Self {
            content_security_policy: CSP.into(),
            strict_transport_security: HSTS.into(),
        }
    }
}

impl SecureHeadersConfig {
    pub fn compile(self, problems: &mut Problems) -> SecureHeaders {
        let Self {
            content_security_policy,
            strict_transport_security,
        } = self;
        let mut value = |key: &str, text: String| {
            if text.is_empty() {
                return None;
            }
            HeaderValue::try_from(text)
                .inspect_err(|_| {
                    problems.add(format!("secure_headers.{key}"), "is not a header value")
                })
                .ok()
        };
        SecureHeaders {
            csp: value("content_security_policy", content_security_policy),
            hsts: value("strict_transport_security", strict_transport_security),
        }
    }
}

impl SecureHeaders {
    /// Sets all of them; a backend's own spelling of the same header gives way.
    ///
    /// `over_tls`: the client came over TLS, here or at a trusted proxy.
    pub fn stamp(&self, fields: &mut HeaderMap, over_tls: bool) {
        fields.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        fields.insert(X_FRAME_OPTIONS, HeaderValue::from_static("SAMEORIGIN"));
        fields.insert(X_XSS_PROTECTION, HeaderValue::from_static("1; mode=block"));
        match &self.hsts {
            Some(hsts) if over_tls => drop(fields.insert(STRICT_TRANSPORT_SECURITY, hsts.clone())),
            // A backend does not know how its client came.
            Some(_) => drop(fields.remove(STRICT_TRANSPORT_SECURITY)),
            None => {}
        }
        if let Some(csp) = &self.csp {
            fields.insert(CONTENT_SECURITY_POLICY, csp.clone());
        }
    }

    /// The same, for an answer that is written before there is a session (`connection.rs`).
    pub fn write_to(&self, head: &mut Vec<u8>, over_tls: bool) {
        head.extend_from_slice(
            b"X-Content-Type-Options: nosniff\r\nX-Frame-Options: SAMEORIGIN\r\nX-XSS-Protection: 1; mode=block\r\n",
        );
        for (name, value) in [
            (
                "Strict-Transport-Security",
                self.hsts.as_ref().filter(|_| over_tls),
            ),
            ("Content-Security-Policy", self.csp.as_ref()),
        ] {
            if let Some(value) = value {
                head.extend_from_slice(name.as_bytes());
                head.extend_from_slice(b": ");
                head.extend_from_slice(value.as_bytes());
                head.extend_from_slice(b"\r\n");
            }
        }
    }
}
