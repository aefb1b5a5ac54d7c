//! Tokens, good and bad, and the key pairs to sign them with.
//!
//! The header and the claims are put together by hand, so that a test can say what no library
//! would; only the signature comes from a library.

use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The JWT_SECRET of every gateway under test.
pub const SECRET: &str = "e2e-test-secret-0123456789-abcdefghijklm";

/// The issuer that the gateway trusts.
pub const ISSUER: &str = "tickettoken-api";

/// A good token of the customer `u1` of the tenant `t1`.
pub fn customer() -> String {
    Token::user("u1").hs256()
}

/// A good token of the admin `a1` of the tenant `t1`.
pub fn admin() -> String {
    Token::user("a1").role("admin").hs256()
}

/// A token to be signed. From the start it is a good one: an access token of a customer of the
/// tenant `t1` that expires in an hour.
#[derive(Clone, Debug)]
pub struct Token {
    header: Map<String, Value>,
    claims: Map<String, Value>,
}

impl Token {
    pub fn user(id: &str) -> Self {
        let now = seconds_since_epoch();
        let claims = json!({
            "sub": id,
            "email": format!("{id}@example.test"),
            "role": "customer",
            "tenant_id": "t1",
            "type": "access",
            "iss": ISSUER,
            "iat": now,
            "exp": now + 3600,
            "jti": unique_id(),
        });
        Self {
            header: object(json!({"typ": "JWT"})),
            claims: object(claims),
        }
    }

    pub fn role(self, role: &str) -> Self {
        self.claim("role", role)
    }

    pub fn tenant(self, tenant: &str) -> Self {
        self.claim("tenant_id", tenant)
    }

    /// Sets any claim to any value.
    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims.insert(name.to_owned(), value.into());
        self
    }

    /// Takes a claim out.
    #[track_caller]
    pub fn without(mut self, name: &str) -> Self {
        let removed = self.claims.remove(name);
        assert!(removed.is_some(), "there is no claim {name:?} to take out");
        self
    }

    /// Lets it expire in so many seconds; in the past when negative.
    pub fn expires_in(self, seconds: i64) -> Self {
        self.claim("exp", seconds_since_epoch() + seconds)
    }

    /// Names the key in the header.
    pub fn kid(self, kid: &str) -> Self {
        self.with_header(json!({"kid": kid}))
    }

    /// Sets these fields of the header, which win over those that signing sets (`typ`, `alg`).
    #[track_caller]
    pub fn with_header(mut self, fields: Value) -> Self {
        self.header.extend(object(fields));
        self
    }

    /// Its claims as they will be signed.
    pub fn claims(&self) -> Value {
        Value::Object(self.claims.clone())
    }

    /// Signed as the platform does it: HS256 with [`SECRET`].
    pub fn hs256(&self) -> String {
        self.signed_with(SECRET)
    }

    /// HS256 with another secret.
    pub fn signed_with(&self, secret: &str) -> String {
        self.sign(Algorithm::HS256, secret)
    }

    /// Signed with a private key in PEM, or with a secret when the algorithm is of the HS family.
    #[track_caller]
    pub fn sign(&self, algorithm: Algorithm, key: &str) -> String {
        let message = self.message(&format!("{algorithm:?}"));
        let key = encoding_key(algorithm, key.as_bytes());
        let signature = crypto::sign(message.as_bytes(), &key, algorithm)
            .unwrap_or_else(|error| panic!("cannot sign with {algorithm:?}: {error}"));
        format!("{message}.{signature}")
    }

    /// With `alg: none` and an empty signature.
    pub fn unsigned_none(&self) -> String {
        format!("{}.", self.message("none"))
    }

    fn message(&self, algorithm: &str) -> String {
        let mut header = object(json!({"alg": algorithm}));
        header.extend(self.header.clone());
        let header = Value::Object(header).to_string();
        let claims = self.claims().to_string();
        format!("{}.{}", base64url(&header), base64url(claims))
    }
}

/// A key pair, made by the `openssl` command.
#[derive(Clone, Debug)]
pub struct KeyPair {
    pub private_pem: String,
    pub public_pem: String,
    algorithm: Algorithm,
}

impl KeyPair {
    /// For RS256: RSA of 2048 bits.
    #[track_caller]
    pub fn rsa() -> Self {
        let arguments = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
        Self::generate(&arguments, Algorithm::RS256)
    }

    /// For ES256.
    #[track_caller]
    pub fn p256() -> Self {
        let arguments = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
        Self::generate(&arguments, Algorithm::ES256)
    }

    /// For EdDSA.
    #[track_caller]
    pub fn ed25519() -> Self {
        Self::generate(&["-algorithm", "ED25519"], Algorithm::EdDSA)
    }

    /// The algorithm it is for.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The token signed with the private key.
    #[track_caller]
    pub fn sign(&self, token: &Token) -> String {
        token.sign(self.algorithm, &self.private_pem)
    }

