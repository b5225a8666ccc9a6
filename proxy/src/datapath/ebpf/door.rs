//! This data path behind the door: it translates the door's neutral types into its own and back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::warn;

use super::keeper::Keeper;
use super::layout::Usage;
use super::pins::{self, PinError, RemovedPins};
use super::probe::checks;
use super::socket::programs::Links;
use super::socket::upkeep::Upkeep;
use super::{Adopted, Ebpf, EbpfOpenError, EbpfOptions};
use crate::datapath::lock::Lock;
use crate::datapath::{Check, HostOptions, OpenedPart, Options, Removed, Report};
use crate::host::cgroup::{self, CgroupError};

/// Checks everything that [`open`] needs.
pub(in crate::datapath) fn probe(options: &Options) -> Vec<Check> {
    checks(options)
}

/// Opens tables and programs, with upkeep to run beside them.
pub(in crate::datapath) fn open(options: &Options, lock: Arc<Lock>) -> Result<OpenedPart, EbpfOpenError> {
    let (reports, report) = watch::channel(Report::default());
    let Options { host, object, bind_protection, packets: _ } = options;
    let options = EbpfOptions {
        cgroup_root: cgroup_root(host.cgroup_root.as_deref())?,
        cgroup_discovered: host.cgroup_root.is_none(),
        bpf_root: host.bpf_root.clone(),
        object: object.clone(),
        bind_protection: *bind_protection,
    };
    let (ebpf, opt_outs, lists, adopted) = Ebpf::open(&options)?;

    let upkeep = Upkeep::open(&options.cgroup_root, options.cgroup_discovered, &ebpf.pins, (opt_outs, lists))?;
    let keeper = Keeper::new(options, ebpf.pins.clone(), lock)?;
    let orders = ebpf.orders.subscribe();
    let kept = reports.clone();
    Ok(OpenedPart {
        path: Box::new(ebpf),
        adopted: adopted.to_string(),
        report,
        beside: vec![
            Box::new(|stop| Handle::current().block_on(upkeep.run(orders, reports, stop))),
            Box::new(|stop| Handle::current().block_on(keeper.run(kept, stop))),
        ],
    })
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
        let Self { usage: Usage { services, frontends, backends }, links: Links { kept, replaced, attached } } = self;
        write!(f, "{services} services, {frontends} frontends and {backends} backends in the tables; ")?;
        write!(f, "{kept} programs kept, {replaced} replaced, {attached} attached")
    }
}

/// Makes the directory of the pins, if it is missing. True if it was missing.
pub(in crate::datapath) fn make_root(root: &Path) -> Result<bool, PinError> {
    pins::make_root(root)
}

/// Removes every pin; programs stop with their links.
pub(in crate::datapath) fn remove(host: &HostOptions) -> Result<Vec<Removed>, PinError> {
    let RemovedPins { links, programs, maps } = pins::remove(&host.bpf_root)?;
    let place = format!("below {}", host.bpf_root.display());
    let removed = [(links, "links"), (programs, "programs"), (maps, "maps")];
    let removed = removed.into_iter().filter(|(count, _)| *count > 0);
    Ok(removed.map(|(count, what)| Removed { count, what, place: place.clone() }).collect())
}
