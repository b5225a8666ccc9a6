//! The addresses of this node's interfaces, kept up to date: node ports are accepted there.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::channel::mpsc::UnboundedReceiver;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::warn;

use crate::host::netlink;

/// How often everything is read again even if the kernel reported no change.
const AGAIN: Duration = Duration::from_mins(1);
/// When to retry after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// Interfaces change their addresses in groups; read once for each.
const SETTLE: Duration = Duration::from_millis(20);

const ADDRESSES: [MulticastGroup; 2] = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
const INTERFACES: [MulticastGroup; 3] = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];

/// The addresses without those of loopback and link-local ones. The first value is complete.
pub async fn watch() -> io::Result<watch::Receiver<Arc<BTreeSet<IpAddr>>>> {
    // Subscribe before the first read, so that no change is lost in between.
    let changes = Changes::listen()?;
    let (sender, receiver) = watch::channel(Arc::new(read().await?));
    tokio::spawn(follow(changes, sender));
    Ok(receiver)
}

/// Publishes the addresses until the last receiver is dropped.
async fn follow(mut changes: Changes, sender: watch::Sender<Arc<BTreeSet<IpAddr>>>) {
    let mut failing = false;
    loop {
        tokio::select! {
            () = sender.closed() => return,
            () = changes.due(failing) => {}
        }
        match look(&mut changes).await {
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
            Err(error) => {
                if !failing {
                    warn!(%error, "the addresses of this node cannot be read; the known ones stay in use");
                }
                failing = true;
            }
        }
    }
}

/// One read covers all changes that came meanwhile.
async fn look(changes: &mut Changes) -> io::Result<BTreeSet<IpAddr>> {
    changes.settle().await?;
    read().await
}

/// What the kernel reports of changes. If the kernel lost a report because we were too slow, that arrives as
/// a change too.
pub(crate) struct Changes {
    groups: &'static [MulticastGroup],
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    /// The connection ends when its last handle is dropped, so one is kept here.
    _handle: Handle,
    connection: JoinHandle<()>,
}

impl Changes {
    /// Changes of addresses from now on.
    pub(crate) fn listen() -> io::Result<Self> {
        Self::of(&ADDRESSES)
    }

    /// Changes of addresses and interfaces from now on.
    pub(crate) fn of_interfaces() -> io::Result<Self> {
        Self::of(&INTERFACES)
    }

    fn of(groups: &'static [MulticastGroup]) -> io::Result<Self> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(groups)?;
        Ok(Self { groups, messages, _handle: handle, connection: tokio::spawn(connection) })
    }

    /// Waits for a change, or for the end of the connection, which the next [`Changes::skip`] finds out.
    pub(crate) async fn change(&mut self) {
        self.messages.next().await;
    }

    /// Waits until it is time to read: at a change, or when the last read is long ago or failed.
    pub(crate) async fn due(&mut self, failing: bool) {
        tokio::select! {
            // None is the end of the connection, which the next read finds out.
            Some(_) | None = self.messages.next(), if !failing => {}
            () = sleep(if failing { RETRY } else { AGAIN }) => {}
        }
    }

    /// Waits for the end of a group of changes. A read after that covers all of them.
    pub(crate) async fn settle(&mut self) -> io::Result<()> {
        sleep(SETTLE).await;
        self.skip()
    }

    /// Drops the reports that wait. If the connection has ended, it opens a new one and returns an error, since changes
    /// may be lost.
    pub(crate) fn skip(&mut self) -> io::Result<()> {
        loop {
            match self.messages.try_recv() {
                Ok(_) => {}
                Err(end) if end.is_closed() => {
                    *self = Self::of(self.groups)?;
                    return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the netlink connection ended"));
                }
                Err(_) => return Ok(()),
            }
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

async fn read() -> io::Result<BTreeSet<IpAddr>> {
    let list = || {
        let mut found = netlink::addresses::list()?;
        found.retain(|assigned| !assigned.tentative);
        Ok(netlink::addresses::reachable(found).into_iter().collect())
    };
    tokio::task::spawn_blocking(list).await.map_err(io::Error::other)?
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::Command;
    use std::thread;

    use nix::sched::{CloneFlags, unshare};
    use tokio::runtime::Builder;
    use tokio::time::timeout;

    use super::*;
    use crate::host::netns::tests::is_root;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Runs `work` in a namespace of its own; the runtime's threads are in it, too.
    pub(crate) fn in_a_namespace(test: &str, work: impl Future<Output = ()> + Send) {
        if !is_root(test) {
            return;
        }
        let inside = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap());
    }

    pub(crate) fn ip(commands: &[&str]) {
        for arguments in commands {
            let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
            assert!(status.success(), "ip {arguments}");
        }
    }

    async fn check(known: &mut watch::Receiver<Arc<BTreeSet<IpAddr>>>, wanted: &str) {
        let wanted: BTreeSet<IpAddr> = wanted.split_whitespace().map(|ip| ip.parse().unwrap()).collect();
        let reached =
            timeout(PATIENCE, known.wait_for(|addresses| **addresses == wanted)).await.map(|found| found.is_ok());
        assert_eq!(reached, Ok(true), "{:?} are not {wanted:?}", known.borrow());
    }

    #[test]
    fn addresses_are_followed_without_loopback_link_local_and_tentative_ones() {
        in_a_namespace("addresses_are_followed_without_loopback_link_local_and_tentative_ones", async {
            ip(&["link set lo up", "address add 10.1.2.3/32 dev lo", "address add fd00::3/128 dev lo nodad"]);
            ip(&["address add fe80::3/64 dev lo nodad", "address add 127.0.0.9/8 dev lo"]);
            // Tentative as long as the link is down.
            ip(&["link add here type veth peer name there", "address add fd00:1::9/64 dev here"]);
            let mut known = watch().await.unwrap();
            let first: Vec<String> = known.borrow_and_update().iter().map(ToString::to_string).collect();
            assert_eq!(first, ["10.1.2.3", "fd00::3"], "complete at once");
            ip(&["address add 10.1.2.4/32 dev lo", "address del fd00::3/128 dev lo"]);
            check(&mut known, "10.1.2.3 10.1.2.4").await;
            ip(&["link set there up", "link set here up"]);
            check(&mut known, "10.1.2.3 10.1.2.4 fd00:1::9").await;
            ip(&["link del here"]);
            check(&mut known, "10.1.2.3 10.1.2.4").await;
        });
    }

    #[test]
    fn a_connection_that_ended_is_made_anew_and_the_task_ends_with_its_readers() {
        in_a_namespace("a_connection_that_ended_is_made_anew_and_the_task_ends_with_its_readers", async {
            let changes = Changes::listen().unwrap();
            changes.connection.abort();
            let (sender, mut known) = watch::channel(Arc::default());
            let task = tokio::spawn(follow(changes, sender));
            ip(&["link set lo up", "address add 10.1.2.3/32 dev lo"]);
            check(&mut known, "10.1.2.3").await;
            ip(&["address add 10.1.2.4/32 dev lo"]);
            check(&mut known, "10.1.2.3 10.1.2.4").await;
            drop(known);
            assert!(timeout(PATIENCE, task).await.is_ok_and(|ended| ended.is_ok()));
        });
    }
}
