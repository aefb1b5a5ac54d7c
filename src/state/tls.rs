//! TLS to Redis: whom we believe, and who we are.
//!
//! Files are read when the configuration is compiled, so that `--test` finds what is wrong with them. The system's roots are
//! read once, before the first connection, on a thread where nobody waits for it: the client library would read them for each
//! connection, on the thread that asks.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use pingora::tls::{
    ClientConfig, RootCertStore, load_ca_file_into_store, load_certs_and_key_files,
    load_native_certs,
};
use redis::{Client, ClientTlsConfig, ConnectionAddr, RedisResult, TlsCertificates};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use super::topology::refused;
use crate::config::{self, Problems};
use crate::server::threads::aside;

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Not said: when one of the files is named.
    pub enabled: Option<bool>,
    /// PEM: who signs the servers' certificates; not set: the system's roots.
    #[serde(serialize_with = "config::with_content")]
    pub ca: Option<String>,
    /// PEM: our own certificate and its key.
    #[serde(serialize_with = "config::with_content")]
    pub cert: Option<String>,
    #[serde(serialize_with = "config::with_content")]
    pub key: Option<String>,
}

/// The compiled settings.
pub struct Tls {
    /// Without roots where these are the system's.
    own: TlsCertificates,
    ready: OnceCell<Ready>,
}

/// What connections are made with.
struct Ready {
    certificates: TlsCertificates,
    /// Of nobody: with the certificates as they were read.
    address: ConnectionAddr,
}

impl TlsConfig {
    pub fn compile(self, problems: &mut Problems) -> Option<Tls> {
        let Self {
            enabled,
            ca,
            cert,
            key,
        } = self;
        let named = ca.is_some() || cert.is_some() || key.is_some();
        if !enabled.unwrap_or(named) {
            return None;
        }
        // Pingora's choice, made before the first connection asks for one.
        pingora::tls::install_default_crypto_provider();
        let mut roots = RootCertStore::empty();
        let root_cert = ca.and_then(|file| {
            let pem = read("redis.tls.ca", &file, problems)?;
            match load_ca_file_into_store(&file, &mut roots) {
                Ok(()) if !roots.is_empty() => Some(pem),
                _ => {
                    let fault =
                        format!("`{file}` does not hold certificates in PEM, and only these");
                    problems.add("redis.tls.ca", fault);
                    None
                }
            }
        });
        let client_tls = match (cert, key) {
            (None, None) => None,
            (Some(cert), Some(key)) => identity(&cert, &key, roots, problems),
            (Some(_), None) => {
                problems.add("redis.tls.key", "must be set where `cert` is");
                None
            }
            (None, Some(_)) => {
                problems.add("redis.tls.cert", "must be set where `key` is");
                None
            }
        };
        Some(Tls {
            own: TlsCertificates {
                client_tls,
                root_cert,
            },
            ready: OnceCell::new(),
        })
    }
}

// === impl Tls ===

impl Tls {
    /// With roots, whosever they are.
    ///
    /// # Errors
    /// When the system has none that can be read: they are looked for again with the next connection.
    pub async fn certificates(&self) -> RedisResult<&TlsCertificates> {
        Ok(&self.ready().await?.certificates)
    }

    /// To be connected to.
    ///
    /// # Errors
    /// As [`Tls::certificates`].
    pub async fn address(&self, host: String, port: u16) -> RedisResult<ConnectionAddr> {
        let mut address = self.ready().await?.address.clone();
        if let ConnectionAddr::TcpTls {
            host: its_host,
            port: its_port,
            ..
        } = &mut address
        {
            (*its_host, *its_port) = (host, port);
        }
        Ok(address)
    }

    async fn ready(&self) -> RedisResult<&Ready> {
        let read = || async {
            let own = self.own.clone();
            let read = aside(move || Ready::read(own)).await;
            read.unwrap_or_else(|| Err(refused("the process ends")))
        };
        self.ready.get_or_try_init(read).await
    }
}

// === impl Ready ===

impl Ready {
    fn read(own: TlsCertificates) -> RedisResult<Self> {
        let certificates = TlsCertificates {
            root_cert: Some(match own.root_cert {
                Some(roots) => roots,
                None => system_roots()?,
            }),
            ..own
        };
        let nobody = ConnectionAddr::TcpTls {
            host: String::new(),
            port: 0,
            insecure: false,
            tls_params: None,
        };
        let client = Client::build_with_tls(nobody, certificates.clone())?;
        Ok(Self {
            certificates,
            address: client.get_connection_info().addr().clone(),
        })
    }
}

/// Those that can be read, in PEM.
fn system_roots() -> RedisResult<Vec<u8>> {
    let roots = load_native_certs()?;
    let mut pem = String::new();
    for root in roots {
        if RootCertStore::empty().add(root.clone()).is_ok() {
            pem.push_str("-----BEGIN CERTIFICATE-----\n");
            BASE64_STANDARD.encode_string(&root, &mut pem);
            pem.push_str("\n-----END CERTIFICATE-----\n");
        }
    }
    match pem.is_empty() {
        true => Err(refused("the system has no root certificates")),
        false => Ok(pem.into_bytes()),
    }
}

fn identity(
    cert: &str,
    key: &str,
    roots: RootCertStore,
    problems: &mut Problems,
) -> Option<ClientTlsConfig> {
    let client_cert = read("redis.tls.cert", cert, problems);
    let client_key = read("redis.tls.key", key, problems);
    let (client_cert, client_key) = (client_cert?, client_key?);
    let config = ClientConfig::builder().with_root_certificates(roots);
    let fits = match load_certs_and_key_files(cert, key) {
        Ok(Some((certs, key))) => config.with_client_auth_cert(certs, key).is_ok(),
        _ => false,
    };
    if !fits {
        let fault = "`cert` and `key` must be PEM files of a certificate and of the key to it";
        problems.add("redis.tls", fault);
        return None;
    }
    Some(ClientTlsConfig {
        client_cert,
        client_key,
    })
}

fn read(place: &'static str, file: &str, problems: &mut Problems) -> Option<Vec<u8>> {
    config::contents(file)
        .inspect_err(|e| problems.add(place, format!("`{file}` cannot be read: {e}")))
        .ok()
}
