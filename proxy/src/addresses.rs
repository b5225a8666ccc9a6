//! The addresses of the bundled DNS on `lo`: put there if nobody has them, marked as ours, removed by clean-up only.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use futures::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressProtocol};
use rtnetlink::packet_route::link::LinkAttribute;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::config::{DNS_PORT, DnsListen};
use crate::netlink::addresses::local_address;

/// The address NodeLocal DNSCache made usual, and ours if another program holds that one.
const USUAL: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10)), IpAddr::V4(Ipv4Addr::new(169, 254, 20, 11))];
/// Marks IPv4 addresses as ours on every kernel; the kernel wants the interface's name in front.
const LABEL: &str = "lo:shunt";
/// Marks addresses as ours (`proto` in `ip address`). Kernel: 5.18; older ones ignore it.
const PROTOCOL: AddressProtocol = AddressProtocol::Other(115);

/// Why a DNS address cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// No netlink socket.
    #[error("opening a netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel does not list what is there.
    #[error("listing {what} of this host")]
    List {
        /// Interfaces or addresses.
        what: &'static str,
        /// Why.
        #[source]
        source: rtnetlink::Error,
    },
    /// There is no loopback interface.
    #[error("this network namespace has no interface lo")]
    NoLoopback,
    /// Each usual address is taken.
    #[error("{} and {} are both in use, the latter by interface {holder}: choose another with --dns-bind-address", USUAL[0], USUAL[1])]
    AllTaken {
        /// Who has the last one.
        holder: String,
    },
    /// A link-local address is held by someone else's interface.
    #[error("--dns-bind-address {address}: interface {holder} holds this address; choose another")]
    Held {
        /// The address.
        address: IpAddr,
        /// The interface.
        holder: String,
    },
    /// The kernel refused.
    #[error("{what} {address} on lo")]
    Change {
        /// adding or removing.
        what: &'static str,
        /// The address.
        address: IpAddr,
        /// Why.
        #[source]
        source: rtnetlink::Error,
    },
}

/// An address that this host has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Assigned {
    address: IpAddr,
    interface: String,
    /// Bears one of our marks.
    ours: bool,
}

/// Decides where DNS listens, and gives `lo` those of the addresses that nothing has yet.
pub async fn prepare(listen: &DnsListen) -> Result<Vec<SocketAddr>, AddressError> {
    let host = Host::open()?;
    let assigned = host.assigned().await?;
    let chosen = choose(listen, &assigned)?;
    for address in missing(&chosen, &assigned) {
        host.add(address).await?;
        info!(%address, "put the DNS address on lo");
    }
    Ok(chosen)
}

/// Removes the addresses that [`prepare`] put on `lo`, in this or an earlier life. Returns which.
pub async fn remove() -> Result<Vec<IpAddr>, AddressError> {
    let host = Host::open()?;
    let assigned = host.assigned().await?;
    let ours: Vec<IpAddr> = assigned.iter().filter(|held| held.ours).map(|held| held.address).collect();
    for address in &ours {
        host.remove(*address).await?;
    }
    Ok(ours)
}

fn choose(listen: &DnsListen, assigned: &[Assigned]) -> Result<Vec<SocketAddr>, AddressError> {
    let held_elsewhere = |address: &IpAddr| {
        assigned.iter().find(|held| held.address == *address && held.interface != "lo").map(|held| &held.interface)
    };
    match listen {
        DnsListen::Given(addresses) => {
            // Any other address of this host may be listened on; on these, pods expect what holds them now.
            let taken = addresses.iter().map(SocketAddr::ip).filter(|ip| USUAL.contains(ip));
            match taken.filter_map(|address| held_elsewhere(&address).map(|holder| (address, holder))).next() {
                Some((address, holder)) => Err(AddressError::Held { address, holder: holder.clone() }),
                None => Ok(addresses.clone()),
            }
        }
        DnsListen::Default => {
            let [usual, next] = USUAL;
            let Some(holder) = held_elsewhere(&usual) else { return Ok(vec![SocketAddr::new(usual, DNS_PORT)]) };
            warn!(address = %usual, interface = holder, "the usual DNS address is held by another program; taking {next}");
            match held_elsewhere(&next) {
                Some(holder) => Err(AddressError::AllTaken { holder: holder.clone() }),
                None => Ok(vec![SocketAddr::new(next, DNS_PORT)]),
            }
        }
    }
}

/// What has to be added so that `chosen` can be listened on.
fn missing(chosen: &[SocketAddr], assigned: &[Assigned]) -> Vec<IpAddr> {
    let mut missing: Vec<IpAddr> = chosen.iter().map(SocketAddr::ip).collect();
    missing.sort_unstable();
    missing.dedup();
    // All of 127.0.0.0/8 is local without being assigned.
    missing.retain(|ip| !ip.is_unspecified() && !ip.is_loopback());
    missing.retain(|ip| !assigned.iter().any(|held| held.address == *ip));
    missing
}

