//! One GET of a small document from a configured URL, through Pingora's own connector.

use std::time::Duration;

use http::{StatusCode, Uri};
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::upstreams::peer::HttpPeer;

use crate::forward::call::{Answer, exchange};

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
        // Without a name Pingora would verify no certificate.
        if authority.host().is_empty() {
            return Err(bad());
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
        let mut peer = HttpPeer::new(address, self.tls, self.host.clone());
        // Until the next time the issuer would have closed it.
        peer.options.idle_timeout = Some(Duration::from_secs(1));
        let failed = |e: Box<pingora::Error>| e.to_string();
        let mut request =
            RequestHeader::build("GET", self.path.as_bytes(), None).map_err(failed)?;
        request
            .insert_header("Host", format!("{}:{}", self.host, self.port))
            .map_err(failed)?;
        match exchange(&self.connector, &peer, request, LARGEST).await {
            Ok(Answer {
                status: StatusCode::OK,
                body,
            }) => Ok(body),
            Ok(Answer { status, .. }) => Err(format!("status {}", status.as_u16())),
            Err(fault) => Err(fault.to_string()),
        }
    }
}
