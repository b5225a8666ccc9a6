//! A thread for each UDP socket: however busy the process is, the kernel gives queries their share of the
//! processors, and many TCP clients with large answers delay no other client.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tokio::net::UdpSocket;
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use super::datagram::Datagrams;
use super::ending::Ending;
use super::handler::Handler;
use super::udp;

/// Ends when it is dropped; [`Worker::join`] also waits.
pub(super) struct Worker {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Serves a non-blocking socket, with a runtime of its own: what a query waits for stays on its thread.
    pub(super) fn start(socket: std::net::UdpSocket, handler: Arc<Handler>, ending: Ending) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let socket = {
            let _inside = runtime.enter();
            Datagrams::new(UdpSocket::from_std(socket)?)?
        };
        let (stop, mut stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("dns-udp".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = udp::serve(socket, handler, ending.clone()) => {}
                    () = ending.begun() => {}
                    _stopped_or_dropped = &mut stopped => return,
                }
                // What waits for others lives on this thread.
                let _stopped_or_dropped = stopped.await;
            });
        })?;
        Ok(Self { stop, thread })
    }

    /// Stops it. Queries in progress are dropped.
    pub(super) async fn join(self) {
        let Self { stop, thread } = self;
        drop(stop);
        let ended = tokio::task::spawn_blocking(move || thread.join()).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::error!("a thread of the DNS server has panicked");
        }
    }
}
