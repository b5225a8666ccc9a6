//! The eBPF data path: tables of frontends and backends, and the programs that read them, at the cgroup for sockets and
//! at network devices for packets.
//!
//! Flow: plan of a service port → `image` (pure) → [`layout::Layout`] (pure) → `tables` (thin).

mod difference;
mod door;
mod image;
mod keeper;
pub(super) mod layout;
mod orders;
mod packets;
mod pins;
mod probe;
pub(super) mod socket;
pub(super) mod tables;
mod takeover;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proxy_abi::{Config, maps};
use shunt_model::Protocol;
use tracing::{info, warn};

use self::difference::Difference;
pub(super) use self::door::{
    flows, make_root, open, probe, probe_packets, remove_packets, remove_sockets, retire_packets,
};
use self::layout::pool::Moment;
use self::layout::{Layout, Target, Usage, Write};
use self::orders::OrderWriter;
use self::packets::events::TellerError;
pub use self::packets::flows::FlowTimeouts;
pub use self::packets::flows::list::{FlowFilter, FlowState, Flows, FlowsError, KnownFlow};
use self::packets::flows::{EarlierDatagrams, FlowTables, expect_opening};
use self::packets::follow::{FollowError, Follower};
use self::packets::owners::{Owners, OwnersError};
use self::pins::{Former, PinError, Pins};
use self::socket::programs::{self, FlowLists, Links, ProgramsError};
use self::tables::addresses::Addresses;
use self::tables::audit::Audit;
use self::tables::bits::AddressBits;
pub(super) use self::tables::kernel::TableError;
use self::tables::kernel::Tables;
use self::tables::node::{NodeWords, OptOuts, OwnDns};
use self::tables::service_ranges::ServiceRanges;
use self::takeover::Taken;
use super::{Datapath, SyncError, Synced};
use crate::host::cgroup::CgroupError;
use crate::host::devices::Devices;
use crate::plan::{Plan, PodInterface, PortKey, PortPlan};

/// What the self-test dials: addresses that are reserved for documentation, at a port that no service uses. They lead
/// to the loopback addresses, and the self-test sends no packet.
const SELF_TEST: [SocketAddr; 2] = [
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 1)),
    SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 1, 0, 0)),
];

/// How often it is looked whether flows lead to former addresses: all flows are read for it.
const FORMER: Duration = Duration::from_secs(30);

/// The programs, compiled in by the build script; empty in a build without the BPF tool chain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shunt-socket.o"));

/// [`super::Options`], and the cgroup that they lead to.
#[derive(Clone, Debug)]
struct EbpfOptions {
    /// Programs serve sockets.
    sockets: Option<SocketOptions>,
    /// Programs serve packets.
    packets: Option<PacketOptions>,
    /// Where pins are kept, on a BPF file system.
    bpf_root: PathBuf,
    /// Load the programs from this file and not from the binary; for development.
    object: Option<PathBuf>,
}

/// What concerns programs at sockets alone.
#[derive(Clone, Debug)]
struct SocketOptions {
    /// The directory of the cgroup v2 tree below which all pods and the node's own processes are.
    cgroup_root: PathBuf,
    /// The operator did not choose it, so every pod of the node should be below it.
    cgroup_discovered: bool,
    /// A process of the node cannot bind a node port in use.
    bind_protection: bool,
}

/// What concerns programs at network devices alone.
#[derive(Clone, Debug, Default)]
struct PacketOptions {
    /// By which the operator knows pods.
    interface: Option<PodInterface>,
    /// By which this node reaches others.
    devices: Devices,
    /// How long a flow without packets is remembered.
    timeouts: FlowTimeouts,
}

