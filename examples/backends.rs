//! Stand-ins for the platform's 19 services, to try the gateway on one machine with nothing else running.
//! One process listens on every documented port, shifted to a loopback base (auth-service's 3001 becomes
//! 4001), and answers each request with what arrived, so that one sees what the gateway let through and what
//! it added. `scripts/demo.sh` starts it; `backends --help` lists the rest.
//!
//! The HTTP/1.1 here is hand-written and minimal: enough for a gateway, `curl` and tests on loopback, with no
//! time-outs and no TLS. It is no example of how to serve HTTP. It is strict where a proxy's mistakes would
//! hide: bare line feeds, two lengths, or a length beside chunks are answered 400.

#![expect(
    clippy::disallowed_methods,
    reason = "an example of its own: it reads its own environment"
)]

use std::collections::HashMap;
use std::error::Error;
use std::fmt::Write as _;
use std::future::poll_fn;
use std::io::{self, Read as _};
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::task::Poll;
use std::time::Duration;

use jsonwebtoken::crypto::aws_lc;
use jsonwebtoken::{Algorithm, EncodingKey, Header, get_current_timestamp};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

const USAGE: &str = "\
usage: backends [--base PORT]
           listen on 127.0.0.1, each service at its documented port - 3000 + PORT (default 4000)
       backends token [--secret S] [--role R] [--user U] [--tenant T]
           print an access token, valid for one hour; S is $JWT_SECRET unless given
           (defaults: customer, demo-user, tenant-1)
       backends sign [--secret S]
           print the Stripe-Signature of the body on stdin, signed now (default whsec_demo)

While listening, every service answers /health with 200 and any other request with what it received.
auth-service answers POST /auth/login with a token; payment-service checks POST .../webhooks/stripe.
A request's query may ask for trouble: demo-delay-ms=500, demo-status=503, demo-close=1.";

/// The documented services and their ports. No service has 3017.
const SERVICES: [(u16, &str); 19] = [
    (3001, "auth-service"),
    (3002, "venue-service"),
    (3003, "event-service"),
    (3004, "ticket-service"),
    (3005, "payment-service"),
    (3006, "marketplace-service"),
    (3007, "analytics-service"),
    (3008, "notification-service"),
    (3009, "integration-service"),
    (3010, "compliance-service"),
    (3011, "queue-service"),
    (3012, "search-service"),
    (3013, "file-service"),
    (3014, "monitoring-service"),
    (3015, "blockchain-service"),
    (3016, "order-service"),
    (3018, "minting-service"),
    (3019, "transfer-service"),
    (3020, "scanning-service"),
];
const DOCUMENTED_BASE: u16 = 3000;

const DEMO_WEBHOOK_SECRET: &str = "whsec_demo";
/// Seconds.
const TOKEN_LIFE: u64 = 3600;
/// Bytes of request line, headers, chunk sizes and trailers together.
const HEAD_LIMIT: u64 = 64 * 1024;
/// Bytes; above the gateway's own documented 10 MiB.
const BODY_LIMIT: u64 = 16 * 1024 * 1024;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("backends: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Outcome<()> {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        println!("{USAGE}");
        return Ok(());
    }
    match args.first().map(String::as_str) {
        Some("token") => print_token(&Flags::parse(
            &args[1..],
            &["secret", "role", "user", "tenant"],
        )?),
        Some("sign") => print_signature(&Flags::parse(&args[1..], &["secret"])?),
        _ => serve(&Flags::parse(args, &["base"])?),
    }
}

/// `--name value` pairs.
struct Flags<'a>(HashMap<&'a str, &'a str>);

impl<'a> Flags<'a> {
    fn parse(args: &'a [String], known: &[&str]) -> Outcome<Self> {
        let mut flags = HashMap::new();
        for pair in args.chunks(2) {
            let name = pair[0]
                .strip_prefix("--")
                .filter(|name| known.contains(name));
            let name = name.ok_or_else(|| format!("unknown argument `{}`, see --help", pair[0]))?;
            let value = pair
                .get(1)
                .ok_or_else(|| format!("--{name} needs a value"))?;
            flags.insert(name, value.as_str());
        }
        Ok(Self(flags))
    }

