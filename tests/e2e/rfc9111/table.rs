//! What a row of the table says: a requirement, what the origin answers, and what must come of each request.

use serde::Deserialize;
use std::collections::BTreeMap;

/// The chapters, each a file of rows.
const CHAPTERS: [(&str, &str); 11] = [
    ("storing", include_str!("table/storing.yaml")),
    ("authorization", include_str!("table/authorization.yaml")),
    ("freshness", include_str!("table/freshness.yaml")),
    ("heuristics", include_str!("table/heuristics.yaml")),
    ("age", include_str!("table/age.yaml")),
    ("vary", include_str!("table/vary.yaml")),
    ("validation", include_str!("table/validation.yaml")),
    ("stale answers", include_str!("table/stale.yaml")),
    ("request directives", include_str!("table/requests.yaml")),
    ("invalidation", include_str!("table/invalidation.yaml")),
    ("ranges", include_str!("table/ranges.yaml")),
];

pub struct Chapter {
    pub name: &'static str,
    pub rows: Vec<Row>,
}

/// One requirement and the exchange that shows whether it holds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    must: Option<String>,
    must_not: Option<String>,
    should: Option<String>,
    should_not: Option<String>,
    may: Option<String>,
    /// What the gateway asks of itself where the RFC asks nothing, or less.
    ours: Option<String>,
    /// RFC and section; without a number of an RFC it is 9111.
    rfc: String,
    /// Which of the routes under test.
    #[serde(default)]
    pub route: Route,
    /// The origin's answers in turn; the last one stays.
    pub answers: Vec<Answer>,
    pub steps: Vec<Step>,
    /// Why the gateway does not hold it: for what is no MUST.
    pub why: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// Public; only what the origin says makes anything fresh.
    #[default]
    Plain,
    /// A token is needed.
    Token,
    /// Public; what says nothing of freshness is fresh for five minutes.
    Class,
    /// Public; a minute of `stale-while-revalidate` where the answer does not name it.
    Swr,
    /// Public; a minute of `stale-if-error` where the answer does not name it.
    Sie,
}

/// What the origin answers. Keys with a capital letter are fields.
#[derive(Clone, Debug, Deserialize)]
pub struct Answer {
    #[serde(default = "ok")]
    pub status: u16,
    /// Default: `answer N`, N being the place among the row's answers.
    pub body: Option<String>,
    /// The connection ends before the body does.
    #[serde(default)]
    pub cut: bool,
    /// No answer at all: the connection is reset.
    #[serde(default)]
    pub reset: bool,
    #[serde(default)]
    pub chunked: bool,
    /// Behind a chunked body.
    #[serde(default)]
    pub trailer: Option<String>,
    /// 304 for a precondition that holds.
    #[serde(default)]
    pub conditional: bool,
    /// 206 for `bytes=FIRST-LAST`.
    #[serde(default)]
    pub ranges: bool,
    /// Before the answer.
    #[serde(default)]
    pub delay_ms: u64,
    #[serde(flatten)]
    pub fields: Fields,
}

/// Names, and what is said or wanted of them.
pub type Fields = BTreeMap<String, Lines>;

/// Nothing, one line, or several of the same name.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Lines {
    Number(i64),
    One(String),
    Several(Vec<String>),
    None(()),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Step {
    Plain(From),
    Full(Box<Ask>),
}

/// A request, and what must come of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// Seconds to pass before it.
    #[serde(default)]
    pub wait: f64,
    pub method: Option<String>,
    /// Behind the row's own path.
    #[serde(default)]
    pub path: String,
    #[serde(default)]
    pub send: Fields,
    /// A body for the origin.
    pub with: Option<String>,

    #[serde(default)]
    pub from: From,
    /// Default: 200.
    pub status: Option<Statuses>,
    /// An error, or an answer that does not end as it should.
    #[serde(default)]
    pub broken: bool,
    /// The number of the origin's answer, the very text, or what it is not.
    pub body: Option<Content>,
    /// Of the answer: a value, `null` (not there), `*` (there), `!value` (not this one), `~value` (contains it),
    /// `1..5` (a number from 1 to 5).
    #[serde(default)]
    pub fields: Fields,
    /// The same, of the last request at the origin.
    #[serde(default)]
    pub saw: Fields,
    /// What `Cache-Status` says among others, of a cache that sends it.
    pub told: Option<String>,
}

