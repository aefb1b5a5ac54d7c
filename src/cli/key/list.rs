//! `key list`: which keys there are. Never the keys themselves.

use std::io::Write;

use clap::{Arg, ArgAction, ArgMatches, Command};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::store::{Entry, Form, Store};

pub fn command() -> Command {
    Command::new("list")
        .about("Show all keys, but never the keys themselves")
        .after_help(
            "By tenant, id and fingerprint; those that no gateway accepts come first, with the reason. `plain` keys, as \
             the old\ngateway stored them, can be read by whoever can read Redis: change them for hashed ones.",
        )
        .arg(
            Arg::new("tenant")
                .long("tenant")
                .value_name("TENANT")
                .help("Only this tenant's"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("As a JSON list"),
        )
}

pub async fn run(flags: &ArgMatches, store: &mut Store) -> Result<(), String> {
    let mut entries = store.entries().await?;
    if let Some(tenant) = flags.get_one::<String>("tenant") {
        let is_of = |entry: &Entry| entry.record.as_ref().is_ok_and(|r| r.tenant_id == *tenant);
        entries.retain(is_of);
    }
    let now = Timestamp::now();
    let text = if flags.get_flag("json") {
        let list: Vec<Value> = entries.iter().map(|entry| member(entry, now)).collect();
        format!("{:#}\n", Value::from(list))
    } else {
        table(&entries, now)
    };
    // A reader that goes away (`… | head`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn member(entry: &Entry, now: Timestamp) -> Value {
    let mut member = json!({
        "fingerprint": entry.fingerprint(),
        "form": form(entry),
        "state": state(entry, now),
    });
    match &entry.record {
        Ok(record) => {
            if let (Value::Object(member), Ok(Value::Object(record))) =
                (&mut member, serde_json::to_value(record))
            {
                member.extend(record);
            }
        }
        Err(fault) => member["fault"] = fault.as_str().into(),
    }
    member
}

fn table(entries: &[Entry], now: Timestamp) -> String {
    let head = [
        "FINGERPRINT",
        "FORM",
        "STATE",
        "TENANT",
        "ID",
        "TIER",
        "EXPIRES",
        "VENUES",
        "PERMISSIONS",
    ];
    let mut rows: Vec<Vec<String>> = vec![head.map(str::to_owned).into()];
    for entry in entries {
        let mut row = vec![
            entry.fingerprint(),
            form(entry).into(),
            state(entry, now).into(),
        ];
        match &entry.record {
            Ok(record) => row.extend([
                record.tenant_id.clone(),
                record.id.clone(),
                record.tier.name().to_owned(),
                record
                    .expires_at
                    .map_or_else(|| "never".into(), |at| at.to_string()),
                listed(&record.venues),
                listed(&record.permissions),
            ]),
            Err(fault) => row.push(fault.clone()),
        }
        rows.push(row);
    }
    // A fault is as long as it is, and nothing stands behind it.
    let width = |column: usize| {
        let whole = rows.iter().filter(|row| row.len() == head.len());
        whole.map(|row| row[column].len()).max().unwrap_or(0)
    };
    let widths: [usize; 9] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text += line.join("  ").trim_end();
        text.push('\n');
    }
    text
}

fn form(entry: &Entry) -> &'static str {
    match entry.form {
        Form::Hashed => "hashed",
        Form::Plain => "plain",
    }
}

fn state(entry: &Entry, now: Timestamp) -> &'static str {
    match &entry.record {
        Err(_) => "faulty",
        Ok(record) if !record.active => "inactive",
        Ok(record) if !record.is_live(now) => "expired",
        Ok(_) => "live",
    }
}

fn listed(words: &[String]) -> String {
    if words.is_empty() {
        "-".to_owned()
    } else {
        words.join(",")
    }
}
