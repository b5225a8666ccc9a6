//! The bpf(2) commands that aya 0.14 has no wrapper for: batches, link update, link information, iterators of a map.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_ITER_CREATE: libc::c_long = 33;
/// In `enum bpf_attach_type`.
const BPF_TRACE_ITER: u32 = 28;

/// The programs of a cgroup and of those above it.
const BPF_F_QUERY_EFFECTIVE: u32 = 1;
/// More programs than the kernel runs at one hook (BPF_CGROUP_MAX_PROGS).
const MOST_PROGRAMS: usize = 64;

/// An update only makes new elements.
const BPF_NOEXIST: u64 = 1;

/// How many elements one batch call reads.
const READ_BATCH: usize = 16_384;

/// ENOTSUPP, which is no error of user space: the kind of map has no such command.
const NOT_SUPPORTED: i32 = 524;

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct PinAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct IterLinkAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    info: u64,
    info_length: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct IterAttr {
    link: u32,
    flags: u32,
}

/// What the kernel says about a link to a cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupLink {
    kind: u32,
    /// The link's id.
    pub id: u32,
    /// The id of the program it runs.
    pub program: u32,
    padding: u32,
    /// The id of the cgroup, which is the inode number of its directory; 0 once the cgroup is gone.
    pub cgroup: u64,
    attach_type: u32,
    padding2: u32,
}

/// What the kernel says about a link to a network device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceLink {
    kind: u32,
    /// The link's id.
    pub id: u32,
    /// The id of the program it runs.
    pub program: u32,
    padding: u32,
    /// The index of the device; 0 once the device is gone.
    pub device: u32,
    attach_type: u32,
}

/// Reads a hash map piece by piece: see [`Pieces::next_piece`].
#[derive(Debug)]
pub struct Pieces<'a, const K: usize, const V: usize> {
    map: BorrowedFd<'a>,
    keys: Vec<[u8; K]>,
    values: Vec<[u8; V]>,
    /// The kernel keeps its place in these; as large as a key, and at least a bucket number.
    place: Vec<u8>,
    next: Vec<u8>,
    begun: bool,
    ended: bool,
}

/// Keys, and the values that go with them in the same order.
pub type Piece<'a, const K: usize, const V: usize> = (&'a [[u8; K]], &'a [[u8; V]]);

/// Calls bpf(2).
///
/// # Safety
/// Every address in `attr` must point to memory that is valid for what `command` does with it.
pub(super) unsafe fn call<T>(command: libc::c_long, attr: &mut T) -> io::Result<()> {
    // SAFETY: `attr` is valid for its size, which is given; the kernel takes a shorter attr than its own as
    // zero-filled.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn address<T>(slice: &[T]) -> u64 {
    slice.as_ptr().expose_provenance() as u64
}

