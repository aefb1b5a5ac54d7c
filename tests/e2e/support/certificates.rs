//! Certificates of an authority of their own, made by the `openssl` command.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An authority, and what it has signed, as files that are there until this is dropped.
pub struct Authority {
    directory: PathBuf,
}

impl Authority {
    #[track_caller]
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("gateway-e2e-ca-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).expect("a directory can be made");
        let authority = Self { directory };
        authority.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=e2e authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ]);
        authority
    }

    /// The authority's own certificate.
    pub fn ca(&self) -> String {
        self.path("ca.pem")
    }

    /// A certificate of this name, for what `alternative` says (`IP:127.0.0.1`), and its key.
    #[track_caller]
    pub fn sign(&self, name: &str, alternative: &str) -> (String, String) {
        self.sign_as(name, &format!("/CN={name}"), alternative)
    }

    /// A certificate of this subject, as openssl writes it (`/C=DE/CN=x`), in files of this name.
    #[track_caller]
    pub fn sign_as(&self, name: &str, subject: &str, alternative: &str) -> (String, String) {
        let [cert, key, request, extension] = self.request(name, subject, alternative);
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-days",
            "1",
            "-CAcreateserial",
            "-extfile",
            &extension,
            "-out",
            &cert,
        ]);
        (self.path(&cert), self.path(&key))
    }

    /// One that was good for a day of the year 2020.
    #[track_caller]
    pub fn sign_expired(&self, name: &str, alternative: &str) -> (String, String) {
        let subject = format!("/CN={name}");
        let [cert, key, request, extension] = self.request(name, &subject, alternative);
        let book = "[ca]\ndefault_ca = book\n[book]\ndatabase = book.txt\nnew_certs_dir = .\nrand_serial = yes\n\
                    default_md = sha256\npolicy = any\n[any]\ncommonName = supplied\n";
        std::fs::write(self.path("book.cnf"), book).expect("a file can be written");
        std::fs::write(self.path("book.txt"), "").expect("a file can be written");
        self.openssl(&[
            "ca",
            "-batch",
            "-notext",
            "-config",
            "book.cnf",
            "-cert",
            "ca.pem",
            "-keyfile",
            "ca.key",
            "-startdate",
            "20200101000000Z",
            "-enddate",
            "20200102000000Z",
            "-extfile",
            &extension,
            "-in",
            &request,
            "-out",
            &cert,
        ]);
        (self.path(&cert), self.path(&key))
    }

    /// The names of the certificate, the key, the request and its extensions.
    #[track_caller]
    fn request(&self, name: &str, subject: &str, alternative: &str) -> [String; 4] {
        let names = ["pem", "key", "csr", "ext"].map(|kind| format!("{name}.{kind}"));
        let [_, key, request, extension] = &names;
        self.openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-utf8",
            "-subj",
            subject,
            "-keyout",
            key,
            "-out",
            request,
        ]);
        let text = format!("subjectAltName={alternative}\n");
        std::fs::write(self.path(extension), text).expect("a file can be written");
        names
    }

    /// What a server is started with that has such a certificate.
    #[track_caller]
    pub fn server(&self, name: &str, alternative: &str) -> Vec<String> {
        let (cert, key) = self.sign(name, alternative);
        let words = [
            ("--tls-cert-file", cert),
            ("--tls-key-file", key),
            ("--tls-ca-cert-file", self.ca()),
        ];
        let words = words.into_iter();
        words
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect()
    }

    /// A file beside the others.
    pub fn path(&self, name: &str) -> String {
        self.directory
            .join(Path::new(name))
            .to_string_lossy()
            .into_owned()
    }

    #[track_caller]
    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(&self.directory)
            .output()
            .unwrap_or_else(|error| panic!("the tests need the openssl command: {error}"));
        assert!(
            output.status.success(),
            "openssl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        // The next start of the machine clears it otherwise.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