    fn text(&self, name: &str, default: &'a str) -> &'a str {
        self.0.get(name).copied().unwrap_or(default)
    }
}

fn print_token(flags: &Flags) -> Outcome<()> {
    let secret = match flags.0.get("secret") {
        Some(secret) => (*secret).to_owned(),
        None => std::env::var("JWT_SECRET").map_err(|_| "give --secret or set JWT_SECRET")?,
    };
    let (user, role) = (
        flags.text("user", "demo-user"),
        flags.text("role", "customer"),
    );
    println!(
        "{}",
        token(&secret, user, role, flags.text("tenant", "tenant-1"))?
    );
    Ok(())
}

fn print_signature(flags: &Flags) -> Outcome<()> {
    let mut body = Vec::new();
    io::stdin().read_to_end(&mut body)?;
    let timestamp = get_current_timestamp().to_string();
    let signature = stripe_signature(flags.text("secret", DEMO_WEBHOOK_SECRET), &timestamp, &body)?;
    println!("t={timestamp},v1={signature}");
    Ok(())
}

fn serve(flags: &Flags) -> Outcome<()> {
    let base: u16 = flags
        .text("base", "4000")
        .parse()
        .map_err(|_| "--base is no port number")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (first, last) = listen(base).await?;
        println!("backends: listening on 127.0.0.1:{first}-{last}");
        poll_fn(
            |cx| match (interrupt.poll_recv(cx), terminate.poll_recv(cx)) {
                (Poll::Pending, Poll::Pending) => Poll::Pending,
                _ => Poll::Ready(()),
            },
        )
        .await;
        Ok(())
    })
}

/// Binds every service's port before any is served; the first and the last of them.
async fn listen(base: u16) -> Outcome<(u16, u16)> {
    let mut bound = Vec::new();
    for (documented, service) in SERVICES {
        let port = base
            .checked_add(documented - DOCUMENTED_BASE)
            .ok_or("--base is too high")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
        bound.push((
            port,
            service,
            listener.map_err(|e| format!("{service} on 127.0.0.1:{port}: {e}"))?,
        ));
    }
    let ports = (bound[0].0, bound[bound.len() - 1].0);
    for (_, service, listener) in bound {
        tokio::spawn(accept(listener, service));
    }
    Ok(ports)
}

