//! `api-gateway key`: makes, lists and revokes the API keys in the Redis that the gateways read.

mod create;
mod list;
mod random;
mod revoke;
mod store;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};

use crate::config::{self, Environment, Source};
use crate::state::Operator;
use store::Store;

/// For a whole command: less than [`store::LOCK_LIFE`], so that a lock that is given back is still the command's own.
const PATIENCE: Duration = Duration::from_secs(20);

const AFTER_HELP: &str = "\
The keys live in the Redis that the configuration names (REDIS_HOST, or `redis.host` in the file), and every gateway
there takes up a change at once. Of a key only its SHA-256 is stored; its first digits are the key's fingerprint.

Exit status: 0 when it was done, 1 when it was not, with the reason on standard error, 2 on a wrong flag.";

pub fn command() -> Command {
    Command::new("key")
        .about("Make, list and revoke API keys")
        .after_help(AFTER_HELP)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(create::command())
        .subcommand(list::command())
        .subcommand(revoke::command())
}

/// Runs the subcommand that `flags` name.
pub fn run(flags: &ArgMatches, source: &Source, environment: &Environment) -> ExitCode {
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("no runtime can be started: {e}"))
        .and_then(|runtime| runtime.block_on(within_patience(flags, source, environment)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(&why);
            ExitCode::FAILURE
        }
    }
}

async fn within_patience(
    flags: &ArgMatches,
    source: &Source,
    environment: &Environment,
) -> Result<(), String> {
    tokio::time::timeout(PATIENCE, dispatch(flags, source, environment))
        .await
        .unwrap_or_else(|_| {
            Err(format!(
                "redis took longer than {PATIENCE:?}; `api-gateway key list` shows what was done"
            ))
        })
}

async fn dispatch(
    flags: &ArgMatches,
    source: &Source,
    environment: &Environment,
) -> Result<(), String> {
    let file = config::load(source, environment)
        .map_err(|problems| format!("{source} has {} faults:\n{problems}", problems.len()))?;
    let mut store = Store::new(Operator::connect(file.redis).await?);
    match flags.subcommand() {
        Some(("create", flags)) => create::run(flags, &mut store).await,
        Some(("list", flags)) => list::run(flags, &mut store).await,
        Some(("revoke", flags)) => revoke::run(flags, &mut store).await,
        _ => Err("say `create`, `list` or `revoke`".to_owned()),
    }
}

/// Explanations go to standard error: standard output has what was asked for.
fn say(what: &str) {
    eprintln!("api-gateway: {what}");
}

fn id_flag() -> Arg {
    Arg::new("id").long("id").value_name("ID").value_parser(id)
}

/// It is a part of key names in Redis, and people write it on command lines.
fn id(text: &str) -> Result<String, String> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if (1..=128).contains(&text.len()) && text.bytes().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err("an id is 1 to 128 characters of A-Z a-z 0-9 . _ -".to_owned())
    }
}