/// Who had to do with an answer.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// It is the origin's.
    Origin,
    /// The origin was not asked.
    Cache,
    /// It was stored, and the origin was asked whether it is good.
    Check,
    /// It was stored, and the origin is asked behind it, once.
    Background,
    #[default]
    Any,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Statuses {
    One(u16),
    OneOf(Vec<u16>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Content {
    Answer(usize),
    Text(String),
    Not { not: Box<Content> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Must,
    Should,
    May,
    Ours,
}

/// All chapters.
#[track_caller]
pub fn chapters() -> Vec<Chapter> {
    CHAPTERS.map(|(name, text)| chapter(name, text)).into()
}

#[track_caller]
fn chapter(name: &'static str, text: &str) -> Chapter {
    let rows: Vec<Row> = serde_yaml::from_str(text).unwrap_or_else(|e| panic!("{name}: {e}"));
    rows.iter().for_each(Row::check);
    Chapter { name, rows }
}

fn ok() -> u16 {
    200
}

// === impl Row ===

impl Row {
    pub fn level(&self) -> Level {
        self.requirement().1
    }

    /// As in the RFC: `9111 4.2.1 MUST NOT`.
    pub fn place(&self) -> String {
        let rfc = match self.rfc.split_once(' ') {
            Some(_) => self.rfc.clone(),
            None => format!("9111 {}", self.rfc),
        };
        format!("{rfc} {}", self.requirement().0)
    }

    pub fn what(&self) -> &str {
        self.requirement().2
    }

    fn requirement(&self) -> (&str, Level, &str) {
        let named = [
            ("MUST", Level::Must, &self.must),
            ("MUST NOT", Level::Must, &self.must_not),
            ("SHOULD", Level::Should, &self.should),
            ("SHOULD NOT", Level::Should, &self.should_not),
            ("MAY", Level::May, &self.may),
            ("ours", Level::Ours, &self.ours),
        ];
        let mut said = named
            .into_iter()
            .filter_map(|(word, level, text)| Some((word, level, text.as_deref()?)));
        let one = said.next().expect("a row says what is required");
        assert!(said.next().is_none(), "{}: one requirement a row", one.2);
        one
    }

    #[track_caller]
    fn check(&self) {
        let what = self.what();
        assert!(!self.answers.is_empty(), "{what}: no answer");
        let fields = |answer: &Answer| answer.fields.keys().cloned().collect::<Vec<_>>();
        for name in self.answers.iter().flat_map(fields) {
            let is_field = name.starts_with(|first: char| first.is_ascii_uppercase());
            assert!(is_field, "{what}: {name} is neither a field nor known");
        }
        let excused = self.why.is_some() && self.level() == Level::Must;
        assert!(!excused, "{what}: nothing excuses from a MUST");
    }
}

// === impl Lines ===

impl Lines {
    /// The lines as they are sent.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::None(()) => Vec::new(),
            Self::Number(number) => vec![number.to_string()],
            Self::One(line) => vec![line.clone()],
            Self::Several(lines) => lines.clone(),
        }
    }
}

// === impl Step ===

impl Step {
    pub fn ask(&self) -> Ask {
        match self {
            Self::Plain(from) => Ask {
                from: *from,
                ..Ask::default()
            },
            Self::Full(ask) => (**ask).clone(),
        }
    }
}

// === impl Statuses ===

impl Statuses {
    pub fn allow(&self, status: u16) -> bool {
        match self {
            Self::One(one) => *one == status,
            Self::OneOf(all) => all.contains(&status),
        }
    }
}
