//! Answers requests for the documentation: the page, its files, and the document that is for who asks.

use std::net::IpAddr;

use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, ETAG, HOST, LOCATION, ORIGIN,
    VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use pingora::http::RequestHeader;

use super::assets::{Asset, HTML, PAGE, Sent, etag_of};
use super::viewer::Viewer;
use super::{Asking, Documentation, Form, PATH, document_of};
use crate::admit::Admitted;
use crate::admit::auth::{AuthError, AuthRule, Identified};
use crate::admit::cors::{Cors, is_same_origin};
use crate::context::Ctx;
use crate::forward::deadline::Deadline;
use crate::gateway::Gateway;
use crate::ops::Endpoint;
use crate::reply::{Answer, Refusal, is_not_modified};
use crate::route::{MethodIndex, split_target, target_of};

/// What is asked for.
enum Page {
    Index,
    /// The page's other spelling, in which its links would lead elsewhere.
    Slash,
    Asset(&'static Asset),
    Document(Form),
}

/// To find out who asks.
const BUDGET: std::time::Duration = std::time::Duration::from_secs(5);

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// It may be shown again while it is the same.
const REVALIDATED: HeaderValue = HeaderValue::from_static("no-cache");

/// The same, but not by a cache that others use: it is for who has asked.
const PRIVATE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// Another version of the gateway may have others.
const FOR_AN_HOUR: HeaderValue = HeaderValue::from_static("public, max-age=3600");

// === impl Gateway ===

impl Gateway {
    /// `path` is one of the documentation's.
    ///
    /// # Errors
    /// When there is no such page, or not for who asks.
    pub async fn show_documentation(
        &self,
        path: &str,
        request: &RequestHeader,
        peer: IpAddr,
        ctx: &mut Ctx,
    ) -> Result<Admitted, Refusal> {
        ctx.endpoint = Some(Endpoint::Documentation);
        let (method, fields) = (&request.method, &request.headers);
        ctx.method = MethodIndex::of(method);
        ctx.origin = ctx.policies.cors.check(fields, ctx.scheme)?; // 403
        if Cors::is_preflight(method, fields) {
            return Ok(Admitted::Preflight);
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            let allow = HeaderValue::from_static("GET, HEAD");
            return Err(Refusal::MethodNotAllowed(allow));
        }
        let policies = ctx.policies.clone();
        let (Some(documentation), Some(page)) = (&policies.documentation, Page::at(path)) else {
            return Err(Refusal::NotFound);
        };
        // Who asks for a document may be somebody, whose limit it is then.
        if !matches!(page, Page::Document(_)) {
            self.spend_on_documentation(documentation, ctx).await?; // 429
        }
        let mut answer = match page {
            Page::Index => index(),
            Page::Slash => slash(),
            Page::Asset(asset) => asset_answer(asset, fields),
            Page::Document(form) => {
                let asking = self.asking(documentation, request, peer, ctx).await?; // 400, 401, 403, 429, 503
                let view = documentation.view(&policies.table, &asking);
                let made = document_of(&policies, view, form).await;
                let made = made.ok_or(Refusal::Internal)?;
                let mut answer =
                    Answer::new(StatusCode::OK, form.content_type(), made.body.clone());
                answer.add(CACHE_CONTROL, PRIVATE);
                answer.add(VARY, HeaderValue::from_static("Authorization, X-API-Key"));
                answer.add(ETAG, made.etag.clone());
                answer
            }
        };
        answer.policy = Some(documentation.policy.clone());
        if is_not_modified(fields, answer.status, &answer.fields) {
            answer.status = StatusCode::NOT_MODIFIED;
            answer.body.clear();
        }
        Ok(Admitted::Answered(answer))
    }

