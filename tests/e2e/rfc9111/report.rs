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

pub fn page(chapters: &[Chapter], gateway: &[Outcome], nginx: &[Outcome]) -> String {
    let mut page = format!(
        "Of {} rows. nginx is {}, with `proxy_cache_revalidate`, `proxy_cache_background_update`, `proxy_cache_lock`,\n\
         `proxy_force_ranges`, `proxy_pass_header Date` and `if_modified_since before`.\n\n",
        gateway.len(),
        Nginx::version()
    );
    page += "| chapter | MUST | SHOULD | MAY | gateway: MUST | SHOULD | MAY | nginx: MUST | SHOULD | MAY |\n";
    page += "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";
    let mut at = 0;
    for (chapter, rows) in chapters.iter().zip(circumference(chapters)) {
        let end = at + chapter.rows.len();
        let ours = held(chapter, &gateway[at..end]);
        let theirs = held(chapter, &nginx[at..end]);
        let _ = writeln!(page, "{rows} {ours} | {theirs} |");
        at = end;
    }
    let rows: Vec<&Row> = chapters.iter().flat_map(|chapter| &chapter.rows).collect();
    page += "\nWhat the gateway does not hold, and why:\n\n";
    for (row, _) in failed(
        &rows,
        gateway,
        &[Level::Must, Level::Should, Level::May, Level::Ours],
    ) {
        let why = row.why.as_deref().unwrap_or("**a fault**");
        let _ = writeln!(page, "- {}: {}: {why}.", row.place(), row.what());
    }
    page += "\nThe MUST and MUST NOT that nginx does not hold, and what it does:\n\n";
    for (row, why) in failed(&rows, nginx, &[Level::Must]) {
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
    levels: &[Level],
) -> impl Iterator<Item = (&'a Row, &'a str)> {
    let pairs: Vec<_> = rows
        .iter()
        .zip(outcomes)
        .filter(|(row, _)| levels.contains(&row.level()))
        .filter_map(|(row, outcome)| Some((*row, outcome.as_ref().err()?.as_str())))
        .collect();
    pairs.into_iter()
}
