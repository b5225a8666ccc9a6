//! UDP: a query that can be answered at once is answered in place; one that waits for an upstream gets a task of its
//! own.

use std::io;
use std::sync::Arc;
use std::task::Poll;

use futures::poll;

use super::datagram::{Datagrams, ReplyPath};
use super::ending::Ending;
use super::handler::{Begun, Handler};
use crate::request::Transport;

/// Longer queries are none: 65,535 is the length field's limit.
const LONGEST: usize = 65_535;
/// After so many datagrams in a row, others get their turn on this thread.
const IN_A_ROW: usize = 64;

/// Answers until the server ends. The number of waiting queries is bounded where they wait: before the upstreams.
pub(super) async fn serve(socket: Datagrams, handler: Arc<Handler>, ending: Ending) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; LONGEST];
    loop {
        if let Err(error) = socket.readable().await {
            tracing::error!(%error, "a UDP socket for DNS has failed");
            return;
        }
        for _ in 0..IN_A_ROW {
            match socket.try_receive(&mut buffer) {
                Ok((length, path)) => {
                    answer(&socket, &handler, &ending, buffer.get(..length).unwrap_or_default(), path).await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error of some client that went away.
                Err(error) => tracing::debug!(%error, "receiving a DNS query"),
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn answer(socket: &Arc<Datagrams>, handler: &Arc<Handler>, ending: &Ending, wire: &[u8], path: ReplyPath) {
    let request = match handler.begin(wire, path.client, Transport::Udp) {
        Begun::Nothing => return,
        Begun::Reply(reply) => return send(socket, handler, &reply, path).await,
        Begun::Question(request) => request,
    };
    let mut work = Box::pin({
        let handler = Arc::clone(handler);
        async move { handler.answer(&request).await }
    });
    match poll!(&mut work) {
        Poll::Ready(reply) => send(socket, handler, &reply, path).await,
        Poll::Pending => {
            let (socket, handler) = (Arc::clone(socket), Arc::clone(handler));
            ending.spawn(async move { send(&socket, &handler, &work.await, path).await });
        }
    }
}

async fn send(socket: &Datagrams, handler: &Handler, reply: &[u8], path: ReplyPath) {
    if let Err(error) = socket.send(reply, path).await {
        handler.unsent(path.client, &error);
    }
}
