//! The two heads of a handshake (RFC 6455, section 4): what is asked, what the backend is asked, and what may be answered.
//!
//! Browsers cannot say `Authorization` here. Their token may stand behind `bearer` in `Sec-WebSocket-Protocol`:
//! `new WebSocket(url, ["bearer", token, "chat.v1"])`. Both are taken out on the way, so that no backend and no log has a
//! token where it expects none, and `bearer` is what is answered where nothing else is agreed on.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use sha1::{Digest, Sha1};

use super::WebSocket;
use crate::admit::head::is_token_byte;
use crate::reply::Refusal;

/// The subprotocol that stands before a token.
pub const TOKEN_PROTOCOL: &str = "bearer";

/// More than this, nobody speaks.
const MOST_PROTOCOLS: usize = 16;

/// The only extension whose frames are understood (RFC 7692).
const DEFLATE: &str = "permessage-deflate";

/// A handshake that is one.
#[derive(Debug)]
pub struct Handshake {
    key: HeaderValue,
    /// Those that may be agreed on, in the client's order.
    protocols: Vec<Box<str>>,
    /// As they were offered.
    extensions: Vec<HeaderValue>,
    /// `bearer` was offered.
    offers_token: bool,
    /// The caller's `Authorization` came out of the protocols.
    is_token_ours: bool,
}

/// What the backend has agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Messages may be compressed.
    pub deflate: bool,
}

impl Handshake {
    /// Also returns the `Authorization` that the protocols hold, where there is none already.
    ///
    /// # Errors
    /// When it is not a handshake, or one of another version.
    pub fn read(
        request: &RequestHeader,
        websocket: &WebSocket,
    ) -> Result<(Self, Option<HeaderValue>), Refusal> {
        let fields = &request.headers;
        let bad = |why| Err(Refusal::BadHeader(why));
        if request.method != Method::GET || request.version != Version::HTTP_11 {
            return bad("a WebSocket begins with a GET of HTTP/1.1");
        }
        if !is_websocket(fields) || !has_token(fields, &CONNECTION, "upgrade") {
            return bad("only Upgrade: websocket is understood here, with Connection: Upgrade");
        }
        let has_body = fields
            .get(CONTENT_LENGTH)
            .is_some_and(|length| length != "0");
        if has_body || fields.contains_key(TRANSFER_ENCODING) {
            return bad("a WebSocket begins without a body");
        }
        match only(fields, &SEC_WEBSOCKET_VERSION) {
            Some(version) if version == "13" => {}
            Some(_) => return Err(Refusal::WebSocketVersion),
            None => return bad("there is not one Sec-WebSocket-Version"),
        }
        let Some(key) = only(fields, &SEC_WEBSOCKET_KEY).filter(|key| is_key(key.as_bytes()))
        else {
            return bad("Sec-WebSocket-Key is not 16 bytes in base64");
        };
        let Some(Offered { names, token }) = Offered::read(fields) else {
            return bad("Sec-WebSocket-Protocol is not a list of names");
        };
        let is_allowed = |name: &&str| {
            websocket.protocols.is_empty() || websocket.protocols.iter().any(|p| p == name)
        };
        let given = token.filter(|_| !fields.contains_key(AUTHORIZATION));
        let authorization = given
            .map(|token| HeaderValue::try_from(format!("Bearer {token}")))
            .transpose()
            .map_err(|_| Refusal::BadHeader("Sec-WebSocket-Protocol is not a list of names"))?
            .map(|mut value| {
                value.set_sensitive(true);
                value
            });
        let handshake = Self {
            key: key.clone(),
            protocols: names
                .into_iter()
                .filter(is_allowed)
                .map(Into::into)
                .collect(),
            extensions: offered_deflate(fields),
            offers_token: token.is_some(),
            is_token_ours: authorization.is_some(),
        };
        Ok((handshake, authorization))
    }

    /// What the backend is asked, in place of what the client has said.
    pub fn stamp_request(&self, fields: &mut HeaderMap) {
        fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
        // Pingora awaits one (`connection::websocket`), and would announce it.
        fields.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        fields.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        fields.insert(SEC_WEBSOCKET_KEY, self.key.clone());
        fields.remove(SEC_WEBSOCKET_PROTOCOL);
        // It is made of names that came in a header.
        if let Ok(protocols) = HeaderValue::try_from(self.protocols.join(", "))
            && !protocols.is_empty()
        {
            fields.insert(SEC_WEBSOCKET_PROTOCOL, protocols);
        }
        fields.remove(SEC_WEBSOCKET_EXTENSIONS);
        for offer in &self.extensions {
            fields.append(SEC_WEBSOCKET_EXTENSIONS, offer.clone());
        }
        if self.is_token_ours {
            fields.remove(AUTHORIZATION);
        }
    }

