//! `key create`: a new key, shown once; at most two live ones for an id, so that one can be changed for the other.

use std::io::Write;

use clap::{Arg, ArgAction, ArgMatches, Command};
use jiff::{SignedDuration, Timestamp};

use super::random::random_key;
use super::store::{Entry, Store, fingerprint};
use super::{id_flag, say};
use crate::admit::auth::Tier;
use crate::admit::auth::api_key::{Digest, Record};
use crate::admit::permissions::is_permission;
use crate::config::Duration;

/// Two, for the time in which one is changed for the other.
const MOST_LIVE: usize = 2;

const LONGEST_LIFE: Duration = Duration::secs(3650 * 86_400);

const AFTER_HELP: &str = "\
The key is printed once, on standard output; only its SHA-256 is stored. An id has at most two live keys, which share
their limits. To change a key: create the second with --overlap, hand it over, and the first ends by itself.";

pub fn command() -> Command {
    Command::new("create")
        .about("Make a key and print it")
        .after_help(AFTER_HELP)
        .arg(
            id_flag()
                .required(true)
                .help("Whom logs and limits name as the caller"),
        )
        .arg(
            Arg::new("tenant")
                .long("tenant")
                .value_name("TENANT")
                .required(true)
                .value_parser(visible)
                .help("The tenant that it acts for"),
        )
        .arg(
            Arg::new("permission")
                .long("permission")
                .value_name("RESOURCE:ACTION")
                .action(ArgAction::Append)
                .value_parser(permission)
                .help("What it may do, also `resource:*` or `*`; repeatable"),
        )
        .arg(
            Arg::new("venue")
                .long("venue")
                .value_name("VENUE")
                .action(ArgAction::Append)
                .value_parser(visible)
                .help("A venue that it may name; repeatable"),
        )
        .arg(
            Arg::new("tier")
                .long("tier")
                .value_name("TIER")
                .default_value("free")
                .value_parser(["free", "standard", "premium"])
                .help("1, 5 or 10 times the limits"),
        )
        .arg(
            Arg::new("expires-in")
                .long("expires-in")
                .value_name("TIME")
                .default_value("365d")
                .value_parser(life)
                .help("How long it is good, 1s to 3650d"),
        )
        .arg(
            Arg::new("overlap")
                .long("overlap")
                .value_name("TIME")
                .value_parser(life)
                .help("How long the id's older key stays good beside it; without this, until its own end"),
        )
}

pub async fn run(flags: &ArgMatches, store: &mut Store) -> Result<(), String> {
    let wanted = Wanted::of(flags)?;
    store.lock(&wanted.record.id).await?;
    let made = make(&wanted, store).await;
    store.unlock(&wanted.record.id).await;
    made
}

struct Wanted {
    record: Record,
    life: SignedDuration,
    overlap: Option<SignedDuration>,
}

impl Wanted {
    fn of(flags: &ArgMatches) -> Result<Self, String> {
        let text = |name| flags.get_one::<String>(name).cloned().unwrap_or_default();
        let list = |name| -> Vec<String> {
            let given = flags.get_many::<String>(name).unwrap_or_default();
            given.cloned().collect()
        };
        let time = |name| flags.get_one::<SignedDuration>(name).copied();
        let life = time("expires-in").ok_or("--expires-in is missing")?;
        let record = Record {
            id: text("id"),
            tenant_id: text("tenant"),
            venues: list("venue"),
            permissions: list("permission"),
            tier: match text("tier").as_str() {
                "premium" => Tier::Premium,
                "standard" => Tier::Standard,
                _ => Tier::Free,
            },
            active: true,
            expires_at: Some(in_whole_seconds(life)?),
        };
        Ok(Self {
            record,
            life,
            overlap: time("overlap"),
        })
    }
}

