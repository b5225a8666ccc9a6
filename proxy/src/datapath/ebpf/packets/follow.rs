//! Follows the devices of this node: those that come get the programs, and what others remove is attached again.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use proxy_abi::{Device, maps};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use shunt_model::{Family, with_causes};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use zerocopy::transmute;

use super::super::PacketOptions;
use super::super::pins::{PinError, Pins};
use super::super::socket::programs::{Links, ProgramsError};
use super::super::tables::kernel::{TableError, open};
use super::attach::{AttachError, Clsact, Direction, Hook, Tcx, Way};
use super::devices::{Found, Selection, Wanted, select};
use super::{Loaded, program_at};
use crate::datapath::report::{Installed, Number, NumberKind, Report};
use crate::host::addresses::Changes;
use crate::host::netlink::links::{Kind, Link};
use crate::host::netlink::{Netlink, addresses, links, routes};
use crate::sys::bpf;

/// How often it looks even if the kernel reports no change: of a program that another one has detached, and of routes,
/// it reports nothing.
const EVERY: Duration = Duration::from_secs(1);

/// Looks after the programs at devices. Writes `DEVICES`.
#[derive(Debug)]
pub(in crate::datapath::ebpf) struct Follower {
    loaded: Loaded,
    pins: Pins,
    options: PacketOptions,
    netlink: Netlink,
    ways: Ways,
    map: OwnedFd,
    /// What `DEVICES` holds.
    written: BTreeMap<u32, Device>,
    /// Where programs have been attached.
    attached: BTreeSet<(u32, Direction)>,
    /// The programs of others, by place, before or behind which ours was moved. It is moved once for each: another that
    /// also wants to be the first, or the last, must not make it an endless race.
    moved: BTreeSet<(u32, Direction, u32)>,
    told: BTreeSet<String>,
    installed: Installed,
}

/// Both ways, and which of them is taken.
#[derive(Debug)]
struct Ways {
    tcx: Tcx,
    clsact: Clsact,
    /// Nothing has shown so far that the kernel has no TCX.
    has_tcx: bool,
}

