//! The gateway under test: the real binary, as a child process with an environment of its own, on
//! ports of its own, with everything it says captured.

use super::client::Request;
use super::lock;
use super::token;
use super::wait::{SOON, within};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const START_LIMIT: Duration = Duration::from_secs(20);
const EXIT_LIMIT: Duration = Duration::from_secs(20);

/// A running gateway. Killed when dropped; says all it said when the test has failed.
pub struct Gateway {
    child: Mutex<Child>,
    pid: u32,
    conf: Option<TempFile>,
    stdout: Lines,
    stderr: Lines,
    readers: Vec<JoinHandle<()>>,
    addr: Option<SocketAddr>,
    private_addr: Option<SocketAddr>,
    /// In the environment of this process, and of those that took its place.
    mark: String,
}

impl Gateway {
    /// A gateway with this configuration file.
    pub fn with(yaml: &str) -> GatewayBuilder {
        GatewayBuilder::new(Some(yaml))
    }

    /// The platform's own configuration, but that no instance is set aside because it is slow to say that it is healthy.
    pub fn platform_unchecked() -> GatewayBuilder {
        let platform = include_str!("../../../conf/gateway.yaml");
        let checked = "enabled: true\n  path: /health";
        assert!(
            platform.contains(checked),
            "the health checks can be turned off"
        );
        Self::with(&platform.replace(checked, "enabled: false\n  path: /health"))
    }

    /// A gateway without a configuration file: with the configuration compiled into it.
    pub fn platform() -> GatewayBuilder {
        GatewayBuilder::new(None)
    }

    /// The address of the main listener.
    #[track_caller]
    pub fn addr(&self) -> SocketAddr {
        self.addr.expect("the gateway was awaited with start()")
    }

    /// The address of the private listener.
    #[track_caller]
    pub fn private_addr(&self) -> SocketAddr {
        self.private_addr.expect("the gateway has OPS_LISTEN")
    }

