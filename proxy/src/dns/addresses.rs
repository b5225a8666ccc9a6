//! The addresses of the bundled DNS on `lo`: the daemon adds them if no interface has them, marks them as ours, and
//! adds them again if another program removes them. They stay when it ends; `made` removes them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressProtocol, AddressScope,
};
use rtnetlink::packet_route::link::LinkAttribute;
use shunt_model::with_causes;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::config::{DNS_PORT, DnsListen};
use crate::host::addresses::Changes;
use crate::host::netlink::addresses::local_address;
use crate::made::{Ledger, Made};

/// The usual address of NodeLocal DNSCache, and our own one if another program holds the former.
const USUAL: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10)), IpAddr::V4(Ipv4Addr::new(169, 254, 20, 11))];
/// Marks IPv4 addresses as ours on every kernel; the kernel wants the interface's name in front.
const LABEL: &str = "lo:shunt";
/// Marks addresses as ours (`proto` in `ip address`). Kernel: 5.18; older ones ignore it.
const PROTOCOL: AddressProtocol = AddressProtocol::Other(115);
/// The pause after an address was added again.
const PAUSE: Duration = Duration::from_secs(1);

/// Why a DNS address cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// No netlink socket.
    #[error("opening a netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel does not list interfaces or addresses.
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
        /// The interface that has the last one.
        holder: String,
    },
    /// Another interface has the link-local address.
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
    /// It has one of our marks.
    ours: bool,
}

/// Where DNS can listen now.
#[derive(Debug)]
pub struct Prepared {
    /// Its sockets.
    pub listen: Vec<SocketAddr>,
    /// The addresses that it needs on `lo`, to [`keep`] there.
    pub on_lo: Vec<IpAddr>,
}

/// Decides where DNS listens, and adds to `lo` those addresses that no interface has yet, which it notes in `ledger`.
pub async fn prepare(listen: &DnsListen, ledger: &mut Ledger) -> Result<Prepared, AddressError> {
    let host = Host::open()?;
    let assigned = host.assigned().await?;
    let listen = choose(listen, &assigned)?;
    let on_lo = needed_on_lo(&listen, &assigned);
    for address in missing(&on_lo, &assigned) {
        ledger.note(Made::DnsAddress(address));
        host.add(address).await?;
        info!(%address, "put the DNS address on lo");
    }
    Ok(Prepared { listen, on_lo })
}

/// Adds addresses again that another program removed from `lo`, for ever: our sockets stay open without them, but no
/// query reaches them.
pub fn keep(on_lo: Vec<IpAddr>) -> Result<impl Future<Output = ()>, AddressError> {
    let mut changes = Changes::listen().map_err(AddressError::Socket)?;
    Ok(async move {
        let mut failing = false;
        loop {
            let outcome = put_back(&on_lo, &mut changes).await;
            if let Err(error) = &outcome
                && !failing
            {
                warn!(reason = with_causes(error), "the DNS addresses on lo cannot be checked; the daemon retries it");
            }
            failing = outcome.is_err();
            changes.due(failing).await;
        }
    })
}

