//! The PROXY protocol, versions 1 and 2: what a proxy that passes bytes on says of its client, before the first byte of
//! it (HAProxy, doc/proxy-protocol.txt).
//!
//! Our own, because it is small and must be exact (docs/decisions/0015). What a sender may leave open is not guessed:
//! without an address of the client the connection has none, and is never taken for the proxy's own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What the bytes so far come to.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    Partial,
    Complete {
        /// Bytes of the header.
        len: usize,
        /// The client; `None`: the proxy speaks for itself (LOCAL), or does not know.
        client: Option<SocketAddr>,
    },
}

/// Why the connection is closed.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault(pub &'static str);

/// The longest line of version 1, with its CR LF (section 2.1).
const MOST_V1: usize = 107;

/// The longest rest of version 2 that is waited for: addresses, and a few TLVs, which are not looked at.
const MOST_V2: usize = 4096;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const HEAD_V2: usize = 16;

/// Reads a header as it grows; call it with the whole buffer each time bytes were added.
///
/// # Errors
/// As soon as the bytes cannot become a header: what is buffered is bounded by that.
pub fn read(buf: &[u8]) -> Result<Progress, Fault> {
    if begins_alike(buf, SIGNATURE) {
        read_v2(buf)
    } else if begins_alike(buf, b"PROXY ") {
        read_v1(buf)
    } else {
        Err(Fault("there is no PROXY header"))
    }
}

fn begins_alike(buf: &[u8], with: &[u8]) -> bool {
    let len = buf.len().min(with.len());
    buf[..len] == with[..len]
}

/// `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443`
fn read_v1(buf: &[u8]) -> Result<Progress, Fault> {
    let line = &buf[..buf.len().min(MOST_V1)];
    let Some(end) = memchr::memchr(b'\n', line) else {
        return match line.len() {
            MOST_V1.. => Err(Fault("the header has no end")),
            _ => Ok(Progress::Partial),
        };
    };
    let fault = Fault("the header is malformed");
    let Some(line) = line[..end].strip_suffix(b"\r") else {
        return Err(fault);
    };
    let Ok(line) = std::str::from_utf8(line) else {
        return Err(fault);
    };
    let mut fields = line.split(' ').skip(1);
    let client = match fields.next() {
        // Whatever follows is to be ignored.
        Some("UNKNOWN") => None,
        Some(family @ ("TCP4" | "TCP6")) => {
            let mut address = || match family {
                "TCP4" => fields.next()?.parse().map(IpAddr::V4).ok(),
                _ => fields.next()?.parse().map(IpAddr::V6).ok(),
            };
            let (source, destination) = (address(), address());
            let mut port = || port(fields.next()?);
            let (source_port, destination_port) = (port(), port());
            match (source, destination, source_port, destination_port) {
                (Some(source), Some(_), Some(port), Some(_)) if fields.next().is_none() => {
                    Some(SocketAddr::new(source, port))
                }
                _ => return Err(fault),
            }
        }
        _ => return Err(fault),
    };
    Ok(Progress::Complete {
        len: end + 1,
        client,
    })
}

/// Decimal, without a sign or leading zeros.
fn port(text: &str) -> Option<u16> {
    let is_plain =
        text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

fn read_v2(buf: &[u8]) -> Result<Progress, Fault> {
    let Some((head, rest)) = buf.split_first_chunk::<HEAD_V2>() else {
        return Ok(Progress::Partial);
    };
    let (command, family) = (head[12], head[13]);
    let len = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if len > MOST_V2 {
        return Err(Fault("the header is too long"));
    }
    // The version is the upper half, 2, and the command the lower.
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Fault("the version or the command is unknown")),
    };
    // Family and transport: only streams come in here.
    let least = match family {
        0x00 => 0,
        0x11 => 12,
        0x21 => 36,
        0x31 => 216,
        _ if is_local => 0,
        _ => return Err(Fault("the address family or the transport is unknown")),
    };
    if !is_local && len < least {
        return Err(Fault("the header is too short for its addresses"));
    }
    let Some(addresses) = rest.get(..len) else {
        return Ok(Progress::Partial);
    };
    let client = match family {
        _ if is_local => None,
        0x11 => v4(addresses),
        0x21 => v6(addresses),
        _ => None,
    };
    Ok(Progress::Complete {
        len: HEAD_V2 + len,
        client,
    })
}

/// Source, destination, and their ports.
fn v4(addresses: &[u8]) -> Option<SocketAddr> {
    let (source, rest) = addresses.split_first_chunk::<4>()?;
    let port = rest.get(4..6)?;
    let port = u16::from_be_bytes([port[0], port[1]]);
    Some(SocketAddr::new(Ipv4Addr::from(*source).into(), port))
}

