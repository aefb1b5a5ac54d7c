//! What is kept of a write: one line that says how it is with it, and, once it has an answer, the answer. The same bytes
//! stand in Redis and in the memory of a process, and an operator can read them.
//!
//! ```text
//! running FINGERPRINT RUN UNTIL          until then somebody is at it (milliseconds); after that nobody knows
//! unknown FINGERPRINT                    it was sent, and there was no answer
//! unkept FINGERPRINT STATUS              it was answered, and the answer was not kept
//! done FINGERPRINT STATUS                the fields, an empty line and the body follow
//! ```

use bytes::Bytes;
use http::header::{
    AGE, ALT_SVC, CONNECTION, CONTENT_LENGTH, DATE, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::key::Fingerprint;
use crate::admit::request_id::X_REQUEST_ID;
use crate::reply;

/// A kept answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub fields: HeaderMap,
    pub body: Bytes,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was sent, and there is no answer.
    Unknown,
    /// It was answered; the answer is not kept.
    Unkept(StatusCode),
    Done(Answer),
}

/// How it is with a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    Ended(Outcome),
}

const RUNNING: &str = "running";
const UNKNOWN: &str = "unknown";
const UNKEPT: &str = "unkept";
const DONE: &str = "done";

// === impl Answer ===

impl Answer {
    /// The head of a backend's answer, without what belongs to one connection, one moment or one request.
    pub fn begin(status: StatusCode, fields: &HeaderMap) -> Self {
        let mut fields = fields.clone();
        reply::scrub(&mut fields);
        for name in [
            CONTENT_LENGTH,
            TRANSFER_ENCODING,
            CONNECTION,
            TE,
            TRAILER,
            DATE,
            AGE,
            ALT_SVC,
            // Whoever may ask for the replay has a token of its own; a cookie would be a second copy of a credential.
            SET_COOKIE,
            X_REQUEST_ID,
        ] {
            fields.remove(name);
        }
        while let Some(name) = fields.keys().find(|name| is_of_the_moment(name)).cloned() {
            fields.remove(name);
        }
        Self {
            status,
            fields,
            body: Bytes::new(),
        }
    }

    /// In bytes, about.
    pub fn size(&self) -> usize {
        let fields = self.fields.iter();
        let fields = fields.map(|(name, value)| name.as_str().len() + value.len() + 3);
        fields.sum::<usize>() + self.body.len()
    }
}

/// Limits, and how long something took.
fn is_of_the_moment(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("x-ratelimit-")
        || name.starts_with("ratelimit")
        || matches!(name, "server-timing" | "traceresponse" | "x-response-time")
}

// === impl Outcome ===

impl Outcome {
    pub fn write(&self, fingerprint: &Fingerprint) -> Vec<u8> {
        let (word, status) = match self {
            Self::Unknown => return format!("{UNKNOWN} {fingerprint}").into_bytes(),
            Self::Unkept(status) => (UNKEPT, status),
            Self::Done(answer) => (DONE, &answer.status),
        };
        let mut record = format!("{word} {fingerprint} {}", status.as_u16()).into_bytes();
        if let Self::Done(answer) = self {
            record.reserve(answer.size() + 2);
            record.push(b'\n');
            for (name, value) in &answer.fields {
                record.extend_from_slice(name.as_str().as_bytes());
                record.extend_from_slice(b": ");
                record.extend_from_slice(value.as_bytes());
                record.push(b'\n');
            }
            record.push(b'\n');
            record.extend_from_slice(&answer.body);
        }
        record
    }
}

/// The record of a write that begins, up to the time of its end.
pub fn begun(fingerprint: &Fingerprint, run: &str) -> String {
    format!("{RUNNING} {fingerprint} {run} ")
}

/// Whether it says that somebody is at it.
pub fn is_running(record: &[u8]) -> bool {
    running(record).is_some()
}

/// Whether it says that this run is.
pub fn is_of(record: &[u8], run: &str) -> bool {
    run_of(record) == Some(run)
}

/// The run that it says is at it.
pub fn run_of(record: &[u8]) -> Option<&str> {
    running(record)?.split(' ').nth(2)
}

/// The record of a write that runs, as [`begun`] has it, and the end of its time.
pub fn running_until(record: &[u8]) -> Option<(&str, i64)> {
    let line = running(record)?;
    let (begun, until) = line.split_at(line.rfind(' ')? + 1);
    Some((begun, until.parse().ok()?))
}

fn running(record: &[u8]) -> Option<&str> {
    let rest = record.strip_prefix(RUNNING.as_bytes())?;
    let line = std::str::from_utf8(record).ok()?;
    rest.starts_with(b" ").then_some(line)
}

/// What is left of one where its answer finds no room.
pub fn short(record: &[u8]) -> Vec<u8> {
    let end = memchr::memchr(b'\n', record).unwrap_or(record.len());
    match record[..end].strip_prefix(DONE.as_bytes()) {
        Some(rest) => [UNKEPT.as_bytes(), rest].concat(),
        None => record.to_vec(),
    }
}

// === impl State ===

