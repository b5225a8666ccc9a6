//! The packet programs, at the hooks of network devices.

mod attach;
pub(super) mod counters;
mod devices;
pub(super) mod events;
pub(super) mod flows;
pub(super) mod follow;
pub(super) mod leaving;
pub(super) mod owners;
#[cfg(test)]
mod tests;
pub(super) mod trial;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use aya::maps::MapInfo;
use aya::programs::{ProgramInfo, SchedClassifier};
use aya::{Btf, Ebpf};
use proxy_abi::maps;

use self::attach::Direction;
use super::pins::Pins;
use super::socket::programs::{ProgramsError, accepted, is_same, kernel, load_object, map_ids, remove};

/// The compiled programs; empty if the binary was built without.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shunt-packets.o"));

/// At ingress and at egress, for devices with an Ethernet header and for those without. They are pinned by these names.
pub(super) const PROGRAMS: [&str; 4] = ["shunt_ingress", "shunt_egress", "shunt_ingress_ip", "shunt_egress_ip"];

/// The maps of what a program needs while it runs, which are not pinned.
const OWN: [&str; 5] = ["SCRATCH", "MESSAGE", "REFUSALS", "EVENT_PACE", "TICK"];

/// The program for a place.
const fn program_at(direction: Direction, ethernet: bool) -> &'static str {
    match (direction, ethernet) {
        (Direction::Ingress, true) => "shunt_ingress",
        (Direction::Egress, true) => "shunt_egress",
        (Direction::Ingress, false) => "shunt_ingress_ip",
        (Direction::Egress, false) => "shunt_egress_ip",
    }
}

/// The programs, accepted by the kernel on pinned maps, but attached nowhere.
#[derive(Debug)]
pub(super) struct Loaded {
    ebpf: Ebpf,
    /// Whether programs that run, by id, are the same as the one of a name.
    compared: BTreeMap<(u32, &'static str), bool>,
}

impl Loaded {
    pub(super) fn load(object: &[u8], pins: &Pins) -> Result<Self, ProgramsError> {
        let btf = Btf::from_sys_fs().map_err(|error| ProgramsError::Types(Box::new(error)))?;
        let ebpf = load_object(object, pins, &btf, maps::packets::ALL)?;
        let mut loaded = Self { ebpf, compared: BTreeMap::new() };
        for name in PROGRAMS {
            accepted(loaded.program(name)?.load(), name)?;
        }
        drop(btf);
        // As after the programs at sockets.
        crate::sys::trim();
        Ok(loaded)
    }

    fn program(&mut self, name: &'static str) -> Result<&mut SchedClassifier, ProgramsError> {
        let found = self.ebpf.program_mut(name).ok_or(ProgramsError::NoProgram(name))?;
        found.try_into().map_err(kernel("reading", name))
    }

    /// The number by which the kernel knows the program of this name.
    fn id(&mut self, name: &'static str) -> Result<u32, ProgramsError> {
        Ok(self.program(name)?.info().map_err(kernel("asking about", name))?.id())
    }

    /// Whether the program with this id does what the one of this name does, on the same maps.
    fn runs_as(&mut self, id: u32, name: &'static str) -> Result<bool, ProgramsError> {
        if let Some(known) = self.compared.get(&(id, name)) {
            return Ok(*known);
        }
        let new = self.program(name)?.info().map_err(kernel("asking about", name))?;
        let of_new = map_ids(&new, name)?;
        let is_own = |map: MapInfo| map.name_as_str().is_some_and(|name| OWN.contains(&name));
        let own = |id: &u32| MapInfo::from_id(*id).is_ok_and(is_own);
        let same = is_same(id, &new, name, &of_new.into_iter().filter(own).collect())?;
        self.compared.insert((id, name), same);
        Ok(same)
    }

    /// Pins the programs: by them the next start knows that these tables are in use.
    fn pin(&mut self, pins: &Pins) -> Result<(), ProgramsError> {
        for name in PROGRAMS {
            let pin = pins.programs.join(name);
            remove(&pin, name)?;
            self.program(name)?.pin(&pin).map_err(kernel("pinning", name))?;
        }
        Ok(())
    }

    /// Whether all of them are pinned.
    fn are_pinned(pins: &Pins) -> bool {
        PROGRAMS.iter().all(|name| pins.programs.join(name).exists())
    }
}

/// Whether a pinned program reads this directory of services. Programs are pinned once they are attached.
pub(super) fn are_in_charge(pins: &Pins, directory: &MapInfo) -> Result<bool, ProgramsError> {
    for name in PROGRAMS {
        let Ok(program) = ProgramInfo::from_pin(pins.programs.join(name)) else { continue };
        if map_ids(&program, name)?.contains(&directory.id()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether packet programs have left something below a directory of pins of one version.
pub(super) fn are_left(version: &Path) -> bool {
    PROGRAMS.iter().any(|name| version.join("programs").join(name).exists())
}

/// Removes our filters from all devices; links go with their pins. Returns how many that were.
pub(super) fn remove_filters() -> io::Result<usize> {
    attach::remove_filters()
}
