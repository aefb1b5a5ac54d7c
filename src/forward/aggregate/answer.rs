//! What an aggregate is answered with: `{data, errors, meta}`. What is told as it stands in a source's answer is not built.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::reply::Refusal;

#[derive(Serialize)]
pub struct Whole<'a> {
    data: BTreeMap<&'a str, Part<'a>>,
    errors: Vec<Failure<'a>>,
    meta: Meta<'a>,
}

/// What stands for a source.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Part<'a> {
    Whole(Box<RawValue>),
    Shaped(Value),
    Fallback(&'a Value),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Meta<'a> {
    request_id: &'a str,
    timestamp: String,
    partial: bool,
    sources: BTreeMap<&'a str, &'static str>,
}

/// The documented error body, as far as it is about one source.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Failure<'a> {
    source: &'a str,
    status_code: u16,
    error: Option<&'static str>,
    message: String,
    code: &'static str,
}

impl<'a> Whole<'a> {
    pub fn new(request_id: &'a str) -> Self {
        Self {
            data: BTreeMap::new(),
            errors: Vec::new(),
            meta: Meta {
                request_id,
                timestamp: format!("{:.3}", jiff::Timestamp::now()),
                partial: false,
                sources: BTreeMap::new(),
            },
        }
    }

    /// `status`: how it did.
    pub fn add(&mut self, source: &'a str, status: &'static str, part: Part<'a>) {
        self.data.insert(source, part);
        self.meta.sources.insert(source, status);
    }

    pub fn fail(&mut self, source: &'a str, refusal: &Refusal) {
        let parts = refusal.parts();
        self.meta.partial = true;
        self.errors.push(Failure {
            source,
            status_code: parts.status.as_u16(),
            error: parts.status.canonical_reason(),
            message: parts.message.into_owned(),
            code: parts.code,
        });
    }

    /// # Errors
    /// Never, as far as JSON goes.
    pub fn write(&self) -> Result<Vec<u8>, Refusal> {
        serde_json::to_vec(self).map_err(|_| Refusal::Internal)
    }
}
