//! Whether the kernel accepts the packet programs, tried without a trace: on small tables that nobody else sees.

use aya::programs::SchedClassifier;
use aya::{Btf, EbpfLoader};
use proxy_abi::maps::{self, Kind};

use super::super::socket::programs::{ProgramsError, accepted, kernel};
use super::{OBJECT, PROGRAMS};

/// As many elements as tables of the trial have where the number says nothing to the verifier.
const ELEMENTS: u32 = 1024;

/// Loads all programs and lets them go. Returns how many bytes their object has.
pub(in crate::datapath::ebpf) fn load() -> Result<usize, ProgramsError> {
    if OBJECT.is_empty() {
        return Err(ProgramsError::Missing);
    }
    let btf = Btf::from_sys_fs().map_err(|error| ProgramsError::Types(Box::new(error)))?;
    let mut loader = EbpfLoader::new();
    loader.btf(Some(&btf));
    for map in maps::ALL.iter().chain(maps::packets::ALL) {
        if matches!(map.kind, Kind::Hash | Kind::Lru | Kind::Prefixes) && map.capacity > ELEMENTS {
            loader.map_max_entries(map.name, ELEMENTS);
        }
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| ProgramsError::Object(Box::new(error)))?;
    for name in PROGRAMS {
        let program = ebpf.program_mut(name).ok_or(ProgramsError::NoProgram(name))?;
        let program: &mut SchedClassifier = program.try_into().map_err(kernel("reading", name))?;
        accepted(program.load(), name)?;
    }
    drop((ebpf, btf));
    crate::sys::trim();
    Ok(OBJECT.len())
}
