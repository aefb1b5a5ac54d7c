//! TLS to a service's instances: whom we believe, under which name, and who we are.
//!
//! Files are read when the configuration is compiled, so that `--test` finds what is wrong with them. An `https`
//! instance is always verified: Pingora would verify nothing for a peer without a name, so none is made without one.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use pingora::tls::{
    CertificateDer, ClientConfig, PrivateKeyDer, RootCertStore, ServerName,
    load_ca_file_into_store, load_certs_and_key_files,
};
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::{self, Problems};

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// PEM: who signs the instances' certificates; not set: the system's roots.
    #[serde(serialize_with = "config::with_content")]
    pub ca: Option<String>,
    /// What their certificates must be for, and what is sent as SNI; not set: each instance's host.
    pub name: Option<String>,
    /// PEM: our own certificate and its key.
    #[serde(serialize_with = "config::with_content")]
    pub cert: Option<String>,
    #[serde(serialize_with = "config::with_content")]
    pub key: Option<String>,
}

/// How the instances of one service are verified, and what they are shown.
#[derive(Debug, Default)]
pub struct Tls {
    /// In place of the instance's host.
    name: Option<String>,
    ca: Option<Arc<[WrappedX509]>>,
    identity: Option<Arc<CertKey>>,
    /// Connections are shared among those alone that believe the same and show the same: of these Pingora knows only the
    /// serial number of our certificate.
    group: u64,
}

impl TlsConfig {
    pub fn compile(self, place: &str, problems: &mut Problems) -> Tls {
        let Self {
            ca,
            name,
            cert,
            key,
        } = self;
        // Pingora's choice, made before the first connection asks for one.
        pingora::tls::install_default_crypto_provider();
        if let Some(name) = name.as_deref().filter(|name| !is_name(name)) {
            let fault = format!("`{name}` is neither a host's name nor an address");
            problems.add(format!("{place}.name"), fault);
        }
        let mut hasher = DefaultHasher::new();
        let ca = ca.and_then(|file| {
            let roots = roots(&file).map_err(|fault| problems.add(format!("{place}.ca"), fault));
            roots.ok()
        });
        for root in ca.iter().flatten() {
            root.hash(&mut hasher);
        }
        let identity = match (cert, key) {
            (None, None) => None,
            (Some(cert), Some(key)) => identity(place, &cert, &key, problems),
            (Some(_), None) => {
                problems.add(format!("{place}.key"), "must be set where `cert` is");
                None
            }
            (None, Some(_)) => {
                problems.add(format!("{place}.cert"), "must be set where `key` is");
                None
            }
        };
        if let Some((certs, key)) = &identity {
            (certs, key).hash(&mut hasher);
        }
        let wrap = |der: Vec<u8>| WrappedX509::new(der, parse_x509);
        Tls {
            name,
            ca: ca.map(|roots| roots.into_iter().map(wrap).collect()),
            identity: identity.map(|(certs, key)| Arc::new(CertKey::new(certs, key))),
            group: hasher.finish(),
        }
    }
}

// === impl Tls ===

impl Tls {
    /// The name to verify, and to send, for an instance at this host.
    pub fn name_for(&self, host: &str) -> Box<str> {
        self.name.as_deref().unwrap_or(host).into()
    }

    pub fn equip(&self, peer: &mut HttpPeer) {
        peer.options.ca.clone_from(&self.ca);
        peer.client_cert_key.clone_from(&self.identity);
        peer.group_key = self.group;
    }
}

/// Whether a certificate can be for it.
pub fn is_name(text: &str) -> bool {
    ServerName::try_from(text).is_ok()
}

/// The certificates of a file that holds nothing else.
fn roots(file: &str) -> Result<Vec<Vec<u8>>, String> {
    readable(file)?;
    let fault = || format!("`{file}` does not hold certificates in PEM, and only these");
    // That all of it can be believed in is found out here; what it holds is read below.
    let mut store = RootCertStore::empty();
    load_ca_file_into_store(file, &mut store).map_err(|_| fault())?;
    let certificates = certificates(file).filter(|found| !found.is_empty());
    certificates.ok_or_else(fault)
}

type Identity = (Vec<Vec<u8>>, Vec<u8>);

/// Our certificate, with those between it and its root, and its key.
fn identity(place: &str, cert: &str, key: &str, problems: &mut Problems) -> Option<Identity> {
    let mut may_read = true;
    for (name, file) in [("cert", cert), ("key", key)] {
        if let Err(fault) = readable(file) {
            problems.add(format!("{place}.{name}"), fault);
            may_read = false;
        }
    }
    if !may_read {
        return None;
    }
    let loaded = load_certs_and_key_files(cert, key).ok().flatten();
    let identity = loaded.filter(fits).and_then(|(certs, key)| {
        let certs: Vec<_> = certs.iter().map(|cert| cert.to_vec()).collect();
        are_certificates(&certs).then(|| (certs, key.secret_der().to_vec()))
    });
    if identity.is_none() {
        let fault = "`cert` and `key` must be PEM files of a certificate and of the key to it";
        problems.add(place, fault);
    }
    identity
}

/// Whether the key is that of the first certificate.
fn fits((certs, key): &(Vec<CertificateDer<'_>>, PrivateKeyDer<'_>)) -> bool {
    let certs = certs.iter().map(|cert| cert.clone().into_owned()).collect();
    let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty());
    config.with_client_auth_cert(certs, key.clone_key()).is_ok()
}

/// As DER. `None`: one of them is not a certificate to Pingora, which would end the process over it.
fn certificates(file: &str) -> Option<Vec<Vec<u8>>> {
    let pem = config::contents(file).ok()?;
    let blocks = x509_parser::pem::Pem::iter_from_buffer(&pem);
    let ders = blocks
        .map(|block| block.ok().map(|pem| pem.contents))
        .collect::<Option<Vec<_>>>()?;
    are_certificates(&ders).then_some(ders)
}

fn are_certificates(ders: &[Vec<u8>]) -> bool {
    ders.iter()
        .all(|der| X509Certificate::from_der(der).is_ok())
}

fn readable(file: &str) -> Result<(), String> {
    config::contents(file)
        .map(drop)
        .map_err(|e| format!("`{file}` cannot be read: {e}"))
}
