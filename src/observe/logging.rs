//! The diagnostic log: everything that is said through `log`, as JSON lines or, for people, pretty.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use log::{LevelFilter, Record};

use super::sink::Sink;
use super::{Format, Level, LogSettings};

/// Puts `env_logger` in charge of `log`, with our form and our sink.
pub fn init(settings: &LogSettings, sink: Sink) {
    let level = settings.level.filter();
    let format = settings.format;
    let service = settings.service_name.clone();
    env_logger::Builder::new()
        .filter_level(level.min(LevelFilter::Warn))
        // Pingora tells at info what a proxy of proxies would want to know; its warnings and errors are ours as well.
        .filter_module("api_gateway", level)
        // One line for each upload that a backend breaks off, or that we cut: the access line has it.
        .filter_module("pingora_proxy", level.min(LevelFilter::Error))
        // A head that we have written ourselves (`reply::begin_for_http10`).
        .filter_module(
            "pingora_core::protocols::http::v1::server",
            level.min(LevelFilter::Error),
        )
        // Our own line tells an instance's health, with its service.
        .filter_module("pingora_load_balancing", level.min(LevelFilter::Error))
        // One line for each try to reach a node of a cluster: our own line says that it is away.
        .filter_module("redis", level.min(LevelFilter::Error))
        .format(move |out, record| {
            let mut line = Vec::with_capacity(256);
            write_record(&mut line, format, &service, record);
            out.write_all(&line)
        })
        .target(env_logger::Target::Pipe(Box::new(Pipe(sink))))
        .init();
}

struct Pipe(Sink);

impl Write for Pipe {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn write_record(line: &mut Vec<u8>, format: Format, service: &str, record: &Record<'_>) {
    let level = level_name(record.level());
    let context = record.target().rsplit("::").next().unwrap_or_default();
    let message = record.args().to_string();
    let written = match format {
        Format::Json => writeln!(
            line,
            "{{\"level\":\"{level}\",\"time\":{},\"service\":{},\"context\":\"{context}\",\"msg\":{}}}",
            unix_millis(),
            serde_json::Value::from(service),
            serde_json::Value::from(message),
        ),
        Format::Pretty => writeln!(
            line,
            "{} {} {context}: {message}",
            clock(),
            colored(record.level())
        ),
    };
    debug_assert!(written.is_ok(), "a Vec takes everything");
}

impl Level {
    fn filter(self) -> LevelFilter {
        match self {
            Level::Error => LevelFilter::Error,
            Level::Warn => LevelFilter::Warn,
            Level::Info => LevelFilter::Info,
            Level::Debug => LevelFilter::Debug,
        }
    }
}

pub fn level_name(level: log::Level) -> &'static str {
    match level {
        log::Level::Error => "error",
        log::Level::Warn => "warn",
        log::Level::Info => "info",
        log::Level::Debug | log::Level::Trace => "debug",
    }
}

/// For a terminal.
pub fn colored(level: log::Level) -> &'static str {
    match level {
        log::Level::Error => "\x1b[31mERROR\x1b[0m",
        log::Level::Warn => "\x1b[33mWARN\x1b[0m",
        log::Level::Info => "\x1b[32mINFO\x1b[0m",
        log::Level::Debug | log::Level::Trace => "\x1b[36mDEBUG\x1b[0m",
    }
}

/// The time of day, for people.
pub fn clock() -> String {
    let now = jiff::Timestamp::now().to_string();
    now.get(11..23).unwrap_or(&now).to_owned()
}

pub fn unix_millis() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
