//! This data path behind the door: it translates the door's neutral types into its own and back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::warn;

use super::keeper::Keeper;
use super::layout::Usage;
use super::packets::counters::Counted;
use super::packets::events::Teller;
use super::packets::flows::{Collector, EarlierFlows, list};
use super::packets::owners::{Owners, processors};
use super::pins::{self, Owner, PinError, Pins, RemovedPins};
use super::probe::{checks, packet_checks};
use super::socket::programs::Links;
use super::socket::upkeep::Upkeep;
use super::{Adopted, Beside, Ebpf, EbpfOpenError, EbpfOptions, PacketOptions, SocketOptions, packets};
use crate::datapath::handover::Retired;
use crate::datapath::lock::Lock;
use crate::datapath::{
    self, Check, Chosen, Decisions, FlowFilter, FlowTimeouts, Flows, FlowsError, HostOptions, Looking, OpenedPart,
    Options, Part, Removed, Report,
};
use crate::host::cgroup::{self, CgroupError};
use crate::plan::{Plan, PodDetection};

/// Checks everything that [`open`] needs.
pub(in crate::datapath) fn probe(options: &Options) -> Vec<Check> {
    checks(options)
}

/// Checks what programs at network devices need, some of which those at sockets need too. `by_loading`: the kernel's
/// verifier says whether it accepts them, which takes as long as at a start.
pub(in crate::datapath) fn probe_packets(options: &Options, by_loading: bool) -> Vec<Check> {
    packet_checks(options, by_loading)
}

/// Opens tables and the programs that `chosen` has, with what runs beside them.
pub(in crate::datapath) fn open(
    chosen: &Chosen,
    options: &Options,
    lock: Arc<Lock>,
) -> Result<OpenedPart, EbpfOpenError> {
    let options = ebpf_options(chosen, options)?;
    let (ebpf, Beside { sockets, devices, flows }, adopted) = Ebpf::open(&options)?;
    let mut beside: Vec<datapath::Beside> = Vec::new();
    // Only upkeep tests whether programs at sockets are in effect.
    let (reports, report) = watch::channel(Report { checked: sockets.is_none(), ..Report::default() });
    let mut all = vec![report];
    if let (Some(served), Some(options)) = (sockets, &options.sockets) {
        let upkeep = Upkeep::open(&options.cgroup_root, options.cgroup_discovered, &ebpf.pins, served)?;
        let (orders, reports) = (ebpf.orders.subscribe(), reports.clone());
        beside.push(Box::new(|stop| Handle::current().block_on(upkeep.run(orders, reports, stop))));
    }
    if let Some(follower) = devices {
        let (reports, report) = watch::channel(Report::default());
        all.push(report);
        beside.push(Box::new(|stop| Handle::current().block_on(follower.run(reports, stop))));
    }
    if let (Some(tables), Some(options)) = (flows, &options.packets) {
        let earlier = EarlierFlows::open(&ebpf.pins.maps, ebpf.orders.subscribe())?;
        let collector = Collector::new(tables, options.timeouts, earlier);
        let (reports, report) = watch::channel(Report { checked: true, ..Report::default() });
        all.push(report);
        beside.push(Box::new(|stop| Handle::current().block_on(collector.run(reports, stop))));
    }
    let looking = ebpf.owners.as_ref().map(|owners| look(&ebpf.pins, owners, &mut beside)).transpose()?;
    let keeper = Keeper::new(options, ebpf.pins.clone(), lock)?;
    beside.push(Box::new(|stop| Handle::current().block_on(keeper.run(reports, stop))));
    let looking = looking.unwrap_or_default();
    Ok(OpenedPart { path: Box::new(ebpf), adopted: adopted.to_string(), reports: all, looking, beside })
}

/// What packet programs count and tell.
fn look(pins: &Pins, owners: &Owners, beside: &mut Vec<datapath::Beside>) -> Result<Looking, EbpfOpenError> {
    let counted = || Counted::open(&pins.maps, owners.subscribe(), processors()?).map_err(EbpfOpenError::from);
    let decisions = Decisions::default();
    let teller = Teller::open(pins, counted()?, owners.subscribe(), decisions.clone())?;
    beside.push(Box::new(|stop| Handle::current().block_on(teller.run(stop))));
    Ok(Looking { meters: vec![Arc::new(counted()?)], decisions: Some(decisions) })
}