    /// The address of the listener with this protocol beside the main one.
    #[track_caller]
    pub fn listener(&self, protocol: &str) -> SocketAddr {
        let line = self.wait_log(|line| {
            line["msg"] == "listening"
                && line["protocol"] == protocol
                && !matches!(line["listener"].as_str(), Some("main" | "private"))
        });
        let address = line["address"].as_str().unwrap_or_default();
        address.parse().unwrap_or_else(|_| panic!("{line}"))
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Replaces the content of the configuration file. The gateway is not told.
    #[track_caller]
    pub fn rewrite_conf(&self, yaml: &str) {
        let conf = self.conf.as_ref().expect("the gateway has a --conf file");
        conf.rewrite(yaml);
    }

    /// Sends a signal: 15 is SIGTERM, 2 SIGINT, 1 SIGHUP, 3 SIGQUIT.
    #[track_caller]
    pub fn signal(&self, signal: i32) {
        assert!(
            send_signal(self.pid, signal),
            "signal {signal} could not be sent; {}",
            self.raw_output()
        );
    }

    /// The exit code, once the process has ended; none when it has not within `limit`. A process
    /// that a signal ended counts as 128 + signal, as in a shell.
    pub fn wait_exit(&self, limit: Duration) -> Option<i32> {
        within(limit, || self.exit_code())
    }

    /// Every line of stdout, which must be JSON each.
    #[track_caller]
    pub fn log_lines(&self) -> Vec<Value> {
        let parse = |line: &String| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("a line of stdout is no JSON ({error}): {line:?}"))
        };
        lock(&self.stdout).clone().iter().map(parse).collect()
    }

    /// Waits up to 5 s for a line of stdout, past or to come, that `wanted` accepts.
    #[track_caller]
    pub fn wait_log(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        self.wait_log_within(SOON, wanted)
            .unwrap_or_else(|| panic!("no such log line within {SOON:?}; {}", self.raw_output()))
    }

    /// The access log line of this request, awaited up to 5 s.
    #[track_caller]
    pub fn access_line(&self, request_id: &str) -> Value {
        self.wait_log_within(SOON, |line| is_access_line(line, request_id))
            .unwrap_or_else(|| {
                panic!(
                    "no access line of {request_id:?} within {SOON:?}; {}",
                    self.raw_output()
                )
            })
    }

    /// How many access log lines this request has by now.
    pub fn access_lines_of(&self, request_id: &str) -> usize {
        let lines = lock(&self.stdout);
        let named = lines.iter().filter(|line| line.contains(request_id));
        named
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(|line| is_access_line(line, request_id))
            .count()
    }

    /// The text of `GET /metrics` on the private listener.
    #[track_caller]
    pub fn metrics(&self) -> String {
        let response = Request::get("/metrics").send_to(self.private_addr());
        assert_eq!(response.status, 200, "{}", self.raw_output());
        response.text().to_owned()
    }

    /// The value of one series by now, named as in the text, with its labels in alphabetical
    /// order: `http_requests_total{method="GET",route="/x"}`; 0 when it is not there.
    #[track_caller]
    pub fn metric(&self, series: &str) -> f64 {
        value_of(series, &self.metrics()).unwrap_or(0.0)
    }

    /// Waits up to 5 s until the series has a value that `wanted` accepts.
    #[track_caller]
    pub fn wait_metric(&self, series: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        within(SOON, || {
            Some(self.metric(series)).filter(|value| wanted(*value))
        })
        .unwrap_or_else(|| {
            panic!(
                "{series} is {} still; all metrics:\n{}\n{}",
                self.metric(series),
                self.metrics(),
                self.raw_output()
            )
        })
    }

    /// All it wrote to stdout and stderr by now; of a thousand lines and more, those of requests
    /// are left out but for the last hundred.
    pub fn raw_output(&self) -> String {
        format!(
            "stdout of the gateway:\n{}\nstderr of the gateway:\n{}\n",
            readable(&lock(&self.stdout)).join("\n"),
            lock(&self.stderr).join("\n")
        )
    }

    /// Its resident memory.
    #[track_caller]
    pub fn memory_kb(&self) -> u64 {
        self.of_status("VmRSS:")
    }

    /// How many threads it has.
    #[track_caller]
    pub fn threads(&self) -> u64 {
        self.of_status("Threads:")
    }

    /// How many file descriptors it has open.
    #[track_caller]
    pub fn open_fds(&self) -> usize {
        let descriptors = format!("/proc/{}/fd", self.pid);
        fs::read_dir(descriptors)
            .unwrap_or_else(|error| panic!("no descriptors: {error}; {}", self.raw_output()))
            .count()
    }

    fn await_listeners(&mut self, with_private: bool) {
        let addr = self.await_listener("main");
        self.addr = Some(addr);
        if with_private {
            self.private_addr = Some(self.await_listener("private"));
        }
    }

    fn await_listener(&self, listener: &str) -> SocketAddr {
        self.await_from_start(&format!("the {listener} listener"), || {
            let lines = lock(&self.stdout);
            let line = lines
                .iter()
                .filter_map(|line| parse(line))
                .find(|line| line["msg"] == "listening" && line["listener"] == listener)?;
            let addr: SocketAddr = line["address"].as_str()?.parse().ok()?;
            TcpStream::connect(addr).is_ok().then_some(addr)
        })
    }

    fn await_from_start<T>(&self, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
        let answer = within(START_LIMIT, || {
            let ended = self.exit_code();
            match (probe(), ended) {
                (_, Some(code)) => Some(Err(code)),
                (found, None) => found.map(Ok),
            }
        });
        match answer {
            Some(Ok(found)) => found,
            Some(Err(code)) => {
                self.await_whole_output();
                panic!(
                    "the gateway exited with {code} before {what}; {}",
                    self.raw_output()
                )
            }
            None => panic!("no {what} within {START_LIMIT:?}; {}", self.raw_output()),
        }
    }

    fn await_whole_output(&self) {
        let read = || self.readers.iter().all(JoinHandle::is_finished);
        if within(SOON, || read().then_some(())).is_none() {
            panic!("the output does not end; {}", self.raw_output());
        }
    }

    fn exit_code(&self) -> Option<i32> {
        let status = lock(&self.child)
            .try_wait()
            .expect("the child can be waited for")?;
        Some(code_of(status))
    }

    fn wait_log_within(&self, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let mut seen = 0;
        within(limit, || {
            let fresh = lock(&self.stdout)[seen..].to_vec();
            seen += fresh.len();
            fresh
                .iter()
                .filter_map(|line| parse(line))
                .find(|line| wanted(line))
        })
    }

    #[track_caller]
    fn of_status(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))
            .unwrap_or_else(|error| panic!("no status: {error}; {}", self.raw_output()));
        status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| panic!("no {field} in:\n{status}{}", self.raw_output()))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        {
            let mut child = lock(&self.child);
            // Both fail only for a process that has ended and been waited for already.
            let _ = child.kill();
            let _ = child.wait();
        }
        // Who took its place has its output open.
        super::runtime::end_all(&self.mark);
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        if thread::panicking() {
            eprintln!("{}", self.raw_output());
        }
    }
}

