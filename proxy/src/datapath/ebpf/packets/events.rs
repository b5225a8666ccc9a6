//! Hears what the packet programs decide, while somebody listens, and tells it in words.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{Map, MapData, MapError, RingBuf};
use jiff::Timestamp;
use proxy_abi::counters::Means;
use proxy_abi::{Address6, Config, Count, Event, Port, maps};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use shunt_model::{Protocol, with_causes};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use zerocopy::FromBytes as _;

use super::super::layout::write::address_of;
use super::super::pins::Pins;
use super::super::tables::kernel::{Array, TableError};
use super::counters::{Counted, place};
use super::owners::Owned;
use crate::datapath::looking::{Decision, DecisionVerdict, Decisions, Heard};
use crate::host::netlink::{Netlink, links};

/// How often it looks whether somebody still listens, and how much was left out.
const EVERY: Duration = Duration::from_secs(1);

/// Reads `EVENTS`. Writes the flag in `CONFIG` that somebody listens.
pub(in crate::datapath::ebpf) struct Teller {
    queue: RingBuf<MapData>,
    config: Array,
    telling: Telling,
}

/// The queue cannot be used.
#[derive(Debug, thiserror::Error)]
pub(in crate::datapath) enum TellerError {
    /// The queue.
    #[error("opening the queue of events pinned at {}", .path.display())]
    Queue {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: Box<MapError>,
    },
    /// A map.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The devices cannot be asked for.
    #[error("asking for network devices")]
    Devices(#[from] io::Error),
}

impl Teller {
    pub(in crate::datapath::ebpf) fn open(
        pins: &Pins,
        counted: Counted,
        owners: watch::Receiver<Owned>,
        decisions: Decisions,
    ) -> Result<Self, TellerError> {
        let path = pins.maps.of(&maps::packets::EVENTS);
        let opened = MapData::from_pin(&path).and_then(Map::from_map_data).and_then(RingBuf::try_from);
        let queue = opened.map_err(|source| TellerError::Queue { path, source: Box::new(source) })?;
        let config = Array::open(&pins.maps, &maps::CONFIG)?;
        let devices = Devices::open()?;
        Ok(Self { queue, config, telling: Telling { counted, left_out: 0, owners, devices, decisions } })
    }

    /// Tells until stopped. What it calls blocks, so this wants a thread of its own.
    pub(in crate::datapath::ebpf) async fn run(self, stop: CancellationToken) {
        let Self { queue, config, mut telling } = self;
        #[expect(deprecated, reason = "the queue keeps its descriptor open, and unsafe code has no place here")]
        let queue = AsyncFd::new(queue);
        let mut queue = match queue {
            Ok(queue) => queue,
            Err(error) => return warn!(%error, "shunt monitor hears nothing: the queue of events cannot be waited for"),
        };
        while stop.run_until_cancelled(telling.decisions.listened_to()).await.is_some() {
            // What an earlier listener has not heard.
            while queue.get_mut().next().is_some() {}
            set(&config, true);
            telling.decisions.set_telling(true);
            stop.run_until_cancelled(telling.follow(&mut queue)).await;
            telling.decisions.set_telling(false);
            set(&config, false);
        }
    }
}

/// Makes the programs tell, or be silent.
fn set(config: &Array, listened_to: bool) {
    let flag = if listened_to { Config::LISTENED_TO } else { 0 };
    let done = config.update(0, Config::FLAGS, |flags| (flags & !Config::LISTENED_TO) | flag);
    if let Err(error) = done {
        warn!(%error, listened_to, "the packet programs do not learn whether somebody listens");
    }
}

/// All but the queue.
struct Telling {
    counted: Counted,
    left_out: u64,
    owners: watch::Receiver<Owned>,
    devices: Devices,
    decisions: Decisions,
}

impl Telling {
    /// Tells as long as somebody listens.
    async fn follow(&mut self, queue: &mut AsyncFd<RingBuf<MapData>>) {
        self.left_out = self.untold();
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.decisions.are_listened_to() {
            tokio::select! {
                ready = queue.readable_mut() => match ready {
                    Ok(mut ready) => {
                        self.empty(ready.get_inner_mut());
                        ready.clear_ready();
                    }
                    Err(error) => {
                        warn!(%error, "shunt monitor hears nothing: waiting for events failed");
                        tick.tick().await;
                    }
                },
                _ = tick.tick() => self.tell_left_out(),
            }
        }
    }

    fn empty(&mut self, queue: &mut RingBuf<MapData>) {
        let owners = self.owners.borrow().clone();
        while let Some(item) = queue.next() {
            let Ok(event) = Event::read_from_bytes(&item) else { continue };
            drop(item);
            let device = self.devices.name(event.device);
            if let Some(decision) = decision(&event, &owners, device, Timestamp::now()) {
                self.decisions.tell(Heard::Decision(Arc::new(decision)));
            }
        }
    }

