//! The files of the page: Swagger UI's, as build.rs has taken them out of their archive, and ours.

use std::io::Read;
use std::sync::LazyLock;

use bytes::Bytes;
use flate2::read::GzDecoder;
use http::header::ACCEPT_ENCODING;
use http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};

/// A file that does not change while the program runs.
pub struct Asset {
    pub name: &'static str,
    pub content_type: &'static str,
    content: Content,
}

enum Content {
    Plain(&'static str),
    /// And what is in it, for who cannot unpack it.
    Gzip(&'static [u8], LazyLock<Bytes>),
}

/// A file, as it is sent.
pub struct Sent {
    pub body: Bytes,
    pub etag: HeaderValue,
    pub is_gzip: bool,
    /// There is another coding of it.
    pub varies: bool,
}

pub const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

pub const PAGE: &str = include_str!("page/index.html");

macro_rules! packed {
    ($name:literal, $kind:expr) => {{
        const PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".gz"));
        Asset {
            name: $name,
            content_type: $kind,
            content: Content::Gzip(PACKED, LazyLock::new(|| unpacked(PACKED))),
        }
    }};
}

/// Below /documentation/static/.
static ASSETS: [Asset; 7] = [
    packed!("swagger-ui-bundle.js", SCRIPT),
    packed!("swagger-ui.css", STYLE),
    packed!("favicon-32x32.png", "image/png"),
    packed!("LICENSE", TEXT),
    packed!("NOTICE", TEXT),
    Asset {
        name: "page.js",
        content_type: SCRIPT,
        content: Content::Plain(include_str!("page/page.js")),
    },
    Asset {
        name: "page.css",
        content_type: STYLE,
        content: Content::Plain(include_str!("page/page.css")),
    },
];

fn unpacked(gzip: &[u8]) -> Bytes {
    let mut content = Vec::new();
    let read = GzDecoder::new(gzip).read_to_end(&mut content);
    read.expect("it was packed by the build");
    content.into()
}

/// Strong: the same octets, and no others.
pub fn etag_of(content: &[u8]) -> HeaderValue {
    let digest = Sha256::digest(content);
    let mut tag = String::with_capacity(34);
    tag.push('"');
    for byte in &digest[..16] {
        tag.push_str(&format!("{byte:02x}"));
    }
    tag.push('"');
    HeaderValue::try_from(tag).expect("hexadecimal digits are a header value")
}

// === impl Asset ===

impl Asset {
    pub fn named(name: &str) -> Option<&'static Self> {
        ASSETS.iter().find(|asset| asset.name == name)
    }

    /// As this client takes it.
    pub fn send(&self, fields: &HeaderMap) -> Sent {
        let (body, is_gzip) = match &self.content {
            Content::Plain(text) => (Bytes::from_static(text.as_bytes()), false),
            Content::Gzip(gzip, _) if takes_gzip(fields) => (Bytes::from_static(gzip), true),
            Content::Gzip(_, content) => (Bytes::clone(content), false),
        };
        Sent {
            etag: self.etag(is_gzip),
            body,
            is_gzip,
            varies: matches!(self.content, Content::Gzip(..)),
        }
    }

    /// Of a packed file by what gzip ends with: its checksum and its length.
    fn etag(&self, is_gzip: bool) -> HeaderValue {
        let gzip = match &self.content {
            Content::Plain(text) => return etag_of(text.as_bytes()),
            Content::Gzip(gzip, _) => gzip,
        };
        let end = &gzip[gzip.len().saturating_sub(8)..];
        let digits: String = end.iter().map(|byte| format!("{byte:02x}")).collect();
        let coding = if is_gzip { "-gzip" } else { "" };
        let tag = format!("\"{digits}{coding}\"");
        HeaderValue::try_from(tag).expect("hexadecimal digits are a header value")
    }
}

/// `Accept-Encoding` names gzip, and not as what is not wanted (RFC 9110, section 12.5.3).
fn takes_gzip(fields: &HeaderMap) -> bool {
    let lines = fields.get_all(ACCEPT_ENCODING).iter();
    let lines = lines.filter_map(|line| line.to_str().ok());
    let mut codings = lines.flat_map(|line| line.split(','));
    codings.any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().strip_prefix("q=").unwrap_or("1");
        let is_wanted = weight.parse::<f32>().is_ok_and(|weight| weight > 0.0);
        name.trim().eq_ignore_ascii_case("gzip") && is_wanted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(name: &str, accepts: &str) -> Sent {
        let mut fields = HeaderMap::new();
        fields.insert(ACCEPT_ENCODING, accepts.parse().unwrap());
        Asset::named(name).unwrap().send(&fields)
    }

    #[test]
    fn every_file_can_be_had_packed_and_as_it_is() {
        for asset in &ASSETS {
            let plain = sent(asset.name, "br, gzip;q=0");
            assert!(!plain.is_gzip && !plain.body.is_empty(), "{}", asset.name);
            let packed = sent(asset.name, "br;q=1, GZIP;q=0.5");
            assert_eq!(packed.is_gzip, packed.varies);
            if packed.is_gzip {
                assert_eq!(unpacked(&packed.body), plain.body, "{}", asset.name);
                assert_ne!(packed.etag, plain.etag);
            }
        }
        let bundle = sent("swagger-ui-bundle.js", "identity").body;
        assert!(bundle.len() > 1_000_000 && bundle.starts_with(b"/*!"));
        assert!(Asset::named("../build.rs").is_none());
    }

    #[test]
    fn the_page_runs_no_script_of_its_own() {
        for script in PAGE.split("<script").skip(1) {
            assert!(
                script.starts_with(" src=") && script.contains("></script>"),
                "{script}"
            );
        }
        assert!(!PAGE.contains("style=") && !PAGE.contains("onload"));
    }
}