/// Why the data path cannot start.
#[derive(Debug, thiserror::Error)]
pub(super) enum EbpfOpenError {
    /// The cgroup tree.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The object file given.
    #[error("reading the BPF object {}", .path.display())]
    Object {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The pins.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The programs.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// The maps.
    #[error(transparent)]
    Tables(#[from] TableError),
    /// The network devices.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// The counters of services.
    #[error(transparent)]
    Owners(#[from] OwnersError),
    /// The events of programs.
    #[error(transparent)]
    Teller(#[from] TellerError),
    /// What an earlier daemon left.
    #[error(transparent)]
    Read(#[from] SyncError),
    /// The cookie of the node's network namespace.
    #[error("asking for the cookie of this network namespace (kernel 5.14)")]
    Namespace(#[source] io::Error),
}

/// What the data path adopted from an earlier daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Adopted {
    /// What the tables hold.
    usage: Usage,
    /// The links to the cgroup, if there are to be any.
    links: Option<Links>,
    /// The links to network devices, if there are to be any.
    devices: Option<Links>,
}

/// What works beside the tables.
#[derive(Debug)]
struct Beside {
    /// For upkeep, if sockets are served.
    sockets: Option<(OptOuts, FlowLists)>,
    /// If packets are served.
    devices: Option<Follower>,
    /// The same.
    flows: Option<FlowTables>,
}

/// The eBPF data path of this node.
#[derive(Debug)]
struct Ebpf {
    tables: Tables,
    layout: Layout,
    addresses: Addresses,
    service_ranges: ServiceRanges,
    /// If packets are served. Flows may then lead to addresses that no plan has any more.
    bits: Option<AddressBits>,
    audit: Audit,
    pins: Pins,
    /// The plan that the tables hold; empty after a start or a failure, so the next sync writes every service port.
    synced: Plan,
    /// No complete plan has been written since the tables were read back: entries without an owner stay until then.
    incomplete: bool,
    /// A write failed: the record of the tables may be wrong.
    failed: bool,
    refused: BTreeMap<PortKey, String>,
    /// Who has which entry, if packets are counted by entry.
    owners: Option<Owners>,
    /// Gives upkeep its orders.
    orders: OrderWriter,
    words: NodeWords,
    own_dns: OwnDns,
    /// To take over flows of an earlier path with the first sync, if packets are served.
    flows: Option<FlowTables>,
    /// When it was looked last whether flows lead to former addresses.
    looked_at_flows: Option<Instant>,
    started: Instant,
}

impl Ebpf {
    /// Loads the programs or adopts those that run, opens the tables and reads what is in them. Nothing that balances
    /// traffic now is changed before the first [`Datapath::sync`].
    fn open(options: &EbpfOptions) -> Result<(Self, Beside, Adopted), EbpfOpenError> {
        let pins = Pins::create(&options.bpf_root)?;
        let former = former(&pins)?;
        let sockets = options.sockets.as_ref();
        let loaded = sockets.map(|_| programs::Loaded::load(&object(options)?, &pins).map_err(EbpfOpenError::from));
        let loaded = loaded.transpose()?;
        let packets = options.packets.as_ref();
        let for_devices = packets.map(|_| load_for_devices(&pins)).transpose()?;
        let (mut tables, mut opt_outs) = (Tables::open(&pins.maps)?, OptOuts::open(&pins.maps)?);
        if let Some((former, taken)) = former {
            let services = taken.write(&mut tables, &mut opt_outs)?;
            pins.adopt_links(&former)?;
            info!(version = former.version, services, "took over the tables of another version");
        }
        let cookie = crate::sys::netns_cookie().map_err(EbpfOpenError::Namespace)?;
        let words = NodeWords::open(&pins.maps)?;
        // After rules for packets it must be found out anew whose flows there are. Programs that rules have replaced
        // begin none before the first sync: their tables may be old, and they do not know which ports the kernel has.
        let kept = Config::OPT_OUTS | Config::LEAVING | if packets.is_some() { Config::OWN_FLOWS } else { 0 };
        words.write(cookie, flags(options), kept)?;
        let own_dns = OwnDns::open(NodeWords::open(&pins.maps)?, &pins.maps)?;
        let attached = loaded.zip(sockets).map(|(loaded, options)| attach_to_sockets(loaded, &pins, options));
        let (lists, links) = attached.transpose()?.unzip();
        let owners = packets.map(|_| Owners::open(&pins)).transpose()?;
        let layout = Layout::restored(tables.capacity(), &tables.dump()?);
        let open_flows = || packets.map(|_| FlowTables::open(&pins.maps)).transpose();
        let (flows, for_collector) = (open_flows()?, open_flows()?);
        let (addresses, bits) = (tables.addresses()?, packets.map(|_| AddressBits::open(&pins.maps)).transpose()?);
        let addresses = Addresses::restored(addresses, bits.is_some());
        if let Some(bits) = &bits {
            bits.keep(addresses.held().keys().copied())?;
        }
        // Tables that sockets have used say what a frontend is from the first packet on.
        let earlier = remember_flows(flows.as_ref(), &layout);
        let followed = for_devices.zip(packets.cloned());
        let followed = followed.map(|(loaded, packets)| Follower::open(loaded, &pins, packets)).transpose()?;
        let (devices, device_links) = followed.unzip();
        end_of_kernel(earlier);
        end_of_kernel(remember_flows(flows.as_ref(), &layout));
        let service_ranges = ServiceRanges::open(&pins.maps)?;
        let usage = layout.usage();
        let ebpf = Self {
            tables,
            layout,
            addresses,
            service_ranges,
            bits,
            audit: Audit::default(),
            pins,
            synced: Plan::default(),
            incomplete: true,
            failed: false,
            refused: BTreeMap::new(),
            owners,
            orders: OrderWriter::default(),
            words,
            own_dns,
            flows,
            looked_at_flows: None,
            started: Instant::now(),
        };
        let beside = Beside { sockets: lists.map(|lists| (opt_outs, lists)), devices, flows: for_collector };
        Ok((ebpf, beside, Adopted { usage, links, devices: device_links }))
    }

    /// The layout's clock.
    fn now(&self) -> Moment {
        Moment::try_from(self.started.elapsed().as_millis()).unwrap_or(Moment::MAX)
    }

    fn read_back(&mut self) -> Result<(), SyncError> {
        self.tables.forget_pending();
        self.layout = Layout::restored(self.tables.capacity(), &self.tables.dump()?);
        self.addresses = Addresses::restored(self.tables.addresses()?, self.bits.is_some());
        self.keep_bits()?;
        self.service_ranges.read_back()?;
        self.synced = Plan::default();
        self.orders.forget_plan();
        self.incomplete = true;
        self.failed = false;
        Ok(())
    }

    fn write(&mut self, writes: &[Write]) -> Result<u64, SyncError> {
        for write in writes {
            self.tables.write(write)?;
            if matches!(write, Write::BackendGone { .. }) {
                self.orders.backend_gone();
            }
            if let Write::Shape { service, shape } = write
                && let Some(owners) = self.owners.as_mut().filter(|_| !shape.in_use())
            {
                owners.gone(*service);
            }
        }
        Ok(u64::try_from(writes.len()).unwrap_or(u64::MAX))
    }

    fn upsert(&mut self, port: &PortPlan) -> Result<u64, SyncError> {
        let Some(target) = image::target(port) else { return self.remove(&port.key) };
        self.upsert_target(&port.key, &target)
    }

    fn upsert_target(&mut self, key: &PortKey, target: &Target<'_>) -> Result<u64, SyncError> {
        let now = self.now();
        let before = self.layout.served(key);
        match self.layout.upsert(key, target, now) {
            Ok(writes) => {
                self.refused.remove(key);
                let points = |write: &Write| matches!(write, Write::Frontend { .. });
                let gained = self.layout.served(key).more_than(before) || writes.iter().any(points);
                if key.protocol == Protocol::Udp && gained {
                    self.orders.frontends_changed();
                }
                let written = self.write(&writes);
                self.follow_owner(key);
                written
            }
            Err(full) => {
                self.refused.insert(key.clone(), full.to_string());
                // The plan is applied but for what the tables have no room for.
                let writes = self.layout.shrink(key, target, now);
                self.write(&writes)
            }
        }
    }

    fn follow_owner(&mut self, key: &PortKey) {
        if let Some(owners) = &mut self.owners {
            owners.follow(&self.layout, key);
        }
    }

    fn remove(&mut self, key: &PortKey) -> Result<u64, SyncError> {
        self.refused.remove(key);
        let writes = self.layout.remove(key, self.now());
        self.write(&writes)
    }

    /// Adds and changes before removals, so that a frontend which moves from one service port to another is never
    /// missing.
    fn write_difference(&mut self, plan: &Plan, difference: &Difference) -> Result<u64, SyncError> {
        let mut written = 0_u64;
        if self.incomplete {
            for (key, frontend, endpoint) in image::self_test() {
                let target = image::self_test_target(frontend, std::slice::from_ref(&endpoint));
                written = written.saturating_add(self.upsert_target(&key, &target)?);
            }
        }
        for (old, new) in &difference.renames {
            self.layout.rename(old, new);
            self.follow_owner(new);
        }
        for port in &difference.upserts {
            written = written.saturating_add(self.upsert(port)?);
        }
        self.tables.flush()?;
        // The programs know endpoints by now, and most addresses only after the next step.
        let earlier = self.earlier_flows();
        written = written.saturating_add(self.write_addresses(plan)?);
        if self.incomplete && self.flows.is_some() {
            self.words.end_leave()?;
        }
        end_of_kernel(earlier);
        written = written.saturating_add(self.service_ranges.apply(&plan.service_cidrs)?);
        end_of_kernel(self.earlier_flows());
        for key in &difference.removals {
            written = written.saturating_add(self.remove(key)?);
        }
        if std::mem::take(&mut self.incomplete) {
            let writes = self.layout.remove_unclaimed(self.now());
            written = written.saturating_add(self.write(&writes)?);
            self.tables.flush()?;
            self.retire_other_versions();
        }
        self.tables.flush()?;
        if let Some(owners) = &self.owners {
            owners.tell();
        }
        Ok(written)
    }

    /// At the first sync, what the kernel translates.
    fn earlier_flows(&self) -> Option<EarlierDatagrams> {
        if self.incomplete { remember_flows(self.flows.as_ref(), &self.layout) } else { None }
    }

    /// After the frontends that join and before those that leave: an address whose Service is not there yet refuses
    /// nothing.
    fn write_addresses(&mut self, plan: &Plan) -> Result<u64, SyncError> {
        self.addresses.follow(&plan.addresses);
        let (set, gone) = self.addresses.take_changes();
        if let Some(bits) = &self.bits {
            bits.set(set.iter().map(|(address, _)| *address))?;
        }
        self.tables.set_addresses(&set)?;
        if set.iter().any(|(_, meaning)| meaning.node_ports.is_some()) {
            self.orders.frontends_changed();
        }
        for address in &gone {
            self.tables.set_address(*address, None)?;
        }
        if !gone.is_empty() {
            self.keep_bits()?;
        }
        Ok(u64::try_from(set.len().saturating_add(gone.len())).unwrap_or(u64::MAX))
    }

    /// Removes the addresses that no Service has any more, once no flow leads to them.
    fn forget_former(&mut self) -> Result<(), SyncError> {
        let Some(flows) = self.flows.as_ref().filter(|_| self.addresses.former().next().is_some()) else {
            return Ok(());
        };
        if self.looked_at_flows.is_some_and(|looked| looked.elapsed() < FORMER) {
            return Ok(());
        }
        self.looked_at_flows = Some(Instant::now());
        let object = maps::packets::CONNECTIONS.name;
        let dialled = flows.dialled().map_err(|source| SyncError::Read { object, source })?;
        for address in self.addresses.forget_former(|address| dialled.contains(&address)) {
            self.tables.set_address(address, None)?;
        }
        self.keep_bits()
    }

    fn keep_bits(&self) -> Result<(), SyncError> {
        self.bits.as_ref().map_or(Ok(()), |bits| bits.keep(self.addresses.held().keys().copied()))
    }

    /// Removes what an earlier version left attached, now that this version serves: it would translate a second time.
    fn retire_other_versions(&self) {
        match self.pins.remove_other_versions() {
            Ok(0) => {}
            Ok(links) => info!(links, "removed the pins of another version"),
            Err(error) => warn!(%error, "the pins of another version are not removed"),
        }
    }
}

/// The programs for devices, on tables that are ready for them.
fn load_for_devices(pins: &Pins) -> Result<packets::Loaded, EbpfOpenError> {
    let loaded = packets::Loaded::load(packets::OBJECT, pins)?;
    expect_opening(&pins.maps)?;
    Ok(loaded)
}

/// Tells the programs what the kernel translates, if packets are served. A failure does not keep them from what is new.
fn remember_flows(flows: Option<&FlowTables>, layout: &Layout) -> Option<EarlierDatagrams> {
    EarlierDatagrams::write(flows?, layout).inspect_err(warn_of_flows).ok()
}

/// From here on the programs serve those flows, and not the kernel.
fn end_of_kernel(earlier: Option<EarlierDatagrams>) {
    match earlier.map(EarlierDatagrams::end) {
        None | Some(Ok(0)) => {}
        Some(Ok(taken)) => info!(taken, "took over UDP and SCTP flows that the kernel translated"),
        Some(Err(error)) => warn_of_flows(&error),
    }
}

fn warn_of_flows(error: &io::Error) {
    warn!(
        %error,
        "the flows that the kernel translates are not taken over (CONFIG_NF_CT_NETLINK): clients of UDP that go on sending \
         may get no answer until the kernel forgets them"
    );
}

/// Attaches the programs at sockets, and removes those that another build has attached elsewhere.
fn attach_to_sockets(
    mut loaded: programs::Loaded,
    pins: &Pins,
    options: &SocketOptions,
) -> Result<(FlowLists, Links), EbpfOpenError> {
    let lists = loaded.flow_lists()?;
    let links = loaded.attach(pins, &options.cgroup_root)?;
    let used: Vec<&str> = programs::hooks().chain(packets::PROGRAMS).collect();
    match pins.remove_other_hooks(&used)? {
        0 => {}
        former => info!(links = former, "removed the links of hooks that this version does not use"),
    }
    Ok((lists, links))
}

/// The flags in `CONFIG`.
fn flags(options: &EbpfOptions) -> u64 {
    if !options.sockets.as_ref().is_some_and(|sockets| sockets.bind_protection) {
        return 0;
    }
    let v6only = if socket::v6only::is_where_programs_look() { Config::KNOWS_V6ONLY } else { 0 };
    Config::BIND_PROTECTION | v6only
}

/// The object file with the programs.
fn object(options: &EbpfOptions) -> Result<Cow<'static, [u8]>, EbpfOpenError> {
    let Some(path) = &options.object else { return Ok(Cow::Borrowed(OBJECT)) };
    let object = std::fs::read(path).map_err(|source| EbpfOpenError::Object { path: path.clone(), source })?;
    Ok(Cow::Owned(object))
}

/// What another version holds whose programs are attached, read before anything is made. Flows stay if what they refer
/// to is known.
fn former(pins: &Pins) -> Result<Option<(Former, Taken)>, EbpfOpenError> {
    if let Some(former) = pins.former()? {
        if programs::are_in_charge(pins)? {
            if pins.shares_links_with(&former)? {
                pins.adopt_links(&former)?;
            }
            return Ok(None);
        }
        // No program reads what an interrupted start may have left in them.
        pins.discard_tables()?;
        match Taken::read(&former) {
            Ok(taken) => {
                pins.adopt_flows(&former)?;
                return Ok(Some((former, taken)));
            }
            Err(error) => warn!(
                version = former.version,
                reason = shunt_model::with_causes(&error),
                "the tables of another version cannot be taken over; it serves until the first sync, and open UDP sockets \
                 and session affinity begin anew"
            ),
        }
    }
    if !pins.maps.has_tables() {
        pins.discard_tables()?;
        pins.discard_flows()?;
    }
    Ok(None)
}

impl Datapath for Ebpf {
    fn sync(&mut self, plan: &Plan) -> Result<Synced, SyncError> {
        let started = Instant::now();
        if self.failed {
            self.read_back()?;
        }
        let difference = Difference::between(&self.synced, plan, &self.refused);
        match self.write_difference(plan, &difference).and_then(|writes| self.own_dns.tell().map(|()| writes)) {
            Ok(writes) => {
                self.synced = plan.clone();
                let elapsed = started.elapsed();
                self.orders.synced(&plan.opted_out, difference.ranges_gained, difference.ranges_lost);
                let refused = self.refused.iter().map(|(key, why)| (key.clone(), why.clone())).collect();
                Ok(Synced { writes, refused, elapsed, flow_sweeps: Vec::new() })
            }
            Err(error) => {
                self.failed = true;
                Err(error)
            }
        }
    }

    fn mark_own_dns(&mut self, sockets: &[OwnedFd]) -> Result<(), SyncError> {
        self.own_dns.mark(sockets)
    }

    fn audit(&mut self) -> Result<u64, SyncError> {
        if self.failed || self.incomplete {
            return Ok(0); // The next sync reads everything back.
        }
        self.forget_former()?;
        let mut audit = std::mem::take(&mut self.audit);
        let repaired = audit.step(&self.layout, &self.addresses, &mut self.tables);
        self.audit = audit;
        self.failed |= repaired.is_err();
        repaired
    }
}
