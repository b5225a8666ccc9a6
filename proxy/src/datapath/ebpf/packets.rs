//! The packet programs, at the hooks of network devices.

#[cfg(test)]
mod tests;

use aya::programs::SchedClassifier;
use aya::{Btf, Ebpf};
use proxy_abi::maps;

use super::pins::Pins;
use super::socket::programs::{ProgramsError, accepted, kernel, load_object};

/// The compiled programs; empty if the binary was built without.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shunt-packets.o"));

/// At ingress and at egress, for devices with an Ethernet header and for those without.
const PROGRAMS: [&str; 4] = ["shunt_ingress", "shunt_egress", "shunt_ingress_ip", "shunt_egress_ip"];

/// The programs, accepted by the kernel on pinned maps, but attached nowhere.
struct Loaded(Ebpf);

impl Loaded {
    fn load(object: &[u8], pins: &Pins) -> Result<Self, ProgramsError> {
        let btf = Btf::from_sys_fs().map_err(|error| ProgramsError::Types(Box::new(error)))?;
        let mut loaded = Self(load_object(object, pins, &btf, maps::packets::ALL)?);
        for name in PROGRAMS {
            accepted(loaded.program(name)?.load(), name)?;
        }
        Ok(loaded)
    }

    fn program(&mut self, name: &'static str) -> Result<&mut SchedClassifier, ProgramsError> {
        let found = self.0.program_mut(name).ok_or(ProgramsError::NoProgram(name))?;
        found.try_into().map_err(kernel("reading", name))
    }
}
