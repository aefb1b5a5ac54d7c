//! One id per request: the client's, where it is well-formed, or ours (decision 11).

use http::{HeaderMap, HeaderName, HeaderValue};

/// The header that carries it, in both directions.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const LONGEST: usize = 128;

/// The id of this request. A malformed one, or several, are replaced.
pub fn take(headers: &HeaderMap) -> HeaderValue {
    let mut given = headers.get_all(X_REQUEST_ID).iter();
    match (given.next(), given.next()) {
        (Some(id), None) if is_well_formed(id.as_bytes()) => id.clone(),
        _ => generate(),
    }
}

/// `req_` and 125 random bits.
pub fn generate() -> HeaderValue {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut id = *b"req_0000000000000000000000000";
    let mut random = fastrand::u128(..);
    for place in &mut id[4..] {
        *place = ALPHABET[(random & 31) as usize];
        random >>= 5;
    }
    HeaderValue::from_bytes(&id).expect("letters and digits are a header value")
}

fn is_well_formed(id: &[u8]) -> bool {
    (1..=LONGEST).contains(&id.len())
        && id
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(ids: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for id in ids {
            headers.append("x-request-id", HeaderValue::from_str(id).unwrap());
        }
        take(&headers).to_str().unwrap().to_owned()
    }

    #[test]
    fn a_well_formed_id_is_kept_and_others_are_replaced() {
        assert_eq!(taken(&["abc.DEF_1-2"]), "abc.DEF_1-2");
        let longest = "x".repeat(LONGEST);
        assert_eq!(taken(&[&longest]), longest);
        for bad in [
            &[][..],
            &[""],
            &["a b"],
            &["a\"b"],
            &["é"],
            &["a", "b"],
            &[&"x".repeat(LONGEST + 1)],
        ] {
            let id = taken(bad);
            assert!(
                id.starts_with("req_") && id.len() == 29,
                "{bad:?} gave {id}"
            );
        }
    }

    #[test]
    fn generated_ids_differ() {
        assert_ne!(generate(), generate());
    }
}
