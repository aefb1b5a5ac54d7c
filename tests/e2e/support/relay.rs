//! A front for an [`Upstream`](super::upstream::Upstream): the same bytes, but over TLS or a Unix-domain socket.

use super::lock;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A running front. Closes its place and its connections when dropped.
pub struct Relay {
    place: Place,
    target: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Clone)]
enum Place {
    Tls(SocketAddr, Arc<ServerConfig>),
    Unix(PathBuf),
}

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    running: AtomicUsize,
    accepted: AtomicUsize,
    faults: Mutex<Vec<String>>,
    seen: Mutex<Vec<Seen>>,
}

/// What a handshake has told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The server name that was asked for.
    pub name: Option<String>,
    pub has_certificate: bool,
}

const STEP: Duration = Duration::from_millis(1);

impl Relay {
    /// TLS on a port of its own, with this certificate and key.
    #[track_caller]
    pub fn tls(target: SocketAddr, certificate: &(String, String)) -> Self {
        let config = server_config(certificate, None);
        Self::at(Place::Tls(free(), config), target)
    }

    /// The same, for clients that have a certificate of this authority alone.
    #[track_caller]
    pub fn mutual_tls(target: SocketAddr, certificate: &(String, String), ca: &str) -> Self {
        let config = server_config(certificate, Some(ca));
        Self::at(Place::Tls(free(), config), target)
    }

    /// A Unix-domain socket of its own.
    #[track_caller]
    pub fn unix(target: SocketAddr) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, SeqCst);
        let name = format!("gateway-e2e-{}-{number}.sock", std::process::id());
        Self::at(Place::Unix(std::env::temp_dir().join(name)), target)
    }

    /// The URL for a service's instance.
    pub fn url(&self) -> String {
        match &self.place {
            Place::Tls(addr, _) => format!("https://{addr}"),
            Place::Unix(_) => self.name(),
        }
    }

    /// As the gateway's log names it.
    pub fn name(&self) -> String {
        match &self.place {
            Place::Tls(addr, _) => addr.to_string(),
            Place::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    pub fn port(&self) -> u16 {
        match &self.place {
            Place::Tls(addr, _) => addr.port(),
            Place::Unix(_) => panic!("it has none"),
        }
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.accepted.load(SeqCst)
    }

    /// What each whole handshake told.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).clone()
    }

    /// Why handshakes failed.
    pub fn faults(&self) -> Vec<String> {
        lock(&self.shared.faults).clone()
    }

    /// Refuses, and closes all connections.
    #[track_caller]
    pub fn stop(&self) {
        self.shared.stopping.store(true, SeqCst);
        self.wake();
        super::wait::wait_until("the relay has ended", || {
            self.shared.running.load(SeqCst) == 0
        });
        if let Place::Unix(path) = &self.place {
            // It is not there when this runs a second time.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Listens again after [`Relay::stop`].
    #[track_caller]
    pub fn restart(&self) {
        self.shared.stopping.store(false, SeqCst);
        self.listen();
    }

    /// Listens again, now with another certificate.
    #[track_caller]
    pub fn restart_with(&mut self, certificate: &(String, String)) {
        if let Place::Tls(_, config) = &mut self.place {
            *config = server_config(certificate, None);
        }
        self.restart();
    }

    #[track_caller]
    fn at(place: Place, target: SocketAddr) -> Self {
        let relay = Self {
            place,
            target,
            shared: Arc::default(),
        };
        relay.listen();
        relay
    }

    #[track_caller]
    fn listen(&self) {
        let (target, shared) = (self.target, self.shared.clone());
        shared.running.fetch_add(1, SeqCst);
        match self.place.clone() {
            Place::Tls(addr, config) => {
                let bound = || TcpListener::bind(addr).ok();
                let listener =
                    super::wait::within(super::wait::SOON, bound).expect("the port is free");
                let serve = move |client, backend, shared: &Shared| {
                    over_tls(client, backend, &config, shared);
                };
                thread::spawn(move || {
                    accept(&shared, target, || Ok(listener.accept()?.0), serve);
                });
            }
            Place::Unix(path) => {
                let listener = UnixListener::bind(path).expect("a socket can be made");
                thread::spawn(move || {
                    accept(&shared, target, || Ok(listener.accept()?.0), pump_unix);
                });
            }
        }
    }

    fn wake(&self) {
        // Fails only when nobody listens any more.
        match &self.place {
            Place::Tls(addr, _) => drop(TcpStream::connect(addr)),
            Place::Unix(path) => drop(UnixStream::connect(path)),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stopping.store(true, SeqCst);
        self.wake();
        if let Place::Unix(path) = &self.place {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A port that nobody has, for a listener that comes back to it.
fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("a listener has an address")
}

#[track_caller]
fn server_config((cert, key): &(String, String), ca: Option<&str>) -> Arc<ServerConfig> {
    // The first of the tests has it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let certs = certificates(cert);
    let key = PrivateKeyDer::from_pem_file(key).expect("a key");
    let builder = ServerConfig::builder();
    let builder = match ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates(ca));
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
            builder.with_client_cert_verifier(verifier.expect("an authority"))
        }
    };
    Arc::new(builder.with_single_cert(certs, key).expect("they fit"))
}

#[track_caller]
fn certificates(file: &str) -> Vec<CertificateDer<'static>> {
    let certificates = CertificateDer::pem_file_iter(file).expect("a file");
    certificates.map(|cert| cert.expect("PEM")).collect()
}

fn accept<S: Send + 'static>(
    shared: &Arc<Shared>,
    target: SocketAddr,
    mut next: impl FnMut() -> io::Result<S>,
    serve: impl Fn(S, TcpStream, &Shared) + Clone + Send + 'static,
) {
    while let Ok(client) = next() {
        if shared.stopping.load(SeqCst) {
            break;
        }
        shared.accepted.fetch_add(1, SeqCst);
        // Without its backend, a front closes.
        let Ok(backend) = TcpStream::connect(target) else {
            continue;
        };
        let (shared, serve) = (shared.clone(), serve.clone());
        shared.running.fetch_add(1, SeqCst);
        thread::spawn(move || {
            serve(client, backend, &shared);
            shared.running.fetch_sub(1, SeqCst);
        });
    }
    shared.running.fetch_sub(1, SeqCst);
}

