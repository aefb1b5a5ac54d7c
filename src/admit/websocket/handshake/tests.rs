use super::*;
use crate::admit::websocket::WebSocketConfig;
use crate::config::Problems;

/// The key of RFC 6455, section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn request(changes: &[(&'static str, Option<&str>)]) -> RequestHeader {
    let mut request = RequestHeader::build("GET", b"/ws", None).unwrap();
    for (name, value) in [
        ("upgrade", "websocket"),
        ("connection", "keep-alive, Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", KEY),
    ] {
        request.insert_header(name, value).unwrap();
    }
    for (name, value) in changes {
        request.remove_header(*name);
        if let Some(value) = value {
            request.insert_header(*name, *value).unwrap();
        }
    }
    request
}

fn read(
    request: &RequestHeader,
    protocols: &[&str],
) -> Result<(Handshake, Option<HeaderValue>), Refusal> {
    let config = WebSocketConfig {
        protocols: protocols.iter().map(|p| (*p).to_owned()).collect(),
        ..WebSocketConfig::default()
    };
    Handshake::read(
        request,
        &config.compile("routes[0]", &mut Problems::default()),
    )
}

fn answer(changes: &[(&'static str, Option<&str>)]) -> ResponseHeader {
    let mut answer = ResponseHeader::build(101, None).unwrap();
    answer.set_version(Version::HTTP_11);
    for (name, value) in [
        ("upgrade", "WebSocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    ] {
        answer.insert_header(name, value).unwrap();
    }
    for (name, value) in changes {
        answer.remove_header(*name);
        if let Some(value) = value {
            answer.insert_header(*name, *value).unwrap();
        }
    }
    answer
}

#[test]
fn what_is_not_the_handshake_is_refused() {
    assert!(read(&request(&[]), &[]).is_ok());
    let bad: &[(&'static str, Option<&str>)] = &[
        ("upgrade", Some("h2c")),
        ("upgrade", Some("websocket, h2c")),
        ("upgrade", None),
        ("connection", Some("close")),
        ("connection", None),
        ("sec-websocket-version", None),
        ("sec-websocket-key", None),
        ("sec-websocket-key", Some("AAAA")),
        ("sec-websocket-key", Some("!!!!!!!!!!!!!!!!!!!!!!==")),
        ("sec-websocket-key", Some("dGhlIHNhbXBsZSBub25jZTE=")),
        ("content-length", Some("1")),
        ("transfer-encoding", Some("chunked")),
        ("sec-websocket-protocol", Some("a b")),
        ("sec-websocket-protocol", Some("a,,b")),
        ("sec-websocket-protocol", Some("a, a")),
        ("sec-websocket-protocol", Some("bearer")),
        ("sec-websocket-protocol", Some("bearer, t, bearer, u")),
        ("sec-websocket-protocol", Some("")),
    ];
    for change in bad {
        let outcome = read(&request(&[*change]), &[]);
        assert!(matches!(outcome, Err(Refusal::BadHeader(_))), "{change:?}");
    }
    let version = read(&request(&[("sec-websocket-version", Some("8"))]), &[]);
    assert!(matches!(version, Err(Refusal::WebSocketVersion)));
    let mut post = request(&[]);
    post.set_method(Method::POST);
    assert!(read(&post, &[]).is_err());
    let mut old = request(&[]);
    old.set_version(Version::HTTP_10);
    assert!(read(&old, &[]).is_err());
    let mut twice = request(&[]);
    twice.append_header("sec-websocket-key", KEY).unwrap();
    assert!(read(&twice, &[]).is_err());
}

#[test]
fn a_token_among_the_protocols_becomes_the_authorization_and_goes_no_further() {
    for (offered, token, forwarded) in [
        ("bearer, t.o.k", Some("Bearer t.o.k"), None),
        (
            "chat, bearer, t.o.k, other",
            Some("Bearer t.o.k"),
            Some("chat, other"),
        ),
        ("chat", None, Some("chat")),
    ] {
        let asked = request(&[("sec-websocket-protocol", Some(offered))]);
        let (handshake, authorization) = read(&asked, &[]).unwrap();
        assert_eq!(authorization.as_ref().map(|a| a.to_str().unwrap()), token);
        let mut fields = asked.headers.clone();
        if let Some(authorization) = authorization {
            fields.insert(AUTHORIZATION, authorization);
        }
        handshake.stamp_request(&mut fields);
        let value = fields
            .get(SEC_WEBSOCKET_PROTOCOL)
            .map(|v| v.to_str().unwrap());
        assert_eq!(value, forwarded);
        assert!(!fields.contains_key(AUTHORIZATION), "{offered}");
    }
    let both = request(&[
        ("sec-websocket-protocol", Some("bearer, second")),
        ("authorization", Some("Bearer first")),
    ]);
    let (handshake, authorization) = read(&both, &[]).unwrap();
    assert!(authorization.is_none());
    let mut fields = both.headers.clone();
    handshake.stamp_request(&mut fields);
    assert_eq!(fields[AUTHORIZATION], "Bearer first");
    assert!(!fields.contains_key(SEC_WEBSOCKET_PROTOCOL));
}

#[test]
fn an_answer_agrees_to_what_was_offered_or_is_none() {
    let asked = request(&[
        ("sec-websocket-protocol", Some("chat, bearer, t, superchat")),
        (
            "sec-websocket-extensions",
            Some("x-mux, permessage-deflate; client_max_window_bits"),
        ),
    ]);
    let (handshake, _) = read(&asked, &["superchat"]).unwrap();
    let mut fields = HeaderMap::new();
    handshake.stamp_request(&mut fields);
    assert_eq!(fields[SEC_WEBSOCKET_PROTOCOL], "superchat");
    assert_eq!(
        fields[SEC_WEBSOCKET_EXTENSIONS],
        "permessage-deflate; client_max_window_bits"
    );
    let plain = Ok(Agreed { deflate: false });
    assert_eq!(handshake.check_answer(&answer(&[])), plain);
    let chosen = ("sec-websocket-protocol", Some("superchat"));
    assert_eq!(handshake.check_answer(&answer(&[chosen])), plain);
    let deflate = (
        "sec-websocket-extensions",
        Some("permessage-deflate; server_no_context_takeover"),
    );
    let outcome = handshake.check_answer(&answer(&[deflate]));
    assert_eq!(outcome, Ok(Agreed { deflate: true }));
    for bad in [
        ("upgrade", Some("h2c")),
        ("upgrade", None),
        ("connection", None),
        ("sec-websocket-accept", None),
        ("sec-websocket-accept", Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOp=")),
        ("sec-websocket-protocol", Some("chat")),
        ("sec-websocket-protocol", Some("SuperChat")),
        ("sec-websocket-protocol", Some("bearer")),
        ("sec-websocket-protocol", Some("t")),
        ("sec-websocket-extensions", Some("x-mux")),
        (
            "sec-websocket-extensions",
            Some("permessage-deflate, permessage-deflate"),
        ),
    ] {
        assert!(handshake.check_answer(&answer(&[bad])).is_err(), "{bad:?}");
    }
    let (modest, _) = read(&request(&[]), &[]).unwrap();
    assert!(modest.check_answer(&answer(&[deflate])).is_err());
}

#[test]
fn bearer_is_answered_where_nothing_else_is_agreed_on() {
    let asked = request(&[("sec-websocket-protocol", Some("bearer, t, chat"))]);
    let (handshake, _) = read(&asked, &[]).unwrap();
    let mut fields = HeaderMap::new();
    handshake.stamp_answer(&mut fields);
    assert_eq!(fields[SEC_WEBSOCKET_PROTOCOL], "bearer");
    fields.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("chat"));
    handshake.stamp_answer(&mut fields);
    assert_eq!(fields[SEC_WEBSOCKET_PROTOCOL], "chat");
    assert_eq!(fields[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}
