//! The connections to one upstream, over TCP or TLS: made when needed, used again while they are fresh (DNS-15.4).

use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::select_ok;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpSocket;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::exchange::{Exchange, TryError};
use super::peer::lock;
use crate::stats::PeerCounters;
use crate::upstream::Upstream;
use crate::wire::Received;

/// A connection that rested longer is closed.
const REST: Duration = Duration::from_secs(10);
/// How long one that rested may be silent before a new one is tried beside it: a middlebox may have forgotten it.
const MUTE: Duration = Duration::from_secs(1);
/// Connections that rest at once.
const MOST_RESTING: usize = 32;

pub(super) struct Connections {
    upstream: Upstream,
    tls: Option<TlsConnector>,
    metrics: Arc<PeerCounters>,
    resting: Mutex<Vec<Resting>>,
}

struct Resting {
    stream: Stream,
    since: Instant,
}

/// TCP or TLS.
type Stream = Box<dyn Duplex>;

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

impl Connections {
    pub(super) fn new(upstream: Upstream, tls: Option<TlsConnector>, metrics: Arc<PeerCounters>) -> Self {
        Self { upstream, tls, metrics, resting: Mutex::new(Vec::new()) }
    }

    /// Over a connection that rested. If it was closed meanwhile, over a new one; if it is silent, over both, since the
    /// upstream may only be slow.
    pub(super) async fn ask(&self, exchange: &Exchange) -> Result<Received, TryError> {
        let Some(stream) = self.rested() else { return self.ask_anew(exchange).await };
        let mut old = pin!(self.ask_again(exchange, stream));
        let closed = match timeout(MUTE, &mut old).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(_)) => true,
            Err(_elapsed) => false,
        };
        // What rests beside it may be as dead, and there is no time to try them all.
        lock(&self.resting).clear();
        if closed {
            return self.ask_anew(exchange).await;
        }
        let both: [Pin<&mut (dyn Future<Output = Result<Received, TryError>> + Send)>; 2] =
            [old, pin!(self.ask_anew(exchange))];
        select_ok(both).await.map(|(answer, _other)| answer)
    }

    async fn ask_again(&self, exchange: &Exchange, mut stream: Stream) -> Result<Received, TryError> {
        let answer = exchange.over(&mut stream).await?;
        self.metrics.connections_used_again.add_one();
        self.rest(stream);
        Ok(answer)
    }

    async fn ask_anew(&self, exchange: &Exchange) -> Result<Received, TryError> {
        self.metrics.connections_made.add_one();
        let mut stream = self.connect().await?;
        let answer = exchange.over(&mut stream).await?;
        self.rest(stream);
        Ok(answer)
    }

    async fn connect(&self) -> Result<Stream, TryError> {
        let address = self.upstream.address;
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let tcp = socket.map_err(TryError::Local)?.connect(address).await?;
        tcp.set_nodelay(true)?;
        let Some(name) = &self.upstream.tls else { return Ok(Box::new(tcp)) };
        let Some(tls) = &self.tls else {
            return Err(TryError::Local(io::Error::other("TLS is not set up, which is a bug of shunt")));
        };
        Ok(Box::new(tls.connect(name.clone(), tcp).await?))
    }

    fn rested(&self) -> Option<Stream> {
        let mut resting = lock(&self.resting);
        resting.retain(|connection| connection.since.elapsed() < REST);
        resting.pop().map(|connection| connection.stream)
    }

    fn rest(&self, stream: Stream) {
        let mut resting = lock(&self.resting);
        if resting.len() < MOST_RESTING {
            resting.push(Resting { stream, since: Instant::now() });
        }
    }
}
