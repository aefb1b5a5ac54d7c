//! `api-gateway diff`: what a reload would change, before it does.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::Failure;
use crate::config::{self, Diff, Environment, Problems, Source, Tree};
use crate::observe::sink::Sink;
use crate::server::{self, Purpose};

pub fn command() -> Command {
    Command::new("diff")
        .about("Say what a reload from the configuration (--conf, or the built-in one) to another would change")
        .after_help(
            "One line for each change, with its place; keys that only a restart puts in force are named as such. Variables of \
             the environment count for both. Nothing is connected to, and no value is shown.",
        )
        .arg(
            Arg::new("new")
                .value_name("NEW")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("The other configuration file"),
        )
}

/// # Errors
/// When one of the two is faulty: a reload would refuse it.
pub fn run(
    flags: &ArgMatches,
    old: &Source,
    environment: &Environment,
) -> Result<(), (Source, Failure)> {
    let new = Source::File(flags.get_one::<PathBuf>("new").cloned().unwrap_or_default());
    // Nothing is written to it: what there is to say is our own.
    let sink = Sink::open(None).map_err(|e| (old.clone(), Failure::Other(e.to_string())))?;
    let tree = |source: &Source| {
        checked(source, environment, &sink)
            .map_err(|problems| (source.clone(), Failure::Faulty(problems)))
    };
    let diff = Diff::between(&tree(old)?, &tree(&new)?).to_string();
    match diff.is_empty() {
        true => super::print("no change\n"),
        false => super::print(&diff),
    };
    Ok(())
}

/// As `--test` checks it.
fn checked(source: &Source, environment: &Environment, sink: &Sink) -> Result<Tree, Problems> {
    let file = config::load(source, environment)?;
    let mut problems = Problems::default();
    let settings = server::log_settings(&file, &mut problems);
    let tree = Tree::of(&file);
    let purpose = Purpose::Start {
        settings: &settings,
        sink: sink.clone(),
    };
    server::compile(file, purpose, problems)?;
    Ok(tree)
}
