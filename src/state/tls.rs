//! TLS to Redis: whom we believe, and who we are.
//!
//! Files are read when the configuration is compiled, so that `--test` finds what is wrong with them.

use pingora::tls::{
    ClientConfig, RootCertStore, load_ca_file_into_store, load_certs_and_key_files,
};
use redis::{ClientTlsConfig, TlsCertificates};
use serde::{Deserialize, Serialize};

use crate::config::{self, Problems};

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

impl TlsConfig {
    pub fn compile(self, problems: &mut Problems) -> Option<TlsCertificates> {
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
        Some(TlsCertificates {
            client_tls,
            root_cert,
        })
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
