//! What this kernel and host offer to the eBPF data path, found out by trying and without changing anything.

use std::path::Path;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};
use nix::sys::utsname::uname;
use shunt_model::with_causes;

use super::door::packet_options;
use super::packets::{follow, trial};
use super::pins::on_bpf;
use crate::datapath::{Check, CheckState, Options, kube_proxy};
use crate::host::cgroup;

/// The oldest kernel of kernel.org with everything the programs use; only a hint in texts, for a distribution may have
/// taken some of it into an older one. `bpf_set_retval` for cgroup hooks came with 5.18, `getpeername` hooks with 5.8,
/// socket storage in these hooks with 5.8, mappable arrays with 5.5, links with 5.7.
const OLDEST: (u32, u32) = (5, 18);

/// The programs that call helpers which are not in all kernels, with these helpers.
const HELPERS: [(ProgramType, &str, BpfHelper, &str); 7] = [
    (ProgramType::CgroupSockAddr, "connect()", BpfHelper::BPF_FUNC_set_retval, "bpf_set_retval"),
    (ProgramType::CgroupSockAddr, "connect()", BpfHelper::BPF_FUNC_get_netns_cookie, "bpf_get_netns_cookie"),
    (ProgramType::CgroupSockAddr, "connect()", BpfHelper::BPF_FUNC_sk_storage_get, "bpf_sk_storage_get"),
    (ProgramType::CgroupSockAddr, "connect()", BpfHelper::BPF_FUNC_ktime_get_coarse_ns, "bpf_ktime_get_coarse_ns"),
    (ProgramType::CgroupSockAddr, "bind()", BpfHelper::BPF_FUNC_skc_to_tcp6_sock, "bpf_skc_to_tcp6_sock"),
    (ProgramType::CgroupSockAddr, "bind()", BpfHelper::BPF_FUNC_skc_to_udp6_sock, "bpf_skc_to_udp6_sock"),
    (ProgramType::CgroupSock, "close()", BpfHelper::BPF_FUNC_sk_storage_get, "bpf_sk_storage_get"),
];

/// The types of the programs' maps that are not in all kernels.
const MAPS: [(MapType, &str); 3] =
    [(MapType::SkStorage, "socket storage"), (MapType::LpmTrie, "prefix trees"), (MapType::LruHash, "LRU tables")];

/// Checks everything that [`super::Ebpf::open`] needs.
#[must_use]
pub(super) fn checks(options: &Options) -> Vec<Check> {
    let tree = cgroup_tree(options.host.cgroup_root.as_deref());
    let files = bpf_file_system(&options.host.bpf_root);
    vec![kernel(), btf(), program_type(), helpers(), maps(), tree, files, object(options.object.as_deref())]
}

/// Checks what programs at network devices need, and what they would leave unserved here.
#[must_use]
pub(super) fn packet_checks(options: &Options, by_loading: bool) -> Vec<Check> {
    let supported = match is_program_supported(ProgramType::SchedClassifier) {
        Ok(true) => check("packet programs", CheckState::Ok, "the kernel loads them"),
        Ok(false) => check("packet programs", CheckState::Missing, "the kernel has none (CONFIG_NET_CLS_ACT)"),
        Err(error) => {
            check("packet programs", CheckState::Missing, format!("cannot be asked for: {}", with_causes(&error)))
        }
    };
    let loads = supported.state == CheckState::Ok;
    let mut checks = vec![kernel(), btf(), supported, bpf_file_system(&options.host.bpf_root)];
    if loads {
        checks.extend([packet_object(by_loading), packet_devices(options), packet_filters()]);
    }
    checks
}

fn packet_object(by_loading: bool) -> Check {
    const NAME: &str = "packet object";
    if !by_loading {
        return match super::packets::OBJECT.len() {
            0 => check(NAME, CheckState::Missing, super::ProgramsError::Missing.to_string()),
            bytes => check(NAME, CheckState::Ok, format!("{bytes} bytes, in this binary")),
        };
    }
    match trial::load() {
        Ok(bytes) => check(NAME, CheckState::Ok, format!("{bytes} bytes, in this binary; the kernel accepts them")),
        Err(error) => check(NAME, CheckState::Missing, with_causes(&error)),
    }
}

/// Packets that come in or leave by some devices are seen by rules alone.
fn packet_devices(options: &Options) -> Check {
    const NAME: &str = "packet devices";
    match follow::selected(&packet_options(options)) {
        Ok((_, unserved)) if !unserved.is_empty() => {
            check(NAME, CheckState::Partial, unserved.into_iter().collect::<Vec<_>>().join("; "))
        }
        Ok((served, _)) => check(NAME, CheckState::Ok, format!("{served} would have programs")),
        Err(error) => check(NAME, CheckState::Partial, format!("cannot be listed: {error}")),
    }
}

/// Filters may know packets to Services by what programs do not give them.
fn packet_filters() -> Check {
    const NAME: &str = "packet filters";
    let drop = kube_proxy::drops_of_untracked();
    if drop.is_empty() {
        return check(NAME, CheckState::Ok, "none drops what others do not accept");
    }
    check(NAME, CheckState::Partial, drop.join("; "))
}

fn check(name: &'static str, state: CheckState, detail: impl Into<String>) -> Check {
    Check { name, state, detail: detail.into() }
}

