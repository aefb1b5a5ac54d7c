//! What the files of `tls` hold: certificates with their keys and names, and who signs the clients'.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use pingora::tls::{
    ClientHello, CryptoProvider, ResolvesServerCert, RootCertStore, sign::CertifiedKey,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use super::config::Settings;
use super::names::Names;
use crate::config;

/// A fault, and the place of the key that names the file.
pub type Fault = (String, String);

/// All of it, read at one time.
pub struct Material {
    pub certificates: Arc<Certificates>,
    pub client_roots: Option<Arc<RootCertStore>>,
    /// Of who signs the clients' certificates.
    pub client_digest: [u8; 32],
    /// Of all files: whether anything has changed.
    pub digest: [u8; 32],
}

/// Our certificates, by name.
pub struct Certificates {
    /// In the order of the configuration.
    all: Vec<Certificate>,
    names: Names,
}

struct Certificate {
    key: Arc<CertifiedKey>,
    /// Seconds since 1970.
    not_after: i64,
}

impl Material {
    /// # Errors
    /// Every file that cannot be read or does not hold what it should.
    pub fn read(settings: &Settings) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut digest = Sha256::new();
        let (mut all, mut names) = (Vec::new(), Names::default());
        for (i, files) in settings.certificates.iter().enumerate() {
            let place = format!("tls.certificates[{i}]");
            match certificate(&files.certificate, &files.key, &place, &mut digest) {
                Ok((certificate, of)) => {
                    of.iter().for_each(|name| names.add(name, all.len()));
                    all.push(certificate);
                }
                Err(fault) => faults.push(fault),
            }
        }
        let (mut client_roots, mut client_digest) = (None, [0; 32]);
        if let Some(ca) = &settings.client_ca {
            match roots(ca) {
                Ok((roots, pem)) => {
                    client_digest = Sha256::digest(&pem).into();
                    digest.update(client_digest);
                    client_roots = Some(Arc::new(roots));
                }
                Err(fault) => faults.push(("tls.client.ca".into(), fault)),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self {
            certificates: Arc::new(Certificates { all, names }),
            client_roots,
            client_digest,
            digest: digest.finalize().into(),
        })
    }
}

fn certificate(
    certificate: &Path,
    key: &Path,
    place: &str,
    digest: &mut Sha256,
) -> Result<(Certificate, Vec<String>), Fault> {
    let at = |name: &str| format!("{place}.{name}");
    let pem = read(certificate).map_err(|fault| (at("certificate"), fault))?;
    let key_pem = read(key).map_err(|fault| (at("key"), fault))?;
    for part in [&pem, &key_pem] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part.as_slice());
    }
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain
        .ok()
        .filter(|chain| !chain.is_empty())
        .ok_or_else(|| {
            let fault = format!(
                "`{}` does not hold a certificate in PEM",
                certificate.display()
            );
            (at("certificate"), fault)
        })?;
    let key_der = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| {
        let fault = format!("`{}` does not hold a private key in PEM", key.display());
        (at("key"), fault)
    })?;
    let (names, not_after) = read_leaf(&chain[0]).ok_or_else(|| {
        let fault = format!(
            "`{}` does not begin with a certificate",
            certificate.display()
        );
        (at("certificate"), fault)
    })?;
    // Pingora's choice, made before the first configuration asks for one.
    pingora::tls::install_default_crypto_provider();
    let provider = CryptoProvider::get_default().expect("it was installed just now");
    let key = CertifiedKey::from_der(chain, key_der, provider).map_err(|e| {
        (
            place.to_owned(),
            format!("`key` does not fit `certificate`: {e}"),
        )
    })?;
    let certificate = Certificate {
        key: Arc::new(key),
        not_after,
    };
    Ok((certificate, names))
}

/// The names that a certificate is for, and when it ends.
fn read_leaf(der: &[u8]) -> Option<(Vec<String>, i64)> {
    let (_, leaf) = X509Certificate::from_der(der).ok()?;
    let mut names = Vec::new();
    if let Ok(Some(alternative)) = leaf.subject_alternative_name() {
        for name in &alternative.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => names.extend(super::names::address(bytes)),
                _ => {}
            }
        }
    }
    Some((names, leaf.validity().not_after.timestamp()))
}

fn roots(file: &Path) -> Result<(RootCertStore, Zeroizing<Vec<u8>>), String> {
    let pem = read(file)?;
    let fault = || {
        format!(
            "`{}` does not hold certificates in PEM, and only these",
            file.display()
        )
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| fault())?;
        roots.add(certificate).map_err(|_| fault())?;
    }
    match roots.is_empty() {
        true => Err(fault()),
        false => Ok((roots, pem)),
    }
}

fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    config::contents(file)
        .map(Zeroizing::new)
        .map_err(|e| format!("`{}` cannot be read: {e}", file.display()))
}

// === impl Certificates ===

impl Certificates {
    /// When the first of them ends, in seconds since 1970.
    pub fn not_after(&self) -> Option<i64> {
        self.all
            .iter()
            .map(|certificate| certificate.not_after)
            .min()
    }

    /// Whether one is for this host, a name or an address without brackets. Where none says what it is for, all are.
    pub fn are_for(&self, host: &str) -> bool {
        self.names.is_empty() || !self.names.find(host).is_empty()
    }
}

impl ResolvesServerCert for Certificates {
    /// The first of the name that the client can read; for other names, and without one, the first of all.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fits = |certificate: &&Certificate| {
            let key = &certificate.key.key;
            key.choose_scheme(hello.signature_schemes()).is_some()
        };
        let of_name = hello
            .server_name()
            .map_or(&[][..], |name| self.names.find(name));
        let of_name = of_name.iter().filter_map(|&i| self.all.get(i)).find(fits);
        of_name
            .or_else(|| self.all.first().filter(fits))
            .map(|certificate| certificate.key.clone())
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} certificates", self.all.len())
    }
}
