//! TLS with clients, by rustls: versions 1.2 and 1.3, certificates by SNI, ALPN, clients' certificates.
//!
//! What a handshake goes by is one value that is replaced as a whole, when files change or at a reload: no connection
//! meets half of a new configuration, and none that is open notices.

mod config;
mod material;
mod names;
mod subject;
mod watch;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::HeaderValue;
use parking_lot::Mutex;
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::{Acceptor, TlsSettings};
use pingora::protocols::tls::TlsRef;
use pingora::protocols::{Digest, Stream};
use pingora::tls::{ServerConfig, TlsAcceptor, WebPkiClientVerifier, version};
use pingora_timeout::timeout;
use prometheus::{IntCounter, IntCounterVec, IntGauge};
use rustls::crypto::ring::Ticketer;
use rustls::server::{
    NoServerSessionStorage, ProducesTickets, ServerSessionMemoryCache, StoresServerSessions,
};
use tokio::io::AsyncWriteExt;

use super::socket::Socket;
use config::{ClientMode, MinVersion, Settings};
pub use config::{Loaded, TlsConfig};
use material::Material;
pub use watch::Watch;

/// TLS on all https listeners.
pub struct Tls {
    current: ArcSwap<Current>,
    /// Taken by who replaces it.
    source: Mutex<Source>,
    handshakes: Handshakes,
    not_after: IntGauge,
}

/// What handshakes go by.
struct Current {
    acceptor: Acceptor,
    certificates: Arc<material::Certificates>,
    patience: Duration,
}

/// What that was made from.
struct Source {
    settings: Settings,
    client_digest: [u8; 32],
    digest: [u8; 32],
    sessions: Sessions,
    /// How often it has been replaced.
    generation: u64,
}

/// What sessions are resumed by.
#[derive(Clone)]
struct Sessions {
    /// `None`: nothing is resumed.
    tickets: Option<Arc<dyn ProducesTickets>>,
    memory: Arc<dyn StoresServerSessions>,
}

/// How handshakes ended.
struct Handshakes {
    success: IntCounter,
    failed: IntCounter,
    timeout: IntCounter,
    plaintext: IntCounter,
}

/// Why there is no connection.
pub struct Unfinished(pub String);

/// Who a client is by its certificate; kept in the connection's digest.
struct Shown(Result<HeaderValue, &'static str>);

/// Sessions of TLS 1.2 clients that know no tickets.
const REMEMBERED_SESSIONS: usize = 4096;

/// To somebody who speaks HTTP where TLS is spoken.
const PLAINTEXT: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 34\r\n\
                           Cache-Control: no-store\r\nConnection: close\r\n\r\nTLS is spoken here: use https://.\n";

impl Tls {
    /// `handshakes`: by outcome. `not_after`: when the first certificate ends.
    pub fn new(loaded: Loaded, handshakes: &IntCounterVec, not_after: IntGauge) -> Self {
        let Loaded { settings, material } = loaded;
        let sessions = Sessions::new(settings.client_mode);
        not_after.set(material.certificates.not_after().unwrap_or_default());
        let outcome = |outcome| handshakes.with_label_values(&[outcome]);
        Self {
            current: ArcSwap::from_pointee(Current::new(&settings, &material, &sessions)),
            source: Mutex::new(Source {
                settings,
                client_digest: material.client_digest,
                digest: material.digest,
                sessions,
                generation: 0,
            }),
            handshakes: Handshakes {
                success: outcome("success"),
                failed: outcome("failed"),
                timeout: outcome("timeout"),
                plaintext: outcome("plaintext"),
            },
            not_after,
        }
    }

    /// Handshakes from now on go by this: for a reload.
    pub fn install(&self, loaded: Loaded) {
        self.replace(&mut self.source.lock(), loaded);
    }

    fn replace(&self, source: &mut Source, loaded: Loaded) {
        let Loaded { settings, material } = loaded;
        // A session stands for what was asked of its client then.
        let is_asked_alike = source.settings.client_mode == settings.client_mode
            && source.settings.min_version == settings.min_version
            && source.client_digest == material.client_digest;
        if !is_asked_alike {
            source.sessions = Sessions::new(settings.client_mode);
        }
        self.not_after
            .set(material.certificates.not_after().unwrap_or_default());
        self.current.store(Arc::new(Current::new(
            &settings,
            &material,
            &source.sessions,
        )));
        source.client_digest = material.client_digest;
        source.digest = material.digest;
        source.settings = settings;
        source.generation += 1;
    }

    /// Whether a certificate is for this host, a name or an address without brackets.
    pub fn is_for(&self, host: &str) -> bool {
        self.current.load().certificates.are_for(host)
    }

    /// # Errors
    /// When the client does not finish it, in time or at all.
    pub async fn handshake(&self, socket: Socket) -> Result<Stream, Unfinished> {
        let current = self.current.load_full();
        match timeout(current.patience, self.try_handshake(socket, &current)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.handshakes.timeout.inc();
                Err(Unfinished("the handshake did not end in time".into()))
            }
        }
    }

    async fn try_handshake(
        &self,
        mut socket: Socket,
        current: &Current,
    ) -> Result<Stream, Unfinished> {
        if socket.ahead().is_empty() {
            let read = socket.read_ahead().await;
            if !matches!(read, Ok(1..)) {
                self.handshakes.failed.inc();
                return Err(Unfinished(
                    "the connection ended before the handshake".into(),
                ));
            }
        }
        // A hello begins with the type of a handshake record, 22 (RFC 8446, section 5.1); a method with a letter.
        if socket.ahead().first().is_some_and(u8::is_ascii_uppercase) {
            self.handshakes.plaintext.inc();
            let _ = socket.write_all(PLAINTEXT).await;
            let _ = socket.shutdown().await;
            return Err(Unfinished("plain HTTP".into()));
        }
        let stream = current.acceptor.tls_handshake(socket).await.map_err(|e| {
            self.handshakes.failed.inc();
            Unfinished(e.to_string())
        })?;
        let stream: Stream = Box::new(stream);
        let digest = stream.get_ssl_digest();
        if let Some(Shown(Err(why))) = digest.as_ref().and_then(|d| d.extension.get::<Shown>()) {
            self.handshakes.failed.inc();
            return Err(Unfinished((*why).to_owned()));
        }
        self.handshakes.success.inc();
        Ok(stream)
    }
}

