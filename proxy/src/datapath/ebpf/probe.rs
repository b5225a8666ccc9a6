//! What this kernel and host offer to the socket data path, asked without changing anything.

use std::path::Path;

use aya::programs::ProgramType;
use aya::sys::is_program_supported;
use nix::sys::utsname::uname;

use super::pins::on_bpf;
use crate::datapath::{Check, CheckState};
use crate::host::cgroup;

/// The oldest kernel with everything the programs use: `bpf_set_retval` for cgroup hooks came with 5.18, `getpeername`
/// hooks with 5.8, socket storage in these hooks with 5.8, mappable arrays with 5.5, links with 5.7.
const OLDEST: (u32, u32) = (5, 18);

/// Checks everything that [`super::Ebpf::open`] needs.
#[must_use]
pub(super) fn checks(cgroup_root: Option<&Path>, bpf_root: &Path) -> Vec<Check> {
    let (tree, files) = (cgroup_tree(cgroup_root), bpf_file_system(bpf_root));
    vec![kernel(), btf(), program_type(), tree, files, object(), packets()]
}

fn check(name: &'static str, state: CheckState, detail: impl Into<String>) -> Check {
    Check { name, state, detail: detail.into() }
}

fn kernel() -> Check {
    let (major, minor) = OLDEST;
    let release = uname().map(|names| names.release().to_string_lossy().into_owned()).unwrap_or_default();
    match version(&release) {
        Some(found) if found >= OLDEST => check("kernel", CheckState::Ok, release),
        Some(_) => {
            check("kernel", CheckState::Missing, format!("{release} is too old: socket programs need {major}.{minor}"))
        }
        None => check(
            "kernel",
            CheckState::Note,
            format!("release {release:?} is not understood; {major}.{minor} is needed"),
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
            format!("cannot be asked for: {error}; CAP_BPF and CAP_NET_ADMIN are needed"),
        ),
    }
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

fn object() -> Check {
    const NAME: &str = "BPF programs";
    if super::OBJECT.is_empty() {
        check(NAME, CheckState::Missing, super::ProgramsError::Missing.to_string())
    } else {
        check(NAME, CheckState::Ok, format!("{} bytes, in this binary", super::OBJECT.len()))
    }
}

/// A note only: this version balances connections at sockets.
fn packets() -> Check {
    let detail = match is_program_supported(ProgramType::SchedClassifier) {
        Ok(true) => "programs on interfaces are possible (not used by this version)".to_owned(),
        Ok(false) => "programs on interfaces are not possible (not used by this version)".to_owned(),
        Err(error) => format!("programs on interfaces cannot be asked about: {error} (not used by this version)"),
    };
    check("packet path", CheckState::Note, detail)
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
}
