//! Runs a request of the gateway's own, and takes its answer in bounded space and time.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::subrequest::server::SubrequestHandle;
use pingora_proxy::subrequest::{BodyMode, Ctx as SubrequestCtx};
use pingora_proxy::{PreparedSubrequest, Session};
use tokio::runtime::Handle;

use super::Inner;
use crate::admit::size::content_length;
use crate::connection::{self, Cut, streams};

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

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub fields: HeaderMap,
    pub body: Vec<u8>,
    /// There was more than may be taken, or it is a stream of events, which has no end. What was taken is left out.
    pub is_cut: bool,
}

/// There is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It broke off.
    Broken,
    /// It took too long.
    Late,
}

/// The request ends by itself at its deadline; this is for what cannot be cut.
const GRACE: Duration = Duration::from_millis(250);

/// For one that has not ended then, and that nobody waits for any more, to be told to the log.
const TO_END: Duration = Duration::from_secs(10);

/// A request on its way. Dropped before its end it goes on without anybody who listens, and so comes to its end soon: only then is
/// a connection given back that it shares with others, which would else stay open until the next request on this thread asks
/// for that backend.
struct Running(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

/// Collects an answer.
struct Taken {
    /// `None`: nothing is kept.
    largest: Option<usize>,
    method: Method,
    head: Option<Box<ResponseHeader>>,
    body: Vec<u8>,
    ended: bool,
    is_cut: bool,
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

    /// A GET that brings what it is for by itself.
    pub fn of_its_own(request: PreparedSubrequest, handle: SubrequestHandle) -> Self {
        Self {
            request,
            handle,
            method: Method::GET,
        }
    }

    /// In the task of the request that it is for. When that is dropped, or this is late, it ends by itself, without anybody who
    /// listens: how it ended is told to the log.
    ///
    /// # Errors
    /// When there is no whole answer in time.
    pub async fn run(self, bounds: Bounds) -> Result<Reply, Fault> {
        let Bounds { largest, until } = bounds;
        let taken = self.bring(Some(largest), until).await;
        taken.ok_or(Fault::Late)?.reply()
    }

    /// One whose answer is for the cache: nobody takes it.
    pub async fn run_unheard(self, until: Instant) {
        self.bring(None, until).await;
    }

    /// `None`: too late.
    async fn bring(self, largest: Option<usize>, until: Instant) -> Option<Taken> {
        let Self {
            request,
            handle,
            method,
        } = self;
        let mut taken = Taken {
            largest,
            method,
            head: None,
            body: Vec::new(),
            ended: false,
            is_cut: false,
        };
        let cut = Cut::new(Instant::now());
        let own = cut.clone();
        let request = Box::pin(async move { connection::apart(request.run(), &own).await });
        let mut running = Running(Some(request));
        let over = tokio::time::sleep_until((until + GRACE).into());
        tokio::select! {
            () = taken.take_all(handle, &mut running, &cut) => Some(taken),
            () = over => None,
        }
    }
}

// === impl Reply ===

impl Reply {
    /// Without its body, for which there is no room.
    pub fn cut(self) -> Self {
        Self {
            body: Vec::new(),
            is_cut: true,
            ..self
        }
    }
}

// === impl Running ===

impl Future for Running {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(request) = &mut self.0 else {
            return Poll::Ready(());
        };
        let ended = request.as_mut().poll(cx);
        if ended.is_ready() {
            self.0 = None;
        }
        ended
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // At the end of the process there is no thread for it any more.
        if let (Some(request), Ok(here)) = (self.0.take(), Handle::try_current()) {
            here.spawn(tokio::time::timeout(TO_END, request));
        }
    }
}

// === impl Taken ===

impl Taken {
    async fn take_all(&mut self, handle: SubrequestHandle, running: &mut Running, cut: &Cut) {
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
                () = &mut *running => {
                    while let Ok(task) = rx.try_recv() {
                        self.take(task);
                    }
                    return;
                }
                // Nobody sends this behind a request.
                () = poll_fn(&mut over) => drop(tx.try_send(HttpTask::Trailer(None))),
            }
        }
        // Its end is awaited: for the line in the log, and because what is to be written down before it (decision 0025) may
        // not be yet. Without anybody who listens it comes soon.
        drop((tx, rx));
        running.await;
    }

    /// Whether the rest of it is of use.
    fn take(&mut self, task: HttpTask) -> bool {
        match task {
            HttpTask::Header(head, end) => {
                if !head.status.is_informational() {
                    let has_body = !end && self.method != Method::HEAD;
                    self.is_cut = has_body && streams::is_events(&head.headers);
                    self.ended |= end;
                    self.head = Some(head);
                }
            }
            HttpTask::Body(piece, end) => {
                let piece = piece.unwrap_or_default();
                if let Some(largest) = self.largest {
                    self.is_cut |= self.body.len() + piece.len() > largest;
                    match self.is_cut {
                        true => self.body = Vec::new(),
                        false => self.body.extend_from_slice(&piece),
                    }
                }
                self.ended |= end;
            }
            HttpTask::Trailer(_) | HttpTask::Done => self.ended = true,
            HttpTask::UpgradedBody(..) | HttpTask::Failed(_) => return false,
        }
        !self.is_cut
    }

    fn reply(self) -> Result<Reply, Fault> {
        let is_good = self.is_whole() || self.is_cut;
        let Some(head) = self.head.filter(|_| is_good) else {
            return Err(Fault::Broken);
        };
        Ok(Reply {
            status: head.status,
            fields: head.headers.clone(),
            body: self.body,
            is_cut: self.is_cut,
        })
    }

    /// Pingora says the end of most answers, but not of those that have no body, or were ours to a failed request.
    fn is_whole(&self) -> bool {
        let Some(head) = &self.head else {
            return false;
        };
        self.ended
            || self.method == Method::HEAD
            || matches!(
                head.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            )
            || content_length(&head.headers) == Some(self.body.len() as u64)
    }
}