/// A netlink connection to this network namespace.
struct Host {
    handle: Handle,
    /// Drives the socket; ends with it.
    connection: JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Host {
    fn open() -> Result<Self, AddressError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(AddressError::Socket)?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    async fn interfaces(&self) -> Result<Vec<(u32, String)>, AddressError> {
        let list = |source| AddressError::List { what: "interfaces", source };
        let links: Vec<_> = self.handle.link().get().execute().try_collect().await.map_err(list)?;
        let name = |attributes: Vec<LinkAttribute>| {
            attributes.into_iter().find_map(|a| if let LinkAttribute::IfName(name) = a { Some(name) } else { None })
        };
        Ok(links.into_iter().filter_map(|link| Some((link.header.index, name(link.attributes)?))).collect())
    }

    async fn assigned(&self) -> Result<Vec<Assigned>, AddressError> {
        let interfaces = self.interfaces().await?;
        let list = |source| AddressError::List { what: "addresses", source };
        let messages: Vec<_> = self.handle.address().get().execute().try_collect().await.map_err(list)?;
        let interface = |index| interfaces.iter().find(|(i, _)| *i == index).map(|(_, name)| name.clone());
        let assigned = |message: AddressMessage| {
            let interface = interface(message.header.index)?;
            let ours = interface == "lo" && is_ours(&message);
            Some(Assigned { address: local_address(&message)?, interface, ours })
        };
        Ok(messages.into_iter().filter_map(assigned).collect())
    }

    async fn loopback(&self) -> Result<u32, AddressError> {
        let interfaces = self.interfaces().await?;
        interfaces.iter().find(|(_, name)| name == "lo").map(|(index, _)| *index).ok_or(AddressError::NoLoopback)
    }

    async fn add(&self, address: IpAddr) -> Result<(), AddressError> {
        let lo = self.loopback().await?;
        let mut request = self.handle.address().add(lo, address, host_prefix(address)).replace();
        let message = request.message_mut();
        match address {
            IpAddr::V4(_) => message.attributes.push(AddressAttribute::Label(LABEL.to_owned())),
            // Nobody else can have it on lo, and a tentative address cannot be bound.
            IpAddr::V6(_) => message.header.flags |= AddressHeaderFlags::Nodad,
        }
        message.attributes.push(AddressAttribute::Protocol(PROTOCOL));
        request.execute().await.map_err(|source| AddressError::Change { what: "adding", address, source })
    }

    async fn remove(&self, address: IpAddr) -> Result<(), AddressError> {
        let lo = self.loopback().await?;
        let message = self.handle.address().add(lo, address, host_prefix(address)).message_mut().clone();
        let deleted = self.handle.address().del(message).execute().await;
        deleted.map_err(|source| AddressError::Change { what: "removing", address, source })
    }
}

fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn is_ours(message: &AddressMessage) -> bool {
    message.attributes.iter().any(|attribute| {
        matches!(attribute, AddressAttribute::Label(label) if label == LABEL)
            || matches!(attribute, AddressAttribute::Protocol(protocol) if *protocol == PROTOCOL)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(list: &str) -> Vec<Assigned> {
        let one = |text: &str| {
            let (address, interface) = text.split_once('@').unwrap();
            Assigned { address: address.parse().unwrap(), interface: interface.to_owned(), ours: false }
        };
        list.split_whitespace().map(one).collect()
    }

    /// Where DNS listens and what is added to lo for it, or the error.
    #[track_caller]
    fn check(given: &str, host: &str, listen: &str, added: &str) {
        let host = assigned(host);
        let parse = |list: &str| list.split_whitespace().map(|a| a.parse().unwrap()).collect();
        let given = if given.is_empty() { DnsListen::Default } else { DnsListen::Given(parse(given)) };
        let chosen = choose(&given, &host).unwrap();
        assert_eq!(chosen, parse(listen) as Vec<SocketAddr>);
        let expected: Vec<IpAddr> = added.split_whitespace().map(|a| a.parse().unwrap()).collect();
        assert_eq!(missing(&chosen, &host), expected);
    }

    #[test]
    fn the_usual_address_is_taken_unless_another_interface_holds_it() {
        check("", "127.0.0.1@lo", "169.254.20.10:53", "169.254.20.10");
        check("", "169.254.20.10@lo", "169.254.20.10:53", "");
        check("", "169.254.20.10@nodelocaldns", "169.254.20.11:53", "169.254.20.11");
        check("", "169.254.20.10@nodelocaldns 169.254.20.11@lo", "169.254.20.11:53", "");
    }

    #[test]
    fn given_addresses_are_added_only_if_nothing_has_them() {
        check("127.0.0.53:53 [::1]:53", "127.0.0.1@lo", "127.0.0.53:53 [::1]:53", "");
        check("10.0.0.5:53 0.0.0.0:5353", "10.0.0.5@eth0", "10.0.0.5:53 0.0.0.0:5353", "");
        check(
            "[fd00::53]:53 10.0.0.9:53 10.0.0.9:54",
            "10.0.0.5@eth0",
            "[fd00::53]:53 10.0.0.9:53 10.0.0.9:54",
            "10.0.0.9 fd00::53",
        );
    }

    #[test]
    fn a_foreign_holder_is_named() {
        let given = DnsListen::Given(vec!["169.254.20.10:53".parse().unwrap()]);
        let error = choose(&given, &assigned("169.254.20.10@nodelocaldns")).unwrap_err().to_string();
        assert!(error.contains("nodelocaldns") && error.contains("169.254.20.10"), "{error}");
        let both = assigned("169.254.20.10@nodelocaldns 169.254.20.11@dummy7");
        let error = choose(&DnsListen::Default, &both).unwrap_err().to_string();
        assert!(error.contains("dummy7") && error.contains("--dns-bind-address"), "{error}");
    }
}
