//! Runs a program on a packet for which a device gave the sum over it (`CHECKSUM_COMPLETE`), for tests.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const BPF_PROG_TEST_RUN: libc::c_long = 10;
/// The packet has the sum over it, and the kernel compares it after the run. Kernel: 6.11.
const BPF_F_TEST_SKB_CHECKSUM_COMPLETE: u32 = 1 << 2;

#[repr(C)]
#[derive(Default)]
struct RunAttr {
    program: u32,
    result: u32,
    length_in: u32,
    length_out: u32,
    packet_in: u64,
    packet_out: u64,
    repeat: u32,
    duration: u32,
    context_lengths: [u32; 2],
    contexts: [u64; 2],
    flags: u32,
    processor: u32,
    batch: u32,
    padding: u32,
}

/// What a program of class `sched_cls` returns; `after` gets the packet as it is then, at its full length. EBADMSG if
/// the sum is not that over the packet any more, EINVAL if the kernel cannot do this.
pub fn run_with_sum(program: BorrowedFd<'_>, packet: &[u8], after: &mut Vec<u8>) -> io::Result<u32> {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(io::Error::other);
    let mut attr = RunAttr {
        program: program.as_raw_fd().cast_unsigned(),
        length_in: length(packet)?,
        length_out: length(after)?,
        packet_in: packet.as_ptr().expose_provenance() as u64,
        packet_out: after.as_mut_ptr().expose_provenance() as u64,
        flags: BPF_F_TEST_SKB_CHECKSUM_COMPLETE,
        ..RunAttr::default()
    };
    // SAFETY: both buffers have the stated lengths and outlive the call.
    unsafe { super::bpf::call(BPF_PROG_TEST_RUN, &mut attr) }?;
    after.truncate(attr.length_out as usize);
    Ok(attr.result)
}