/// Both ways, until one of both ends.
fn pump_unix(mut client: UnixStream, mut backend: TcpStream, shared: &Shared) {
    let ready = client.set_nonblocking(true).is_ok() && backend.set_nonblocking(true).is_ok();
    assert!(ready, "sockets can be made non-blocking");
    while !shared.stopping.load(SeqCst) {
        match (
            copy(&mut client, &mut backend),
            copy(&mut backend, &mut client),
        ) {
            (Ok(0), Ok(0)) => thread::sleep(STEP),
            (Ok(_), Ok(_)) => {}
            _ => break,
        }
    }
    // Each fails only for what is closed already.
    let _ = client.shutdown(Shutdown::Both);
    let _ = backend.shutdown(Shutdown::Both);
}

/// What is there, and an error at the end.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<usize> {
    let mut buffer = [0; 16 << 10];
    match from.read(&mut buffer) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(count) => write_all(to, &buffer[..count]).map(|()| count),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(0),
        Err(e) => Err(e),
    }
}

fn write_all(to: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(STEP),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn over_tls(client: TcpStream, backend: TcpStream, config: &Arc<ServerConfig>, shared: &Shared) {
    let mut tls = ServerConnection::new(config.clone()).expect("a connection");
    let ended = pump_tls(&mut tls, &client, &backend, shared);
    if let Err(fault) = ended
        && tls.is_handshaking()
    {
        lock(&shared.faults).push(fault.to_string());
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = backend.shutdown(Shutdown::Both);
}

fn pump_tls(
    tls: &mut ServerConnection,
    mut client: &TcpStream,
    mut backend: &TcpStream,
    shared: &Shared,
) -> io::Result<()> {
    client.set_nonblocking(true)?;
    backend.set_nonblocking(true)?;
    client.set_nodelay(true)?;
    let mut is_known = false;
    while !shared.stopping.load(SeqCst) {
        let mut moved = match tls.read_tls(&mut client) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
            Err(e) => return Err(e),
        };
        if let Err(fault) = tls.process_new_packets() {
            // With the alert that says why.
            let _ = tls.write_tls(&mut client);
            return Err(io::Error::other(fault));
        }
        if !is_known && !tls.is_handshaking() {
            is_known = true;
            lock(&shared.seen).push(Seen {
                name: tls.server_name().map(str::to_owned),
                has_certificate: tls.peer_certificates().is_some(),
            });
        }
        let ended = copy(&mut tls.reader(), &mut backend).map(|count| moved += count);
        let answered = match is_known {
            true => copy(&mut backend, &mut tls.writer()).map(|count| moved += count),
            false => Ok(()),
        };
        while tls.wants_write() {
            match tls.write_tls(&mut client) {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(STEP),
                Err(e) => return Err(e),
            }
        }
        if ended.is_err() || answered.is_err() {
            tls.send_close_notify();
            let _ = tls.write_tls(&mut client);
            return Ok(());
        }
        if moved == 0 {
            thread::sleep(STEP);
        }
    }
    Ok(())
}
