//! A TLS client: exact bytes through TLS, and what the handshake has come to.

use super::client::{Connection, Request, Response};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore, StreamOwned,
    SupportedProtocolVersion,
};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// What bytes go through.
#[derive(Debug)]
pub enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// A client that believes one authority, and what it offers. Clones share their sessions.
#[derive(Clone, Debug)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    name: String,
}

impl TlsClient {
    /// Believes the authority in this PEM file, and asks for this name.
    #[track_caller]
    pub fn new(ca: &str, name: &str) -> Self {
        Self::build(ca, name, &[&TLS13, &TLS12], None)
    }

    /// The same, of one version.
    #[track_caller]
    pub fn of_version(ca: &str, name: &str, version: &'static SupportedProtocolVersion) -> Self {
        Self::build(ca, name, &[version], None)
    }

    /// Shows this certificate with this key when it is asked.
    #[track_caller]
    pub fn with_certificate(ca: &str, name: &str, (cert, key): &(String, String)) -> Self {
        Self::build(ca, name, &[&TLS13, &TLS12], Some((cert, key)))
    }

    /// Offers these protocols.
    pub fn offering(mut self, protocols: &[&str]) -> Self {
        let protocols = protocols.iter().map(|name| name.as_bytes().to_vec());
        Arc::make_mut(&mut self.config).alpn_protocols = protocols.collect();
        self
    }

    fn build(
        ca: &str,
        name: &str,
        versions: &[&'static SupportedProtocolVersion],
        identity: Option<(&str, &str)>,
    ) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca).expect("the authority can be read") {
            roots.add(certificate.unwrap()).unwrap();
        }
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = CertificateDer::pem_file_iter(cert).unwrap();
                let key = PrivateKeyDer::from_pem_file(key).unwrap();
                builder
                    .with_client_auth_cert(chain.map(Result::unwrap).collect(), key)
                    .unwrap()
            }
        };
        Self {
            config: Arc::new(config),
            name: name.to_owned(),
        }
    }

    /// Connects and shakes hands, or says why not.
    pub fn try_connect(&self, addr: SocketAddr) -> io::Result<Connection> {
        self.shake_hands(TcpStream::connect_timeout(&addr, PATIENCE)?)
    }

    /// The same on a connection that is open already.
    pub fn shake_hands(&self, mut tcp: TcpStream) -> io::Result<Connection> {
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_write_timeout(Some(PATIENCE))?;
        let name = ServerName::try_from(self.name.clone()).expect("it is a name");
        let mut tls = ClientConnection::new(self.config.clone(), name).map_err(io::Error::other)?;
        while tls.is_handshaking() || tls.wants_write() {
            tls.complete_io(&mut tcp)?;
        }
        let wire = Wire::Tls(Box::new(StreamOwned::new(tls, tcp)));
        Ok(Connection::over(wire, PATIENCE))
    }

    #[track_caller]
    pub fn connect(&self, addr: SocketAddr) -> Connection {
        self.try_connect(addr)
            .unwrap_or_else(|error| panic!("no TLS with {} at {addr}: {error}", self.name))
    }

    /// Sends a request on a new connection and reads one response.
    #[track_caller]
    pub fn send(&self, request: &Request, addr: SocketAddr) -> Response {
        self.connect(addr).request(request)
    }
}

impl Wire {
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }

    #[track_caller]
    fn tls(&self) -> &ClientConnection {
        match self {
            Self::Plain(_) => panic!("no TLS is spoken"),
            Self::Tls(stream) => &stream.conn,
        }
    }

    /// The version that was agreed on.
    #[track_caller]
    pub fn version(&self) -> ProtocolVersion {
        self.tls().protocol_version().expect("it has shaken hands")
    }

    /// The protocol that was agreed on.
    #[track_caller]
    pub fn protocol(&self) -> Option<&str> {
        let protocol = self.tls().alpn_protocol()?;
        std::str::from_utf8(protocol).ok()
    }

    /// Whether an earlier session goes on.
    #[track_caller]
    pub fn is_resumed(&self) -> bool {
        self.tls().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The server's certificate, in DER.
    #[track_caller]
    pub fn certificate(&self) -> Vec<u8> {
        let chain = self.tls().peer_certificates().expect("it has shown one");
        chain[0].to_vec()
    }
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buf),
            Self::Tls(stream) => stream.read(buf),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(buf),
            Self::Tls(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