fn v6(addresses: &[u8]) -> Option<SocketAddr> {
    let (source, rest) = addresses.split_first_chunk::<16>()?;
    let port = rest.get(16..18)?;
    let port = u16::from_be_bytes([port[0], port[1]]);
    Some(SocketAddr::new(Ipv6Addr::from(*source).into(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, len: usize, body: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend((len as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    /// The client of a header that must be whole at exactly its last byte, and a fault or nothing before.
    fn client(header: &[u8]) -> Result<Option<String>, Fault> {
        for len in 0..header.len() {
            match read(&header[..len]) {
                Ok(Progress::Partial) => {}
                Ok(complete) => panic!("{complete:?} after {len} bytes"),
                Err(fault) => return Err(fault),
            }
        }
        let with_more = [header, b"GET / HTTP/1.1\r\n"].concat();
        match read(&with_more)? {
            Progress::Complete { len, client } => {
                assert_eq!(len, header.len());
                Ok(client.map(|client| client.to_string()))
            }
            Progress::Partial => panic!("{header:?} is not whole"),
        }
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 192, 0, 2, 2, 0xdc, 0x04, 1, 187];

    #[test]
    fn what_the_document_has_is_read() {
        let v6: Vec<u8> = [[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]; 2]
            .concat()
            .into_iter()
            .chain([0xdc, 0x04, 1, 187])
            .collect();
        let with_tlvs = [&V4[..], &[3, 0, 4, 1, 2, 3, 4, 4, 0, 1, 0]].concat();
        for (header, expected) in [
            (
                b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n".to_vec(),
                Some("192.0.2.1:56324"),
            ),
            (
                b"PROXY TCP6 2001:db8::1 ::1 0 65535\r\n".to_vec(),
                Some("[2001:db8::1]:0"),
            ),
            (
                b"PROXY TCP6 ::ffff:1.2.3.4 ::1 1 2\r\n".to_vec(),
                Some("[::ffff:1.2.3.4]:1"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (
                b"PROXY UNKNOWN ffff:f...f:ffff whatever 65535\r\n".to_vec(),
                None,
            ),
            (v2(0x21, 0x11, 12, &V4), Some("192.0.2.1:56324")),
            (v2(0x21, 0x21, 36, &v6), Some("[2001:db8::1]:56324")),
            (
                v2(0x21, 0x11, with_tlvs.len(), &with_tlvs),
                Some("192.0.2.1:56324"),
            ),
            (v2(0x21, 0x31, 216, &[b'x'; 216]), None),
            (v2(0x21, 0x00, 0, &[]), None),
            (v2(0x20, 0x00, 0, &[]), None),
            // The proxy itself: what stands there is not looked at.
            (v2(0x20, 0x11, 12, &V4), None),
            (v2(0x20, 0xff, 3, &[1, 2, 3]), None),
        ] {
            let found = client(&header);
            assert_eq!(
                found,
                Ok(expected.map(str::to_owned)),
                "{:?}",
                header.escape_ascii().to_string()
            );
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let endless = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MOST_V1));
        for text in [
            "GET / HTTP/1.1\r\n",
            "proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n",
            " PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n",
            "PROXY  TCP4 1.1.1.1 1.1.1.1 1 1\r\n",
            "PROXY TCP4  1.1.1.1 1.1.1.1 1 1\r\n",
            "PROXY TCP4 1.1.1.1 1.1.1.1 1 1 \r\n",
            "PROXY TCP4 1.1.1.1 1.1.1.1 1 1 1\r\n",
            "PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n",
            "PROXY TCP4 1.1.1.1 1.1.1.1 1 1\n",
            "PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\r\n",
            "PROXY TCP4 01.1.1.1 1.1.1.1 1 1\r\n",
            "PROXY TCP4 1.1.1.1 nowhere 1 1\r\n",
            "PROXY TCP4 1.1.1 1.1.1.1 1 1\r\n",
            "PROXY TCP4 ::1 ::1 1 1\r\n",
            "PROXY TCP6 1.1.1.1 1.1.1.1 1 1\r\n",
            "PROXY TCP6 fe80::1%eth0 ::1 1 1\r\n",
            "PROXY TCP4 1.1.1.1 1.1.1.1 65536 1\r\n",
            "PROXY TCP4 1.1.1.1 1.1.1.1 -1 1\r\n",
            "PROXY TCP4 1.1.1.1 1.1.1.1 +1 1\r\n",
            "PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n",
            "PROXY TCP4 1.1.1.1 1.1.1.1 1 1\0\r\n",
            "PROXY UDP4 1.1.1.1 1.1.1.1 1 1\r\n",
            "PROXY TCP5 1.1.1.1 1.1.1.1 1 1\r\n",
            "PROXY unknown\r\n",
            "PROXY\r\n",
            "PROXY \r\n",
            &endless,
        ] {
            assert!(client(text.as_bytes()).is_err(), "{text:?}");
        }
        let mut near_signature = v2(0x21, 0x11, 12, &V4);
        near_signature[11] = b'\r';
        for header in [
            v2(0x11, 0x11, 12, &V4),
            v2(0x31, 0x11, 12, &V4),
            v2(0x22, 0x11, 12, &V4),
            v2(0x2f, 0x11, 12, &V4),
            v2(0x21, 0x12, 12, &V4),
            v2(0x21, 0x10, 12, &V4),
            v2(0x21, 0x41, 12, &V4),
            v2(0x21, 0x01, 12, &V4),
            v2(0x21, 0x11, 11, &V4[..11]),
            v2(0x21, 0x21, 35, &[0; 35]),
            v2(0x21, 0x31, 215, &[0; 215]),
            v2(0x21, 0x11, MOST_V2 + 1, &V4),
            v2(0x20, 0x00, 0xffff, &[]),
            near_signature,
        ] {
            assert!(
                client(&header).is_err(),
                "{:?}",
                header.escape_ascii().to_string()
            );
        }
    }

    #[test]
    fn what_is_waited_for_is_bounded() {
        for begin in [&b"PROXY UNKNOWN "[..], b"PROXY TCP4 1.1.1.1 "] {
            let endless = [begin, &[b'1'; 200][..]].concat();
            assert!(read(&endless).is_err());
        }
        let longest = v2(0x21, 0x11, MOST_V2, &vec![1; MOST_V2]);
        assert_eq!(read(&longest[..longest.len() - 1]), Ok(Progress::Partial));
        assert!(matches!(read(&longest), Ok(Progress::Complete { .. })));
    }
}