async fn accept(listener: TcpListener, service: &'static str) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(converse(BufReader::new(stream), service));
            }
            Err(error) => {
                eprintln!("backends: {service}: {error}");
                // Out of file descriptors, most likely: without a pause this would spin.
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

type Stream = BufReader<TcpStream>;

/// One connection, request after request.
async fn converse(mut stream: Stream, service: &str) {
    loop {
        let (reply, last, bodyless) = match Request::read(&mut stream).await {
            Ok(Some(request)) => {
                let Some(reply) = answer(service, &request).await else {
                    return;
                };
                (reply, !request.keep_alive, request.method == "HEAD")
            }
            Ok(None) | Err(Fault::Io(_)) => return,
            Err(fault) => (fault.reply(), true, false),
        };
        if reply.write(&mut stream, last, bodyless).await.is_err() {
            return;
        }
        if last {
            return linger(stream).await;
        }
    }
}

/// Closing with unread bytes resets the connection, and the peer may lose the answer: read a little first.
async fn linger(mut stream: Stream) {
    if stream.shutdown().await.is_ok() {
        let drain =
            async { tokio::io::copy(&mut stream.take(BODY_LIMIT), &mut tokio::io::sink()).await };
        // Whatever is left after a second, or fails, is lost with the connection anyway.
        let _ = timeout(Duration::from_secs(1), drain).await;
    }
}

/// `None` where the request asked for its connection to be dropped.
async fn answer(service: &str, request: &Request) -> Option<Reply> {
    let trouble = match Trouble::parse(request.query()) {
        Ok(trouble) => trouble,
        Err(fault) => return Some(fault.reply()),
    };
    sleep(trouble.delay).await;
    if trouble.close {
        return None;
    }
    let mut reply = match (service, request.method.as_str(), request.path()) {
        (_, _, "/health") => Reply {
            status: 200,
            body: json!({"status": "ok"}).to_string(),
        },
        ("auth-service", "POST", "/auth/login") => login(request),
        ("payment-service", "POST", path) if path.ends_with("/webhooks/stripe") => {
            stripe_webhook(request)
        }
        _ => Reply {
            status: 200,
            body: echo(service, request),
        },
    };
    reply.status = trouble.status.unwrap_or(reply.status);
    Some(reply)
}

/// What a request's query asks this process to do wrong.
struct Trouble {
    delay: Duration,
    status: Option<u16>,
    close: bool,
}

impl Trouble {
    fn parse(query: &str) -> Result<Self, Fault> {
        let mut trouble = Self {
            delay: Duration::ZERO,
            status: None,
            close: false,
        };
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match name {
                "demo-delay-ms" => {
                    trouble.delay = Duration::from_millis(number(value, 0..=600_000)?);
                }
                "demo-status" => trouble.status = Some(number(value, 200..=599)?),
                "demo-close" => trouble.close = number::<u8>(value, 0..=1)? == 1,
                _ => {}
            }
        }
        Ok(trouble)
    }
}

fn number<N: std::str::FromStr + PartialOrd>(
    value: &str,
    range: std::ops::RangeInclusive<N>,
) -> Result<N, Fault> {
    let number = value.parse().ok().filter(|number| range.contains(number));
    number.ok_or(Fault::Malformed(
        "a demo- parameter is no number, or out of range",
    ))
}

/// What arrived, in the order a reader looks for it.
fn echo(service: &str, request: &Request) -> String {
    let mut headers: Map<String, Value> = Map::new();
    for (name, value) in &request.headers {
        let shown = if name == "authorization" {
            without_credentials(value)
        } else {
            value.clone()
        };
        let joined = match headers.get(name).and_then(Value::as_str) {
            Some(earlier) => format!("{earlier}, {shown}"),
            None => shown,
        };
        headers.insert(name.clone(), Value::String(joined));
    }
    format!(
        r#"{{"service":{},"method":{},"path":{},"headers":{},"body_bytes":{}}}"#,
        json!(service),
        json!(request.method),
        json!(request.target),
        Value::Object(headers),
        request.body.len(),
    )
}

fn without_credentials(authorization: &str) -> String {
    match authorization.split_once(' ') {
        Some((scheme, _)) => format!("{scheme} …"),
        None => "…".to_owned(),
    }
}

fn login(request: &Request) -> Reply {
    let Ok(secret) = std::env::var("JWT_SECRET") else {
        return Reply::error(500, "JWT_SECRET is not set for the stand-in backends");
    };
    let body: Value = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
    let user = body["email"].as_str().unwrap_or("demo-user");
    match token(&secret, user, "customer", "tenant-1") {
        Ok(token) => Reply {
            status: 200,
            body: json!({"accessToken": token}).to_string(),
        },
        Err(error) => Reply::error(500, &error.to_string()),
    }
}

fn token(
    secret: &str,
    user: &str,
    role: &str,
    tenant: &str,
) -> jsonwebtoken::errors::Result<String> {
    let now = get_current_timestamp();
    let claims = json!({
        "iss": "tickettoken-api",
        "sub": user,
        "role": role,
        "tenant_id": tenant,
        "type": "access",
        "iat": now,
        "exp": now + TOKEN_LIFE,
    });
    jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        &claims,
        &EncodingKey::from_secret(secret.as_bytes()),
    )
}

