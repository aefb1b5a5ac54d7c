//! The command line: flags, and which of them runs what.

mod diff;
mod key;
mod openapi;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::config::{self, Environment, Problems, REFERENCE, Source};
use crate::handover::{Heir, Program};
use crate::observe::logging;
use crate::observe::sink::Sink;
use crate::ops::documentation::Printed;
use crate::server::{self, Early, Notify, Origin, Purpose, Start};

const AFTER_HELP: &str = "\
Every setting has its place in the configuration file; the documented environment variables (PORT, HOST, NODE_ENV,
JWT_SECRET, *_SERVICE_URL, RATE_LIMIT_*, …) win over it. `--print-config` shows the reference with all keys, units and
defaults.

Signals: SIGTERM and SIGINT finish what is in flight and end the process; a second one ends it at once. SIGHUP reads the
configuration anew and puts it in force; a faulty one changes nothing. SIGUSR2 puts a new process in the place of this one.
Exit status: 0 after an orderly end, 1 when the configuration is faulty, the address is taken, or what `upgrade` or `reload`
asked for was not done, 2 on a wrong flag, 130 after a second signal.";

/// What the process was asked to do. Returns its exit status.
pub fn main() -> ExitCode {
    let flags = matches();
    let environment = Environment::of_this_process();
    if flags.get_flag("print-config") {
        return print(REFERENCE);
    }
    if flags.get_flag("check-live") {
        return check_live(&environment);
    }
    let source = flags
        .get_one::<PathBuf>("conf")
        .map_or(Source::BuiltIn, |path| Source::File(path.clone()));
    if let Some(host) = flags.get_one::<String>("print-openapi") {
        let host = Some(&**host).filter(|host| !host.is_empty());
        return match openapi::document(&source, &environment, host) {
            Ok(Printed { text, left_out }) => {
                for operation in left_out {
                    eprintln!(
                        "api-gateway: {operation} is left out: another host answers the same path; \
                         --print-openapi=HOST prints the document of one"
                    );
                }
                print(&format!("{text}\n"))
            }
            Err(problems) => {
                let faults = problems.len();
                failed(&format!("{source}: faults: {faults}\n{problems}"))
            }
        };
    }
    match flags.subcommand() {
        Some(("key", flags)) => return key::run(flags, &source, &environment),
        Some((question @ ("upgrade" | "reload"), _)) => {
            return ask(question, &source, &environment);
        }
        _ => {}
    }
    // To end by one of them is for who only looks.
    let is_to_serve = flags.subcommand().is_none() && !flags.get_flag("test");
    let early = match is_to_serve.then(Early::hear).transpose() {
        Ok(early) => early,
        Err(e) => return failed(&format!("signals cannot be heard: {e}")),
    };
    let heir = match Heir::of_this_process(&environment) {
        Ok(heir) => heir,
        Err(why) => return failed(&why),
    };
    let outcome = match flags.subcommand() {
        Some(("diff", flags)) => diff::run(flags, &source, &environment),
        _ => start(&source, &environment, early, heir.clone()).map_err(|failure| (source, failure)),
    };
    let Err((source, failure)) = outcome else {
        return ExitCode::SUCCESS;
    };
    let why = match failure {
        Failure::Faulty(problems) => {
            let faults = problems.len();
            format!("{source}: faults: {faults}, nothing was started\n{problems}")
        }
        Failure::Other(why) => why,
    };
    if let Some(heir) = heir {
        heir.fail(&why);
    }
    failed(&why)
}

fn failed(why: &str) -> ExitCode {
    eprintln!("api-gateway: {why}");
    ExitCode::FAILURE
}

/// Asks the running process for something, and says what came of it.
fn ask(question: &str, source: &Source, environment: &Environment) -> ExitCode {
    // Where the environment says it, the configuration need not be readable.
    let folder = match environment.get("RUNTIME_DIRECTORY") {
        Some(folders) => Ok(Some(folders.to_owned())),
        None => config::load(source, environment).map(|file| file.server.runtime_dir),
    };
    let folder = match folder {
        Ok(folders) => folders.as_deref().and_then(server::first_of),
        Err(problems) => {
            let faults = problems.len();
            return failed(&format!(
                "{source}: faults: {faults}, nothing was asked\n{problems}"
            ));
        }
    };
    let Some(folder) = folder else {
        return failed(&format!(
            "{question}: it is not known where the running process can be asked: \
             set RUNTIME_DIRECTORY, or server.runtime_dir in the configuration"
        ));
    };
    match server::control::ask(&folder, question) {
        Ok(message) => print(&format!("{question}: {message}\n")),
        Err(why) => failed(&format!("{question} failed: {why}")),
    }
}