/// The programs cannot follow the devices.
#[derive(Debug, thiserror::Error)]
pub(in crate::datapath) enum FollowError {
    /// The devices cannot be listed.
    #[error("listing the network devices")]
    List(#[from] io::Error),
    /// What the programs know of devices cannot be written.
    #[error("writing DEVICES")]
    Write(#[source] io::Error),
    /// The map.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The directories.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// The programs.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// A device.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// What was done at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Kept,
    Replaced,
    Attached,
}

impl Follower {
    /// Attaches the programs to the devices that are there, in the calling thread's network namespace.
    pub(in crate::datapath::ebpf) fn open(
        loaded: Loaded,
        pins: &Pins,
        options: PacketOptions,
    ) -> Result<(Self, Links), FollowError> {
        let mut follower = Self::idle(loaded, pins, options)?;
        let links = follower.look()?;
        // Instead of those of an earlier daemon, which no device has now.
        follower.loaded.pin(pins)?;
        Ok((follower, links))
    }

    fn idle(loaded: Loaded, pins: &Pins, options: PacketOptions) -> Result<Self, FollowError> {
        let map = open(&pins.maps, &maps::packets::DEVICES)?;
        let known = bpf::keys::<4>(map.as_fd()).map_err(FollowError::Write)?;
        Ok(Self {
            loaded,
            pins: pins.clone(),
            options,
            netlink: Netlink::open(NETLINK_ROUTE)?,
            ways: Ways { tcx: Tcx { links: pins.devices.clone() }, clsact: Clsact::open()?, has_tcx: true },
            map,
            written: known.into_iter().map(|index| (u32::from_ne_bytes(index), Device::default())).collect(),
            attached: BTreeSet::new(),
            moved: BTreeSet::new(),
            told: BTreeSet::new(),
            installed: Installed::default(),
        })
    }

    /// Follows the devices until stopped. What it calls blocks, so this wants a thread of its own.
    pub(in crate::datapath::ebpf) async fn run(mut self, reports: watch::Sender<Report>, stop: CancellationToken) {
        let changes = Changes::of_interfaces();
        let mut changes =
            changes.inspect_err(|error| warn!(%error, "network devices are looked at each second only")).ok();
        loop {
            if let Err(error) = self.look() {
                self.fail(with_causes(&error));
            }
            self.publish(&reports);
            if stop.run_until_cancelled(wait(&mut changes)).await.is_none() {
                return;
            }
        }
    }

    /// Reads what is there, and makes the programs and `DEVICES` agree with it.
    fn look(&mut self) -> Result<Links, FollowError> {
        let Selection { wanted, unserved } = select(&found(&mut self.netlink)?, &self.options);
        for sentence in unserved.difference(&self.told) {
            warn!("packet programs do not serve it: {sentence}");
        }
        self.told.extend(unserved);
        if !self.pins.devices.exists() {
            self.pins.make()?;
        }
        // Before the programs: without an address they drop what they would translate.
        self.write(&wanted)?;
        let (links, failed) = self.attach(&wanted);
        if !Loaded::are_pinned(&self.pins) {
            self.loaded.pin(&self.pins)?;
        }
        self.ways.tcx.remove_others(|index| wanted.contains_key(&index))?;
        self.leave_others(&wanted)?;
        let failed = self.still_there(failed)?;
        match failed.into_iter().next() {
            Some(error) => self.fail(with_causes(&error)),
            None => self.installed.fault = None,
        }
        Ok(links)
    }

    fn fail(&mut self, reason: String) {
        if self.installed.fault.as_ref() != Some(&reason) {
            warn!(reason, "not all network devices have the packet programs; the daemon retries it");
        }
        self.installed.fault = Some(reason);
    }

    fn write(&mut self, wanted: &BTreeMap<u32, Wanted>) -> Result<(), FollowError> {
        for (index, Wanted { device, .. }) in wanted {
            if self.written.get(index) != Some(device) {
                let element: [u8; size_of::<Device>()] = transmute!(*device);
                bpf::update(self.map.as_fd(), &index.to_ne_bytes(), &element).map_err(FollowError::Write)?;
                self.written.insert(*index, *device);
            }
        }
        Ok(())
    }

    /// Attaches the programs where they are not. Returns what failed, by device.
    fn attach(&mut self, wanted: &BTreeMap<u32, Wanted>) -> (Links, Vec<(u32, FollowError)>) {
        let (mut links, mut failed, mut again) = (Links::default(), Vec::new(), Vec::new());
        for (&index, Wanted { name, ethernet, .. }) in wanted {
            for direction in Direction::ALL {
                let hook = Hook { index, device: name.clone(), direction };
                let count = match self.ensure(&hook, *ethernet) {
                    Ok(Done::Kept) => &mut links.kept,
                    Ok(Done::Replaced) => &mut links.replaced,
                    Ok(Done::Attached) => {
                        debug!(%hook, "attached the packet program");
                        if self.attached.contains(&(index, direction)) {
                            again.push(hook.to_string());
                        }
                        &mut links.attached
                    }
                    Err(error) => {
                        failed.push((index, error));
                        continue;
                    }
                };
                *count = count.saturating_add(1);
                self.attached.insert((index, direction));
            }
        }
        if !again.is_empty() {
            self.installed.restored = self.installed.restored.saturating_add(1);
            warn!(at = again.join(", "), "packet programs that another program had detached are attached again");
        }
        (links, failed)
    }

    fn ensure(&mut self, hook: &Hook, ethernet: bool) -> Result<Done, FollowError> {
        let name = program_at(hook.direction, ethernet);
        let by_clsact = self.ways.wants_clsact(hook)?;
        let (way, other): (&mut dyn Way, &mut dyn Way) = match by_clsact {
            true => (&mut self.ways.clsact, &mut self.ways.tcx),
            false => (&mut self.ways.tcx, &mut self.ways.clsact),
        };
        let done = match way.running(hook)? {
            Some(id) if self.loaded.runs_as(id, name)? => {
                let others = way.misplaced(hook, id)?;
                let moved = &mut self.moved;
                let is_new = |other: &u32| moved.insert((hook.index, hook.direction, *other));
                if others.into_iter().filter(is_new).count() > 0 {
                    debug!(%hook, "the packet program goes to its place before or behind those of others");
                    // The kernel runs no program twice at a place, so this is another one like it: the old one goes
                    // after it has come, as packets must not pass without either.
                    if self.loaded.id(name)? == id {
                        self.loaded = Loaded::load(super::OBJECT, &self.pins)?;
                    }
                    way.attach(hook, self.loaded.program(name)?)?;
                }
                Done::Kept
            }
            Some(_) => {
                way.replace(hook, self.loaded.program(name)?)?;
                Done::Replaced
            }
            None => match way.attach(hook, self.loaded.program(name)?) {
                Err(AttachError::NoTcx) => {
                    debug!("this kernel has no TCX: the packet programs become filters of clsact");
                    self.ways.has_tcx = false;
                    return self.ensure(hook, ethernet);
                }
                attached => attached.map(|()| Done::Attached)?,
            },
        };
        if other.running(hook)?.is_some() {
            other.detach(hook)?;
        }
        Ok(done)
    }

    /// Detaches what is at devices that are not wanted any more, and forgets those that are gone.
    fn leave_others(&mut self, wanted: &BTreeMap<u32, Wanted>) -> Result<(), FollowError> {
        let gone: Vec<u32> = self.written.keys().filter(|index| !wanted.contains_key(index)).copied().collect();
        if gone.is_empty() {
            return Ok(());
        }
        let links = links::list(&mut self.netlink)?;
        for index in gone {
            if let Some(link) = links.iter().find(|link| link.index == index) {
                for direction in Direction::ALL {
                    let hook = Hook { index, device: link.name.clone(), direction };
                    if self.ways.clsact.running(&hook)?.is_some() {
                        self.ways.clsact.detach(&hook)?;
                    }
                }
            }
            bpf::delete(self.map.as_fd(), &index.to_ne_bytes()).map_err(FollowError::Write)?;
            self.written.remove(&index);
            self.attached.retain(|(attached, _)| *attached != index);
            self.moved.retain(|(moved, ..)| *moved != index);
            debug!(index, "a network device has no packet programs any more");
        }
        Ok(())
    }

    /// The failures at devices that have not gone meanwhile.
    fn still_there(&mut self, failed: Vec<(u32, FollowError)>) -> io::Result<Vec<FollowError>> {
        if failed.is_empty() {
            return Ok(Vec::new());
        }
        let there: BTreeSet<u32> = links::list(&mut self.netlink)?.into_iter().map(|link| link.index).collect();
        Ok(failed.into_iter().filter(|(index, _)| there.contains(index)).map(|(_, error)| error).collect())
    }

    fn publish(&self, reports: &watch::Sender<Report>) {
        let count = |kind: fn(&Device) -> bool| {
            u64::try_from(self.written.values().filter(|device| kind(device)).count()).unwrap_or(u64::MAX)
        };
        let gauge = |name, help, value| Number { name, help, kind: NumberKind::Gauge, value };
        let report = Report {
            checked: true,
            numbers: vec![
                gauge("packet_devices", "Network devices that have packet programs", count(|_| true)),
                gauge(
                    "packet_pod_devices",
                    "Of these, those by which packets of pods come in",
                    count(|device| device.flags & Device::PODS != 0),
                ),
            ],
            installed: self.installed.clone(),
            ..Report::default()
        };
        reports.send_if_modified(|known| {
            let modified = *known != report;
            *known = report;
            modified
        });
    }
}

impl Ways {
    /// TCX runs before clsact, so behind programs of others there ours must be there too.
    fn wants_clsact(&mut self, hook: &Hook) -> Result<bool, AttachError> {
        Ok(!self.has_tcx || (hook.direction == Direction::Egress && self.clsact.has_foreign(hook)?))
    }
}

/// How many devices would have programs, and what programs would not serve that rules do, in sentences.
pub(in crate::datapath::ebpf) fn selected(options: &PacketOptions) -> io::Result<(usize, BTreeSet<String>)> {
    let mut found = found(&mut Netlink::open(NETLINK_ROUTE)?)?;
    // What passes this node passes rules, too.
    found.divided.clear();
    let Selection { wanted, unserved } = select(&found, options);
    Ok((wanted.len(), unserved))
}

fn found(netlink: &mut Netlink) -> io::Result<Found> {
    let links = links::list(netlink)?;
    let addresses = addresses::list_by(netlink)?;
    let mut default = |family| routes::default_interfaces(netlink, family);
    let defaults = [default(Family::V4)?, default(Family::V6)?];
    let divided = links.iter().filter(|link| is_divided(link)).map(|link| link.index).collect();
    Ok(Found { links, addresses, defaults, divided })
}

/// Waits for a change, which is one or many, or until it is time to look all the same.
async fn wait(changes: &mut Option<Changes>) {
    let Some(changes) = changes else { return sleep(EVERY).await };
    let changed = timeout(EVERY, changes.change()).await;
    // If the connection has ended, a new one was opened: what it did not report the next look finds.
    if changed.is_ok() && changes.skip().is_err() {
        sleep(EVERY).await;
    }
}

/// Whether a device has virtual functions. Only hardware can; sysfs has no such file for others.
fn is_divided(link: &Link) -> bool {
    let file = Path::new("/sys/class/net").join(&link.name).join("device/sriov_numvfs");
    link.kind == Kind::Plain && std::fs::read_to_string(file).is_ok_and(|count| count.trim() != "0")
}
