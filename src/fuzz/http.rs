//! Paths, heads and chunked bodies: what is let through has one reading, and a reader of another house has the same.

use percent_encoding::percent_decode_str;

use crate::admit::chunks::ChunkReader;
use crate::admit::head::{Head, HeadReader, Progress};
use crate::admit::path::normalize;
use crate::admit::size::HeadLimits;

/// The defaults.
const LIMITS: HeadLimits = HeadLimits {
    head: 32 << 10,
    target: 8 << 10,
    fields: 100,
};

/// A path that is let through stays as it is when it is read again, and decoding it, even twice, moves no segment.
pub fn path(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let Ok(normal) = normalize(text) else {
        return;
    };
    assert_eq!(normalize(&normal).as_deref(), Ok(&*normal), "read again");
    let once = percent_decode_str(&normal).decode_utf8_lossy();
    let twice = percent_decode_str(&once).decode_utf8_lossy();
    for reading in [&*normal, &*once, &*twice] {
        assert!(reading.starts_with('/'), "{reading:?}");
        assert!(!reading.contains(['\\', '\0']), "{reading:?}");
        let segments = || reading.split('/');
        assert_eq!(segments().count(), normal.split('/').count(), "{reading:?}");
        let is_dots = |segment: &str| matches!(segment, "." | "..");
        assert!(!segments().any(is_dots), "{reading:?}");
    }
}

/// However the bytes arrive the verdict is the same, and httparse reads the same in a head that is let through.
pub fn head(input: &[u8]) {
    let whole = read_head([input.len()], input);
    let bytewise = read_head(1..=input.len().min(1024), &input[..input.len().min(1024)]);
    let split = input
        .first()
        .map_or(0, |b| usize::from(*b))
        .min(input.len());
    assert_eq!(
        read_head([split, input.len()], input),
        whole,
        "split at {split}"
    );
    if input.len() <= 1024 {
        assert_eq!(bytewise, whole, "byte by byte");
    }
    if let Some(head) = whole {
        read_alike(&input[..head.len], &head);
    }
}

/// The head as it was read when the buffer had grown to each of `ends`. `None`: refused, or not complete.
fn read_head(ends: impl IntoIterator<Item = usize>, input: &[u8]) -> Option<Head> {
    let mut reader = HeadReader::default();
    for end in ends {
        match reader.read(&input[..end], &LIMITS) {
            Ok(Progress::Partial) => {}
            Ok(Progress::Complete(head)) => return Some(head),
            Err(_) => return None,
        }
    }
    None
}

fn read_alike(bytes: &[u8], head: &Head) {
    let mut fields = [httparse::EMPTY_HEADER; 101];
    let mut theirs = httparse::Request::new(&mut fields);
    let status = theirs.parse(bytes);
    assert_eq!(status, Ok(httparse::Status::Complete(head.len)));

    let text = &bytes[..bytes.len() - b"\r\n\r\n".len()];
    let mut lines = text
        .split(|b| *b == b'\n')
        .map(|line| line.trim_ascii_end());
    let first = lines.next().unwrap_or_default();
    let target = first.split(|b| *b == b' ').nth(1).unwrap_or_default();
    assert_eq!(theirs.path.map(str::as_bytes), Some(target));
    let mut chunked = false;
    let (mut hosts, mut lengths) = (0, 0);
    for (line, field) in lines.by_ref().zip(theirs.headers.iter()) {
        let colon = line.iter().position(|b| *b == b':').unwrap_or_default();
        assert_eq!(field.name.as_bytes(), &line[..colon]);
        assert_eq!(field.value.trim_ascii(), line[colon + 1..].trim_ascii());
        hosts += usize::from(field.name.eq_ignore_ascii_case("host"));
        lengths += usize::from(field.name.eq_ignore_ascii_case("content-length"));
        chunked |= field.name.eq_ignore_ascii_case("transfer-encoding");
    }
    assert!(lines.next().is_none(), "httparse has read fewer fields");
    assert_eq!(head.chunked, chunked);
    assert!(hosts <= 1 && lengths + usize::from(chunked) <= 1);
    let path = match &head.cut {
        Some(cut) => &bytes[cut.end..],
        None => target,
    };
    assert!(path.starts_with(b"/") || path == b"*", "not a path");
}

/// However the bytes arrive the verdict is the same; what is let through httparse reads to the same end; and the input
/// itself, framed as it should be, is let through.
pub fn chunks(input: &[u8]) {
    let whole = read_body([input]);
    assert_eq!(read_body(input.chunks(1)), whole, "byte by byte");
    let size = usize::from(*input.first().unwrap_or(&1)).max(1);
    assert_eq!(read_body(input.chunks(size)), whole, "in pieces of {size}");
    if whole == Some(true) {
        assert!(ends(input), "httparse does not find the end");
    }
    let mut framed = Vec::new();
    for piece in input.chunks(size) {
        framed.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        framed.extend_from_slice(piece);
        framed.extend_from_slice(b"\r\n");
    }
    framed.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(
        read_body([&framed[..]]),
        Some(true),
        "framed as it should be"
    );
}

/// Whether the body is whole. `None`: it is refused.
fn read_body<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<bool> {
    let mut reader = ChunkReader::default();
    for piece in pieces {
        reader.read(piece).ok()?;
    }
    Some(reader.is_at_end())
}

fn ends(mut body: &[u8]) -> bool {
    loop {
        let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(body) else {
            return false;
        };
        body = &body[line..];
        if size == 0 {
            let mut trailers = [httparse::EMPTY_HEADER; 4096];
            return matches!(
                httparse::parse_headers(body, &mut trailers),
                Ok(httparse::Status::Complete(_))
            );
        }
        let Some(rest) = body
            .get(size as usize..)
            .and_then(|b| b.strip_prefix(b"\r\n"))
        else {
            return false;
        };
        body = rest;
    }
}
