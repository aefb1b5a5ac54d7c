//! What an operator writes: no file and no variable ends in a panic, and every fault has a place.

use std::sync::LazyLock;

use crate::config::{self, Environment, Problems, Source};
use crate::observe::sink::Sink;
use crate::server::{self, Compiled, Purpose};

/// Files that a configuration names are not opened here: some of them never end.
const PATHS: [&str; 4] = ["public_key", "ca:", "cert", "key:"];

const SERVICES: &str = "
services:
  auth-service: { url: 'http://a:1', breaker: { volume: 20, reset: 60s } }
  minting-service: { instances: [{ url: 'http://127.0.0.1:1', weight: 2 }] }
routes: [{ path: /a, service: auth-service, auth: token }]
";

pub fn config(input: &[u8]) {
    let Ok(yaml) = std::str::from_utf8(input) else {
        return;
    };
    if !PATHS.iter().any(|path| yaml.contains(path)) {
        check(compiled(yaml).err());
    }
}

/// One variable a line, over a file that has what variables are laid over besides the scalars.
pub fn environment(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let pairs = pairs.filter(|(name, _)| *name != "JWT_PUBLIC_KEY");
    let environment = Environment::from_pairs(pairs.map(|(k, v)| (k.into(), v.into())));
    check(load(SERVICES, &environment).err());
}

fn check(problems: Option<Problems>) {
    let Some(problems) = problems else { return };
    assert!(!problems.is_empty(), "refused without a reason");
    for (place, fault) in problems.iter() {
        assert!(!place.trim().is_empty(), "no place: {fault}");
        assert!(!fault.trim().is_empty(), "no reason: {place}");
    }
}

/// The configuration, ready to run.
pub fn compiled(yaml: &str) -> Result<Compiled, Problems> {
    load(yaml, &Environment::from_pairs([]))
}

fn load(yaml: &str, environment: &Environment) -> Result<Compiled, Problems> {
    static SINK: LazyLock<Sink> =
        LazyLock::new(|| Sink::open(Some("/dev/null".as_ref())).expect("the log goes nowhere"));
    let file = config::parse(yaml, &Source::BuiltIn, environment)?;
    let mut problems = Problems::default();
    let settings = server::log_settings(&file, &mut problems);
    let purpose = Purpose::Start {
        settings: &settings,
        sink: SINK.clone(),
    };
    server::compile(file, purpose, problems)
}
