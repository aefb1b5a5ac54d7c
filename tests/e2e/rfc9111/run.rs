//! Runs rows on the wire against a cache, and says of each why it does not hold.

use super::origin::{Origin, body_of, expand, sent};
use super::table::{Ask, Content, Fields, From, Route, Row};
use super::under_test::Cache;
use crate::support::prelude::*;
use std::thread;

/// What came of a row: what is wrong, if anything.
pub type Outcome = Result<(), String>;

/// Runs all rows at the same time.
#[track_caller]
pub fn run(rows: &[&Row], start: impl FnOnce(&Upstream) -> Cache) -> Vec<Outcome> {
    let origin = Origin::of(rows);
    let cache = start(&origin.upstream);
    thread::scope(|scope| {
        let threads: Vec<_> = rows
            .iter()
            .enumerate()
            .map(|(number, row)| {
                let (origin, cache) = (&origin, &cache);
                let exchange = Exchange {
                    row,
                    number,
                    origin,
                    cache,
                    body: String::new(),
                };
                scope.spawn(move || exchange.run())
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|outcome| outcome.unwrap_or_else(|_| Err("it panicked".into())))
            .collect()
    })
}

/// A row at work.
struct Exchange<'a> {
    row: &'a Row,
    number: usize,
    origin: &'a Origin,
    cache: &'a Cache,
    /// Of the last whole answer.
    body: String,
}

impl Exchange<'_> {
    fn run(mut self) -> Outcome {
        for (number, step) in self.row.steps.iter().enumerate() {
            let ask = step.ask();
            if let Err(why) = self.step(&ask) {
                return Err(format!("request {}: {why}", number + 1));
            }
        }
        Ok(())
    }

    fn step(&mut self, ask: &Ask) -> Outcome {
        // Time is what the answer has to get old.
        thread::sleep(Duration::from_secs_f64(ask.wait));
        let before = self.origin.asked(self.number).len();
        let response = self.send(ask);
        let response = match (response, ask.broken) {
            (Err(_), true) => return Ok(()),
            (Ok(response), true) if response.status >= 500 => return Ok(()),
            (Ok(response), true) => return Err(format!("a whole {}", response.status)),
            (Err(broken), false) => return Err(broken.to_string()),
            (Ok(response), false) => response,
        };
        if ask.from == From::Background {
            let asked = || self.origin.asked(self.number).len();
            let came = within(Duration::from_secs(5), || (asked() > before).then_some(()));
            came.ok_or("the origin is not asked behind it")?;
        }
        let asked = self.origin.asked(self.number);
        let times = asked.len() - before;
        self.judge_source(ask, times)?;
        self.judge(ask, &response, asked.len())?;
        let last = asked.last().map(|request| &*request.headers);
        compare("the origin saw", &ask.saw, last.unwrap_or_default())?;
        Ok(())
    }

    fn send(&self, ask: &Ask) -> Result<Response, Broken> {
        let method = ask.method.as_deref().unwrap_or("GET");
        let path = format!("/{}/{}{}", self.row.route.segment(), self.number, ask.path);
        let mut request = Request::method(method, &path);
        for (name, value) in sent(&ask.send) {
            request = request.header(&name, &value);
        }
        if self.row.route == Route::Token && !ask.send.contains_key("Authorization") {
            request = request.header("Authorization", &expand("<token ann>"));
        }
        if let Some(body) = &ask.with {
            request = request.body(body.as_str());
        }
        let mut connection = Client::to(self.cache.addr()).connect();
        connection.send(&request.bytes());
        match method {
            "HEAD" => Ok(connection.read_head_response()),
            _ => connection.try_read_response(),
        }
    }

    fn judge_source(&self, ask: &Ask, times: usize) -> Outcome {
        match (ask.from, times) {
            (From::Cache, 0) | (From::Any, _) => Ok(()),
            (From::Origin | From::Check | From::Background, 1) => Ok(()),
            (From::Cache, _) => Err("the origin was asked".into()),
            (_, 0) => Err("the origin was not asked".into()),
            (_, times) => Err(format!("the origin was asked {times} times")),
        }
    }

    fn judge(&mut self, ask: &Ask, response: &Response, asked: usize) -> Outcome {
        let status = response.status;
        let is_allowed = match &ask.status {
            Some(statuses) => statuses.allow(status),
            None => status == 200,
        };
        if !is_allowed {
            return Err(format!("status {status}"));
        }
        let text = String::from_utf8_lossy(&response.body).into_owned();
        let of_origin = body_of(self.row, asked.clamp(1, self.row.answers.len()));
        let wanted = match (&ask.body, ask.from) {
            (Some(Content::Not { not }), _) if self.said(not) == text => {
                return Err(format!("the body is {text:?}"));
            }
            (Some(Content::Not { .. }), _) => None,
            (Some(content), _) => Some(self.said(content)),
            _ if ask.method.as_deref() == Some("HEAD") => Some(String::new()),
            (None, _) if status != 200 => None,
            (None, From::Origin) => Some(of_origin),
            (None, From::Cache | From::Check | From::Background) => Some(self.body.clone()),
            (None, From::Any) => None,
        };
        if let Some(wanted) = wanted.filter(|wanted| *wanted != text) {
            return Err(format!("the body is {text:?}, not {wanted:?}"));
        }
        if status == 200 && !text.is_empty() {
            self.body = text;
        }
        if let Some(told) = ask.told.as_ref().filter(|_| self.cache.tells()) {
            let said = response.headers_named("cache-status").join(", ");
            let parts: Vec<&str> = said.split(';').map(str::trim).collect();
            if !told.split("; ").all(|part| parts.contains(&part)) {
                return Err(format!("Cache-Status is {said:?}, without {told:?}"));
            }
        }
        compare("the answer has", &ask.fields, &response.headers)
    }

    /// The body that is meant.
    fn said(&self, content: &Content) -> String {
        match content {
            Content::Answer(number) => body_of(self.row, *number),
            Content::Text(text) => text.clone(),
            Content::Not { not } => self.said(not),
        }
    }
}