async fn put_back(on_lo: &[IpAddr], changes: &mut Changes) -> Result<(), AddressError> {
    changes.settle().await.map_err(AddressError::Socket)?;
    let host = Host::open()?;
    let missing = missing(on_lo, &host.assigned().await?);
    for address in &missing {
        host.add(*address).await?;
        warn!(%address, "the DNS address was gone from lo; put it back");
    }
    if !missing.is_empty() {
        // A pause, so that this daemon does not race with a program that keeps removing it.
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Removes the addresses that [`prepare`] added to `lo`, in this or an earlier daemon. Returns them.
pub async fn remove() -> Result<Vec<IpAddr>, AddressError> {
    let host = Host::open()?;
    let assigned = host.assigned().await?;
    let ours: Vec<IpAddr> = assigned.iter().filter(|held| held.ours).map(|held| held.address).collect();
    for address in &ours {
        host.remove(*address).await?;
    }
    Ok(ours)
}

/// Removes an address from `lo` if it has our mark.
pub async fn take_back(address: IpAddr) -> Result<(), AddressError> {
    let host = Host::open()?;
    let is_there = host.assigned().await?.iter().any(|held| held.ours && held.address == address);
    if is_there { host.remove(address).await } else { Ok(()) }
}

fn choose(listen: &DnsListen, assigned: &[Assigned]) -> Result<Vec<SocketAddr>, AddressError> {
    let held_elsewhere = |address: &IpAddr| {
        assigned.iter().find(|held| held.address == *address && held.interface != "lo").map(|held| &held.interface)
    };
    match listen {
        DnsListen::Given(addresses) => {
            // DNS may listen on any other address of this host; at these, pods expect the program that holds them now.
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

/// The addresses to listen on that `lo` has or must get. An address of another interface comes and goes with that
/// interface.
fn needed_on_lo(chosen: &[SocketAddr], assigned: &[Assigned]) -> Vec<IpAddr> {
    let mut needed: Vec<IpAddr> = chosen.iter().map(SocketAddr::ip).collect();
    needed.sort_unstable();
    needed.dedup();
    // All of 127.0.0.0/8 is local without being assigned.
    needed.retain(|ip| !ip.is_unspecified() && !ip.is_loopback());
    needed.retain(|ip| !assigned.iter().any(|held| held.address == *ip && held.interface != "lo"));
    needed
}

/// Those that no interface has.
fn missing(needed: &[IpAddr], assigned: &[Assigned]) -> Vec<IpAddr> {
    needed.iter().copied().filter(|ip| !assigned.iter().any(|held| held.address == *ip)).collect()
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
            IpAddr::V4(_) => {
                message.attributes.push(AddressAttribute::Label(LABEL.to_owned()));
                // The kernel takes the source of a masqueraded packet, and of any other, from the first address of
                // global scope on lo where the outgoing interface has none, such as a routed pod's.
                message.header.scope = AddressScope::Host;
            }
            // No other host has an address of our lo, and a tentative address cannot be bound.
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
    use tokio::time::timeout;

    use super::*;
    use crate::host::addresses::tests::{in_a_namespace, ip};

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
        assert_eq!(missing(&needed_on_lo(&chosen, &host), &host), expected);
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
    fn only_what_is_on_lo_is_kept_there() {
        let needed = |chosen: &str, host: &str| {
            let chosen: Vec<SocketAddr> = chosen.split_whitespace().map(|a| a.parse().unwrap()).collect();
            let needed = needed_on_lo(&chosen, &assigned(host));
            needed.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(needed("169.254.20.10:53", "127.0.0.1@lo"), "169.254.20.10", "put there now");
        assert_eq!(needed("169.254.20.10:53", "169.254.20.10@lo"), "169.254.20.10", "put there in an earlier life");
        assert_eq!(needed("10.0.0.5:53 127.0.0.53:53", "10.0.0.5@eth0"), "", "goes with its interface");
    }

    #[test]
    fn an_address_that_is_taken_from_lo_is_put_back_unless_another_interface_has_it_now() {
        in_a_namespace("an_address_that_is_taken_from_lo_is_put_back_unless_another_interface_has_it_now", async {
            ip(&["link set lo up"]);
            let listen = DnsListen::Given(vec!["169.254.20.10:53".parse().unwrap(), "[fd00::53]:53".parse().unwrap()]);
            let Prepared { on_lo, .. } = prepare(&listen, &mut Ledger::default()).await.unwrap();
            let keeping = tokio::spawn(keep(on_lo.clone()).unwrap());
            let holders = async || {
                let found = Host::open().unwrap().assigned().await.unwrap();
                let of = |ip: &IpAddr| found.iter().find(|held| held.address == *ip).map(|h| h.interface.clone());
                on_lo.iter().map(|ip| of(ip).unwrap_or_default()).collect::<Vec<_>>().join(" ")
            };
            for taken in [&["169.254.20.10/32"][..], &["169.254.20.10/32", "fd00::53/128"]] {
                for address in taken {
                    ip(&[&format!("address del {address} dev lo")]);
                }
                let back = async {
                    while holders().await != "lo lo" {
                        sleep(Duration::from_millis(5)).await;
                    }
                };
                assert!(timeout(Duration::from_secs(20), back).await.is_ok(), "{:?}", holders().await);
            }
            ip(&["link add nodelocaldns type veth peer name there", "address add 169.254.20.10/32 dev nodelocaldns"]);
            ip(&["address del 169.254.20.10/32 dev lo", "address del fd00::53/128 dev lo"]);
            let other = async {
                while holders().await != "nodelocaldns lo" {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            assert!(timeout(Duration::from_secs(20), other).await.is_ok(), "{:?}", holders().await);
            keeping.abort();
        });
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