/// A gateway about to be started.
pub struct GatewayBuilder {
    conf: Option<TempFile>,
    env: BTreeMap<String, String>,
    args: Vec<String>,
    program: Option<PathBuf>,
    /// The program that runs it, with arguments; none: it is run by itself.
    under: Vec<String>,
}

/// The services that have routes, by the first part of their variable: `AUTH` is at AUTH_SERVICE_URL.
pub const SERVICES: [&str; 15] = [
    "AUTH",
    "VENUE",
    "EVENT",
    "TICKET",
    "PAYMENT",
    "MARKETPLACE",
    "ANALYTICS",
    "NOTIFICATION",
    "INTEGRATION",
    "COMPLIANCE",
    "QUEUE",
    "SEARCH",
    "FILE",
    "MONITORING",
    "MINTING",
];

impl GatewayBuilder {
    /// Every service is at this one place.
    pub fn all_services_at(self, url: &str) -> Self {
        SERVICES.iter().fold(self, |gateway, service| {
            gateway.env(&format!("{service}_SERVICE_URL"), url)
        })
    }

    fn new(yaml: Option<&str>) -> Self {
        let env = [
            ("HOST", "127.0.0.1"),
            ("PORT", "0"),
            ("NODE_ENV", "production"),
            ("LOG_LEVEL", "info"),
            ("LOG_FORMAT", "json"),
            ("JWT_SECRET", token::SECRET),
            ("OPS_LISTEN", "127.0.0.1:0"),
            ("RUST_BACKTRACE", "1"),
        ];
        Self {
            conf: yaml.map(|yaml| TempFile::new("yaml", yaml)),
            env: env.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            args: Vec::new(),
            program: None,
            under: Vec::new(),
        }
    }

    /// Runs this program, which leads to the one under test.
    pub fn program(mut self, program: PathBuf) -> Self {
        self.program = Some(program);
        self
    }

    /// Runs it below this program, as strace; `pid` is that program's then.
    pub fn under(mut self, program: &[&str]) -> Self {
        self.under = program.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Sets a variable of its environment, which has nothing else but the test's defaults.
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.insert(name.to_owned(), value.to_string());
        self
    }

    /// Takes a variable out of its environment.
    pub fn without_env(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// Adds an argument to its command line.
    pub fn arg(mut self, arg: impl ToString) -> Self {
        self.args.push(arg.to_string());
        self
    }

    /// Starts it and waits until it listens: on the main address, and on the private one unless
    /// OPS_LISTEN was taken away or emptied. Needs LOG_FORMAT=json and a LOG_LEVEL that shows it.
    #[track_caller]
    pub fn start(self) -> Gateway {
        let with_private = self.env.get("OPS_LISTEN").is_some_and(|at| !at.is_empty());
        let mut gateway = self.spawn();
        gateway.await_listeners(with_private);
        gateway
    }

    /// Starts it without waiting for anything: its addresses are not known.
    #[track_caller]
    pub fn spawn(self) -> Gateway {
        let program = self.program.unwrap_or_else(gateway_program);
        let mark = super::runtime::new_mark();
        let mut command = match self.under.split_first() {
            Some((wrapper, arguments)) => {
                let mut command = Command::new(wrapper);
                command.args(arguments).arg(&program);
                command
            }
            None => Command::new(&program),
        };
        if let Some(conf) = &self.conf {
            command.arg("--conf").arg(conf.path());
        }
        let mut child = command
            .args(&self.args)
            .env_clear()
            .envs(&self.env)
            .env(super::runtime::MARK, &mark)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()));
        let (stdout, stderr) = (Lines::default(), Lines::default());
        let out = child.stdout.take().expect("stdout is piped");
        let err = child.stderr.take().expect("stderr is piped");
        let readers = vec![collect(out, &stdout), collect(err, &stderr)];
        Gateway {
            pid: child.id(),
            child: Mutex::new(child),
            conf: self.conf,
            stdout,
            stderr,
            readers,
            addr: None,
            private_addr: None,
            mark,
        }
    }

    /// Starts it and waits until it ends by itself, up to 20 s: for faulty configurations and for
    /// `--help` and the like.
    #[track_caller]
    pub fn run_to_exit(self) -> Exit {
        let gateway = self.spawn();
        let Some(code) = gateway.wait_exit(EXIT_LIMIT) else {
            panic!(
                "the gateway has not ended by itself within {EXIT_LIMIT:?}; {}",
                gateway.raw_output()
            );
        };
        gateway.await_whole_output();
        Exit {
            code,
            stdout: lock(&gateway.stdout).join("\n"),
            stderr: lock(&gateway.stderr).join("\n"),
        }
    }
}

