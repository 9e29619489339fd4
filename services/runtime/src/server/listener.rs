//! Accepting connections under a limit, and cutting them when a drain's grace is over.
//!
//! tonic and axum spawn a task per connection and give no way to end it; neither bounds how many there are or how long
//! a silent one is kept, and tonic polls a listener that fails (no file descriptors left) in a hot loop. All of that is
//! answered here, around the socket.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::metrics::GrpcMetrics;

/// How long accepting pauses when the system has no room for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a listener bears.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections that may be open; one more is closed as soon as it is accepted.
    pub(crate) max_connections: usize,
    /// A connection is closed unless this many bytes come...
    pub(crate) first_bytes: usize,
    /// ...within this time.
    pub(crate) first_bytes_within: Duration,
}

/// A listener with limits.
#[derive(Debug)]
pub(crate) struct Acceptor {
    listener: TcpListener,
    limits: Limits,
    slots: Arc<Semaphore>,
    cut: CancellationToken,
    metrics: Option<Arc<GrpcMetrics>>,
}

impl Acceptor {
    /// Connections that this accepts fail when `cut` is cancelled.
    pub(crate) fn new(
        listener: TcpListener,
        limits: Limits,
        cut: CancellationToken,
        metrics: Option<Arc<GrpcMetrics>>,
    ) -> Acceptor {
        let slots = Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS)));
        Acceptor { listener, limits, slots, cut, metrics }
    }

    /// Waits for the next connection that there is room for. Cancel-safe.
    pub(crate) async fn next(&self) -> (Connection, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    if let Ok(slot) = self.slots.clone().try_acquire_owned() {
                        return (self.connection(stream, slot), peer);
                    }
                    // Closing it tells the peer at once; leaving it in the backlog would let it wait for its timeout.
                    self.refused("connections");
                }
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "no connection can be accepted; pausing");
                    self.refused("accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    fn connection(&self, stream: TcpStream, slot: OwnedSemaphorePermit) -> Connection {
        // Small messages are most of the traffic; a peer that is already gone shows at the first read.
        let _ = stream.set_nodelay(true);
        if let Some(metrics) = &self.metrics {
            metrics.connections.inc();
        }
        Connection {
            stream,
            // A child, because pollers of one token contend for one lock.
            cut: Box::pin(self.cut.child_token().cancelled_owned()),
            opening: Some(Opening {
                missing: self.limits.first_bytes,
                deadline: Box::pin(tokio::time::sleep(self.limits.first_bytes_within)),
            }),
            metrics: self.metrics.clone(),
            _slot: slot,
        }
    }

    fn refused(&self, reason: &'static str) {
        if let Some(metrics) = &self.metrics {
            metrics.refuse(reason);
        }
    }
}

/// The connections of an acceptor, for tonic. Never fails and never ends.
pub(super) fn incoming(acceptor: Acceptor) -> impl Stream<Item = io::Result<Connection>> {
    stream::unfold(acceptor, |acceptor| async move {
        let (connection, _peer) = acceptor.next().await;
        Some((Ok(connection), acceptor))
    })
}

impl axum::serve::Listener for Acceptor {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        self.next().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Acceptor::local_addr(self)
    }
}

fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::Interrupted
    )
}

/// A TCP connection that can be cut from outside and has to speak soon.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// None once the first bytes have come.
    opening: Option<Opening>,
    metrics: Option<Arc<GrpcMetrics>>,
    _slot: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Opening {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(metrics) = &self.metrics {
            metrics.connections.dec();
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    /// Both servers always wait to read, so an error here ends the connection, writes included.
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        let Some(opening) = &mut this.opening else { return read };
        opening.missing = opening.missing.saturating_sub(buf.filled().len() - before);
        if opening.missing == 0 {
            this.opening = None;
            return read;
        }
        if read.is_pending() && opening.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn acceptor(limits: Limits, cut: CancellationToken) -> Acceptor {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Acceptor::new(listener, limits, cut, None)
    }

    const LIMITS: Limits = Limits { max_connections: 1, first_bytes: 4, first_bytes_within: Duration::from_millis(50) };

    #[tokio::test]
    async fn one_connection_too_many_is_closed_and_room_comes_back() {
        let acceptor = acceptor(LIMITS, CancellationToken::new()).await;
        let address = acceptor.local_addr().unwrap();
        let _first_peer = TcpStream::connect(address).await.unwrap();
        let (first, _) = acceptor.next().await;
        let mut second = TcpStream::connect(address).await.unwrap();
        tokio::select! {
            _ = acceptor.next() => panic!("there is no room"),
            read = second.read_u8() => { read.unwrap_err(); }
        }
        drop(first);
        let _third = TcpStream::connect(address).await.unwrap();
        acceptor.next().await;
    }

    #[tokio::test]
    async fn a_connection_that_says_too_little_is_given_up() {
        let acceptor = acceptor(LIMITS, CancellationToken::new()).await;
        let mut peer = TcpStream::connect(acceptor.local_addr().unwrap()).await.unwrap();
        let (mut connection, _) = acceptor.next().await;
        peer.write_all(b"abc").await.unwrap();
        let mut four = [0; 4];
        assert_eq!(connection.read_exact(&mut four).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_connection_that_spoke_in_time_may_be_silent_later() {
        let acceptor = acceptor(LIMITS, CancellationToken::new()).await;
        let mut peer = TcpStream::connect(acceptor.local_addr().unwrap()).await.unwrap();
        let (mut connection, _) = acceptor.next().await;
        peer.write_all(b"abcd").await.unwrap();
        let mut four = [0; 4];
        connection.read_exact(&mut four).await.unwrap();
        assert!(connection.opening.is_none(), "nothing is left that could run out");
    }

    #[tokio::test]
    async fn a_cut_ends_a_connection_that_waits() {
        let cut = CancellationToken::new();
        let acceptor = acceptor(LIMITS, cut.clone()).await;
        let _peer = TcpStream::connect(acceptor.local_addr().unwrap()).await.unwrap();
        let (mut connection, _) = acceptor.next().await;
        let (read, ()) = tokio::join!(connection.read_u8(), async { cut.cancel() });
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
