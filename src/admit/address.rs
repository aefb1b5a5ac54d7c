//! Who is the peer, and whom does it speak for? The client's address (decision 9).

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;

/// Proxies whose `X-Forwarded-For` is believed. Empty: nobody's is.
#[derive(Debug, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// The peer's address or, from a trusted peer, the right-most entry of `X-Forwarded-For` that is not trusted.
    ///
    /// Where that entry is no address the client is nobody known (0.0.0.0): it is not the proxy that stands right of it.
    pub fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if self.0.is_empty() || !self.trusts(peer) {
            return peer;
        }
        let mut client = peer;
        for line in headers.get_all("x-forwarded-for").iter().rev() {
            for entry in line.as_bytes().rsplit(|&b| b == b',') {
                let Some(address) = parse(entry) else {
                    return IpAddr::V4(Ipv4Addr::UNSPECIFIED);
                };
                client = address;
                if !self.trusts(address) {
                    return client;
                }
            }
        }
        client
    }

    pub fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// An address as text: for the backends, and for the log.
pub fn text(address: IpAddr) -> HeaderValue {
    // The longest, `ffff:…:ffff` with an embedded IPv4 address, has 45 characters.
    let mut text = [0; 48];
    let mut left = &mut text[..];
    let written = write!(left, "{address}").map(|()| 48 - left.len());
    let text = written.map_or(&b"-"[..], |len| &text[..len]);
    HeaderValue::from_bytes(text).expect("an address is a header value")
}

fn parse(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim();
    text.parse::<IpAddr>()
        .or_else(|_| {
            text.parse::<std::net::SocketAddr>()
                .map(|with_port| with_port.ip())
        })
        .or_else(|_| {
            let bare = text
                .strip_prefix('[')
                .and_then(|text| text.strip_suffix(']'));
            bare.unwrap_or_default().parse::<Ipv6Addr>().map(IpAddr::V6)
        })
        .ok()
        .map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(trusted: &[&str], peer: &str, forwarded: &[&str]) -> String {
        let trusted = TrustedProxies::new(trusted.iter().map(|n| n.parse().unwrap()).collect());
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        trusted
            .client_address(peer.parse().unwrap(), &headers)
            .to_string()
    }

    #[test]
    fn nobody_is_believed_by_default() {
        assert_eq!(client(&[], "10.0.0.1", &["1.2.3.4"]), "10.0.0.1");
    }

    #[test]
    fn a_trusted_proxy_is_believed_up_to_the_first_stranger() {
        let trusted = &["10.0.0.0/8"];
        assert_eq!(
            client(trusted, "10.0.0.1", &["9.9.9.9, 1.2.3.4"]),
            "1.2.3.4"
        );
        assert_eq!(
            client(trusted, "10.0.0.1", &["9.9.9.9", "1.2.3.4, 10.0.0.2"]),
            "1.2.3.4"
        );
        assert_eq!(client(trusted, "10.0.0.1", &["10.0.0.3"]), "10.0.0.3");
        assert_eq!(
            client(trusted, "10.0.0.1", &["1.2.3.4, nonsense"]),
            "0.0.0.0"
        );
        assert_eq!(
            client(trusted, "10.0.0.1", &["[2001:db8::1]"]),
            "2001:db8::1"
        );
        assert_eq!(client(trusted, "11.0.0.1", &["1.2.3.4"]), "11.0.0.1");
        assert_eq!(
            client(trusted, "10.0.0.1", &["[2001:db8::1]:443"]),
            "2001:db8::1"
        );
        assert_eq!(client(trusted, "::ffff:10.0.0.1", &["1.2.3.4"]), "1.2.3.4");
    }
}
