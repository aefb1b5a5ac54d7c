//! `key revoke`: the record goes, and with it the key, in every gateway at once.

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command};
use jiff::Timestamp;

use super::store::{Entry, Store};
use super::{id_flag, say};

pub fn command() -> Command {
    Command::new("revoke")
        .about("Take a key back, at once and for good")
        .after_help("What was revoked is told on standard error, for the operator's records.")
        .arg(
            id_flag().help(
                "The key of this id; with two keys also --all or, in its place, --fingerprint",
            ),
        )
        .arg(
            Arg::new("all")
                .long("all")
                .action(ArgAction::SetTrue)
                .requires("id")
                .conflicts_with("fingerprint")
                .help("All keys of the id"),
        )
        .arg(
            Arg::new("fingerprint")
                .long("fingerprint")
                .value_name("HEX")
                .value_parser(fingerprint)
                .help("The key of this fingerprint, at least 8 digits of it"),
        )
        .group(
            ArgGroup::new("which")
                .args(["id", "fingerprint"])
                .required(true),
        )
}

pub async fn run(flags: &ArgMatches, store: &mut Store) -> Result<(), String> {
    let mut chosen = store.entries().await?;
    let (what, all) = match (
        flags.get_one::<String>("id"),
        flags.get_one::<String>("fingerprint"),
    ) {
        (Some(id), _) => {
            chosen.retain(|entry| entry.is_of(id));
            (format!("the id {id}"), flags.get_flag("all"))
        }
        (None, Some(digits)) => {
            chosen.retain(|entry| entry.digest.to_string().starts_with(digits));
            (format!("the fingerprint {digits}"), false)
        }
        (None, None) => return Err("say --id or --fingerprint".to_owned()),
    };
    if chosen.is_empty() {
        return Err(format!(
            "there is no key of {what}: `api-gateway key list` shows them all"
        ));
    }
    if chosen.len() > 1 && !all {
        let fingerprints: Vec<String> = chosen.iter().map(Entry::fingerprint).collect();
        return Err(format!(
            "{} keys are of {what} ({}): name one with --fingerprint, or revoke every key of an id with --all",
            chosen.len(),
            fingerprints.join(", ")
        ));
    }
    for entry in &chosen {
        let was_there = store.remove(entry).await?;
        let whose = match &entry.record {
            Ok(record) => format!("{} (tenant {}", record.id, record.tenant_id),
            Err(_) => "nobody (a faulty record".to_owned(),
        };
        let how = if was_there {
            "revoked"
        } else {
            "was gone already:"
        };
        let fingerprint = entry.fingerprint();
        let now = Timestamp::now();
        say(&format!(
            "{how} the key of {whose}, fingerprint {fingerprint}) at {now:.0}"
        ));
    }
    Ok(())
}

fn fingerprint(text: &str) -> Result<String, String> {
    if (8..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("8 to 64 hex digits are expected, as `key list` shows them".to_owned())
    }
}
