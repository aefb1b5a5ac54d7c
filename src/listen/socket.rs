//! A client's connection as it was accepted. What is written is kept until it is flushed, so that a head and a small
//! body leave in one packet; what is read is not kept here: heads are read into a buffer of the connection's own, bodies
//! into Pingora's. Only what had to be looked at on the way in, behind a PROXY header or before a TLS handshake, waits
//! here for its reader.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

#[derive(Debug)]
pub struct Socket {
    stream: Wire,
    /// Read, and not taken yet. Without memory but for the first moments.
    ahead: BytesMut,
    /// Written, and not sent yet. Without memory while it is empty: most connections are idle.
    unsent: BytesMut,
    digest: Arc<SocketDigest>,
    since: SystemTime,
}

/// What the kernel gives.
#[derive(Debug)]
pub enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Whose connection it is when nobody says: an address that no network holds, and no limit exempts.
pub const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Room for what is looked at on the way in: a usual PROXY header and a TLS hello, or a whole request.
const AHEAD: usize = 2 << 10;

/// More than this is not gathered: it fills a packet (an Ethernet frame of 1500 bytes carries 1460 of TCP).
const GATHERED: usize = 1460;

impl Socket {
    pub fn new(stream: Wire, peer: SocketAddr) -> Self {
        Self {
            ahead: BytesMut::new(),
            unsent: BytesMut::new(),
            digest: digest(stream.fd(), peer),
            stream,
            since: SystemTime::now(),
        }
    }

    /// What has been read, and not taken.
    pub fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    /// Reads more of it: how much has come, 0 at the end.
    pub async fn read_ahead(&mut self) -> io::Result<usize> {
        self.ahead.reserve(AHEAD);
        match &mut self.stream {
            Wire::Tcp(stream) => stream.read_buf(&mut self.ahead).await,
            Wire::Unix(stream) => stream.read_buf(&mut self.ahead).await,
        }
    }

    /// Takes so much of it away: nobody else reads it.
    pub fn skip(&mut self, len: usize) {
        self.ahead.advance(len);
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
        }
    }

    /// From now on the connection is this client's.
    pub fn declare(&mut self, peer: SocketAddr) {
        self.digest = digest(self.stream.fd(), peer);
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let sent = ready!(self.stream.poll_write(cx, &self.unsent))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(sent);
        }
        self.unsent = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Socket {
    /// What was written is not lost with an answer that breaks off, as far as there is room for it.
    fn drop(&mut self) {
        if !self.unsent.is_empty() {
            let _ = match &self.stream {
                Wire::Tcp(stream) => stream.try_write(&self.unsent),
                Wire::Unix(stream) => stream.try_write(&self.unsent),
            };
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return match &mut self.stream {
                Wire::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
                Wire::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            };
        }
        let len = buf.remaining().min(self.ahead.len());
        buf.put_slice(&self.ahead[..len]);
        self.skip(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.unsent.len() + buf.len() > GATHERED {
            ready!(self.poll_send(cx))?;
        }
        if buf.len() >= GATHERED {
            return self.stream.poll_write(cx, buf);
        }
        self.unsent.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        match &mut self.stream {
            Wire::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len: usize = bufs.iter().map(|buf| buf.len()).sum();
        if self.unsent.len() + len > GATHERED {
            ready!(self.poll_send(cx))?;
        }
        if len >= GATHERED {
            return match &mut self.stream {
                Wire::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
                Wire::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            };
        }
        for buf in bufs {
            self.unsent.extend_from_slice(buf);
        }
        Poll::Ready(Ok(len))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

// === impl Wire ===

impl Wire {
    fn fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

fn digest(fd: RawFd, peer: SocketAddr) -> Arc<SocketDigest> {
    let digest = SocketDigest::from_raw_fd(fd);
    let _ = digest.peer_addr.set(Some(peer.into()));
    Arc::new(digest)
}

// === what Pingora asks of a connection ===

#[async_trait]
impl Shutdown for Socket {
    async fn shutdown(&mut self) {
        if let Err(e) = AsyncWriteExt::shutdown(self).await {
            log::debug!("a connection was gone before it was closed: {e}");
        }
    }
}

#[async_trait]
impl Peek for Socket {}

impl UniqueID for Socket {
    fn id(&self) -> UniqueIDType {
        self.stream.fd()
    }
}

impl Ssl for Socket {}

impl GetTimingDigest for Socket {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest {
            established_ts: self.since,
            establishment_duration: None,
            offload_wait_duration: None,
        })]
    }

    fn get_read_pending_time(&self) -> Duration {
        Duration::ZERO
    }

    fn get_write_pending_time(&self) -> Duration {
        Duration::ZERO
    }
}

impl GetProxyDigest for Socket {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Socket {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.digest.clone())
    }
}
