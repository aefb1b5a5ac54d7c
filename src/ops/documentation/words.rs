//! What an operation's description says, for people: who may, how often, with how much, and how long it takes.

use std::time::Duration;

use super::subject::Subject;
use crate::admit::auth::AuthRule;
use crate::admit::idempotency::IdempotencyRule;
use crate::admit::limits::Rule;
use crate::admit::permissions::Owner;
use crate::admit::schema::Mode;

/// In a few words.
pub fn summary(of: &Subject<'_>) -> String {
    let permission = of.route().and_then(|route| route.permission(of.method));
    match (of.auth(), permission) {
        _ if of.is_batch() => "Several requests in one".into(),
        (AuthRule::Public, _) if of.is_webhook() => "Webhook".into(),
        (AuthRule::Public, _) => "Public".into(),
        (AuthRule::Ops, _) => "Operators".into(),
        (_, None) => "Signed in".into(),
        (_, Some(required)) => required.permission().to_owned(),
    }
}

/// In sentences.
pub fn description(of: &Subject<'_>) -> String {
    let mut lines = vec![who(of)];
    if let Some(aggregate) = of.aggregate() {
        let names = |wanted: bool| {
            let sources = aggregate
                .sources()
                .filter(|(_, required)| *required == wanted);
            let names: Vec<String> = sources.map(|(name, _)| format!("`{name}`")).collect();
            names.join(", ")
        };
        lines.push(match (names(true), names(false)) {
            (required, optional) if optional.is_empty() => format!("Made of {required}."),
            (required, optional) if required.is_empty() => {
                format!("Made of {optional}, as far as they are there.")
            }
            (required, optional) => {
                format!("Made of {required}, and of {optional}, as far as they are there.")
            }
        });
    }
    let limits: Vec<String> = of.limits().map(limit).collect();
    if !limits.is_empty() {
        lines.push(format!("At most {}.", limits.join(", and ")));
    }
    if of.has_body() {
        let keyed = of.largest_keyed_body();
        let keyed = keyed.map(|most| format!(", and {most} with an `Idempotency-Key`"));
        let most = of.largest_body();
        lines.push(format!(
            "A body has at most {most} bytes{}.",
            keyed.unwrap_or_default()
        ));
    }
    match of.idempotency() {
        Some(IdempotencyRule::Optional) => {
            lines.push("With an `Idempotency-Key` it runs once.".into());
        }
        Some(IdempotencyRule::Required) => {
            lines.push("It runs once for each `Idempotency-Key`.".into());
        }
        None => {}
    }
    if of.mode() == Some(Mode::ReportOnly) && of.rules().is_some() {
        lines.push("What does not look as its schemas have it is not refused yet.".into());
    }
    if of.cache().is_some() {
        lines.push("Answers are kept for a while (RFC 9111).".into());
    }
    if of.websocket().is_some() {
        lines.push("A WebSocket may begin here (RFC 6455).".into());
    }
    lines.push(format!("An answer comes within {}.", time(of.budget())));
    lines.join(" ")
}

fn who(of: &Subject<'_>) -> String {
    let Some(route) = of.route() else {
        return "Each call is judged by itself, with the credentials of the batch.".into();
    };
    let caller = match route.auth {
        AuthRule::Public => return "For anybody.".into(),
        AuthRule::Ops => return "For operators, and for the role `admin`.".into(),
        AuthRule::Token => "users",
        AuthRule::TokenOrKey => "users and holders of API keys",
    };
    match (route.permission(of.method), &route.owner) {
        (None, _) if route.owner_only => {
            "For the user whose data it is, and for the role `admin`.".into()
        }
        (Some(required), _) if route.owner_only => format!(
            "For the user whose data it is, with `{0}` or `{0}-own`, and for the role `admin` with `{0}`.",
            required.permission()
        ),
        (None, _) => format!("For all {caller}."),
        (Some(required), Owner::Unknown) => {
            format!("For {caller} with `{}`.", required.permission())
        }
        (Some(required), _) => format!(
            "For {caller} with `{0}`, or with `{0}-own` for what is the user's own.",
            required.permission()
        ),
    }
}

fn limit(rule: &Rule) -> String {
    let name = if rule.name.is_empty() {
        "global"
    } else {
        &*rule.name
    };
    let kind = match (rule.skip_successes, rule.per_event) {
        (true, _) => "failed requests",
        (false, true) => "requests for an event",
        (false, false) => "requests",
    };
    let block = match rule.block.is_zero() {
        true => String::new(),
        false => format!(" (then none for {})", time(rule.block)),
    };
    format!(
        "{} {kind} in {} by the limit `{name}`{block}",
        rule.max,
        time(rule.window)
    )
}

fn time(time: Duration) -> String {
    match time.as_millis() {
        millis if millis % 1000 == 0 => format!("{} s", millis / 1000),
        millis => format!("{millis} ms"),
    }
}
