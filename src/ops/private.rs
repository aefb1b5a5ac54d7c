//! The private listener: every detail, for whoever can reach it.

use std::sync::Arc;

use async_trait::async_trait;
use http::{Method, Response, StatusCode};
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;

use super::{Answer, Endpoint, Ops};

pub struct Private(pub Arc<Ops>);

#[async_trait]
impl ServeHttp for Private {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let request = session.req_header();
        let answer = match (&request.method, Endpoint::at(request.uri.path())) {
            (&Method::GET | &Method::HEAD, Some(endpoint)) => self.0.answer(endpoint, true),
            (_, Some(_)) => Some(plain(StatusCode::METHOD_NOT_ALLOWED)),
            (_, None) => None,
        };
        let Answer {
            status,
            content_type,
            body,
        } = answer.unwrap_or_else(|| plain(StatusCode::NOT_FOUND));
        let is_head = request.method == Method::HEAD;
        let mut response = Response::new(if is_head { Vec::new() } else { body.clone() });
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            http::header::CONTENT_TYPE,
            http::HeaderValue::from_static(content_type),
        );
        headers.insert(http::header::CONTENT_LENGTH, body.len().into());
        headers.insert(
            http::header::CACHE_CONTROL,
            http::HeaderValue::from_static("no-store"),
        );
        response
    }
}

fn plain(status: StatusCode) -> Answer {
    let reason = status.canonical_reason().unwrap_or_default();
    Answer {
        status,
        content_type: "text/plain; charset=utf-8",
        body: format!("{reason}\n").into_bytes(),
    }
}