/// What was given; the process ends here on a wrong flag.
fn matches() -> ArgMatches {
    let mut command = flags();
    let flags = command.get_matches_mut();
    let alone = ["test", "print-config", "print-openapi", "check-live"];
    let is_given = |flag: &str| flags.value_source(flag) == Some(ValueSource::CommandLine);
    if let (Some((name, _)), Some(flag)) = (
        flags.subcommand(),
        alone.into_iter().find(|flag| is_given(flag)),
    ) {
        let why = format!("`--{flag}` and `{name}` do not go together: leave one of them out");
        command.error(ErrorKind::ArgumentConflict, why).exit();
    }
    flags
}

fn flags() -> Command {
    Command::new("api-gateway")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The front door of TicketToken: an API gateway on Pingora")
        .after_help(AFTER_HELP)
        .subcommand(key::command())
        .subcommand(diff::command())
        .subcommand(Command::new("upgrade").about(
            "Ask the running process to put a new one in its place, without a lost request; exit 0 when that serves",
        ))
        .subcommand(
            Command::new("reload").about("Ask the running process to put its configuration in force anew"),
        )
        .disable_help_subcommand(true)
        .arg(
            Arg::new("conf")
                .long("conf")
                .short('c')
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .global(true)
                .help("The configuration file (YAML); without it the built-in one is in force"),
        )
        .arg(
            Arg::new("test")
                .long("test")
                .short('t')
                .action(ArgAction::SetTrue)
                .help("Check the configuration, say every fault with its place, and exit"),
        )
        .arg(
            Arg::new("print-config")
                .long("print-config")
                .action(ArgAction::SetTrue)
                .help("Print the built-in configuration, the reference of all keys, and exit"),
        )
        .arg(
            Arg::new("print-openapi")
                .long("print-openapi")
                .value_name("HOST")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("")
                .help("Print the OpenAPI document of the configuration, with every operation (of that host), and exit"),
        )
        .arg(
            Arg::new("check-live")
                .long("check-live")
                .action(ArgAction::SetTrue)
                .help("Ask the gateway at $PORT of this machine ($OPS_LISTEN unless $SERVER_PROTOCOL is http) whether it is alive, and exit with 0 or 1; no configuration file is read"),
        )
}

enum Failure {
    Faulty(Problems),
    Other(String),
}

/// `early`: none to look only.
fn start(
    source: &Source,
    environment: &Environment,
    early: Option<Early>,
    heir: Option<Heir>,
) -> Result<(), Failure> {
    let origin = Origin {
        mark: source.mark(),
        source: source.clone(),
        environment: environment.clone(),
    };
    let file = config::load(source, environment).map_err(Failure::Faulty)?;
    let mut problems = Problems::default();
    let settings = server::log_settings(&file, &mut problems);
    // A faulty configuration is only looked at: nothing is opened for it.
    let only_look = early.is_none() || !problems.is_empty();
    let log_file = settings.file.as_deref().filter(|_| !only_look);
    let sink = Sink::open(log_file)
        .map_err(|e| Failure::Other(format!("the log cannot be opened: {e}")))?;
    if !only_look {
        logging::init(&settings, sink.clone());
    }
    let purpose = Purpose::Start {
        settings: &settings,
        sink: sink.clone(),
    };
    let compiled = server::compile(file, purpose, problems).map_err(Failure::Faulty)?;
    let Some(early) = early else {
        println!("{source} is good");
        return Ok(());
    };
    let program = Program::of_this_process(environment.get("PATH"))
        .map_err(|e| Failure::Other(format!("the program's own path cannot be found: {e}")))?;
    let start = Start {
        program,
        notify: Notify::of(environment),
        early,
        heir,
    };
    let outcome = server::run(origin, compiled, sink.clone(), start);
    sink.flush(Duration::from_secs(1));
    outcome.map_err(Failure::Other)
}

/// A reader that goes away (`… --print-config | head`) is no failure.
fn print(text: &str) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// For container health checks, in images without a shell.
fn check_live(environment: &Environment) -> ExitCode {
    const PATIENCE: Duration = Duration::from_secs(2);
    let port = environment
        .get("PORT")
        .and_then(|port| port.parse().ok())
        .unwrap_or(3000);
    let main = SocketAddr::from(([127, 0, 0, 1], port));
    // Where the main listener does not speak plain HTTP, the private one is asked.
    let address = match environment.get("SERVER_PROTOCOL") {
        None | Some("http") => main,
        Some(_) => {
            let private = environment.get("OPS_LISTEN").unwrap_or("127.0.0.1:9464");
            private.parse().unwrap_or(main)
        }
    };
    let asked = || -> std::io::Result<bool> {
        let mut gateway = TcpStream::connect_timeout(&address, PATIENCE)?;
        gateway.set_read_timeout(Some(PATIENCE))?;
        gateway.write_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut status = [0; 12];
        gateway.read_exact(&mut status)?;
        Ok(&status == b"HTTP/1.1 200")
    };
    match asked() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("api-gateway: /live at {address} does not answer 200");
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("api-gateway: /live at {address} does not answer: {e}");
            ExitCode::FAILURE
        }
    }
}
