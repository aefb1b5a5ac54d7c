//! The private listener: every detail, for whoever can reach it, and the order to reload.

use async_trait::async_trait;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ORIGIN};
use http::{HeaderValue, Method, Response, StatusCode};
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use serde_json::json;

use super::{Answer, Endpoint, answer};
use crate::policies::InForce;
use crate::reply::cache::purge;
use crate::server::{NotReloaded, Reload, Reloaded};

pub struct Private {
    pub in_force: InForce,
    pub reload: Reload,
}

/// `POST` only, and nowhere else.
const RELOAD: &str = "/reload";

/// As well.
const PURGE: &str = "/cache/purge";

impl Private {
    /// What is kept of answers is to be forgotten.
    async fn purge(&self, session: &mut ServerSession) -> Answer {
        let mut order = Vec::new();
        while let Ok(Some(piece)) = session.read_request_body().await {
            if order.len() + piece.len() > purge::LARGEST {
                return plain(StatusCode::PAYLOAD_TOO_LARGE);
            }
            order.extend_from_slice(&piece);
        }
        let caching = self.in_force.load();
        let (status, body) = purge::purge(caching.caching.as_ref(), &order);
        answer(status, &body)
    }

    async fn reload(&self) -> Answer {
        match self.reload.reload().await {
            Ok(Reloaded {
                changes,
                needs_restart,
            }) => {
                let body = json!({
                    "status": "reloaded", "changes": changes, "needsRestart": needs_restart,
                });
                answer(StatusCode::OK, &body)
            }
            Err(NotReloaded::Faulty(faults)) => answer(
                StatusCode::UNPROCESSABLE_ENTITY,
                &json!({"status": "failed", "faults": faults.lines()}),
            ),
            Err(why @ (NotReloaded::Ending | NotReloaded::Upgrading)) => answer(
                StatusCode::SERVICE_UNAVAILABLE,
                &json!({"status": "failed", "faults": [why.to_string()]}),
            ),
        }
    }
}

#[async_trait]
impl ServeHttp for Private {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let request = session.req_header();
        let (method, is_of_a_page) = (request.method.clone(), request.headers.contains_key(ORIGIN));
        let path = request.uri.path().to_owned();
        let path = &*path;
        let answer = match (&method, Endpoint::at(path)) {
            (&Method::GET | &Method::HEAD, Some(endpoint)) => {
                let policies = self.in_force.load_full();
                policies.ops.answer(endpoint, true).await
            }
            (_, Some(_)) => Some(plain(StatusCode::METHOD_NOT_ALLOWED)),
            // A page that somebody on this machine looks at gives no orders.
            (&Method::POST, None) if matches!(path, RELOAD | PURGE) && is_of_a_page => {
                Some(plain(StatusCode::FORBIDDEN))
            }
            (&Method::POST, None) if path == RELOAD => Some(self.reload().await),
            (&Method::POST, None) if path == PURGE => Some(self.purge(session).await),
            (_, None) if matches!(path, RELOAD | PURGE) => {
                Some(plain(StatusCode::METHOD_NOT_ALLOWED))
            }
            (_, None) => None,
        };
        let Answer {
            status,
            content_type,
            fields: _, // for clients
            policy: _, // as well
            body,
            held: _, // it is small
        } = answer.unwrap_or_else(|| plain(StatusCode::NOT_FOUND));
        let is_head = method == Method::HEAD;
        let mut response = Response::new(if is_head { Vec::new() } else { body.to_vec() });
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CONTENT_LENGTH, body.len().into());
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            let allow = if matches!(path, RELOAD | PURGE) {
                "POST"
            } else {
                "GET, HEAD"
            };
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

fn plain(status: StatusCode) -> Answer {
    let reason = status.canonical_reason().unwrap_or_default();
    Answer::new(status, "text/plain; charset=utf-8", format!("{reason}\n"))
}