fn kernel() -> Check {
    let (major, minor) = OLDEST;
    let release = uname().map(|names| names.release().to_string_lossy().into_owned()).unwrap_or_default();
    match version(&release) {
        Some(found) if found >= OLDEST => check("kernel", CheckState::Ok, release),
        Some(_) => check(
            "kernel",
            CheckState::Note,
            format!("{release} is older than {major}.{minor}, the first with all that socket programs need"),
        ),
        None => check(
            "kernel",
            CheckState::Note,
            format!("release {release:?} is not understood; {major}.{minor} has all that socket programs need"),
        ),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn btf() -> Check {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        check("kernel BTF", CheckState::Ok, "/sys/kernel/btf/vmlinux")
    } else {
        check("kernel BTF", CheckState::Missing, "absent: socket storage needs it (CONFIG_DEBUG_INFO_BTF)")
    }
}

fn program_type() -> Check {
    const NAME: &str = "BPF cgroup programs";
    match is_program_supported(ProgramType::CgroupSockAddr) {
        Ok(true) => check(NAME, CheckState::Ok, "the kernel loads them"),
        Ok(false) => check(NAME, CheckState::Missing, "the kernel has none (CONFIG_CGROUP_BPF)"),
        Err(error) => check(
            NAME,
            CheckState::Missing,
            format!("cannot be asked for: {}; CAP_BPF and CAP_NET_ADMIN are needed", with_causes(&error)),
        ),
    }
}

/// What the programs call; the kernel checks a program of two instructions for each.
fn helpers() -> Check {
    let tried = HELPERS.into_iter().map(|(program, place, helper, name)| {
        (format!("{name} at {place}"), is_helper_supported(program, helper).map_err(|error| with_causes(&error)))
    });
    all("BPF helpers", "the kernel has all that the programs call", tried)
}

/// What the programs' tables are made of; the kernel makes a map of one element for each.
fn maps() -> Check {
    let tried = MAPS
        .into_iter()
        .map(|(map, name)| (name.to_owned(), is_map_supported(map).map_err(|error| with_causes(&error))));
    all("BPF maps", "the kernel has all types that the tables need", tried)
}

/// Whether all that was tried is there.
fn all(name: &'static str, found: &str, tried: impl Iterator<Item = (String, Result<bool, String>)>) -> Check {
    let (major, minor) = OLDEST;
    let mut missing = Vec::new();
    for (what, result) in tried {
        match result {
            Ok(true) => {}
            Ok(false) => missing.push(what),
            Err(error) => return check(name, CheckState::Missing, format!("{what} cannot be asked for: {error}")),
        }
    }
    if missing.is_empty() {
        return check(name, CheckState::Ok, found);
    }
    let missing = missing.join(", ");
    check(name, CheckState::Missing, format!("the kernel lacks {missing}; Linux {major}.{minor} and later have it"))
}

fn cgroup_tree(root: Option<&Path>) -> Check {
    const NAME: &str = "cgroup v2";
    if let Some(root) = root {
        return match cgroup::verify(root) {
            Ok(()) => check(NAME, CheckState::Ok, root.display().to_string()),
            Err(error) => check(NAME, CheckState::Missing, error.to_string()),
        };
    }
    match cgroup::discover() {
        Ok(mount) if mount.root == Path::new("/") => check(NAME, CheckState::Ok, mount.path.display().to_string()),
        Ok(mount) => {
            let (path, root) = (mount.path.display(), mount.root.display());
            check(
                NAME,
                CheckState::Note,
                format!("{path} shows only {root} of the tree: pods elsewhere are not served"),
            )
        }
        Err(error) => check(NAME, CheckState::Missing, error.to_string()),
    }
}

fn bpf_file_system(root: &Path) -> Check {
    const NAME: &str = "BPF file system";
    if on_bpf(root) {
        check(NAME, CheckState::Ok, format!("{} is on it", root.display()))
    } else if root.starts_with("/sys/fs/bpf") {
        check(NAME, CheckState::Note, "not mounted; `shunt run` mounts it on /sys/fs/bpf")
    } else {
        check(
            NAME,
            CheckState::Missing,
            format!("{} is not on one: mount -t bpf bpf DIR, or another --bpf-root", root.display()),
        )
    }
}

fn object(given: Option<&Path>) -> Check {
    const NAME: &str = "BPF programs";
    if let Some(file) = given {
        let path = file.display();
        return match std::fs::metadata(file) {
            Ok(found) => check(NAME, CheckState::Ok, format!("{} bytes, in {path}", found.len())),
            Err(error) => check(NAME, CheckState::Missing, format!("{path}: {error}")),
        };
    }
    if super::OBJECT.is_empty() {
        check(NAME, CheckState::Missing, super::ProgramsError::Missing.to_string())
    } else {
        check(NAME, CheckState::Ok, format!("{} bytes, in this binary", super::OBJECT.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_compared_as_numbers() {
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version("5.10.0-30-amd64"), Some((5, 10)));
        assert_eq!(version("linux"), None);
        assert!(version("5.9.1") < Some(OLDEST) && version("5.18") >= Some(OLDEST));
    }

    #[test]
    fn what_is_missing_is_named_with_the_kernel_that_has_it() {
        let said = |tried: &[(&str, Result<bool, &str>)]| {
            let tried = tried.iter().map(|(what, result)| ((*what).to_owned(), result.map_err(str::to_owned)));
            let Check { state, detail, .. } = all("BPF helpers", "all", tried);
            (state, detail)
        };
        assert_eq!(said(&[("a", Ok(true)), ("b", Ok(true))]), (CheckState::Ok, "all".to_owned()));
        let lacks = "the kernel lacks a, c; Linux 5.18 and later have it";
        let tried = [("a", Ok(false)), ("b", Ok(true)), ("c", Ok(false))];
        assert_eq!(said(&tried), (CheckState::Missing, lacks.to_owned()));
        let unknown = "b cannot be asked for: not permitted";
        assert_eq!(said(&[("a", Ok(true)), ("b", Err("not permitted"))]), (CheckState::Missing, unknown.to_owned()));
    }
}
