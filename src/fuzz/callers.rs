//! Tokens, refresh bodies and API keys' records: nobody is let in who is not who the plain reading says.

use std::sync::LazyLock;
use std::time::Instant;

use futures::FutureExt;
use http::{HeaderMap, HeaderValue};
use jsonwebtoken::{EncodingKey, crypto};
use serde_json::Value;

use super::configuration::compiled;
use crate::admit::auth::AuthRule;
use crate::admit::auth::api_key::Record;
use crate::admit::auth::refresh::token_of;
use crate::policies::Policies;

const SECRET: &str = "a secret of the fuzzer, with more than 32 characters";

static POLICIES: LazyLock<Policies> = LazyLock::new(|| {
    let yaml = format!(
        "environment: production
services: {{ a: {{ url: 'http://127.0.0.1:1' }} }}
routes: [{{ path: /a, service: a, auth: token }}]
auth: {{ jwt: {{ secret: '{SECRET}' }}, failures: {{ max: 1000000 }} }}"
    );
    compiled(&yaml).expect("it is good").into_policies()
});

/// As it stands, a token that nobody has signed lets nobody in. As `HEADER LF CLAIMS`, signed with the secret, it lets
/// in whom its claims name, and only if they are those of an access token of ours.
pub fn token(input: &[u8]) {
    let claims = input
        .iter()
        .position(|b| *b == b'\n')
        .map(|at| (&input[..at], &input[at + 1..]));
    let Some((header, claims)) = claims else {
        let admitted = identified(input);
        assert!(admitted.is_none(), "{admitted:?} without a signature");
        return;
    };
    let signed = format!("{}.{}", base64url(header), base64url(claims));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = crypto::sign(signed.as_bytes(), &key, jsonwebtoken::Algorithm::HS256);
    let Ok(signature) = signature else { return };
    let Some(id) = identified(format!("{signed}.{signature}").as_bytes()) else {
        return;
    };
    // Members that nobody reads may hold what this reader does not take, as `1e999`.
    let read = |json: &[u8]| serde_json::from_slice::<Value>(json).ok();
    let (Some(header), Some(claims)) = (read(header), read(claims)) else {
        return;
    };
    assert_eq!(header["alg"], "HS256");
    assert!(header.get("crit").is_none_or(Value::is_null));
    assert_eq!(
        (&claims["type"], &claims["iss"]),
        (&"access".into(), &"tickettoken-api".into())
    );
    assert!(claims["exp"].as_f64().is_some_and(|exp| exp > 1.7e9));
    let named = claims["sub"].as_str().or(claims["id"].as_str());
    assert_eq!(named, Some(&*id));
    assert!(
        claims["tenant_id"]
            .as_str()
            .is_some_and(|tenant| !tenant.is_empty())
    );
}

/// Who is let in with this token.
fn identified(token: &[u8]) -> Option<Box<str>> {
    let value = HeaderValue::from_bytes(&[b"Bearer ", token].concat()).ok()?;
    let fields = HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]);
    let client = std::net::Ipv4Addr::LOCALHOST.into();
    let verdict = POLICIES
        .auth
        .identify(AuthRule::Token, &fields, client, Instant::now());
    // Boxed, as it is large. Without a key set it waits for nobody.
    let verdict = Box::pin(verdict)
        .now_or_never()
        .expect("nothing to wait for");
    verdict.ok().map(|who| who.caller.id.clone())
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits =
            three.iter().fold(0, |bits, b| bits << 8 | u32::from(*b)) << (8 * (3 - three.len()));
        for digit in 0..=three.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63]));
        }
    }
    text
}

/// The token that is found is the only one that any reader finds.
pub fn refresh_body(input: &[u8]) {
    let plain = serde_json::from_slice::<Value>(input).ok();
    let plain = plain
        .as_ref()
        .and_then(|json| json.get("refreshToken")?.as_str());
    match token_of(input) {
        Ok(token) => assert_eq!(plain, Some(&*token)),
        Err(_) => {
            let twice = input
                .windows(2)
                .filter(|pair| pair == b"ef" || pair == b"\\u")
                .count()
                > 1;
            assert!(plain.is_none() || twice, "a plain body is refused");
        }
    }
}

/// A record that is one says in plain JSON what it was read as, and its fault tells nothing of it.
pub fn api_key(input: &[u8]) {
    let Ok(record) = Record::parse(input) else {
        return;
    };
    // Members that nobody reads may hold what this reader does not take, as `1e999`.
    let Ok(json) = serde_json::from_slice::<Value>(input) else {
        return;
    };
    assert_eq!(json["id"].as_str(), Some(&*record.id));
    assert_eq!(json["tenant_id"].as_str(), Some(&*record.tenant_id));
    assert_eq!(
        json.get("active").is_none_or(|active| *active == true),
        record.active
    );
    let of_json = |name: &str| json[name].as_array().map_or(0, Vec::len);
    assert_eq!(of_json("venues"), record.venues.len());
    assert_eq!(of_json("permissions"), record.permissions.len());
    assert_eq!(
        json.get("expires_at").is_some_and(|at| !at.is_null()),
        record.expires_at.is_some()
    );
    let written = serde_json::to_vec(&record).expect("it can be written");
    assert!(
        Record::parse(&written).is_ok(),
        "what was written can be read"
    );
}