// === impl Route ===

impl Route {
    /// The first segment of its paths.
    pub fn segment(self) -> &'static str {
        match self {
            Self::Plain => "s",
            Self::Token => "token",
            Self::Class => "class",
            Self::Swr => "swr",
            Self::Sie => "sie",
        }
    }
}

/// Whether the fields are as they are wanted.
fn compare(who: &str, wanted: &Fields, found: &[(String, String)]) -> Outcome {
    for (name, lines) in wanted {
        let found: Vec<&str> = found
            .iter()
            .filter(|(named, _)| named.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect();
        let wanted = lines.lines();
        let found = (!found.is_empty()).then(|| found.join(", "));
        let wanted = (!wanted.is_empty()).then(|| expand(&wanted.join(", ")));
        if !fits(wanted.as_deref(), found.as_deref()) {
            let shown = |value: Option<String>| value.unwrap_or_else(|| "none".into());
            return Err(format!(
                "{who} {name}: {}, not {}",
                shown(found),
                shown(wanted)
            ));
        }
    }
    Ok(())
}

fn fits(wanted: Option<&str>, found: Option<&str>) -> bool {
    let Some(wanted) = wanted else {
        return found.is_none();
    };
    if let Some(other) = wanted.strip_prefix('!') {
        return found != Some(other);
    }
    let Some(found) = found else {
        return false;
    };
    if wanted == "*" {
        return true;
    }
    if let Some(part) = wanted.strip_prefix('~') {
        return found.contains(part);
    }
    let numbers = wanted.split_once("..").and_then(|(low, high)| {
        let range = low.parse::<u64>().ok()?..=high.parse().ok()?;
        Some(range)
    });
    match numbers {
        Some(range) => found.parse().is_ok_and(|number| range.contains(&number)),
        None => wanted == found,
    }
}