fn ebpf_options(chosen: &Chosen, options: &Options) -> Result<EbpfOptions, CgroupError> {
    let Options { host, object, bind_protection, .. } = options;
    let sockets = || {
        Ok(SocketOptions {
            cgroup_root: cgroup_root(host.cgroup_root.as_deref())?,
            cgroup_discovered: host.cgroup_root.is_none(),
            bind_protection: *bind_protection,
        })
    };
    Ok(EbpfOptions {
        sockets: chosen.has(Part::Sockets).then(sockets).transpose()?,
        packets: chosen.has(Part::Programs).then(|| packet_options(options)),
        bpf_root: host.bpf_root.clone(),
        object: object.clone(),
    })
}

/// What concerns programs at network devices.
pub(super) fn packet_options(options: &Options) -> PacketOptions {
    let interface = match &options.pods {
        PodDetection::Interface(interface) => Some(interface.clone()),
        PodDetection::Node | PodDetection::Networks(_) => None,
    };
    PacketOptions { interface, devices: options.devices.clone(), timeouts: options.flow_timeouts }
}

fn cgroup_root(given: Option<&Path>) -> Result<PathBuf, CgroupError> {
    let Some(given) = given else {
        let cgroup::Mount { path, root } = cgroup::discover()?;
        if root != Path::new("/") {
            warn!(mounted = %root.display(), "only a part of the cgroup tree is visible here; pods outside it are not served");
        }
        return Ok(path);
    };
    cgroup::verify(given)?;
    Ok(given.to_path_buf())
}

impl std::fmt::Display for Adopted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { usage: Usage { services, frontends, backends }, links, devices } = self;
        write!(f, "{services} services, {frontends} frontends and {backends} backends in the tables")?;
        if let Some(Links { kept, replaced, attached }) = links {
            write!(f, "; {kept} programs kept, {replaced} replaced, {attached} attached")?;
        }
        if let Some(Links { kept, replaced, attached }) = devices {
            write!(f, "; at network devices {kept} programs kept, {replaced} replaced, {attached} attached")?;
        }
        Ok(())
    }
}

/// The flows that packet programs remember.
pub(in crate::datapath) fn flows(root: &Path, plan: &Plan, filter: &FlowFilter) -> Result<Flows, FlowsError> {
    list::list(root, plan, filter)
}

/// Makes the directory of the pins, if it is missing. True if it was missing.
pub(in crate::datapath) fn make_root(root: &Path) -> Result<bool, PinError> {
    pins::make_root(root)
}

/// Removes the programs at sockets, which stop with their links, and the tables unless packets are served by them.
pub(in crate::datapath) fn remove_sockets(host: &HostOptions) -> Result<Vec<Removed>, PinError> {
    remove(host, Owner::Sockets)
}

/// Removes the programs at network devices, and the tables unless sockets are served by them.
pub(in crate::datapath) fn remove_packets(host: &HostOptions) -> Result<Vec<Removed>, PacketsRemoveError> {
    let filters = packets::remove_filters().map_err(PacketsRemoveError::Filters)?;
    let mut removed = remove(host, Owner::Devices)?;
    if filters > 0 {
        removed.push(Removed { count: filters, what: "filters", place: "of network devices".to_owned() });
    }
    Ok(removed)
}

/// Removes the programs at network devices once no connection goes on by them; until then they begin none.
pub(in crate::datapath) fn retire_packets(
    host: &HostOptions,
    timeouts: &FlowTimeouts,
) -> Result<Retired, PacketsRemoveError> {
    match packets::leaving::retire(host, timeouts)? {
        0 => remove_packets(host).map(Retired::Gone),
        flows => Ok(Retired::Waits(flows)),
    }
}

/// The programs at network devices are not removed, or not all of them.
#[derive(Debug, thiserror::Error)]
pub(in crate::datapath) enum PacketsRemoveError {
    /// The pins.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The flows.
    #[error(transparent)]
    Flows(#[from] packets::leaving::LeaveError),
    /// The filters.
    #[error("removing the filters of network devices")]
    Filters(#[source] std::io::Error),
}

fn remove(host: &HostOptions, owner: Owner) -> Result<Vec<Removed>, PinError> {
    let RemovedPins { links, programs, maps } = pins::remove(&host.bpf_root, owner)?;
    let place = format!("below {}", host.bpf_root.display());
    let removed = [(links, "links"), (programs, "programs"), (maps, "maps")];
    let removed = removed.into_iter().filter(|(count, _)| *count > 0);
    Ok(removed.map(|(count, what)| Removed { count, what, place: place.clone() }).collect())
}