    /// Who asks for a document, by its credentials or by its address.
    async fn asking<'r>(
        &self,
        documentation: &Documentation,
        request: &'r RequestHeader,
        peer: IpAddr,
        ctx: &mut Ctx,
    ) -> Result<Asking<'r>, Refusal> {
        let fields = &request.headers;
        let is_near = documentation.shows_operators_all && is_operator(fields, peer, ctx);
        let has_credentials = fields.contains_key(AUTHORIZATION) || fields.contains_key(X_API_KEY);
        let host = fields.get(HOST).and_then(|host| host.to_str().ok());
        let (viewer, is_near) = match role(request) {
            Some(_) if has_credentials => {
                return Err(Refusal::BadQuery("`role` is for who has no credentials"));
            }
            Some(_) if !is_near => {
                return Err(Refusal::Forbidden(
                    "`role` is for addresses in ops.allow, with documentation.operators",
                ));
            }
            Some(name) => {
                let role = documentation.roles.id(&name);
                let role = role.ok_or(Refusal::BadQuery("There is no such role"))?;
                (Viewer::Role(role), false)
            }
            None if has_credentials => {
                let identified = self.identify(documentation, fields, ctx).await;
                let Identified { caller, beside } = identified?;
                (Viewer::Caller { caller, beside }, is_near)
            }
            None if is_near => (Viewer::Operator, true),
            None => (Viewer::Nobody, false),
        };
        self.spend_on_documentation(documentation, ctx).await?; // 429
        Ok(Asking {
            viewer,
            is_near,
            host: host.unwrap_or_default(),
        })
    }

    /// As for any request of a route that takes tokens and keys.
    async fn identify(
        &self,
        documentation: &Documentation,
        fields: &HeaderMap,
        ctx: &mut Ctx,
    ) -> Result<Identified, Refusal> {
        let deadline = Deadline::of(fields, ctx.start, BUDGET)?; // 400
        let batch = ctx.inner.as_ref().map(|inner| inner.deadline);
        ctx.deadline = Some(batch.map_or(deadline, |batch| deadline.no_later_than(batch)));
        let policies = ctx.policies.clone();
        let auth = &policies.auth;
        let identified = auth.identify(AuthRule::TokenOrKey, fields, ctx.client, ctx.start);
        let refusal: Refusal = match identified.await {
            Ok(identified) => {
                let Identified { caller, beside } = identified.of_one_tenant()?; // 403
                match auth.complete(caller, true, ctx.behalf()?).await {
                    Ok(caller) => {
                        ctx.caller = Some(caller.clone());
                        return Ok(Identified { caller, beside });
                    }
                    Err(unknown) => unknown.into(), // 401, 503
                }
            }
            Err(error) => {
                if matches!(error, AuthError::TooManyFailures(_)) {
                    self.rate_limited("authentication");
                }
                error.into() // 401, 429, 503
            }
        };
        // Nobody was identified: the address pays.
        self.spend_on_documentation(documentation, ctx).await?; // 429
        Err(refusal)
    }

    async fn spend_on_documentation(
        &self,
        documentation: &Documentation,
        ctx: &mut Ctx,
    ) -> Result<(), Refusal> {
        let Some(who) = ctx.who() else {
            return Ok(());
        };
        let limits = &ctx.policies.limits;
        let standing = limits.spend(&documentation.limits, who, ctx.start).await;
        ctx.standing = standing.inspect_err(|_| self.rate_limited("caller"))?;
        Ok(())
    }
}

/// Whether somebody at an address in `ops.allow` asks: no page of another origin, and no client of an unknown proxy there.
fn is_operator(fields: &HeaderMap, peer: IpAddr, ctx: &Ctx) -> bool {
    let policies = &ctx.policies;
    let is_own = !fields.contains_key(ORIGIN) || is_same_origin(ctx.scheme, fields);
    let mut relays = ["x-forwarded-for", "forwarded", "via"].into_iter();
    let is_relayed = relays.any(|name| fields.contains_key(name)) && !policies.trusted.trusts(peer);
    ctx.inner.is_none() && is_own && !is_relayed && policies.ops.allows(ctx.client)
}

/// The role in the query, if one is named.
fn role(request: &RequestHeader) -> Option<String> {
    let (_, query) = split_target(target_of(request));
    let mut pairs = form_urlencoded::parse(query?.as_bytes());
    let found = pairs.find(|(name, _)| name == "role");
    found.map(|(_, value)| value.into_owned())
}

fn index() -> Answer {
    let mut answer = Answer::new(StatusCode::OK, HTML, PAGE.as_bytes().to_vec());
    answer.add(CACHE_CONTROL, REVALIDATED);
    answer.add(ETAG, etag_of(PAGE.as_bytes()));
    answer
}

fn slash() -> Answer {
    let mut answer = Answer::new(StatusCode::PERMANENT_REDIRECT, HTML, Vec::new());
    // Whatever stands before it where a proxy has put us.
    answer.add(LOCATION, HeaderValue::from_static("../documentation"));
    answer
}

fn asset_answer(asset: &Asset, fields: &HeaderMap) -> Answer {
    let Sent {
        body,
        etag,
        is_gzip,
        varies,
    } = asset.send(fields);
    let mut answer = Answer::new(StatusCode::OK, asset.content_type, body);
    answer.add(CACHE_CONTROL, FOR_AN_HOUR);
    answer.add(ETAG, etag);
    if is_gzip {
        answer.add(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if varies {
        answer.add(VARY, HeaderValue::from_name(ACCEPT_ENCODING));
    }
    answer
}

// === impl Page ===

impl Page {
    fn at(path: &str) -> Option<Self> {
        match path.strip_prefix(PATH)? {
            "" => Some(Self::Index),
            "/" => Some(Self::Slash),
            "/json" => Some(Self::Document(Form::Json)),
            "/yaml" => Some(Self::Document(Form::Yaml)),
            below => Asset::named(below.strip_prefix("/static/")?).map(Self::Asset),
        }
    }
}

// === impl Form ===

impl Form {
    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json; charset=utf-8",
            Self::Yaml => "application/yaml; charset=utf-8",
        }
    }
}