/// How a gateway ended that ended by itself.
#[derive(Clone, Debug)]
pub struct Exit {
    /// 128 + signal when a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A file that is there until it is dropped.
#[derive(Debug)]
pub struct TempFile {
    path: PathBuf,
}

impl TempFile {
    /// A file of a unique name with this extension.
    #[track_caller]
    pub fn new(extension: &str, content: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("gateway-e2e-{}-{number}.{extension}", std::process::id());
        let file = Self {
            path: std::env::temp_dir().join(name),
        };
        file.rewrite(content);
        file
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the content, at one stroke.
    #[track_caller]
    pub fn rewrite(&self, content: &str) {
        let new = self.path.with_extension("new");
        fs::write(&new, content)
            .and_then(|()| fs::rename(&new, &self.path))
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", self.path.display()));
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // A test may have removed it on purpose.
        let _ = fs::remove_file(&self.path);
    }
}

pub(super) type Lines = Arc<Mutex<Vec<String>>>;

/// The binary to test: E2E_GATEWAY_BIN, else the one Cargo has built for the tests.
pub(super) fn gateway_program() -> PathBuf {
    std::env::var_os("E2E_GATEWAY_BIN")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_api-gateway").into())
        .into()
}

/// Whether the process could be sent the signal.
pub(super) fn send_signal(pid: u32, signal: i32) -> bool {
    let sent = Command::new("kill")
        .arg(format!("-{signal}"))
        .arg(pid.to_string())
        .status()
        .expect("kill can be run");
    sent.success()
}

/// Adds the lines of one output to `lines` until it ends.
pub(super) fn collect(output: impl Read + Send + 'static, lines: &Lines) -> JoinHandle<()> {
    let collected = Arc::clone(lines);
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        loop {
            line.clear();
            let count = output
                .read_until(b'\n', &mut line)
                .expect("the output can be read");
            if count == 0 {
                break;
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches('\n').to_owned();
            lock(&collected).push(text);
        }
    })
}

fn readable(lines: &[String]) -> Vec<&str> {
    let lines = lines.iter().map(String::as_str);
    let older = match lines.len() {
        ..1000 => 0,
        many => many - 100,
    };
    let is_of_request = |line: &str| line.contains(r#""context":"request""#);
    let shown = |(number, line): &(usize, &str)| *number >= older || !is_of_request(line);
    let shown = lines.enumerate().filter(shown);
    shown.map(|(_, line)| line).collect()
}

fn is_access_line(line: &Value, request_id: &str) -> bool {
    line["context"] == "request" && line["requestId"] == request_id
}

fn value_of(series: &str, metrics: &str) -> Option<f64> {
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    match value.split_whitespace().next()?.parse() {
        Ok(value) => Some(value),
        Err(error) => panic!("{series} has the value {value:?}: {error}"),
    }
}

fn code_of(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => panic!("neither exited nor killed: {status}"),
    }
}

fn parse(line: &str) -> Option<Value> {
    serde_json::from_str(line).ok()
}
