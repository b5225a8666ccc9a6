//! Where the running kernel keeps `IPV6_V6ONLY` of a socket, read from the types it publishes (BTF): the programs look
//! there, because no hook is told of the option.

use std::fs;

use proxy_abi::Config;

const KERNEL: &str = "/sys/kernel/btf/vmlinux";

/// `BTF_MAGIC` of linux/btf.h.
const MAGIC: u64 = 0xeb9f;
const STRUCT: u64 = 4;

/// Whether this kernel keeps the option at the bit that the programs read. If not, or if the kernel cannot be asked,
/// the programs take each IPv6 socket for one of both families.
pub(in crate::datapath::ebpf) fn is_where_programs_look() -> bool {
    let wanted = Bits { first: u64::from(Config::V6ONLY_BIT), count: 1 };
    fs::read(KERNEL).ok().and_then(|types| place_of(&types, "sock_common", "skc_ipv6only")) == Some(wanted)
}

/// The bits of a structure that a member takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bits {
    first: u64,
    count: u64,
}

/// A number of `size` bytes at an offset.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(size)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at, 4)
}

/// The part of `bytes` that the words at `at` and behind it describe, counted from `base`.
fn section(bytes: &[u8], base: usize, at: usize) -> Option<&[u8]> {
    let first = base.checked_add(usize::try_from(word(bytes, at)?).ok()?)?;
    let length = usize::try_from(word(bytes, at.checked_add(4)?)?).ok()?;
    bytes.get(first..first.checked_add(length)?)
}

/// Where a bit field is in a structure. Documentation/bpf/btf.rst of the kernel describes the format.
fn place_of(bytes: &[u8], structure: &str, member: &str) -> Option<Bits> {
    if number(bytes, 0, 2)? != MAGIC {
        return None;
    }
    let header = usize::try_from(word(bytes, 4)?).ok()?;
    let (types, strings) = (section(bytes, header, 8)?, section(bytes, header, 16)?);
    let is_called = |at: u64, name: &str| {
        let text = usize::try_from(at).ok().and_then(|at| strings.get(at..));
        text.and_then(|text| text.strip_prefix(name.as_bytes())).is_some_and(|rest| rest.first() == Some(&0))
    };
    let mut at = 0_usize;
    loop {
        let (name, info) = (word(types, at)?, word(types, at.checked_add(4)?)?);
        let (kind, members) = ((info >> 24) & 0x1f, usize::try_from(info & 0xffff).ok()?);
        let first = at.checked_add(12)?;
        if kind == STRUCT && is_called(name, structure) {
            let offset = |number: usize| first.checked_add(number.checked_mul(12)?);
            let is_it = |at: &usize| word(types, *at).is_some_and(|name| is_called(name, member));
            let found = (0..members).filter_map(offset).find(is_it);
            let place = word(types, found?.checked_add(8)?)?;
            // Bit fields of a structure that has any: their size is in the upper byte.
            return (info >> 31 == 1).then_some(Bits { first: place & 0x00ff_ffff, count: place >> 24 });
        }
        at = first.checked_add(size_behind(kind, members)?)?;
    }
}

/// How many bytes follow the three words that every type has; `None` for a kind that came after this was written.
fn size_behind(kind: u64, members: usize) -> Option<usize> {
    match kind {
        // Integers, variables, tags of declarations.
        1 | 14 | 17 => Some(4),
        // Pointers, forward declarations, typedefs, qualifiers, functions, floats, tags of types.
        2 | 7..=12 | 16 | 18 => Some(0),
        // Arrays.
        3 => Some(12),
        // Structures, unions, sections of data, 64-bit enumerations.
        4 | 5 | 15 | 19 => members.checked_mul(12),
        // Enumerations, prototypes of functions.
        6 | 13 => members.checked_mul(8),
        _ => None,
    }
}

#[cfg(test)]
#[expect(clippy::print_stderr, reason = "what is left out is printed")]
mod tests {
    use super::*;

    const STRINGS: &[u8] = b"\0int\0other\0sock\0flags\0only\0";

    /// `int`; `struct other { int only; }`; `struct sock { int flags:4; int only:1; }`, with `kind` in place of the
    /// last.
    fn types(kind: u32, info: u32) -> Vec<u8> {
        let words: &[&[u32]] = &[
            &[1, 1 << 24, 4, 32],
            &[5, (4 << 24) | 1, 4, 22, 1, 0],
            &[11, (kind << 24) | info | 2, 4, 16, 1, 4 << 24, 22, 1, (1 << 24) | 4],
        ];
        let types: Vec<u8> = words.concat().iter().flat_map(|word| word.to_le_bytes()).collect();
        let length = u32::try_from(types.len()).unwrap();
        let header = [24, 0, length, length, u32::try_from(STRINGS.len()).unwrap()];
        let mut all = vec![0x9f, 0xeb, 1, 0];
        all.extend(header.iter().flat_map(|word| word.to_le_bytes()));
        all.extend([types.as_slice(), STRINGS].concat());
        all
    }

    #[test]
    fn a_bit_field_is_found_by_the_names_of_structure_and_member() {
        let published = types(4, 1 << 31);
        assert_eq!(place_of(&published, "sock", "only"), Some(Bits { first: 4, count: 1 }));
        assert_eq!(place_of(&published, "sock", "flags"), Some(Bits { first: 0, count: 4 }));
        let others = [("sock", "onl"), ("soc", "only"), ("socks", "only"), ("other", "only"), ("int", "only")];
        for (structure, member) in others {
            assert_eq!(place_of(&published, structure, member), None, "{structure}.{member}");
        }
    }

    #[test]
    fn what_is_cut_short_or_of_a_later_kind_is_not_understood() {
        let published = types(4, 1 << 31);
        for length in 0..published.len() {
            assert_eq!(place_of(&published[..length], "sock", "only"), None, "{length} bytes");
        }
        assert_eq!(place_of(&types(31, 1 << 31), "sock", "only"), None);
        assert_eq!(place_of(&types(4, 0), "sock", "only"), None, "it has no bit fields");
    }

    #[test]
    fn this_kernel_keeps_the_option_where_programs_look() {
        if !fs::exists(KERNEL).unwrap() {
            eprintln!("SKIPPED: the kernel publishes no types in {KERNEL}");
            return;
        }
        assert!(is_where_programs_look());
    }
}
