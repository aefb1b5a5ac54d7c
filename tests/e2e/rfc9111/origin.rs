//! The origin of all rows at once: it knows by the path whose turn it is, and keeps what it was asked.

use super::table::{Answer, Fields, Row};
use crate::support::prelude::*;
use jiff::{SignedDuration, Timestamp};
use std::sync::{Arc, Mutex, PoisonError};

pub struct Origin {
    pub upstream: Upstream,
    asked: Arc<Vec<Mutex<Vec<Recorded>>>>,
}

impl Origin {
    pub fn of(rows: &[&Row]) -> Self {
        let answers: Vec<Vec<Answer>> = rows.iter().map(|row| row.answers.clone()).collect();
        let asked: Arc<Vec<Mutex<Vec<Recorded>>>> =
            Arc::new(rows.iter().map(|_| Mutex::default()).collect());
        let log = asked.clone();
        let upstream = Upstream::start_with(move |request| {
            let row = row_of(request.path());
            let turn = {
                let mut log = log[row].lock().unwrap_or_else(PoisonError::into_inner);
                log.push(request.clone());
                log.len()
            };
            let number = turn.min(answers[row].len());
            reply(&answers[row][number - 1], number, request)
        });
        Self { upstream, asked }
    }

    /// What this row has asked so far.
    pub fn asked(&self, row: usize) -> Vec<Recorded> {
        let asked = self.asked[row]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        asked.clone()
    }
}

/// What answer N says by default.
pub fn body_of(row: &Row, number: usize) -> String {
    let answer = row.answers.get(number - 1).and_then(|a| a.body.clone());
    answer.unwrap_or_else(|| text_of(number))
}

/// `<-60>` becomes the date of a minute ago, `<850 -60>` and `<asc -60>` the same in the obsolete forms, `<token ann>`
/// a token of that user, `<token ann t2>` of that user in another tenant.
pub fn expand(text: &str) -> String {
    let Some((before, rest)) = text.split_once('<') else {
        return text.to_owned();
    };
    let Some((inner, after)) = rest.split_once('>') else {
        return text.to_owned();
    };
    let words: Vec<&str> = inner.split(' ').collect();
    let value = match words[..] {
        ["token", user] => Some(format!("Bearer {}", Token::user(user).hs256())),
        ["token", user, tenant] => {
            let token = Token::user(user).tenant(tenant);
            Some(format!("Bearer {}", token.hs256()))
        }
        ["850", shift] => date("%A, %d-%b-%y %H:%M:%S GMT", shift),
        ["asc", shift] => date("%a %b %e %H:%M:%S %Y", shift),
        [shift] => date("%a, %d %b %Y %H:%M:%S GMT", shift),
        _ => None,
    };
    // It may be something else between angles: a link.
    let value = value.unwrap_or_else(|| format!("<{inner}>"));
    format!("{before}{value}{}", expand(after))
}

/// The time so many seconds from now.
fn date(format: &str, shift: &str) -> Option<String> {
    let time = Timestamp::now() + SignedDuration::from_secs(shift.parse().ok()?);
    Some(time.strftime(format).to_string())
}

fn text_of(number: usize) -> String {
    format!("answer {number}")
}

fn row_of(path: &str) -> usize {
    let segment = path.split('/').nth(2).unwrap_or_default();
    segment
        .parse()
        .unwrap_or_else(|_| panic!("whose is {path}?"))
}

fn reply(answer: &Answer, number: usize, request: &Recorded) -> Reply {
    if answer.reset {
        return Reply::reset();
    }
    let body = answer.body.clone().unwrap_or_else(|| text_of(number));
    let mut lines: Vec<(String, String)> = Vec::new();
    let defaults = [("Date", "<0>"), ("Content-Type", "text/plain")];
    for (name, value) in defaults {
        if !answer.fields.contains_key(name) {
            lines.push((name.into(), expand(value)));
        }
    }
    lines.extend(sent(&answer.fields));
    let (status, body) = match () {
        () if answer.conditional && holds(&lines, request) => (304, String::new()),
        () if answer.ranges => part(answer.status, &body, request, &mut lines),
        () => (answer.status, body),
    };
    let bodiless = matches!(status, 204 | 304);
    let mut head = format!("HTTP/1.1 {status} Scripted\r\n");
    for (name, value) in &lines {
        head += &format!("{name}: {value}\r\n");
    }
    let is_sized = answer.fields.contains_key("Content-Length");
    match answer.chunked {
        true => head += "Transfer-Encoding: chunked\r\n",
        false if bodiless || is_sized => {}
        false => {
            let missing = if answer.cut { 1000 } else { 0 };
            head += &format!("Content-Length: {}\r\n", body.len() + missing);
        }
    }
    head += "\r\n";
    if request.method != "HEAD" && !bodiless {
        head += &framed(answer, &body);
    }
    let reply = Reply::raw(head).delay(Duration::from_millis(answer.delay_ms));
    match answer.cut {
        true => reply.then_close(),
        false => reply,
    }
}

fn framed(answer: &Answer, body: &str) -> String {
    if !answer.chunked {
        return body.to_owned();
    }
    let trailer = answer.trailer.as_ref().map(|line| format!("{line}\r\n"));
    let end = match answer.cut {
        true => String::new(),
        false => format!("0\r\n{}\r\n", trailer.unwrap_or_default()),
    };
    format!("{:x}\r\n{body}\r\n{end}", body.len())
}

/// The fields as lines.
pub fn sent(fields: &Fields) -> Vec<(String, String)> {
    let lines = fields
        .iter()
        .flat_map(|(name, lines)| lines.lines().into_iter().map(move |line| (name, line)));
    lines
        .map(|(name, line)| (name.clone(), expand(&line)))
        .collect()
}

fn value<'a>(lines: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let line = lines.iter().find(|line| line.0 == name)?;
    Some(&line.1)
}

/// Whether the precondition of a GET or HEAD asks for a 304.
fn holds(lines: &[(String, String)], request: &Recorded) -> bool {
    let tags = request.headers_named("if-none-match").join(",");
    if let (false, Some(own)) = (tags.is_empty(), value(lines, "ETag")) {
        let bare = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
        return tags.split(',').any(|tag| bare(tag) == bare(own));
    }
    let since = request.header("if-modified-since");
    since.is_some() && since == value(lines, "Last-Modified")
}

/// The bytes that are asked for, of a body that is there.
fn part(
    status: u16,
    body: &str,
    request: &Recorded,
    lines: &mut Vec<(String, String)>,
) -> (u16, String) {
    let asked = request.header("range").and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        let first: usize = first.parse().ok()?;
        let last = last.parse().unwrap_or(body.len() - 1).min(body.len() - 1);
        Some((first, last))
    });
    let Some((first, last)) = asked.filter(|(first, last)| first <= last) else {
        return (status, body.to_owned());
    };
    let range = format!("bytes {first}-{last}/{}", body.len());
    lines.push(("Content-Range".into(), range));
    (206, body[first..=last].to_owned())
}
