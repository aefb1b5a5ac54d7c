//! `--print-openapi`: the document of a configuration, without a running gateway.

use crate::config::{self, Environment, Problems, Source};
use crate::observe::sink::Sink;
use crate::ops::documentation::Printed;
use crate::server::{self, Purpose};

/// The document with every operation of a host, or of all of them.
///
/// # Errors
/// When the configuration is faulty: with every fault.
pub fn document(
    source: &Source,
    environment: &Environment,
    host: Option<&str>,
) -> Result<Printed, Problems> {
    let mut file = config::load(source, environment)?;
    // Who asks for it here need not serve it.
    file.documentation.is_printed = true;
    let mut problems = Problems::default();
    let settings = server::log_settings(&file, &mut problems);
    let sink = Sink::open(None).map_err(|e| {
        let mut problems = Problems::default();
        problems.add("log", format!("standard output cannot be written: {e}"));
        problems
    })?;
    let purpose = Purpose::Start {
        settings: &settings,
        sink,
    };
    let compiled = server::compile(file, purpose, problems)?;
    let document = compiled.document(host);
    Ok(document.expect("one that is to be printed is made"))
}