    /// # Errors
    /// What is wrong with the backend's 101.
    pub fn check_answer(&self, answer: &ResponseHeader) -> Result<Agreed, &'static str> {
        let fields = &answer.headers;
        if answer.version != Version::HTTP_11
            || !is_websocket(fields)
            || !has_token(fields, &CONNECTION, "upgrade")
        {
            return Err("the 101 is for another protocol");
        }
        if only(fields, &SEC_WEBSOCKET_ACCEPT).is_none_or(|accept| *accept != self.accept()) {
            return Err("the 101 has the wrong Sec-WebSocket-Accept");
        }
        let mut protocols = fields.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
        let is_offered = |chosen: &HeaderValue| {
            let mut offered = self.protocols.iter();
            offered.any(|offered| chosen.as_bytes() == offered.as_bytes())
        };
        match (protocols.next(), protocols.next()) {
            (None, _) => {}
            (Some(chosen), None) if is_offered(chosen) => {}
            _ => return Err("the 101 has a Sec-WebSocket-Protocol that was not offered"),
        }
        let mut agreed = extensions(fields);
        match (agreed.next(), agreed.next()) {
            (None, _) => Ok(Agreed { deflate: false }),
            (Some((name, _)), None) if name == DEFLATE && !self.extensions.is_empty() => {
                Ok(Agreed { deflate: true })
            }
            _ => Err("the 101 has an extension that was not offered"),
        }
    }

    /// What the client is answered, where the backend's own words do not say it.
    pub fn stamp_answer(&self, fields: &mut HeaderMap) {
        fields.remove(CONTENT_LENGTH);
        fields.remove(TRANSFER_ENCODING);
        fields.insert(SEC_WEBSOCKET_ACCEPT, self.accept());
        // A browser that is answered none of the names it has offered gives up.
        if self.offers_token && !fields.contains_key(SEC_WEBSOCKET_PROTOCOL) {
            fields.insert(
                SEC_WEBSOCKET_PROTOCOL,
                HeaderValue::from_static(TOKEN_PROTOCOL),
            );
        }
    }

    /// RFC 6455, section 4.2.2.
    fn accept(&self) -> HeaderValue {
        let mut sha = Sha1::new();
        sha.update(self.key.as_bytes());
        sha.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
        let accept = STANDARD.encode(sha.finalize());
        HeaderValue::try_from(accept).unwrap_or(HeaderValue::from_static(""))
    }
}

/// What `Sec-WebSocket-Protocol` offers.
struct Offered<'a> {
    names: Vec<&'a str>,
    /// What stands behind `bearer`.
    token: Option<&'a str>,
}

impl<'a> Offered<'a> {
    /// `None`: it is no list of names.
    fn read(fields: &'a HeaderMap) -> Option<Self> {
        let (mut names, mut token) = (Vec::new(), None);
        let lists = fields.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
        let mut is_token_next = false;
        for list in lists {
            for name in list
                .to_str()
                .ok()?
                .split(',')
                .map(|name| name.trim_matches([' ', '\t']))
            {
                if name.is_empty() || !name.bytes().all(is_token_byte) {
                    return None;
                }
                match name {
                    _ if is_token_next => {
                        is_token_next = false;
                        token = Some(name);
                    }
                    TOKEN_PROTOCOL if token.is_none() => is_token_next = true,
                    // One that is there twice (RFC 6455, section 4.1).
                    _ if name == TOKEN_PROTOCOL || names.contains(&name) => return None,
                    _ => names.push(name),
                }
                if names.len() > MOST_PROTOCOLS {
                    return None;
                }
            }
        }
        // `bearer` without a token.
        (!is_token_next).then_some(Self { names, token })
    }
}

fn is_websocket(fields: &HeaderMap) -> bool {
    only(fields, &UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

fn only<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = fields.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

fn has_token(fields: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let mut values = fields.get_all(name).iter();
    values.any(|value| {
        let mut tokens = value.as_bytes().split(|b| *b == b',');
        tokens.any(|t| t.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    })
}

fn is_key(key: &[u8]) -> bool {
    key.len() == 24 && STANDARD.decode(key).is_ok_and(|key| key.len() == 16)
}

/// The offers of permessage-deflate, in their order; others are not passed on, as if we did not know them: we do not.
fn offered_deflate(fields: &HeaderMap) -> Vec<HeaderValue> {
    let offers = extensions(fields).filter(|(name, _)| *name == DEFLATE);
    offers
        .filter_map(|(_, offer)| HeaderValue::try_from(offer).ok())
        .collect()
}

/// Each extension by name, and with its parameters.
fn extensions(fields: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let lists = fields.get_all(SEC_WEBSOCKET_EXTENSIONS).iter();
    let texts = lists.map(|list| list.to_str().unwrap_or("?"));
    // A comma within quotes would split what is no extension of ours: then its name is not known.
    let each = texts
        .flat_map(|text| text.split(','))
        .map(|extension| extension.trim_matches([' ', '\t']));
    each.filter(|extension| !extension.is_empty())
        .map(|extension| {
            let name = extension.split(';').next().unwrap_or_default();
            (name.trim_matches([' ', '\t']), extension)
        })
}

#[cfg(test)]
mod tests;