/// The age of `t` is not looked at: a signature made yesterday is as good to try the gateway with.
fn stripe_webhook(request: &Request) -> Reply {
    let valid = request
        .header("stripe-signature")
        .is_some_and(|header| is_signed(header, &request.body));
    let (status, signature) = if valid {
        (200, "valid")
    } else {
        (400, "invalid")
    };
    Reply {
        status,
        body: json!({"received": valid, "signature": signature}).to_string(),
    }
}

/// `t=<unix seconds>,v1=<hex>`, where `v1` may come several times while a secret is being rotated.
fn is_signed(header: &str, body: &[u8]) -> bool {
    let fields = || {
        header
            .split(',')
            .filter_map(|field| field.trim().split_once('='))
    };
    let Some((_, timestamp)) = fields().find(|(name, _)| *name == "t") else {
        return false;
    };
    let Ok(expected) = stripe_signature(DEMO_WEBHOOK_SECRET, timestamp, body) else {
        return false;
    };
    fields().any(|(name, value)| name == "v1" && value == expected)
}

/// Lower-case hex of HMAC-SHA256 over `timestamp.body`.
fn stripe_signature(secret: &str, timestamp: &str, body: &[u8]) -> Outcome<String> {
    let message = [timestamp.as_bytes(), b".", body].concat();
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signer = (aws_lc::DEFAULT_PROVIDER.signer_factory)(&Algorithm::HS256, &key)?;
    let mut hex = String::new();
    for byte in signer.try_sign(&message)? {
        write!(hex, "{byte:02x}")?;
    }
    Ok(hex)
}

struct Reply {
    status: u16,
    /// JSON.
    body: String,
}

impl Reply {
    fn error(status: u16, message: &str) -> Self {
        Self {
            status,
            body: json!({"error": message}).to_string(),
        }
    }

    /// `bodyless`: the length is told, the body is not sent, as the answer to HEAD.
    async fn write(&self, stream: &mut Stream, last: bool, bodyless: bool) -> io::Result<()> {
        let status = self.status;
        let connection = if last { "Connection: close\r\n" } else { "" };
        let mut message = if matches!(status, 204 | 304) {
            format!("HTTP/1.1 {status} \r\n{connection}\r\n")
        } else {
            let length = self.body.len();
            format!(
                "HTTP/1.1 {status} \r\n{connection}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
            )
        };
        if !bodyless && !matches!(status, 204 | 304) {
            message += &self.body;
        }
        stream.write_all(message.as_bytes()).await
    }
}

/// Why a request could not be read.
enum Fault {
    Malformed(&'static str),
    TooLarge,
    Io(io::Error),
}

impl Fault {
    fn reply(&self) -> Reply {
        match self {
            Self::Malformed(what) => Reply::error(400, what),
            Self::TooLarge => Reply::error(413, "the body is over 16 MiB"),
            Self::Io(error) => Reply::error(500, &error.to_string()),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

struct Request {
    method: String,
    /// Path and query as they came.
    target: String,
    /// Names in lower case, in the order they came.
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    keep_alive: bool,
}

impl Request {
    /// `None` where the peer has closed between two requests.
    async fn read(stream: &mut Stream) -> Result<Option<Self>, Fault> {
        let mut budget = HEAD_LIMIT;
        if stream.fill_buf().await?.is_empty() {
            return Ok(None);
        }
        let line = read_line(stream, &mut budget).await?;
        let mut words = line.split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(Fault::Malformed("the request line is not three words"));
        };
        if !is_token(method) || target.is_empty() || !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
            return Err(Fault::Malformed(
                "the request line is not `METHOD target HTTP/1.1`",
            ));
        }
        let mut request = Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: read_fields(stream, &mut budget).await?,
            body: Vec::new(),
            keep_alive: version == "HTTP/1.1",
        };
        if let Some(connection) = request.header("connection") {
            let has = |option| {
                connection
                    .split(',')
                    .any(|word| word.trim().eq_ignore_ascii_case(option))
            };
            request.keep_alive = !has("close") && (request.keep_alive || has("keep-alive"));
        }
        request.body = request.read_body(stream, &mut budget).await?;
        Ok(Some(request))
    }

