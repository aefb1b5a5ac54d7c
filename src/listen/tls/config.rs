//! `tls`: what clients are shown, and what is asked of them.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::material::Material;
use crate::config::{self, Problems};

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Chosen by SNI among the names in each; the first is the default.
    pub certificates: Vec<CertificateConfig>,
    pub min_version: MinVersion,
    pub handshake_timeout: config::Duration,
    pub client: ClientConfig,
}

/// PEM files.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateConfig {
    /// Our own first, then those of who signed it.
    #[serde(serialize_with = "config::with_file")]
    pub certificate: PathBuf,
    #[serde(serialize_with = "config::with_file")]
    pub key: PathBuf,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientConfig {
    pub mode: ClientMode,
    /// PEM: who signs clients' certificates.
    #[serde(serialize_with = "config::with_content")]
    pub ca: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum MinVersion {
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

/// Whether clients show certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientMode {
    /// They are not asked.
    #[default]
    Off,
    /// One that is shown must be good.
    Optional,
    /// No certificate, no connection.
    Required,
}

/// What stands in the configuration, and which files it means.
#[derive(Clone, Debug)]
pub struct Settings {
    pub certificates: Vec<Files>,
    pub min_version: MinVersion,
    pub handshake_timeout: Duration,
    pub client_mode: ClientMode,
    /// Named whenever certificates are asked for.
    pub client_ca: Option<PathBuf>,
    /// HTTP/2 is offered.
    pub h2: bool,
}

#[derive(Clone, Debug)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Settings whose files have been read, and fit.
pub struct Loaded {
    pub(super) settings: Settings,
    pub(super) material: Material,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            certificates: Vec::new(),
            min_version: MinVersion::default(),
            handshake_timeout: config::Duration::secs(10),
            client: ClientConfig::default(),
        }
    }
}

impl TlsConfig {
    /// Reads the files, so that `--test` and a reload find what is wrong with them. `None`: there are no certificates, or
    /// faulty ones.
    pub fn compile(self, h2: bool, problems: &mut Problems) -> Option<Loaded> {
        let Self {
            certificates,
            min_version,
            handshake_timeout,
            client: ClientConfig { mode, ca },
        } = self;
        let faults_before = problems.len();
        if handshake_timeout.0.is_zero() {
            problems.add("tls.handshake_timeout", "must be longer than nothing");
        }
        if mode != ClientMode::Off && ca.is_none() {
            problems.add(
                "tls.client.ca",
                "name the file of who signs the clients' certificates, or set `mode: off`",
            );
        }
        let settings = Settings {
            certificates: certificates.into_iter().map(Files::from).collect(),
            min_version,
            handshake_timeout: handshake_timeout.0,
            client_mode: mode,
            client_ca: ca.filter(|_| mode != ClientMode::Off),
            h2,
        };
        let material = Material::read(&settings)
            .map_err(|faults| {
                for (place, fault) in faults {
                    problems.add(place, fault);
                }
            })
            .ok()?;
        (problems.len() == faults_before && !settings.certificates.is_empty())
            .then_some(Loaded { settings, material })
    }
}

impl From<CertificateConfig> for Files {
    fn from(config: CertificateConfig) -> Self {
        let CertificateConfig { certificate, key } = config;
        Self { certificate, key }
    }
}
