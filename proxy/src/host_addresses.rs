//! The addresses of this node's interfaces, kept up to date: node ports are accepted there.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::sync::watch;
use tracing::warn;

use crate::netlink;

/// How often everything is read again even if the kernel told of no change.
const AGAIN: Duration = Duration::from_mins(1);
/// Interfaces change their addresses in groups; read once for each.
const SETTLE: Duration = Duration::from_millis(20);

/// The addresses without those of loopback and link-local ones. The first value is complete.
pub async fn watch() -> io::Result<watch::Receiver<Arc<BTreeSet<IpAddr>>>> {
    // Listened to before the first look, so that no change falls in between.
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut changes) = rtnetlink::new_multicast_connection(&groups)?;
    let connection = tokio::spawn(connection);
    let (sender, receiver) = watch::channel(Arc::new(read().await?));
    tokio::spawn(async move {
        let mut listening = true;
        let mut failing = false;
        loop {
            tokio::select! {
                () = sender.closed() => break,
                change = next(&mut changes), if listening => listening = change.is_some(),
                () = tokio::time::sleep(AGAIN) => {}
            }
            tokio::time::sleep(SETTLE).await;
            // One look answers all that came meanwhile.
            while changes.try_recv().is_ok() {}
            match read().await {
                Ok(addresses) => {
                    failing = false;
                    sender.send_if_modified(|known| {
                        let modified = **known != addresses;
                        if modified {
                            *known = Arc::new(addresses);
                        }
                        modified
                    });
                }
                Err(error) if !failing => {
                    failing = true;
                    warn!(%error, "the addresses of this node cannot be read; those known stay in force");
                }
                Err(_) => {}
            }
        }
        // The connection lives as long as somebody may ask something of it.
        drop(handle);
        connection.abort();
    });
    Ok(receiver)
}

type Changes =
    futures::channel::mpsc::UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, rtnetlink::sys::SocketAddr)>;

async fn next(changes: &mut Changes) -> Option<()> {
    changes.next().await.map(|_| ())
}

async fn read() -> io::Result<BTreeSet<IpAddr>> {
    let list = || {
        let mut found = netlink::addresses::list()?;
        found.retain(|assigned| !assigned.tentative);
        Ok(netlink::addresses::reachable(found).into_iter().collect())
    };
    tokio::task::spawn_blocking(list).await.map_err(io::Error::other)?
}