impl State {
    /// Reads a record, of whatever was asked for; `None`: something else was asked for. What cannot be read has an
    /// unknown outcome.
    pub fn read(record: &Bytes, fingerprint: &Fingerprint, now: i64) -> Option<Self> {
        let end = memchr::memchr(b'\n', record).unwrap_or(record.len());
        let line = std::str::from_utf8(&record[..end]).unwrap_or_default();
        let mut words = line.split(' ');
        let (word, of) = (words.next(), words.next());
        if of.is_some_and(|of| of != fingerprint.to_string()) {
            return None;
        }
        let status = |word: Option<&str>| StatusCode::from_bytes(word?.as_bytes()).ok();
        let outcome = match word {
            Some(RUNNING) => {
                let until = words.nth(1).and_then(|until| until.parse::<i64>().ok());
                if until.is_some_and(|until| until > now) {
                    return Some(Self::Running);
                }
                None
            }
            Some(UNKEPT) => status(words.next()).map(Outcome::Unkept),
            Some(DONE) => status(words.next()).and_then(|status| answer(status, record, end)),
            _ => None,
        };
        Some(Self::Ended(outcome.unwrap_or(Outcome::Unknown)))
    }
}

/// What stands behind the first line, which ends at `at`.
fn answer(status: StatusCode, record: &Bytes, mut at: usize) -> Option<Outcome> {
    let mut fields = HeaderMap::new();
    loop {
        at += 1;
        let rest = record.get(at..)?;
        let length = memchr::memchr(b'\n', rest)?;
        let line = &rest[..length];
        at += length;
        if line.is_empty() {
            let body = record.slice(at + 1..);
            return Some(Outcome::Done(Answer {
                status,
                fields,
                body,
            }));
        }
        let colon = memchr::memchr(b':', line)?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = line[colon + 1..].strip_prefix(b" ")?;
        fields.append(name, HeaderValue::from_bytes(value).ok()?);
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::Name;
    use super::*;

    fn fingerprint(body: &[u8]) -> Fingerprint {
        let name = Name::from_bytes(&[7; 32]).unwrap();
        Fingerprint::of(&name, &HeaderMap::new(), body)
    }

    fn fields(list: &[(&'static str, &'static [u8])]) -> HeaderMap {
        let fields = list.iter().map(|(name, value)| {
            let value = HeaderValue::from_bytes(value).unwrap();
            (HeaderName::from_static(name), value)
        });
        fields.collect()
    }

    #[test]
    fn what_is_written_is_read_again_byte_for_byte() {
        let mine = fingerprint(b"1");
        let kept = fields(&[
            ("content-type", b"application/json"),
            ("x-latin", b"caf\xe9: \"a\""),
            ("x-empty", b""),
        ]);
        for outcome in [
            Outcome::Unknown,
            Outcome::Unkept(StatusCode::OK),
            Outcome::Done(Answer {
                status: StatusCode::CREATED,
                fields: kept.clone(),
                body: Bytes::from_static(b"\n\n{\"a\":\r\n\0\xff}\n"),
            }),
            Outcome::Done(Answer {
                status: StatusCode::NO_CONTENT,
                fields: HeaderMap::new(),
                body: Bytes::new(),
            }),
        ] {
            let record = Bytes::from(outcome.write(&mine));
            let read = State::read(&record, &mine, 0);
            assert_eq!(read, Some(State::Ended(outcome)));
            assert_eq!(State::read(&record, &fingerprint(b"2"), 0), None);
        }
    }

    #[test]
    fn a_run_is_one_until_its_time_is_over() {
        let mine = fingerprint(b"1");
        let record = Bytes::from(format!("{}1000", begun(&mine, "r1")));
        assert_eq!(State::read(&record, &mine, 999), Some(State::Running));
        let unknown = Some(State::Ended(Outcome::Unknown));
        assert_eq!(State::read(&record, &mine, 1000), unknown);
    }

    #[test]
    fn a_record_tells_its_run_and_when_that_is_over() {
        let mine = fingerprint(b"1");
        let begun = begun(&mine, "r1");
        let record = format!("{begun}1000");
        assert_eq!(running_until(record.as_bytes()), Some((&*begun, 1000)));
        assert!(is_of(record.as_bytes(), "r1") && !is_of(record.as_bytes(), "r"));
        let done = Outcome::Done(Answer {
            status: StatusCode::CREATED,
            fields: fields(&[("x-a", b"1")]),
            body: Bytes::from_static(b"\xff"),
        });
        let done = done.write(&mine);
        assert!(!is_running(&done) && running_until(&done).is_none());
        let unkept = Outcome::Unkept(StatusCode::CREATED).write(&mine);
        assert_eq!((short(&done), short(&unkept)), (unkept.clone(), unkept));
    }

    #[test]
    fn what_cannot_be_read_is_unknown_and_never_runs_again() {
        let mine = fingerprint(b"1");
        let unknown = Some(State::Ended(Outcome::Unknown));
        for record in [
            String::new(),
            "gone".to_owned(),
            format!("done {mine} 200"),
            format!("done {mine} 200\nno field\n\n"),
            format!("done {mine} 200\na: b\n"),
            format!("done {mine} 99\n\n"),
            format!("running {mine} r1 soon"),
            format!("later {mine} 200"),
        ] {
            let record = Bytes::from(record);
            assert_eq!(State::read(&record, &mine, 0), unknown, "{record:?}");
        }
    }

    #[test]
    fn of_the_head_what_belongs_to_one_exchange_is_left_out() {
        let all = fields(&[
            ("content-type", b"text/plain"),
            ("content-length", b"3"),
            ("location", b"/orders/1"),
            ("etag", b"\"1\""),
            ("connection", b"x-hop"),
            ("x-hop", b"1"),
            ("date", b"now"),
            ("set-cookie", b"a=b"),
            ("set-cookie", b"c=d"),
            ("x-request-id", b"r"),
            ("x-ratelimit-limit", b"5"),
            ("ratelimit-policy", b"5"),
            ("server", b"s"),
            ("x-order", b"1"),
        ]);
        let kept = Answer::begin(StatusCode::OK, &all).fields;
        let mut names: Vec<&str> = kept.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "etag", "location", "x-order"]);
    }
}
