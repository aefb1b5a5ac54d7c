//! Runs a request of the gateway's own, and takes its answer in bounded space and time.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Method, StatusCode};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::subrequest::server::SubrequestHandle;
use pingora_proxy::subrequest::{BodyMode, Ctx as SubrequestCtx};
use pingora_proxy::{PreparedSubrequest, Session};

use super::Inner;
use crate::connection::{self, Cut};

/// A request that is ready to run.
pub struct Prepared {
    request: PreparedSubrequest,
    handle: SubrequestHandle,
    method: Method,
}

/// How much of an answer is taken, and until when.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub largest: usize,
    pub until: Instant,
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub fields: HeaderMap,
    pub body: Vec<u8>,
    /// There was more than may be taken; what was taken is left out.
    pub too_large: bool,
}

/// There is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It broke off.
    Broken,
    /// Nothing that ends: an event stream.
    Endless,
    /// It took too long.
    Late,
}

/// The request ends by itself at its deadline; this is for what cannot be cut.
const GRACE: Duration = Duration::from_millis(250);

/// Collects an answer.
struct Taken {
    largest: usize,
    method: Method,
    head: Option<Box<ResponseHeader>>,
    body: Vec<u8>,
    ended: bool,
    too_large: bool,
    endless: bool,
}

impl Prepared {
    /// `None` where the session cannot have requests of ours.
    pub fn new(session: &Session, inner: Inner, body: Option<Bytes>) -> Option<Self> {
        let spawner = session.subrequest_spawner.as_ref()?;
        let method = match &inner {
            Inner::Call(call) => call.head.method.clone(),
            Inner::Source(source) => source.head.method.clone(),
        };
        let ctx = SubrequestCtx::builder()
            // Pingora would take fields out of the client's head, which is not used.
            .body_mode(BodyMode::ExpectBody)
            .user_ctx(Box::new(Some(inner)))
            .build();
        let (request, handle) = spawner.create_subrequest(session.as_downstream(), ctx);
        if let Some(body) = body {
            // The channel is empty, and has room.
            let _ = handle.tx.try_send(HttpTask::Body(Some(body), true));
        }
        Some(Self {
            request,
            handle,
            method,
        })
    }

    /// In the task of the request that it is for: when that is dropped, this ends with it.
    ///
    /// # Errors
    /// When there is no whole answer in time.
    pub async fn run(self, bounds: Bounds) -> Result<Reply, Fault> {
        let Self {
            request,
            handle,
            method,
        } = self;
        let mut taken = Taken {
            largest: bounds.largest,
            method,
            head: None,
            body: Vec::new(),
            ended: false,
            too_large: false,
            endless: false,
        };
        let cut = Cut::new(Instant::now());
        let over = tokio::time::sleep_until((bounds.until + GRACE).into());
        let both = async {
            let running = pin!(connection::apart(request.run(), &cut));
            taken.take_all(handle, running, &cut).await;
        };
        tokio::select! {
            () = both => taken.reply(),
            () = over => Err(Fault::Late),
        }
    }
}

// === impl Taken ===

impl Taken {
    async fn take_all(
        &mut self,
        handle: SubrequestHandle,
        mut running: impl Future<Output = ()> + Unpin,
        cut: &Cut,
    ) {
        // While `tx` is there the request takes its client for present.
        let SubrequestHandle { tx, mut rx, .. } = handle;
        let mut is_wanted = true;
        // On a connection to a backend that others share, a request ends from its client's side.
        let mut was_over = false;
        let mut over = |_: &mut Context<'_>| {
            let is_over = cut.is_over_here();
            match !std::mem::replace(&mut was_over, is_over) && is_over {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        };
        while is_wanted {
            tokio::select! {
                biased;
                task = rx.recv() => is_wanted = task.is_some_and(|task| self.take(task)),
                () = &mut running => {
                    while let Ok(task) = rx.try_recv() {
                        self.take(task);
                    }
                    return;
                }
                // Nobody sends this behind a request.
                () = poll_fn(&mut over) => drop(tx.try_send(HttpTask::Trailer(None))),
            }
        }
        // Its end is awaited, for the line in the log; without anybody who listens it comes soon.
        drop((tx, rx));
        running.await;
    }

    /// Whether the rest of it is of use.
    fn take(&mut self, task: HttpTask) -> bool {
        match task {
            HttpTask::Header(head, end) => {
                if !head.status.is_informational() {
                    self.endless = is_endless(&head.headers);
                    self.ended |= end;
                    self.head = Some(head);
                }
            }
            HttpTask::Body(piece, end) => {
                let piece = piece.unwrap_or_default();
                self.too_large |= self.body.len() + piece.len() > self.largest;
                if !self.too_large {
                    self.body.extend_from_slice(&piece);
                }
                self.ended |= end;
            }
            HttpTask::Trailer(_) | HttpTask::Done => self.ended = true,
            HttpTask::UpgradedBody(..) | HttpTask::Failed(_) => return false,
        }
        !self.too_large && !self.endless
    }

    fn reply(self) -> Result<Reply, Fault> {
        let is_good = !self.endless && (self.is_whole() || self.too_large);
        let Some(head) = self.head.filter(|_| is_good) else {
            return Err(if self.endless {
                Fault::Endless
            } else {
                Fault::Broken
            });
        };
        Ok(Reply {
            status: head.status,
            fields: head.headers.clone(),
            body: self.body,
            too_large: self.too_large,
        })
    }

    /// Pingora says the end of most answers, but not of those that have no body, or were ours to a failed request.
    fn is_whole(&self) -> bool {
        let Some(head) = &self.head else {
            return false;
        };
        let length = head.headers.get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        self.ended
            || self.method == Method::HEAD
            || matches!(
                head.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            )
            || length == Some(self.body.len())
    }
}

fn is_endless(fields: &HeaderMap) -> bool {
    const EVENTS: &[u8] = b"text/event-stream";
    let kind = fields.get(CONTENT_TYPE).map(|kind| kind.as_bytes());
    kind.and_then(|kind| kind.get(..EVENTS.len()))
        .is_some_and(|kind| kind.eq_ignore_ascii_case(EVENTS))
}