fn length(count: usize) -> io::Result<u32> {
    u32::try_from(count).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Writes elements of a hash map whose keys have `K` bytes and whose values are 64-bit words, in one call per
/// 16,384 elements. Kernel: 5.6.
pub fn update_words<const K: usize>(map: BorrowedFd<'_>, elements: &[([u8; K], u64)]) -> io::Result<()> {
    for chunk in elements.chunks(READ_BATCH) {
        let keys: Vec<u8> = chunk.iter().flat_map(|(key, _)| key.iter().copied()).collect();
        let values: Vec<u64> = chunk.iter().map(|(_, value)| *value).collect();
        let mut attr = BatchAttr {
            keys: address(&keys),
            values: address(&values),
            count: length(chunk.len())?,
            map: raw(map),
            ..BatchAttr::default()
        };
        // SAFETY: `keys` and `values` hold `count` elements each and outlive the call.
        unsafe { call(BPF_MAP_UPDATE_BATCH, &mut attr) }?;
    }
    Ok(())
}

/// Writes one element of a map whose keys have `K` bytes and whose values are 64-bit words.
pub fn update_word<const K: usize>(map: BorrowedFd<'_>, key: &[u8; K], value: u64) -> io::Result<()> {
    let value = [value];
    let mut attr = ElementAttr { map: raw(map), key: address(key), value: address(&value), ..ElementAttr::default() };
    // SAFETY: `key` and `value` have the sizes of the map's and outlive the call.
    unsafe { call(BPF_MAP_UPDATE_ELEM, &mut attr) }
}

/// Writes one element of a map whose keys have `K` and whose values have `V` bytes.
pub fn update<const K: usize, const V: usize>(map: BorrowedFd<'_>, key: &[u8; K], value: &[u8; V]) -> io::Result<()> {
    let mut attr = ElementAttr { map: raw(map), key: address(key), value: address(value), ..ElementAttr::default() };
    // SAFETY: `key` and `value` have the sizes of the map's and outlive the call.
    unsafe { call(BPF_MAP_UPDATE_ELEM, &mut attr) }
}

/// Reads one element of a map whose keys have `K` bytes and whose values are 64-bit words.
pub fn lookup_word<const K: usize>(map: BorrowedFd<'_>, key: &[u8; K]) -> io::Result<Option<u64>> {
    Ok(lookup::<K, 8>(map, key)?.map(u64::from_ne_bytes))
}

/// Reads one element of a map whose keys have `K` and whose values have `V` bytes.
pub fn lookup<const K: usize, const V: usize>(map: BorrowedFd<'_>, key: &[u8; K]) -> io::Result<Option<[u8; V]>> {
    read_by(BPF_MAP_LOOKUP_ELEM, map, key)
}

/// Reads one element by a command that does so.
fn read_by<const K: usize, const V: usize>(
    command: libc::c_long,
    map: BorrowedFd<'_>,
    key: &[u8; K],
) -> io::Result<Option<[u8; V]>> {
    let mut value = [0_u8; V];
    let mut attr = ElementAttr {
        map: raw(map),
        key: address(key),
        value: value.as_mut_ptr().expose_provenance() as u64,
        ..ElementAttr::default()
    };
    // SAFETY: `key` and `value` have the sizes of the map's and outlive the call.
    match unsafe { call(command, &mut attr) } {
        Ok(()) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All keys, of `K` bytes, of a map that has no batch commands. No other process may write to it meanwhile.
pub fn keys<const K: usize>(map: BorrowedFd<'_>) -> io::Result<Vec<[u8; K]>> {
    let mut found: Vec<[u8; K]> = Vec::new();
    loop {
        let mut next = [0_u8; K];
        let mut attr = ElementAttr {
            map: raw(map),
            key: found.last().map_or(0, |last| address(last)),
            value: next.as_mut_ptr().expose_provenance() as u64,
            ..ElementAttr::default()
        };
        // SAFETY: both keys have the size of the map's and outlive the call.
        match unsafe { call(BPF_MAP_GET_NEXT_KEY, &mut attr) } {
            Ok(()) => found.push(next),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(found),
            Err(error) => return Err(error),
        }
    }
}

/// Deletes one element; one that is not there counts as deleted.
pub fn delete<const K: usize>(map: BorrowedFd<'_>, key: &[u8; K]) -> io::Result<()> {
    let mut attr = ElementAttr { map: raw(map), key: address(key), ..ElementAttr::default() };
    // SAFETY: `key` has the size of the map's keys and outlives the call.
    match unsafe { call(BPF_MAP_DELETE_ELEM, &mut attr) } {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        done => done,
    }
}

/// Deletes elements by as few calls as possible; one that is not there counts as deleted. Kernel: 5.6 for batches, else
/// one call each.
pub fn delete_all<const K: usize>(map: BorrowedFd<'_>, keys: &[[u8; K]]) -> io::Result<()> {
    let mut rest = keys;
    while !rest.is_empty() {
        let mut attr =
            BatchAttr { keys: address(rest), count: length(rest.len())?, map: raw(map), ..BatchAttr::default() };
        // SAFETY: `rest` holds `count` keys of the map's size and outlives the call.
        let done = match unsafe { call(BPF_MAP_DELETE_BATCH, &mut attr) } {
            Ok(()) => return Ok(()),
            // The kernel stops at one that is not there, behind so many others.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => (attr.count as usize).saturating_add(1),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | NOT_SUPPORTED)) => {
                return rest.iter().try_for_each(|key| delete(map, key));
            }
            Err(error) => return Err(error),
        };
        rest = rest.get(done..).unwrap_or_default();
    }
    Ok(())
}

/// Reads and deletes one element in one step. Kernel: 5.14 for hash maps.
pub fn take<const K: usize, const V: usize>(map: BorrowedFd<'_>, key: &[u8; K]) -> io::Result<Option<[u8; V]>> {
    read_by(BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key)
}

/// Writes one element unless there is one with this key. False if there is.
pub fn insert_new<const K: usize, const V: usize>(
    map: BorrowedFd<'_>,
    key: &[u8; K],
    value: &[u8; V],
) -> io::Result<bool> {
    let mut attr =
        ElementAttr { map: raw(map), padding: 0, key: address(key), value: address(value), flags: BPF_NOEXIST };
    // SAFETY: `key` and `value` have the sizes of the map's and outlive the call.
    match unsafe { call(BPF_MAP_UPDATE_ELEM, &mut attr) } {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

impl<'a, const K: usize, const V: usize> Pieces<'a, K, V> {
    /// The whole map, about `size` elements at a time.
    #[must_use]
    pub fn of(map: BorrowedFd<'a>, size: usize) -> Self {
        let place = vec![0; K.max(8)];
        let (keys, values) = (vec![[0; K]; size], vec![[0; V]; size]);
        Self { map, keys, values, next: place.clone(), place, begun: false, ended: false }
    }

    /// The next keys and their values; `None` behind the last. It does not count as a use of the elements. Kernel: 5.6.
    ///
    /// An element that stays in the map is read once, whatever happens to others meanwhile.
    pub fn next_piece(&mut self) -> io::Result<Option<Piece<'_, K, V>>> {
        let count = loop {
            if self.ended {
                return Ok(None);
            }
            let mut attr = BatchAttr {
                in_batch: if self.begun { address(&self.place) } else { 0 },
                out_batch: self.next.as_mut_ptr().expose_provenance() as u64,
                keys: self.keys.as_mut_ptr().expose_provenance() as u64,
                values: self.values.as_mut_ptr().expose_provenance() as u64,
                count: length(self.keys.len())?,
                map: raw(self.map),
                ..BatchAttr::default()
            };
            // SAFETY: the four buffers are as large as stated and outlive the call.
            match unsafe { call(BPF_MAP_LOOKUP_BATCH, &mut attr) } {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => self.ended = true,
                // A bucket holds more elements than the buffers: give it larger ones.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && self.keys.len() < 1 << 24 => {
                    let larger = self.keys.len().saturating_mul(2).max(1);
                    self.keys.resize(larger, [0; K]);
                    self.values.resize(larger, [0; V]);
                    continue;
                }
                Err(error) => return Err(error),
            }
            self.begun = true;
            std::mem::swap(&mut self.place, &mut self.next);
            if attr.count > 0 {
                break attr.count as usize;
            }
        };
        Ok(self.keys.get(..count).zip(self.values.get(..count)))
    }
}

/// Reads a whole hash map whose keys have `K` bytes and whose values are 64-bit words. Kernel: 5.6.
///
/// No other process may write to it meanwhile; then every element is returned once.
pub fn read_words<const K: usize>(map: BorrowedFd<'_>) -> io::Result<Vec<([u8; K], u64)>> {
    let (mut found, mut pieces) = (Vec::new(), Pieces::<K, 8>::of(map, READ_BATCH));
    while let Some((keys, values)) = pieces.next_piece()? {
        found.extend(keys.iter().copied().zip(values.iter().map(|value| u64::from_ne_bytes(*value))));
    }
    Ok(found)
}

/// The first elements of an array that has one for each of so many processors, each `words` 64-bit words long: the sum
/// of each word over the processors, of at most `count` elements one after the other. Kernel: 5.13.
pub fn sums(map: BorrowedFd<'_>, words: usize, processors: usize, count: usize) -> io::Result<Vec<u64>> {
    const BATCH: usize = 1024;
    let mut sums = Vec::with_capacity(count.saturating_mul(words));
    let width = words.saturating_mul(processors).max(1);
    let (mut keys, mut values) = (vec![0_u32; BATCH], vec![0_u64; BATCH.saturating_mul(width)]);
    let (mut place, mut next) = ([0_u32], [0_u32]);
    let mut first = true;
    while sums.len() < count.saturating_mul(words) {
        let wanted = count.saturating_sub(sums.len() / words.max(1)).min(BATCH);
        let mut attr = BatchAttr {
            in_batch: if first { 0 } else { address(&place) },
            out_batch: next.as_mut_ptr().expose_provenance() as u64,
            keys: keys.as_mut_ptr().expose_provenance() as u64,
            values: values.as_mut_ptr().expose_provenance() as u64,
            count: length(wanted)?,
            map: raw(map),
            ..BatchAttr::default()
        };
        // SAFETY: the four buffers have room for `wanted` elements and outlive the call.
        let done = match unsafe { call(BPF_MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        for element in values.chunks(width).take(attr.count as usize) {
            let of_word = |at| element.iter().skip(at).step_by(words).fold(0, |sum: u64, part| sum.wrapping_add(*part));
            sums.extend((0..words).map(of_word));
        }
        if done {
            break;
        }
        first = false;
        std::mem::swap(&mut place, &mut next);
    }
    Ok(sums)
}

/// Makes a link run another program, with no moment without one. Kernel: 5.7.
pub fn replace_program(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let mut attr =
        LinkUpdateAttr { link: raw(link.as_fd()), program: raw(program.as_fd()), ..LinkUpdateAttr::default() };
    // SAFETY: the attr holds no addresses.
    unsafe { call(BPF_LINK_UPDATE, &mut attr) }
}

/// What the kernel says about a link to a cgroup.
pub fn cgroup_link(link: impl AsFd) -> io::Result<CgroupLink> {
    let mut info = CgroupLink::default();
    let mut attr = InfoAttr {
        fd: raw(link.as_fd()),
        length: length(size_of::<CgroupLink>())?,
        info: std::ptr::from_mut(&mut info).expose_provenance() as u64,
    };
    // SAFETY: `info` has the stated length, any bytes are a valid value of it, and it outlives the call.
    unsafe { call(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// What the kernel says about a link to a network device. Kernel: 6.6.
pub fn device_link(link: impl AsFd) -> io::Result<DeviceLink> {
    let mut info = DeviceLink::default();
    let mut attr = InfoAttr {
        fd: raw(link.as_fd()),
        length: length(size_of::<DeviceLink>())?,
        info: std::ptr::from_mut(&mut info).expose_provenance() as u64,
    };
    // SAFETY: `info` has the stated length, any bytes are a valid value of it, and it outlives the call.
    unsafe { call(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// The ids of the programs that run at a hook of a cgroup, in their order, those of the cgroups above it included.
/// Kernel: 4.15.
pub fn attached_programs(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut programs = [0_u32; MOST_PROGRAMS];
    let mut attr = QueryAttr {
        target: raw(cgroup),
        attach_type,
        flags: BPF_F_QUERY_EFFECTIVE,
        programs: programs.as_mut_ptr().expose_provenance() as u64,
        count: length(programs.len())?,
        ..QueryAttr::default()
    };
    // SAFETY: `programs` has room for `count` ids and outlives the call.
    unsafe { call(BPF_PROG_QUERY, &mut attr) }?;
    Ok(programs.into_iter().take(attr.count as usize).collect())
}

/// Runs an iterator program for each element of a map; the file is what it writes. Kernel: 5.9.
pub fn iterate(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<File> {
    // `union bpf_iter_link_info` with the map alone.
    let info = [raw(map)];
    let attr = IterLinkAttr {
        program: raw(program),
        attach_type: BPF_TRACE_ITER,
        info: address(&info),
        info_length: length(size_of_val(&info))?,
        ..IterLinkAttr::default()
    };
    // SAFETY: `info` has the stated length and outlives the call.
    let link = unsafe { open(BPF_LINK_CREATE, &attr) }?;
    let attr = IterAttr { link: raw(link.as_fd()), ..IterAttr::default() };
    // SAFETY: the attr holds no addresses.
    unsafe { open(BPF_ITER_CREATE, &attr) }.map(File::from)
}

/// Opens what is pinned at `path`.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let bytes = path.as_bytes_with_nul();
    let attr = PinAttr { path: address(bytes), ..PinAttr::default() };
    // SAFETY: the path ends with NUL and outlives the call.
    unsafe { open(BPF_OBJ_GET, &attr) }
}

/// Calls bpf(2) with a command that returns a new descriptor.
///
/// # Safety
/// Every address in `attr` must point to memory that is valid for what `command` does with it.
unsafe fn open<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is valid for its size, which is given; the kernel takes a shorter attr than its own as
    // zero-filled.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Pins an object at `path`.
pub fn pin(object: impl AsFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PinAttr { path: address(path.as_bytes_with_nul()), fd: raw(object.as_fd()), ..PinAttr::default() };
    // SAFETY: the path in `attr` ends with NUL and outlives the call.
    unsafe { call(BPF_OBJ_PIN, &mut attr) }
}