async fn make(wanted: &Wanted, store: &mut Store) -> Result<(), String> {
    let Wanted {
        record,
        life,
        overlap,
    } = wanted;
    let now = Timestamp::now();
    let older: Vec<Entry> = store
        .entries()
        .await?
        .into_iter()
        .filter(|entry| entry.is_of(&record.id) && entry.is_live(now))
        .collect();
    may_have_another(record, &older)?;

    let key = random_key()?;
    let digest = Digest::of(key.expose().as_bytes());
    store.add(&digest, record, life.as_secs()).await?;
    let print = || -> std::io::Result<()> {
        let mut out = std::io::stdout();
        writeln!(out, "{}", key.expose())?;
        out.flush()
    };
    if let Err(e) = print() {
        // Nobody has seen it.
        store.remove_hashed(&digest).await?;
        return Err(format!(
            "the key cannot be printed, and was removed again: {e}"
        ));
    }
    tell_of(record, &digest);
    match (overlap, older.first()) {
        (Some(overlap), Some(older)) => end_sooner(older, *overlap, now, store).await,
        (Some(_), None) => {
            say("there is no older key for --overlap to end");
            Ok(())
        }
        (None, Some(older)) => {
            let older = older.fingerprint();
            say(&format!("its older key {older} stays good as well"));
            Ok(())
        }
        (None, None) => Ok(()),
    }
}

fn may_have_another(record: &Record, older: &[Entry]) -> Result<(), String> {
    let id = &record.id;
    if older.len() >= MOST_LIVE {
        let fingerprints: Vec<String> = older.iter().map(Entry::fingerprint).collect();
        return Err(format!(
            "{id} has {} live keys already ({}): revoke one with `api-gateway key revoke --fingerprint …`, \
             or wait until one expires",
            older.len(),
            fingerprints.join(", ")
        ));
    }
    let tenants = older.iter().filter_map(|entry| entry.record.as_ref().ok());
    match tenants
        .map(|other| &other.tenant_id)
        .find(|t| **t != record.tenant_id)
    {
        Some(other) => Err(format!(
            "{id} is the id of a live key of the tenant {other}, and both would share their limits: choose another id"
        )),
        None => Ok(()),
    }
}

fn tell_of(record: &Record, digest: &Digest) {
    let Record {
        id,
        tenant_id,
        venues,
        permissions,
        tier: _,
        active: _,
        expires_at,
    } = record;
    let until = expires_at.map_or_else(String::new, |at| format!(", good until {at}"));
    let fingerprint = fingerprint(digest);
    say(&format!(
        "created a key of {id} (tenant {tenant_id}, fingerprint {fingerprint}){until}; it is shown only this once"
    ));
    if permissions.is_empty() {
        say("it has no --permission: it may do only what every caller may");
    }
    if venues.is_empty() {
        say("it has no --venue: it may name none");
    }
}

async fn end_sooner(
    older: &Entry,
    overlap: SignedDuration,
    now: Timestamp,
    store: &mut Store,
) -> Result<(), String> {
    let fingerprint = older.fingerprint();
    let ends_at = in_whole_seconds(overlap)?;
    let own_end = older.record.as_ref().ok().and_then(|r| r.expires_at);
    if let Some(own_end) = own_end.filter(|own| *own <= ends_at) {
        say(&format!(
            "its older key {fingerprint} ends at {own_end} anyway"
        ));
        return Ok(());
    }
    let life = ends_at.duration_since(now).as_secs().max(1);
    store.shorten(older, ends_at, life).await.map_err(|e| {
        format!(
            "the new key is good, but its older one {fingerprint} did not get its end: {e}; \
             revoke it with `api-gateway key revoke --fingerprint {fingerprint}` when it is not used any more"
        )
    })?;
    say(&format!("its older key {fingerprint} ends at {ends_at}"));
    Ok(())
}

fn in_whole_seconds(time: SignedDuration) -> Result<Timestamp, String> {
    let at = Timestamp::now().as_second().saturating_add(time.as_secs());
    Timestamp::from_second(at).map_err(|e| e.to_string())
}

fn life(text: &str) -> Result<SignedDuration, String> {
    let time: Duration = text.parse()?;
    if !(Duration::secs(1)..=LONGEST_LIFE).contains(&time) {
        return Err("a time from 1s to 3650d is expected".to_owned());
    }
    SignedDuration::try_from(time.0).map_err(|e| e.to_string())
}

fn visible(text: &str) -> Result<String, String> {
    if (1..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("1 to 256 characters of visible ASCII are expected".to_owned())
    }
}

fn permission(text: &str) -> Result<String, String> {
    if !is_permission(text) {
        return Err("`resource:action`, `resource:*` or `*` is expected".to_owned());
    }
    match text.strip_suffix("-own") {
        Some(full) => Err(format!(
            "a key owns nothing, it would never count: grant `{full}`"
        )),
        None => Ok(text.to_owned()),
    }
}