    async fn read_body(&self, stream: &mut Stream, budget: &mut u64) -> Result<Vec<u8>, Fault> {
        let count = |wanted| {
            self.headers
                .iter()
                .filter(|(name, _)| name == wanted)
                .count()
        };
        if count("content-length") + count("transfer-encoding") > 1 {
            return Err(Fault::Malformed("the body has more than one length"));
        }
        let length = self
            .header("content-length")
            .map(parse_length)
            .transpose()?;
        match self.header("transfer-encoding") {
            Some(coding) if !coding.eq_ignore_ascii_case("chunked") => {
                return Err(Fault::Malformed("the transfer coding is not chunked"));
            }
            None if length.unwrap_or(0) == 0 => return Ok(Vec::new()),
            _ => {}
        }
        if self
            .header("expect")
            .is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
        {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        match length {
            Some(length) => {
                let mut body = Vec::new();
                read_exactly(stream, length, &mut body).await?;
                Ok(body)
            }
            None => read_chunks(stream, budget).await,
        }
    }

    fn header(&self, wanted: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.as_str())
    }

    fn path(&self) -> &str {
        self.target
            .split_once('?')
            .map_or(self.target.as_str(), |(path, _)| path)
    }

    fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }
}

/// Headers, or the trailers after the last chunk, up to the empty line.
async fn read_fields(
    stream: &mut Stream,
    budget: &mut u64,
) -> Result<Vec<(String, String)>, Fault> {
    let mut fields = Vec::new();
    loop {
        let line = read_line(stream, budget).await?;
        if line.is_empty() {
            return Ok(fields);
        }
        let Some((name, value)) = line.split_once(':').filter(|(name, _)| is_token(name)) else {
            return Err(Fault::Malformed("a header is not `name: value`"));
        };
        fields.push((
            name.to_ascii_lowercase(),
            value.trim_matches([' ', '\t']).to_owned(),
        ));
    }
}

async fn read_chunks(stream: &mut Stream, budget: &mut u64) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::new();
    loop {
        let line = read_line(stream, budget).await?;
        let size = line.split(';').next().unwrap_or_default().trim_end();
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Fault::Malformed(
                "a chunk's size is not a hexadecimal number",
            ));
        }
        let size = u64::from_str_radix(size, 16).map_err(|_| Fault::TooLarge)?;
        if size == 0 {
            read_fields(stream, budget).await?;
            return Ok(body);
        }
        read_exactly(stream, size, &mut body).await?;
        if !read_line(stream, budget).await?.is_empty() {
            return Err(Fault::Malformed("a chunk is longer than its size"));
        }
    }
}

fn parse_length(value: &str) -> Result<u64, Fault> {
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Fault::Malformed("Content-Length is not a number"));
    }
    value.parse().map_err(|_| Fault::TooLarge)
}

/// Appends `length` bytes to `body`, which stays within `BODY_LIMIT`.
async fn read_exactly(stream: &mut Stream, length: u64, body: &mut Vec<u8>) -> Result<(), Fault> {
    if length > BODY_LIMIT - body.len() as u64 {
        return Err(Fault::TooLarge);
    }
    let read = stream.take(length).read_to_end(body).await? as u64;
    if read == length {
        Ok(())
    } else {
        Err(Fault::Malformed("the body ends early"))
    }
}

/// One line without its CRLF.
async fn read_line(stream: &mut Stream, budget: &mut u64) -> Result<String, Fault> {
    let mut line = Vec::new();
    *budget -= stream.take(*budget).read_until(b'\n', &mut line).await? as u64;
    match line.strip_suffix(b"\r\n") {
        Some(line) => Ok(String::from_utf8_lossy(line).into_owned()),
        None if *budget == 0 => Err(Fault::Malformed("the head is over 64 KiB")),
        None => Err(Fault::Malformed("a line does not end in CRLF")),
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    let is_mark = |byte| b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || is_mark(byte))
}