/// The subject of the certificate that the client of a connection has shown, as RFC 4514 has it.
pub fn client_subject(digest: Option<&Digest>) -> Option<HeaderValue> {
    let Shown(shown) = digest?.ssl_digest.as_ref()?.extension.get()?;
    shown.clone().ok().filter(|subject| !subject.is_empty())
}

/// Whether it is TLS that is spoken on a connection.
pub fn is_tls(digest: Option<&Digest>) -> bool {
    digest.is_some_and(|digest| digest.ssl_digest.is_some())
}

// === impl Current ===

impl Current {
    fn new(settings: &Settings, material: &Material, sessions: &Sessions) -> Self {
        let config = Arc::new(server_config(settings, material, sessions));
        // Pingora builds an acceptor with a callback only with a configuration of its own, in whose place ours is put.
        let mut builder = TlsSettings::with_callbacks(Box::new(Look)).expect("it only stores");
        builder.set_cert_resolver(material.certificates.clone());
        let mut acceptor = builder.build();
        acceptor.acceptor = TlsAcceptor::from(config);
        Self {
            acceptor,
            certificates: material.certificates.clone(),
            patience: settings.handshake_timeout,
        }
    }
}

fn server_config(settings: &Settings, material: &Material, sessions: &Sessions) -> ServerConfig {
    pingora::tls::install_default_crypto_provider();
    let versions: &[_] = match settings.min_version {
        MinVersion::Tls12 => &[&version::TLS12, &version::TLS13],
        MinVersion::Tls13 => &[&version::TLS13],
    };
    let builder = ServerConfig::builder_with_protocol_versions(versions);
    let builder = match &material.client_roots {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder(roots.clone());
            let verifier = match settings.client_mode {
                ClientMode::Required => verifier,
                ClientMode::Off | ClientMode::Optional => verifier.allow_unauthenticated(),
            };
            let verifier = verifier.build().expect("there are roots");
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(material.certificates.clone());
    config.alpn_protocols = match settings.h2 {
        true => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        false => vec![b"http/1.1".to_vec()],
    };
    config.session_storage = sessions.memory.clone();
    match &sessions.tickets {
        Some(tickets) => config.ticketer = tickets.clone(),
        None => config.send_tls13_tickets = 0,
    }
    config
}

// === impl Sessions ===

impl Sessions {
    /// A client that shows certificates shows one each time: whoever signs them may have ended it meanwhile.
    fn new(mode: ClientMode) -> Self {
        if mode != ClientMode::Off {
            return Self {
                tickets: None,
                memory: Arc::new(NoServerSessionStorage {}),
            };
        }
        let tickets = Ticketer::new()
            .inspect_err(|e| log::warn!("TLS sessions cannot be resumed by tickets: {e}"));
        Self {
            tickets: tickets.ok(),
            memory: ServerSessionMemoryCache::new(REMEMBERED_SESSIONS),
        }
    }
}

/// Looks at the client's certificate once for the connection.
struct Look;

#[async_trait]
impl TlsAccept for Look {
    async fn handshake_complete_callback(
        &self,
        tls: &TlsRef,
    ) -> Option<Arc<dyn Any + Send + Sync>> {
        let certificate = tls.peer_certificate_der()?;
        Some(Arc::new(Shown(subject::subject(certificate))))
    }
}
