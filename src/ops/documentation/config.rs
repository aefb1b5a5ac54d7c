//! The documentation as YAML says it.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderValue;
use http::uri::Authority;
use serde::{Deserialize, Serialize};

use super::inventory::{Head, Inventory};
use super::subject::All;
use super::{Documentation, InBytes, MOST_KEPT, MadeBefore, PATH, USUALLY_KEPT, is_at};
use crate::admit::limits::{GLOBAL, Limits};
use crate::admit::permissions::Roles;
use crate::config::{Problems, Stage};
use crate::forward::batch::Batch;
use crate::route::{Table, spellings};

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DocumentationConfig {
    /// None: but in production.
    pub enabled: Option<bool>,
    /// An address in `ops.allow` sees all, or what a role does. None: in development alone.
    pub operators: Option<bool>,
    /// What the document calls itself.
    pub title: String,
    /// Of the API, not of the gateway.
    pub version: String,
    /// It is printed, and not served: it need not be on, and routes may have its paths.
    #[serde(skip)]
    pub is_printed: bool,
}

/// What the documentation is made of.
pub struct Parts<'a> {
    pub stage: Stage,
    /// Where clients find the gateway; none: nobody knows.
    pub host: Option<String>,
    pub table: &'a Table,
    pub aliases: &'a BTreeMap<String, String>,
    pub batch: Option<&'a Batch>,
    pub roles: &'a Arc<Roles>,
    pub limits: &'a Limits,
    /// POST /auth/refresh is answered here.
    pub refreshes: bool,
}

/// In characters.
const LONGEST_TITLE: usize = 200;

impl Default for DocumentationConfig {
    /// As documented.
    fn default() -> Self {
        Self {
            enabled: None,
            operators: None,
            title: "TicketToken API Gateway".into(),
            version: "1.0.0".into(),
            is_printed: false,
        }
    }
}

impl DocumentationConfig {
    pub fn compile(self, parts: &Parts<'_>, problems: &mut Problems) -> Option<Documentation> {
        let Self {
            enabled,
            operators,
            title,
            version,
            is_printed,
        } = self;
        for (key, text) in [("title", &title), ("version", &version)] {
            if text.trim().is_empty() || text.chars().count() > LONGEST_TITLE {
                problems.add(
                    format!("documentation.{key}"),
                    format!("must have from 1 to {LONGEST_TITLE} characters"),
                );
            }
        }
        let usual = parts.stage != Stage::Production;
        match enabled.unwrap_or(usual) {
            _ if is_printed => {}
            true => check_paths(parts, problems),
            false => return None,
        }
        let policies = All {
            has_limits: parts.limits.are_enabled(),
            refreshes: parts.refreshes,
        };
        let head = Head {
            title,
            version,
            host: parts.host.clone(),
            aliases: parts.aliases.clone(),
        };
        let global = parts.limits.rule(GLOBAL);
        Some(Documentation {
            inventory: Inventory::of(parts.table, parts.batch, policies, head),
            shows_operators_all: operators.unwrap_or(parts.stage == Stage::Development),
            roles: parts.roles.clone(),
            admin: parts.roles.id("admin"),
            limits: global.into_iter().cloned().collect(),
            made: MadeBefore::with_weighter(USUALLY_KEPT, MOST_KEPT, InBytes),
            policy: policy(parts.host.as_deref()),
        })
    }
}

/// No route has a path of the documentation, by any of its spellings.
fn check_paths(parts: &Parts<'_>, problems: &mut Problems) {
    let fault = || {
        format!(
            "`{PATH}` is the API documentation: choose another path, or set documentation.enabled: false"
        )
    };
    for (i, listed) in parts.table.listed().iter().enumerate() {
        let mut spelled = spellings(&listed.route.template, parts.aliases).into_iter();
        if spelled.any(|(path, _)| is_at(&path)) {
            problems.add(format!("routes[{i}].path"), fault());
        }
    }
    if parts.batch.is_some_and(|batch| is_at(batch.path())) {
        problems.add("batch.path", fault());
    }
}

/// The address of a host that clients know: `https://host:port` if that is said, else `//host:port`, by the scheme with
/// which the page came. None: where it says nothing, or a name that means something inside alone, as the documented
/// `api-gateway:3000` does: who can use it has come by it, and is told `/`.
pub fn check_host(text: &str, problems: &mut Problems) -> Option<String> {
    if text.is_empty() {
        return None;
    }
    let (scheme, host) = text.split_once("://").unwrap_or(("http", text));
    // It stands in the page's Content-Security-Policy: nothing of that may be in it.
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    let authority = host.parse::<Authority>().ok();
    let name = authority.as_ref().map(Authority::host).unwrap_or_default();
    let is_host = !name.is_empty() && host.bytes().all(is_plain);
    if !is_host || !matches!(scheme, "http" | "https") {
        problems.add(
            "server.public_host",
            format!(
                "`{text}` is neither a host such as api.example.com:8443, nor https:// and a host"
            ),
        );
        return None;
    }
    let has_labels = name.trim_end_matches('.').contains(['.', ':']);
    has_labels.then(|| match scheme {
        "https" => format!("https://{host}"),
        // A page that came by https may ask nobody else.
        _ => format!("//{host}"),
    })
}

/// What the page may do: run our scripts and ask this gateway. Swagger UI's style sheet has pictures in itself, and it
/// styles its elements one by one.
fn policy(host: Option<&str>) -> HeaderValue {
    // Without a scheme it is the page's, there too.
    let host = host.map(|host| format!(" {}", host.trim_start_matches('/')));
    let host = host.unwrap_or_default();
    let policy = format!(
        "default-src 'none';script-src 'self';style-src 'self' 'unsafe-inline';img-src 'self' data:;connect-src \
         'self'{host};base-uri 'none';form-action 'none';frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).expect("a host was found to be one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_host_is_a_host_with_or_without_a_scheme() {
        let check = |text| {
            let mut problems = Problems::default();
            let host = check_host(text, &mut problems);
            (host, problems.len())
        };
        let good = |host: &str| (Some(host.to_owned()), 0);
        assert_eq!(check("api.test:3000"), good("//api.test:3000"));
        assert_eq!(check("https://api.test"), good("https://api.test"));
        assert_eq!(check("[::1]:3000"), good("//[::1]:3000"));
        // What comes by https asks nothing by http.
        assert_eq!(check("http://api.test"), good("//api.test"));
        for inside in ["", "api-gateway:3000", "https://api-gateway", "localhost."] {
            assert_eq!(check(inside), (None, 0), "{inside}");
        }
        for bad in [
            "a b",
            "http://",
            "a/b",
            "ftp://a",
            "u@a",
            "a;b",
            "a'b\n",
            "https://a/",
        ] {
            assert_eq!(check(bad), (None, 1), "{bad:?}");
        }
    }
}
