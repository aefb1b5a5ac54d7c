//! The comparison with nginx, as docs/rfc9111.md has it between its markers.

use super::run::Outcome;
use super::table::{Chapter, Level, Row};
use crate::support::nginx::Nginx;
use std::fmt::Write;

/// What of the page depends on the table alone, a line a chapter.
pub fn circumference(chapters: &[Chapter]) -> Vec<String> {
    let line = |chapter: &Chapter| {
        let count = |level| {
            chapter
                .rows
                .iter()
                .filter(|row| row.level() == level)
                .count()
        };
        format!(
            "| {} | {} | {} | {} |",
            chapter.name,
            count(Level::Must),
            count(Level::Should),
            count(Level::May)
        )
    };
    chapters.iter().map(line).collect()
}

/// The whole comparison; without `gateway`, what nginx alone does.
pub fn page(chapters: &[Chapter], gateway: Option<&[Outcome]>, nginx: &[Outcome]) -> String {
    let rows: Vec<&Row> = chapters.iter().flat_map(|chapter| &chapter.rows).collect();
    let ours = rows.iter().filter(|row| row.level() == Level::Ours).count();
    let mut page = format!(
        "Of {} rows; {ours} of them ask more than the RFC does, and are in no column. nginx is {}, with `proxy_cache_revalidate`, `proxy_cache_background_update`, `proxy_cache_lock`,\n\
         `proxy_force_ranges` and `if_modified_since before`.\n\n",
        nginx.len(),
        Nginx::version()
    );
    let contestants: Vec<(&str, &[Outcome])> = gateway
        .map(|gateway| ("gateway", gateway))
        .into_iter()
        .chain([("nginx", nginx)])
        .collect();
    page += "| chapter | MUST | SHOULD | MAY |";
    for (name, _) in &contestants {
        let _ = write!(page, " {name}: MUST | SHOULD | MAY |");
    }
    page += "\n| --- | ---: | ---: | ---: |";
    page += &" ---: | ---: | ---: |".repeat(contestants.len());
    page += "\n";
    let mut at = 0;
    for (chapter, rows) in chapters.iter().zip(circumference(chapters)) {
        let end = at + chapter.rows.len();
        page += &rows;
        for (_, outcomes) in &contestants {
            let _ = write!(page, " {} |", held(chapter, &outcomes[at..end]));
        }
        page += "\n";
        at = end;
    }
    if let Some(gateway) = gateway {
        page += "\nWhat the gateway does not hold, and why:\n\n";
        for (row, _) in failed(&rows, gateway, |_| true) {
            let why = row.why.as_deref().unwrap_or("**a fault**");
            let _ = writeln!(page, "- {}: {}: {why}.", row.place(), row.what());
        }
    }
    page += "\nThe MUST and MUST NOT that nginx does not hold, and what it does:\n\n";
    for (row, why) in failed(&rows, nginx, |level| level == Level::Must) {
        let _ = writeln!(page, "- {}: {}: {why}.", row.place(), row.what());
    }
    page
}

fn held(chapter: &Chapter, outcomes: &[Outcome]) -> String {
    let count = |level| {
        let of_level = chapter.rows.iter().zip(outcomes);
        of_level
            .filter(|(row, outcome)| row.level() == level && outcome.is_ok())
            .count()
            .to_string()
    };
    [Level::Must, Level::Should, Level::May]
        .map(count)
        .join(" | ")
}

fn failed<'a>(
    rows: &[&'a Row],
    outcomes: &'a [Outcome],
    counts: impl Fn(Level) -> bool,
) -> Vec<(&'a Row, &'a str)> {
    rows.iter()
        .zip(outcomes)
        .filter(|(row, _)| counts(row.level()))
        .filter_map(|(row, outcome)| Some((*row, outcome.as_ref().err()?.as_str())))
        .collect()
}
