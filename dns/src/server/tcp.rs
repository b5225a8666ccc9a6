//! TCP: any number of queries on a connection, answered side by side and in order (DNS-9.16, RFC 7766).

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, FuturesOrdered};
use futures::{FutureExt as _, StreamExt as _, poll};
use shunt_serving::admission::{Admission, Place};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::ending::Ending;
use super::handler::{Begun, Handler};
use crate::request::Transport;

/// A connection without a query is closed after this (DNS-9.16).
const IDLE: Duration = Duration::from_secs(10);
/// A message must be complete this long after its first octet.
const READ: Duration = Duration::from_secs(3);
/// A client that does not read a reply for this long is disconnected.
const WRITE: Duration = Duration::from_secs(5);
/// Queries of a connection that are worked on at once.
const AT_ONCE: usize = 8;
/// Octets of replies that a connection holds while an earlier one is still worked on; then it reads no further
/// question.
const MOST_HELD: usize = 64 * 1024;
/// After an error that may go away, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections at once, in all; one client gets at most half.
pub(super) const CONNECTIONS: usize = 1024;

/// Accepts connections until the task is cancelled.
pub(super) async fn serve(listener: TcpListener, handler: Arc<Handler>, connections: Arc<Admission>, ending: Ending) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => match connections.enter(client.ip()) {
                Some(place) => ending.spawn(converse(stream, client, Arc::clone(&handler), ending.begun(), place)),
                None => handler.rejected(),
            },
            Err(error) => {
                tracing::debug!(%error, "accepting a TCP connection for DNS");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Replies that go out together: one, or those of a transfer.
type Replies = Vec<Vec<u8>>;

async fn converse(
    stream: TcpStream,
    client: SocketAddr,
    handler: Arc<Handler>,
    ended: impl Future<Output = ()>,
    _place: Place,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, %client, "a TCP client has gone already");
        return;
    }
    let (reading, mut writing) = stream.into_split();
    let messages = stream::unfold(reading, |mut reading| async { Some((next_message(&mut reading).await?, reading)) });
    let mut messages = std::pin::pin!(messages.take_until(ended).fuse());
    // In the order of their questions; with each, how many octets were ready before their turn.
    let mut waiting: FuturesOrdered<BoxFuture<'static, (Replies, usize)>> = FuturesOrdered::new();
    let mut held = 0;
    loop {
        let room = waiting.len() < AT_ONCE && held < MOST_HELD;
        let replies = tokio::select! {
            biased;
            Some((replies, ready)) = waiting.next() => {
                held -= ready;
                replies
            }
            Some(wire) = messages.next(), if room => {
                let mut work = answers(Arc::clone(&handler), wire, client).boxed();
                match poll!(&mut work) {
                    Poll::Ready(replies) if waiting.is_empty() => replies,
                    Poll::Ready(replies) => {
                        let ready = replies.iter().map(Vec::len).sum();
                        held += ready;
                        waiting.push_back(futures::future::ready((replies, ready)).boxed());
                        continue;
                    }
                    Poll::Pending => {
                        waiting.push_back(work.map(|replies| (replies, 0)).boxed());
                        continue;
                    }
                }
            }
            else => return,
        };
        if send(&mut writing, &replies, client, &handler).await.is_break() {
            return;
        }
        tokio::task::yield_now().await; // other connections have questions too
    }
}

async fn answers(handler: Arc<Handler>, wire: Vec<u8>, client: SocketAddr) -> Replies {
    match handler.begin(&wire, client, Transport::Tcp) {
        Begun::Nothing => Vec::new(),
        Begun::Reply(reply) => vec![reply],
        Begun::Question(request) => handler.answers(&request).await,
    }
}

/// Fails if the client does not read them in time.
async fn send(
    writing: &mut (impl AsyncWrite + Unpin),
    replies: &[Vec<u8>],
    client: SocketAddr,
    handler: &Handler,
) -> ControlFlow<()> {
    for reply in replies {
        match timeout(WRITE, write(writing, reply)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                handler.unsent(client, &error);
                return ControlFlow::Break(());
            }
            Err(_too_slow) => {
                handler.rejected();
                return ControlFlow::Break(());
            }
        }
    }
    ControlFlow::Continue(())
}

/// `None` when there is no further one.
async fn next_message(reading: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let first = timeout(IDLE, reading.read_u8()).await.ok()?.ok()?;
    timeout(READ, rest(first, reading)).await.ok()?.ok()
}

async fn rest(first: u8, reading: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let second = reading.read_u8().await?;
    let length = u16::from_be_bytes([first, second]);
    let mut wire = vec![0; usize::from(length)];
    reading.read_exact(&mut wire).await?;
    Ok(wire)
}

async fn write(writing: &mut (impl AsyncWrite + Unpin), reply: &[u8]) -> io::Result<()> {
    let length = u16::try_from(reply.len()).map_err(|_too_long| io::ErrorKind::InvalidData)?;
    writing.write_all(&[length.to_be_bytes().as_slice(), reply].concat()).await
}
