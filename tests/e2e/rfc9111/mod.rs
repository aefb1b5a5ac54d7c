//! RFC 9111 as a table: every MUST, MUST NOT, SHOULD and SHOULD NOT that concerns a shared cache, with the exchange
//! that shows it, on the wire. `table/` has the rows; the same rows are run against nginx for docs/rfc9111.md.

mod origin;
mod report;
mod run;
mod table;
mod under_test;

use run::{Outcome, run};
use table::{Chapter, Level, Row};
use under_test::Cache;

#[test]
fn every_row_of_the_table_holds_or_says_why_not() {
    let chapters = table::chapters();
    let rows = rows_of(&chapters);
    let outcomes = run(&rows, Cache::gateway);
    let wrong: Vec<String> = rows
        .iter()
        .zip(outcomes)
        .filter_map(|(row, outcome)| complaint(row, outcome))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} rows:\n{}",
        wrong.len(),
        rows.len(),
        wrong.join("\n")
    );
}

#[test]
fn the_comparison_in_the_documentation_is_of_this_table() {
    let page = include_str!("../../../docs/rfc9111.md");
    for line in report::circumference(&table::chapters()) {
        assert!(page.contains(&line), "scripts/rfc9111.sh: no {line:?}");
    }
}

#[test]
#[ignore = "it needs nginx: scripts/rfc9111.sh"]
fn the_same_table_against_nginx_is_written_down() {
    let chapters = table::chapters();
    let rows = rows_of(&chapters);
    let nginx = run(&rows, Cache::nginx);
    let alone = std::env::var_os("RFC9111_NGINX_ALONE").is_some();
    let gateway = (!alone).then(|| run(&rows, Cache::gateway));
    let page = report::page(&chapters, gateway.as_deref(), &nginx);
    match std::env::var_os("RFC9111_REPORT") {
        Some(file) => std::fs::write(file, page).expect("the report can be written"),
        None => println!("{page}"),
    }
}

fn rows_of(chapters: &[Chapter]) -> Vec<&Row> {
    chapters.iter().flat_map(|chapter| &chapter.rows).collect()
}

/// What is wrong with a row; that an excuse is no longer needed is, too.
fn complaint(row: &Row, outcome: Outcome) -> Option<String> {
    let why = match (outcome, &row.why) {
        (Ok(()), None) | (Err(_), Some(_)) => return None,
        (Ok(()), Some(_)) => "it holds, and is excused".to_owned(),
        (Err(why), None) => why,
    };
    let level = match row.level() {
        Level::Ours => "ours, ",
        _ => "",
    };
    Some(format!("- {level}{}: {}: {why}", row.place(), row.what()))
}
