//! One spelling of a path: what is matched is what is forwarded (decision 8).
//!
//! A path that another component could read as a different one (dot segments, encoded slashes, `//`, backslashes,
//! NUL, doubly encoded forms of these) is refused. What is left is brought into normal form as RFC 3986, section
//! 6.2.2, has it: unreserved characters are not encoded, hex digits are upper case.

use std::borrow::Cow;

/// Why a path is refused.
#[derive(Debug, PartialEq, Eq)]
pub struct PathFault(pub &'static str);

/// The path (without query) in its one spelling. Borrowed when it had it already, as nearly all have.
///
/// # Errors
/// On every spelling that is ambiguous between components.
pub fn normalize(path: &str) -> Result<Cow<'_, str>, PathFault> {
    if !path.starts_with('/') {
        return Err(PathFault("the path does not begin with a slash"));
    }
    let (mut encoded, mut dotted) = (false, false);
    let mut previous = 0;
    for b in path.bytes() {
        match b {
            b'/' if previous == b'/' => return Err(PathFault("the path holds an empty segment")),
            b'\\' => return Err(PathFault("the path holds a backslash")),
            b'%' => encoded = true,
            0..=0x20 | 0x7f.. => {
                return Err(PathFault(
                    "the path holds a character that must be percent-encoded",
                ));
            }
            b'.' if previous == b'/' => dotted = true,
            _ => {}
        }
        previous = b;
    }
    let normal = if encoded {
        Cow::Owned(decode_unreserved(path)?)
    } else {
        Cow::Borrowed(path)
    };
    if encoded && is_encoded_twice(&normal) {
        return Err(PathFault("the path is encoded twice"));
    }
    if (encoded || dotted) && normal.split('/').any(is_dot_segment) {
        return Err(PathFault("the path holds a dot segment"));
    }
    Ok(normal)
}

/// `.` and `..`, also with a path parameter behind, as some servers strip `;…` before they resolve dots.
fn is_dot_segment(segment: &str) -> bool {
    matches!(segment.split(';').next(), Some("." | ".."))
}

fn decode_unreserved(path: &str) -> Result<String, PathFault> {
    let bytes = path.as_bytes();
    let mut normal = String::with_capacity(path.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'%' {
            normal.push(char::from(bytes[at]));
            at += 1;
            continue;
        }
        let byte =
            hex_pair(bytes, at + 1).ok_or(PathFault("the path holds a broken percent-encoding"))?;
        match byte {
            b'/' | b'\\' => return Err(PathFault("the path holds an encoded slash")),
            0..=0x1f | 0x7f => {
                return Err(PathFault("the path holds an encoded control character"));
            }
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                normal.push(char::from(byte))
            }
            _ => {
                normal.push('%');
                normal.push(char::from(bytes[at + 1].to_ascii_uppercase()));
                normal.push(char::from(bytes[at + 2].to_ascii_uppercase()));
            }
        }
        at += 3;
    }
    Ok(normal)
}

/// `%25` followed by the digits of a dot, slash, backslash, percent or control: one more decoding would change the path.
/// Asked of the normal form, as the digits may have been encoded themselves: `%25%32%66`.
fn is_encoded_twice(normal: &str) -> bool {
    normal.match_indices("%25").any(|(at, percent)| {
        matches!(
            hex_pair(normal.as_bytes(), at + percent.len()),
            Some(b'.' | b'/' | b'\\' | b'%' | 0..=0x1f | 0x7f)
        )
    })
}

fn hex_pair(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |i: usize| char::from(*bytes.get(i)?).to_digit(16);
    u8::try_from(digit(at)? * 16 + digit(at + 1)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_normal_path_is_not_copied() {
        for path in [
            "/",
            "/api/v1/events",
            "/api/v1/events/",
            "/a/b.json",
            "/a/b..c",
            "/.well-known/x",
        ] {
            let normal = normalize(path).unwrap();
            assert_eq!(normal, path);
        }
        assert!(matches!(
            normalize("/api/v1/events/42"),
            Ok(Cow::Borrowed(_))
        ));
    }

    #[test]
    fn unreserved_characters_are_decoded_and_hex_is_upper_case() {
        assert_eq!(
            normalize("/%61pi/%76%31/caf%c3%a9").unwrap(),
            "/api/v1/caf%C3%A9"
        );
        assert_eq!(normalize("/100%25").unwrap(), "/100%25");
        assert_eq!(normalize("/a%20b").unwrap(), "/a%20b");
    }

    #[test]
    fn ambiguous_spellings_are_refused() {
        for bad in [
            "",
            "a",
            "*",
            "/a//b",
            "//",
            "/a/../b",
            "/..",
            "/.",
            "/a/./b",
            "/a/..",
            "/%2e%2e/b",
            "/a/%2E/b",
            "/.%2e/a",
            "/a/..;x=1/b",
            "/a/.;/b",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/a%00",
            "/a%0a",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a/%252e%252e/b",
            "/a%252fb",
            "/a%255cb",
            "/a%2500",
            "/a%25252f",
            "/a%25%32%66",
            "/a%252%66",
            "/a%25%32e",
            "/a\u{7f}",
            "/a b",
            "/é",
        ] {
            assert!(normalize(bad).is_err(), "{bad:?} gave {:?}", normalize(bad));
        }
    }
}
