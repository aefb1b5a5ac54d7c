//! One GET of a small document from a configured URL, through Pingora's own connector.

use std::time::Duration;

use http::Uri;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::upstreams::peer::HttpPeer;

/// All of it: name, connection, answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// A key set is a few KiB.
const LARGEST: usize = 256 << 10;

pub struct Fetch {
    host: String,
    port: u16,
    tls: bool,
    path: String,
    connector: Connector,
}

impl Fetch {
    /// # Errors
    /// When `url` is not an http or https URL with a host.
    pub fn new(url: &str) -> Result<Self, String> {
        let bad = || "is not an http or https URL".to_owned();
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad()),
        };
        let authority = uri.authority().ok_or_else(bad)?;
        if authority.as_str().contains('@') {
            return Err("credentials do not belong in a URL".to_owned());
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let path = uri
            .path_and_query()
            .map_or_else(|| "/".to_owned(), ToString::to_string);
        Ok(Self {
            host,
            port,
            tls,
            path,
            connector: Connector::new(None),
        })
    }

    /// The body of a 200.
    pub async fn get(&self) -> Result<Vec<u8>, String> {
        match tokio::time::timeout(DEADLINE, self.exchange()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer within {DEADLINE:?}")),
        }
    }

    async fn exchange(&self) -> Result<Vec<u8>, String> {
        let address = tokio::net::lookup_host((self.host.as_str(), self.port))
            .await
            .map_err(|e| format!("{}: {e}", self.host))?
            .next()
            .ok_or_else(|| format!("{} has no address", self.host))?;
        let peer = HttpPeer::new(address, self.tls, self.host.clone());
        let failed = |e: Box<pingora::Error>| e.to_string();
        let (mut session, _) = self
            .connector
            .get_http_session(&peer)
            .await
            .map_err(failed)?;
        let mut request =
            RequestHeader::build("GET", self.path.as_bytes(), None).map_err(failed)?;
        request
            .insert_header("Host", format!("{}:{}", self.host, self.port))
            .map_err(failed)?;
        request
            .insert_header("Accept", "application/json")
            .map_err(failed)?;
        session
            .write_request_header(Box::new(request))
            .await
            .map_err(failed)?;
        session.finish_request_body().await.map_err(failed)?;
        session.read_response_header().await.map_err(failed)?;
        match session.response_header().map(|head| head.status.as_u16()) {
            Some(200) => {}
            status => return Err(format!("status {}", status.unwrap_or_default())),
        }
        let mut body = Vec::new();
        while let Some(chunk) = session.read_response_body().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > LARGEST {
                return Err(format!("larger than {LARGEST} bytes"));
            }
        }
        Ok(body)
    }
}