    fn tell_left_out(&mut self) {
        let now = self.untold();
        if now > self.left_out {
            self.decisions.tell(Heard::LeftOut(now - self.left_out));
        }
        self.left_out = now;
    }

    fn untold(&self) -> u64 {
        let counts = self.counted.counts();
        let counts = counts.inspect_err(|error| debug!(%error, "how many events were left out is not known"));
        counts.ok().and_then(|counts| counts.get(Count::EventLeftOut as usize).copied()).unwrap_or(self.left_out)
    }
}

/// An event in words; `None` if it is none of this version.
fn decision(event: &Event, owners: &Owned, device: String, now: Timestamp) -> Option<Decision> {
    let what = Count::of(event.what)?;
    let verdict = match what.means() {
        Means::Begins => DecisionVerdict::Forward,
        Means::Refuses => DecisionVerdict::Reject,
        Means::Drops => DecisionVerdict::Drop,
        Means::Nothing => return None,
    };
    let (_, reason) = place(what);
    let owner = owners.get(&event.service);
    let ends = &event.client;
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    Some(Decision {
        time: now.to_string(),
        verdict,
        reason: reason.map(|(_, reason)| reason.to_owned()).unwrap_or_default(),
        protocol: protocols
            .into_iter()
            .find(|protocol| protocol.number() == ends.protocol)
            .map_or_else(|| ends.protocol.to_string(), |protocol| protocol.to_string()),
        client: socket_address(ends.from, ends.from_port),
        destination: socket_address(ends.to, ends.to_port),
        service: owner.map(|owner| owner.service.to_string()),
        port: owner.map(|owner| owner.port.to_string()),
        endpoint: (event.endpoint_port != 0).then(|| socket_address(event.endpoint, event.endpoint_port)),
        device,
    })
}

fn socket_address(address: Address6, port: Port) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(address_of(address)).to_canonical(), u16::from_be(port))
}

/// The names of network devices.
struct Devices {
    netlink: Netlink,
    names: BTreeMap<u32, String>,
    asked: Option<Instant>,
}

impl Devices {
    fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open(NETLINK_ROUTE)?, names: BTreeMap::new(), asked: None })
    }

    /// The name of a device, or its index behind a `#` if it has gone.
    fn name(&mut self, index: u32) -> String {
        if !self.names.contains_key(&index) && self.asked.is_none_or(|asked| asked.elapsed() > EVERY) {
            match links::list(&mut self.netlink) {
                Ok(links) => self.names = links.into_iter().map(|link| (link.index, link.name)).collect(),
                Err(error) => debug!(reason = with_causes(&error), "network devices have no names for shunt monitor"),
            }
            self.asked = Some(Instant::now());
        }
        self.names.get(&index).cloned().unwrap_or_else(|| format!("#{index}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{cluster, options, service};
    use crate::plan::plan;
    use proxy_abi::mapped;
    use proxy_abi::packet::Ends;

    fn event(service: u32, what: Count) -> Event {
        let address = |octets| mapped(u32::from_ne_bytes(octets));
        let client = Ends {
            from: address([203, 0, 113, 9]),
            to: address([192, 0, 2, 1]),
            from_port: 40_000_u16.to_be(),
            to_port: 80_u16.to_be(),
            protocol: 6,
            padding: [0; 3],
        };
        Event { client, service, what: what as u32, device: 7, ..Event::default() }
    }

    #[test]
    fn an_event_becomes_a_decision_about_the_service_that_has_its_entry() {
        let plan = plan(&cluster([service("web", "ip=10.96.0.1 port=http:80/tcp")], []), &options()).0;
        let owner = plan.ports.keys().next().unwrap().clone();
        let owners = Owned::unit(3, owner);
        let said = |event: &Event| decision(event, &owners, "eth0".to_owned(), Timestamp::UNIX_EPOCH);
        let refused = said(&event(3, Count::NoEndpoint)).unwrap();
        let wanted = Decision {
            time: "1970-01-01T00:00:00Z".to_owned(),
            verdict: DecisionVerdict::Reject,
            reason: "no_endpoint".to_owned(),
            protocol: "tcp".to_owned(),
            client: "203.0.113.9:40000".parse().unwrap(),
            destination: "192.0.2.1:80".parse().unwrap(),
            service: Some("default/web".to_owned()),
            port: Some("http".to_owned()),
            endpoint: None,
            device: "eth0".to_owned(),
        };
        assert_eq!(refused, wanted);
        let endpoint = mapped(u32::from_ne_bytes([10, 1, 0, 1]));
        let begun = said(&Event { endpoint, endpoint_port: 8080_u16.to_be(), ..event(4, Count::New) }).unwrap();
        assert_eq!((begun.verdict, &*begun.reason, begun.service), (DecisionVerdict::Forward, "new", None));
        assert_eq!(begun.endpoint, Some("10.1.0.1:8080".parse().unwrap()));
        assert_eq!(said(&event(3, Count::Established)), None);
        assert_eq!(said(&Event { what: 999, ..event(3, Count::New) }), None);
    }
}
