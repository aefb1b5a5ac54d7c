//! One instance of a service as a process of its own, to be killed, frozen and started again on its port while a
//! gateway is under load. It answers every request with its own name, and says each on a line of standard output
//! before it does so: what a killed one has been asked stays known. `backends` is the whole platform in one process.
//!
//! The HTTP/1.1 here is as minimal as it can be: a thread a connection, lengths but no chunks, no time-outs.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

const USAGE: &str = "\
usage: one_backend PORT [NAME]
           listen on 127.0.0.1:PORT, 0 for any free port, which the first line of output tells

It answers /health with 200, and any other request with 200 and {\"name\":NAME}. NAME is the port unless given.
A request's query may ask for trouble: demo-delay-ms=500.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("one_backend: {error}\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<(), Box<dyn Error>> {
    let (port, name) = match args {
        [port] => (port, None),
        [port, name] => (port, Some(name.clone())),
        _ => return Err("one port, and perhaps a name".into()),
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse::<u16>()?))?;
    let addr = listener.local_addr()?;
    let name = name.unwrap_or_else(|| addr.port().to_string());
    println!("listening on {addr}");
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let name = name.clone();
                // How a connection ends is its peer's business.
                #[expect(clippy::disallowed_methods, reason = "a demonstration may end")]
                thread::spawn(move || converse(&stream, &name));
            }
            // Out of file descriptors, most likely: without a pause this would spin.
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// One connection, request after request.
fn converse(stream: &TcpStream, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = Request::read(&mut reader)? {
        let body = if request.path() == "/health" {
            r#"{"status":"ok"}"#.to_owned()
        } else {
            println!("{} {}", request.method, request.target);
            thread::sleep(request.delay());
            format!(r#"{{"name":"{name}"}}"#)
        };
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        if request.method != "HEAD" {
            answer += &body;
        }
        (&mut &*stream).write_all(answer.as_bytes())?;
    }
    Ok(())
}

struct Request {
    method: String,
    target: String,
}

impl Request {
    /// `None` where the peer has closed.
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let line = read_line(reader)?;
        let Some((method, rest)) = line.split_once(' ') else {
            return Ok(None);
        };
        let target = rest.split(' ').next().unwrap_or_default();
        let mut length = 0;
        loop {
            let line = read_line(reader)?;
            if line.is_empty() {
                break;
            }
            if let Some((field, value)) = line.split_once(':')
                && field.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        io::copy(&mut reader.take(length), &mut io::sink())?;
        Ok(Some(Self {
            method: method.to_owned(),
            target: target.to_owned(),
        }))
    }

    fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    fn delay(&self) -> Duration {
        let (_, query) = self.target.split_once('?').unwrap_or_default();
        let asked = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("demo-delay-ms="));
        Duration::from_millis(asked.and_then(|ms| ms.parse().ok()).unwrap_or(0))
    }
}

/// A line without its end, empty also at the end of all.
fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    line.truncate(line.trim_end().len());
    Ok(line)
}
