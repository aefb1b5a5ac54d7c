//! What never reaches the log: the documented fields, and their kin, wherever they appear.

use http::HeaderName;
use http::header::SEC_WEBSOCKET_PROTOCOL;

/// What stands in their place, as Pino had it.
pub const REDACTED: &str = "[REDACTED]";

/// Names, in lower case and without separators, whose values are never logged.
const SECRETS: [&str; 8] = [
    "authorization",
    "cookie",
    "setcookie",
    "creditcard",
    "cardnumber",
    "cvv",
    "cvc",
    "ssn",
];

/// Ends of such names: `access_token`, `newPassword`, `X-API-Key`, `Stripe-Signature`.
const SECRET_ENDS: [&str; 9] = [
    "token",
    "secret",
    "password",
    "passwd",
    "apikey",
    "privatekey",
    "signature",
    "authorization",
    "otp",
];

/// Longest name that is looked at: a longer one is taken for a secret.
const LONGEST_NAME: usize = 64;

/// Whether the value under this name is kept out of the log: `credit_card`, `creditCard` and `user[password]` alike.
pub fn is_secret(name: &str) -> bool {
    // The last part of a nested name decides, `user.password` or `user[password]`; that of a list is no name.
    let last = name
        .rsplit(['.', '[', ']'])
        .find(|part| !part.bytes().all(|b| b.is_ascii_digit()))
        .unwrap_or(name);
    let mut plain = [0u8; LONGEST_NAME];
    let mut len = 0;
    for b in last.bytes().filter(u8::is_ascii_alphanumeric) {
        if len == plain.len() {
            return true;
        }
        plain[len] = b.to_ascii_lowercase();
        len += 1;
    }
    let plain = &plain[..len];
    SECRETS.iter().any(|secret| secret.as_bytes() == plain)
        || SECRET_ENDS
            .iter()
            .any(|end| plain.ends_with(end.as_bytes()))
}

pub fn is_secret_header(name: &HeaderName) -> bool {
    is_secret(name.as_str())
        || name.as_str().starts_with("x-internal-")
        // A token may stand among the names.
        || *name == SEC_WEBSOCKET_PROTOCOL
}

/// Appends a target for the log: its path as it is, the values of secret query parameters replaced.
pub fn push_target(out: &mut Vec<u8>, target: &str, push: impl Fn(&mut Vec<u8>, &str)) {
    let Some((path, query)) = target.split_once('?') else {
        return push(out, target);
    };
    push(out, path);
    let mut separator = "?";
    for pair in query.split('&') {
        push(out, separator);
        separator = "&";
        match pair.split_once('=') {
            Some((name, _)) if is_secret(&decode_name(name)) => {
                push(out, name);
                push(out, "=");
                push(out, REDACTED);
            }
            _ => push(out, pair),
        }
    }
}

/// A parameter's name without its percent-encoding: `p%61ssword` is a password too.
fn decode_name(name: &str) -> std::borrow::Cow<'_, str> {
    if !name.contains('%') {
        return name.into();
    }
    let bytes = name.as_bytes();
    let mut plain = String::with_capacity(name.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                plain.push(char::from((high * 16 + low) as u8));
                at += 3;
            }
            (b, ..) => {
                plain.push(char::from(b));
                at += 1;
            }
        }
    }
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(target: &str) -> String {
        let mut out = Vec::new();
        push_target(&mut out, target, |out, part| {
            out.extend_from_slice(part.as_bytes())
        });
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn secret_parameters_are_not_shown_however_they_are_spelled() {
        for name in [
            "password",
            "PASSWORD",
            "creditCard",
            "credit_card",
            "cvv",
            "ssn",
            "cookie",
            "authorization",
            "access_token",
            "user[password]",
            "user.password",
            "p%61ssword",
            "api-key",
            "reset_token",
            "new-password",
            "client_secret",
            "x-auth-token",
            "user%5Bpassword%5D",
        ] {
            let target = format!("/a?x=1&{name}=hunter2&y=2");
            assert_eq!(shown(&target), format!("/a?x=1&{name}=[REDACTED]&y=2"));
        }
        assert_eq!(
            shown("/a/password?passwordless=1&q"),
            "/a/password?passwordless=1&q"
        );
    }
}
