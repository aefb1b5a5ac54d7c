//! What a successful write puts out of date: its target, what its answer names, and the tags that its route names (RFC 9111,
//! section 4.4).

use http::HeaderMap;
use http::header::{CONTENT_LOCATION, HOST, LOCATION};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::RouteCache;
use super::config::Tag;
use super::entry::Whose;
use super::invalid::{Kind, Place, place};
use crate::admit::path::normalize;
use crate::context::Ctx;
use crate::policies::Policies;
use crate::route::{Route, split_target, target_of};

/// An answer has come. Puts out of date what it says was changed.
pub fn by_answer(session: &Session, response: &ResponseHeader, ctx: &Ctx) {
    let Some(caching) = &ctx.policies.caching else {
        return;
    };
    let request = session.req_header();
    let has_changed = response.status.is_success() || response.status.is_redirection();
    let (Some(route), false, true) = (&ctx.route, request.method.is_safe(), has_changed) else {
        return;
    };
    let tenant = tenant_of(ctx);
    let mut changed = Changed {
        tenant,
        places: Vec::new(),
    };
    let (own, at_service) = paths(ctx, request);
    changed.path(&own);
    changed.path(&at_service);
    for name in [LOCATION, CONTENT_LOCATION] {
        let named = response
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok());
        if let Some(path) = named.and_then(|named| path_here(named, &own, &request.headers)) {
            changed.path(&path);
        }
    }
    for tag in fill(&route.invalidates, ctx) {
        changed.place(Kind::Tag, &tag);
    }
    changed.places.sort_unstable();
    changed.places.dedup();
    let store = &caching.store;
    store.put_out_of_date(&changed.places, store.invalid.now());
}

struct Changed<'a> {
    tenant: &'a [u8],
    places: Vec<Place>,
}

impl Changed<'_> {
    fn path(&mut self, path: &str) {
        self.place(Kind::Path, path);
    }

    /// Of its tenant, and of what is nobody's in particular.
    fn place(&mut self, kind: Kind, text: &str) {
        self.places.push(place(Some(self.tenant), kind, text));
        self.places.push(place(Some(b""), kind, text));
    }
}

/// The path of a reference on the same origin.
fn path_here(reference: &str, own: &str, request: &HeaderMap) -> Option<String> {
    let without_scheme = reference
        .strip_prefix("https:")
        .or_else(|| reference.strip_prefix("http:"))
        .unwrap_or(reference);
    let path = match without_scheme.strip_prefix("//") {
        Some(rest) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let is_ours = request.get(HOST)?.to_str().ok()?.eq_ignore_ascii_case(host);
            is_ours.then_some(path)?.to_owned()
        }
        None if without_scheme.starts_with('/') => without_scheme.to_owned(),
        // Beside the target.
        None => format!("{}/{without_scheme}", own.rsplit_once('/')?.0),
    };
    let path = path.split(['?', '#']).next()?;
    Some(normalize(path).ok()?.into_owned())
}

/// Without their queries: what is there for one of them is for all.
fn paths(ctx: &Ctx, request: &RequestHeader) -> (String, String) {
    let own = split_target(target_of(request)).0;
    let own = normalize(own).map_or_else(|_| own.to_owned(), |path| path.into_owned());
    let at_service = ctx
        .target
        .as_deref()
        .map_or(&*own, |target| split_target(target).0);
    let at_service = at_service.to_owned();
    (own, at_service)
}

/// Nobody's in particular: the empty one.
fn tenant_of(ctx: &Ctx) -> &[u8] {
    ctx.caller
        .as_ref()
        .map_or(b"", |caller| caller.tenant.as_bytes())
}

// === impl Policies ===

impl Policies {
    /// Where a request asks, and what puts its answer out of date.
    pub fn whose(
        &self,
        ctx: &Ctx,
        route: &Route,
        cache: &RouteCache,
        request: &RequestHeader,
    ) -> Whose {
        let tenant = tenant_of(ctx);
        let (own, at_service) = paths(ctx, request);
        let tags = fill(&cache.tags, ctx);
        let tags = tags.iter().map(|tag| (Kind::Tag, &**tag));
        let all = [(Kind::Path, &*own), (Kind::Path, &*at_service)]
            .into_iter()
            .chain(tags);
        let mut places: Vec<Place> = all
            .flat_map(|(kind, text)| [place(Some(tenant), kind, text), place(None, kind, text)])
            .collect();
        places.sort_unstable();
        places.dedup();
        debug_assert!(route.cache.is_some());
        let target = ctx.target.as_deref().unwrap_or_else(|| target_of(request));
        Whose {
            tenant: tenant.into(),
            path: target_of(request).into(),
            target: target.into(),
            places: places.into(),
        }
    }
}

/// Tags with the parameters of the request's path.
fn fill(tags: &[Tag], ctx: &Ctx) -> Vec<String> {
    let parameter = |index: usize| ctx.parameters.get(index).map(|value| &**value);
    tags.iter().map(|tag| tag.fill(parameter)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn only_references_on_the_same_origin_count() {
        let mut request = HeaderMap::new();
        request.insert(HOST, HeaderValue::from_static("a.example:8080"));
        for (reference, expected) in [
            ("/b?x=1", Some("/b")),
            ("//a.example:8080/b", Some("/b")),
            ("http://A.example:8080/b#f", Some("/b")),
            ("https://b.example/b", None),
            ("c", Some("/dir/c")),
            ("/a/../b", None),
        ] {
            assert_eq!(
                path_here(reference, "/dir/a", &request).as_deref(),
                expected,
                "{reference}"
            );
        }
    }
}
