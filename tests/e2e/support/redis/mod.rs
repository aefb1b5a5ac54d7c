//! A real `redis-server` on a free port of the loopback, without persistence, for one test alone; and several of them as
//! a master with Sentinels, or as a Cluster.

mod between;
mod cluster;
mod sentinel;

pub use between::Between;
pub use cluster::Cluster;
pub use sentinel::Watched;

use super::wait::{SOON, within};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How often a port is tried anew that another process has taken meanwhile.
const TRIES: usize = 5;

/// A running server. Killed when dropped.
pub struct Redis {
    addr: SocketAddr,
    password: Option<String>,
    /// On its command line, after the address.
    arguments: Vec<String>,
    /// The port for TLS, beside the one for the test.
    tls_port: Option<u16>,
    child: Option<Child>,
}

impl Redis {
    /// A server that asks for no password.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(None, &[])
    }

    /// A server with more on its command line.
    #[track_caller]
    pub fn start_as(arguments: &[&str]) -> Self {
        Self::start_with(None, arguments)
    }

    /// With `tls`, it has a port for TLS beside the one for the test: the certificate is among these arguments.
    #[track_caller]
    pub fn start_with_tls(arguments: &[&str], tls: Option<&[String]>) -> Self {
        let Some(tls) = tls else {
            return Self::start_as(arguments);
        };
        let port = free_addr().port();
        let text = port.to_string();
        let more = tls.iter().map(String::as_str);
        let words: Vec<&str> = ["--tls-port", &text].into_iter().chain(more).collect();
        let mut server = Self::start_as(&[arguments, &words].concat());
        server.tls_port = Some(port);
        server
    }

    /// A server whose clients must say this password.
    #[track_caller]
    pub fn start_with_password(password: &str) -> Self {
        Self::start_with(Some(password.to_owned()), &[])
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// The port for others than the test.
    pub fn client_port(&self) -> u16 {
        self.tls_port.unwrap_or(self.port())
    }

    /// Sends one command and reads its answer as text: a status, a number, a string, or `nil`.
    /// Panics on an error of the server's.
    #[track_caller]
    pub fn command(&self, words: &[&str]) -> String {
        match self.try_command(words) {
            Ok(answer) => answer,
            Err(why) => panic!("redis: {}: {why}", words.join(" ")),
        }
    }

    /// The same, with what the server says against it as an error.
    pub fn try_command(&self, words: &[&str]) -> Result<String, String> {
        let stream = TcpStream::connect(self.addr).map_err(|error| error.to_string())?;
        let limit = stream.set_read_timeout(Some(SOON));
        limit.expect("the read timeout is settable");
        let mut stream = BufReader::new(stream);
        if let Some(password) = &self.password {
            exchange(&mut stream, &["AUTH", password])?;
        }
        exchange(&mut stream, words)
    }

    /// Kills it at once, as a crash would. Its data are gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only for a process that has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same port after [`Redis::kill`], empty.
    #[track_caller]
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "redis was not killed");
        for _ in 0..TRIES {
            self.child = spawn(self.addr, self.password.as_deref(), &self.arguments);
            if self.child.is_some() {
                return;
            }
        }
        panic!("redis cannot be started on {} again", self.addr);
    }

    /// It was not killed, or is there again.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Freezes it: connections stay, no answer comes.
    #[track_caller]
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on after [`Redis::freeze`].
    #[track_caller]
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    #[track_caller]
    fn start_with(password: Option<String>, arguments: &[&str]) -> Self {
        for _ in 0..TRIES {
            let addr = free_addr();
            let arguments: Vec<String> = arguments.iter().map(|&one| one.to_owned()).collect();
            if let Some(child) = spawn(addr, password.as_deref(), &arguments) {
                return Self {
                    addr,
                    password,
                    arguments,
                    tls_port: None,
                    child: Some(child),
                };
            }
        }
        panic!("redis-server did not start on any of {TRIES} free ports");
    }

    #[track_caller]
    fn signal(&self, signal: &str) {
        let child = self.child.as_ref().expect("redis runs");
        let sent = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status()
            .expect("kill can be run");
        assert!(sent.success(), "{signal} could not be sent to redis");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Free when it was looked at.
pub fn free_addr() -> SocketAddr {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port of 127.0.0.1 is free");
    free.local_addr().expect("a listener has an address")
}

/// A server that answers; `None` when it ended at once, as it does when its port is taken.
#[track_caller]
fn spawn(addr: SocketAddr, password: Option<&str>, arguments: &[String]) -> Option<Child> {
    let port = addr.port().to_string();
    let directory = std::env::temp_dir();
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--port", &port])
        .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
        .arg("--dir")
        .arg(directory);
    if let Some(password) = password {
        command.args(["--requirepass", password]);
    }
    command.args(arguments);
    await_up(&mut command, addr, password)
}

/// Runs it; `None` when it ended at once.
#[track_caller]
fn await_up(command: &mut Command, addr: SocketAddr, password: Option<&str>) -> Option<Child> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| {
            panic!(
                "the tests need the redis-server command (apt-get install redis-server): {error}"
            )
        });
    let up = within(Duration::from_secs(20), || {
        match child.try_wait().expect("redis-server can be waited for") {
            Some(_) => Some(false),
            None => is_up(addr, password).then_some(true),
        }
    });
    match up {
        Some(true) => Some(child),
        Some(false) => None,
        None => {
            let _ = child.kill();
            let _ = child.wait();
            panic!("redis-server on {addr} does not answer");
        }
    }
}

fn is_up(addr: SocketAddr, password: Option<&str>) -> bool {
    let Ok(stream) = TcpStream::connect(addr) else {
        return false;
    };
    let limit = stream.set_read_timeout(Some(SOON));
    limit.expect("the read timeout is settable");
    let mut stream = BufReader::new(stream);
    let let_in = password.is_none_or(|word| exchange(&mut stream, &["AUTH", word]).is_ok());
    let_in && exchange(&mut stream, &["PING"]).is_ok_and(|answer| answer == "PONG")
}

fn exchange(stream: &mut BufReader<TcpStream>, words: &[&str]) -> Result<String, String> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request += &format!("${}\r\n{word}\r\n", word.len());
    }
    let sent = stream.get_mut().write_all(request.as_bytes());
    sent.map_err(|error| error.to_string())?;
    read_answer(stream)
}

fn read_answer(stream: &mut BufReader<TcpStream>) -> Result<String, String> {
    let mut line = String::new();
    let read = stream.read_line(&mut line);
    read.map_err(|error| error.to_string())?;
    let line = line.trim_end_matches("\r\n");
    let rest = line.get(1..).unwrap_or_default();
    match line.as_bytes().first() {
        Some(b'+' | b':') => Ok(rest.to_owned()),
        Some(b'$') if rest == "-1" => Ok("nil".to_owned()),
        Some(b'$') => {
            let length: usize = rest.parse().map_err(|_| format!("answered {line:?}"))?;
            let mut text = vec![0; length + 2];
            let read = stream.read_exact(&mut text);
            read.map_err(|error| error.to_string())?;
            text.truncate(length);
            Ok(String::from_utf8_lossy(&text).into_owned())
        }
        // The words of a list, one after the other.
        Some(b'*') => {
            let length: usize = rest.parse().map_err(|_| format!("answered {line:?}"))?;
            let words: Result<Vec<String>, String> =
                (0..length).map(|_| read_answer(stream)).collect();
            Ok(words?.join(" "))
        }
        _ => Err(format!("answered {line:?}")),
    }
}