    /// The public key as a JSON Web Key.
    #[track_caller]
    pub fn jwk(&self, kid: &str) -> Value {
        let arguments = ["pkey", "-pubin", "-outform", "DER"];
        let der = openssl(&arguments, self.public_pem.as_bytes());
        let mut key = match self.algorithm {
            Algorithm::RS256 => {
                let (modulus, exponent) = rsa_numbers(&der);
                json!({"kty": "RSA", "n": base64url(modulus), "e": base64url(exponent)})
            }
            // Both kinds of key stand at the very end, without further structure.
            Algorithm::ES256 => {
                let (rest, y) = der.split_at(der.len() - 32);
                let (rest, x) = rest.split_at(rest.len() - 32);
                assert_eq!(rest.last(), Some(&4), "the point is not compressed");
                json!({"kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y)})
            }
            _ => {
                let x = &der[der.len() - 32..];
                json!({"kty": "OKP", "crv": "Ed25519", "x": base64url(x)})
            }
        };
        key["kid"] = kid.into();
        key["use"] = "sig".into();
        key["alg"] = format!("{:?}", self.algorithm).into();
        key
    }

    #[track_caller]
    fn generate(arguments: &[&str], algorithm: Algorithm) -> Self {
        let private = openssl(&[&["genpkey"], arguments].concat(), b"");
        let public = openssl(&["pkey", "-pubout"], &private);
        Self {
            private_pem: String::from_utf8(private).expect("PEM is ASCII"),
            public_pem: String::from_utf8(public).expect("PEM is ASCII"),
            algorithm,
        }
    }
}

/// Base64 in the alphabet of URLs, without padding.
pub fn base64url(bytes: impl AsRef<[u8]>) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.as_ref().chunks(3) {
        let mut padded = [0; 4];
        padded[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(padded);
        for digit in 0..=group.len() {
            let index = (bits >> (18 - 6 * digit)) & 63;
            text.push(char::from(ALPHABET[index as usize]));
        }
    }
    text
}

/// What [`base64url`] has made of.
#[track_caller]
pub fn from_base64url(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for digit in text.bytes() {
        let value = ALPHABET.iter().position(|other| *other == digit).unwrap();
        bits = bits << 6 | value as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    bytes
}

/// The claims of a token, whatever its signature is worth.
#[track_caller]
pub fn claims_of(token: &str) -> Value {
    let claims = token.split('.').nth(1).expect("a token has three parts");
    serde_json::from_slice(&from_base64url(claims)).expect("claims are JSON")
}

#[track_caller]
fn encoding_key(algorithm: Algorithm, key: &[u8]) -> EncodingKey {
    use Algorithm::*;
    let made = match algorithm {
        HS256 | HS384 | HS512 => Ok(EncodingKey::from_secret(key)),
        RS256 | RS384 | RS512 | PS256 | PS384 | PS512 => EncodingKey::from_rsa_pem(key),
        ES256 | ES384 => EncodingKey::from_ec_pem(key),
        EdDSA => EncodingKey::from_ed_pem(key),
        other => panic!("no keys for {other:?}"),
    };
    made.unwrap_or_else(|error| panic!("the key is not one for {algorithm:?}: {error}"))
}

#[track_caller]
fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("the tests need the openssl command: {error}"));
    let written = child.stdin.take().expect("stdin is piped").write_all(input);
    let output = child.wait_with_output().expect("openssl can be awaited");
    assert!(
        output.status.success() && written.is_ok(),
        "openssl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Modulus and exponent of `SEQUENCE { algorithm, BIT STRING { SEQUENCE { n, e } } }`.
fn rsa_numbers(der: &[u8]) -> (&[u8], &[u8]) {
    let (info, _) = der_element(der);
    let (_algorithm, rest) = der_element(info);
    let (bits, _) = der_element(rest);
    // The first byte of a bit string says how many bits are unused: none.
    let (numbers, _) = der_element(&bits[1..]);
    let (modulus, rest) = der_element(numbers);
    let (exponent, _) = der_element(rest);
    (unsigned(modulus), unsigned(exponent))
}

/// The content of the first element, and what follows it.
fn der_element(der: &[u8]) -> (&[u8], &[u8]) {
    let (length, start) = match usize::from(der[1]) {
        short @ 0..128 => (short, 2),
        long => {
            let digits = &der[2..2 + (long - 128)];
            let length = digits.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
            (length, 2 + digits.len())
        }
    };
    der[start..].split_at(length)
}

/// A positive DER integer without the zero that shows its sign.
fn unsigned(integer: &[u8]) -> &[u8] {
    integer.strip_prefix(&[0]).unwrap_or(integer)
}

#[track_caller]
fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        other => panic!("not an object: {other}"),
    }
}

fn seconds_since_epoch() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = since_epoch.expect("it is after 1970").as_secs();
    seconds.try_into().expect("it is before the year 292e9")
}

fn unique_id() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("jti-{}-{number}", std::process::id())
}
