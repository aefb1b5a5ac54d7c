//! Whose certificate a client has shown: its subject as the text of RFC 4514, in a form that can stand in a header field
//! whatever is in it.
//!
//! All but visible ASCII is written as `\XX`, byte by byte of its UTF-8, so that nothing in a certificate can end the
//! field, begin another or look like a separator. What cannot be written in full is not written at all: half a name could
//! be another's.

use std::fmt::Write;

use http::HeaderValue;
use x509_parser::der_parser::asn1_rs::{Any, Oid, Tag};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Longer subjects are no names.
const MOST: usize = 1024;

/// The short names of RFC 4514, section 3; other types are told by their number.
const TYPES: [(&[u64], &str); 9] = [
    (&[2, 5, 4, 3], "CN"),
    (&[2, 5, 4, 7], "L"),
    (&[2, 5, 4, 8], "ST"),
    (&[2, 5, 4, 10], "O"),
    (&[2, 5, 4, 11], "OU"),
    (&[2, 5, 4, 6], "C"),
    (&[2, 5, 4, 9], "STREET"),
    (&[0, 9, 2342, 19200300, 100, 1, 25], "DC"),
    (&[0, 9, 2342, 19200300, 100, 1, 1], "UID"),
];

/// The subject of a certificate in DER; empty when it has none.
///
/// # Errors
/// When it cannot be told in full.
pub fn subject(der: &[u8]) -> Result<HeaderValue, &'static str> {
    const UNREADABLE: &str = "the subject of the client's certificate cannot be read";
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| UNREADABLE)?;
    let mut text = String::new();
    // The last comes first (section 2.1).
    let names: Vec<_> = certificate.subject().iter_rdn().collect();
    for (i, name) in names.into_iter().rev().enumerate() {
        for (j, attribute) in name.iter().enumerate() {
            match (i, j) {
                (_, 1..) => text.push('+'),
                (1.., _) => text.push(','),
                _ => {}
            }
            push_type(&mut text, attribute.attr_type());
            text.push('=');
            push_value(&mut text, attribute.attr_value()).ok_or(UNREADABLE)?;
            if text.len() > MOST {
                return Err("the subject of the client's certificate is too long");
            }
        }
    }
    HeaderValue::try_from(text).map_err(|_| UNREADABLE)
}

fn push_type(text: &mut String, kind: &Oid<'_>) {
    let short = kind.iter().and_then(|numbers| {
        let numbers: Vec<u64> = numbers.collect();
        TYPES.iter().find(|(of, _)| *of == numbers)
    });
    match short {
        Some((_, name)) => text.push_str(name),
        None => text.push_str(&kind.to_id_string()),
    }
}

fn push_value(text: &mut String, value: &Any<'_>) -> Option<()> {
    let decoded = match value.tag() {
        Tag::Utf8String => std::str::from_utf8(value.data).ok()?.to_owned(),
        Tag::PrintableString | Tag::Ia5String | Tag::VisibleString | Tag::NumericString => {
            let is_ascii = value.data.is_ascii();
            is_ascii.then(|| value.data.iter().map(|&b| char::from(b)).collect())?
        }
        Tag::BmpString if value.data.len().is_multiple_of(2) => {
            let units = value.data.chunks_exact(2);
            let units: Vec<u16> = units.map(|u| u16::from_be_bytes([u[0], u[1]])).collect();
            String::from_utf16(&units).ok()?
        }
        _ => return push_encoded(text, value),
    };
    push_escaped(text, &decoded);
    Some(())
}

/// Section 2.4: what has no form as a text is told as it is encoded.
fn push_encoded(text: &mut String, value: &Any<'_>) -> Option<()> {
    let len = value.data.len();
    // The short form of a tag and a length is all that names need.
    let tag = u8::try_from(value.tag().0).ok().filter(|tag| *tag < 31)?;
    let len = u8::try_from(len).ok().filter(|len| *len < 128)?;
    text.push('#');
    for byte in [tag, len].iter().chain(value.data) {
        let _ = write!(text, "{byte:02x}");
    }
    Some(())
}

fn push_escaped(text: &mut String, value: &str) {
    let last = value.len().saturating_sub(1);
    for (i, byte) in value.bytes().enumerate() {
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b'#' | b' ' if i == 0 => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b' ' if i == last => text.push_str("\\ "),
            0x20..=0x7e => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "\\{byte:02X}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(value: &str) -> String {
        let mut text = String::new();
        push_escaped(&mut text, value);
        text
    }

    /// Of RFC 4514, section 4, and what would harm a header field.
    #[test]
    fn nothing_in_a_value_looks_like_a_separator_or_the_end_of_a_field() {
        for (value, text) in [
            ("Steve Kille", "Steve Kille"),
            ("James \"Jim\" Smith, III", r#"James \"Jim\" Smith\, III"#),
            ("Before\rAfter", r"Before\0DAfter"),
            ("a\r\nX-Tenant-ID: t2", r"a\0D\0AX-Tenant-ID: t2"),
            ("Lučić", r"Lu\C4\8Di\C4\87"),
            (" both ends ", r"\ both ends\ "),
            (" ", r"\ "),
            ("#hash #inside", r"\#hash #inside"),
            ("nul\0", r"nul\00"),
            (r"a\,b=c+d;e<f>", r"a\\\,b=c\+d\;e\<f\>"),
            ("\u{7f}\u{85}", r"\7F\C2\85"),
            ("", ""),
        ] {
            assert_eq!(escaped(value), text, "{value:?}");
            assert!(HeaderValue::try_from(escaped(value)).is_ok());
        }
    }

    #[test]
    fn noise_is_no_certificate() {
        for noise in [&b""[..], b"\x30", b"\x30\x82\xff\xff", &[0; 64]] {
            assert!(subject(noise).is_err());
        }
    }
}
