//! Warns of node ports that the kernel also gives to sockets of this node.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::host::local_ports::LocalPorts;
use crate::plan::{PortKey, PortPlan};
use crate::status::Status;

/// Follows the plans until one has such a node port, and warns of it: once, since all of them have one remedy.
pub(super) async fn warn_if_given(mut status: watch::Receiver<Status>) {
    let local = match LocalPorts::read() {
        Ok(local) => local,
        Err(error) => return info!(%error, "whether the kernel gives node ports to sockets of this node is not known"),
    };
    let mut seen = OrdMap::new();
    loop {
        let planned = status.borrow_and_update().planned.ports.clone();
        let given = given(&seen, &planned, &local);
        if !given.is_empty() {
            return warn!(node_ports = shown(&given), "{GIVEN}");
        }
        seen = planned;
        if status.changed().await.is_err() {
            return;
        }
    }
}

const GIVEN: &str = "the kernel also gives these node ports to sockets of this node that ask for no port, and then what \
                     this node sends to such a socket goes to the Service: a UDP client gets no answers from servers \
                     on this node; put the node ports into net.ipv4.ip_local_reserved_ports, or \
                     net.ipv4.ip_local_port_range elsewhere";

/// The node ports of `new` that `old` did not have in this way and that the kernel may give.
fn given(
    old: &OrdMap<PortKey, Arc<PortPlan>>,
    new: &OrdMap<PortKey, Arc<PortPlan>>,
    local: &LocalPorts,
) -> BTreeSet<u16> {
    let changed = old.diff(new).filter_map(|item| match item {
        DiffItem::Add(_, port) | DiffItem::Update { new: (_, port), .. } => Some(port),
        DiffItem::Remove(..) => None,
    });
    let node_ports = changed.flat_map(|port| port.frontends.iter().filter(|frontend| frontend.address.is_none()));
    node_ports.map(|frontend| frontend.port.get()).filter(|port| local.may_give(*port)).collect()
}

/// `30080, 30443, 31000 and 7 more`.
fn shown(ports: &BTreeSet<u16>) -> String {
    let first: Vec<String> = ports.iter().take(3).map(ToString::to_string).collect();
    match ports.len().saturating_sub(first.len()) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::{given, shown};
    use crate::host::local_ports::LocalPorts;
    use crate::plan::fixture::{cluster, options, service};
    use crate::plan::plan;

    /// Which node ports are told of when the Services become these from those before.
    #[track_caller]
    fn check(range: &str, reserved: &str, before: &str, after: &str, wanted: &str) {
        let ports = |words: &str| plan(&cluster([service("web", words)], []), &options()).0.ports;
        let local = LocalPorts::parse(range, reserved).unwrap();
        assert_eq!(shown(&given(&ports(before), &ports(after), &local)), wanted);
    }

    #[test]
    fn a_node_port_that_the_kernel_gives_is_told_of_when_it_appears() {
        let (none, web) = ("ip=10.96.0.1", "ip=10.96.0.1 ip=fd00:96::1 np=30080");
        check("1024 65535", "", none, web, "30080");
        check("1024 65535", "", web, web, "");
        check("1024 65535", "", web, none, "");
        check("1024 65535", "30000-32767", none, web, "");
        check("32768 60999", "", none, web, "");
        // Only node ports count: a cluster IP is no address of the node.
        check("80 65535", "", "", none, "");
    }

    #[test]
    fn of_many_ports_some_are_named() {
        assert_eq!(shown(&[1, 2, 3].into()), "1, 2, 3");
        assert_eq!(shown(&[1, 2, 3, 4, 5].into()), "1, 2, 3 and 2 more");
    }
}
