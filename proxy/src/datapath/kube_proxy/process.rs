//! A kube-proxy that still runs on this node: it would put back what is removed.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// As the kernel and the command line name it.
const NAME: &str = "kube-proxy";

/// The processes of kube-proxy in this process's network namespace, by number. Those of other process namespaces, and
/// those that the mount of `proc` hides, are not found.
#[must_use]
pub fn running() -> Vec<u32> {
    running_below(Path::new("/proc"))
}

fn running_below(proc: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(proc) else { return Vec::new() };
    let numbers = entries.filter_map(Result::ok).filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<u32> = numbers.filter(|number| is_kube_proxy(proc, &number.to_string())).collect();
    found.sort_unstable();
    found
}

fn is_kube_proxy(proc: &Path, process: &str) -> bool {
    let process = proc.join(process);
    named_so(&process) && !is_this_program(proc, &process) && shares_network(proc, &process)
}

fn named_so(process: &Path) -> bool {
    let line = fs::read(process.join("cmdline")).unwrap_or_default();
    // A process that has ended and is not waited for has none.
    let Some(program) = line.split(|byte| *byte == 0).next().filter(|program| !program.is_empty()) else {
        return false;
    };
    let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    name == NAME.as_bytes() || fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim() == NAME)
}

/// The image has this program under kube-proxy's name too.
fn is_this_program(proc: &Path, process: &Path) -> bool {
    let file = |process: &Path| fs::metadata(process.join("exe")).ok().map(|exe| (exe.dev(), exe.ino()));
    file(process).is_some_and(|other| file(&proc.join("self")) == Some(other))
}

/// A process that may not be asked counts as one of this namespace.
fn shares_network(proc: &Path, process: &Path) -> bool {
    let namespace = |process: &Path| fs::read_link(process.join("ns/net"));
    match (namespace(process), namespace(&proc.join("self"))) {
        (Ok(its), Ok(own)) => its == own,
        (Err(error), _) => error.kind() == io::ErrorKind::PermissionDenied,
        (Ok(_), Err(_)) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A process with its command line, its name, its program and its network namespace.
    fn process(proc: &Path, number: &str, command: &str, name: &str, [program, network]: [&str; 2]) {
        let process = proc.join(number);
        fs::create_dir_all(process.join("ns")).unwrap();
        fs::write(process.join("cmdline"), command.replace(' ', "\0")).unwrap();
        fs::write(process.join("comm"), format!("{name}\n")).unwrap();
        let file = proc.join(program);
        fs::write(&file, "").unwrap();
        symlink(file, process.join("exe")).unwrap();
        symlink(network, process.join("ns/net")).unwrap();
    }

    #[test]
    fn only_another_kube_proxy_of_this_network_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let proc = directory.path();
        process(proc, "self", "/usr/local/bin/kube-proxy --v=2", "kube-proxy", ["shunt", "net:[1]"]);
        process(proc, "7", "/usr/local/bin/kube-proxy --v=2", "kube-proxy", ["shunt", "net:[1]"]);
        process(proc, "8", "/usr/local/bin/kube-proxy --config=x", "kube-proxy", ["other", "net:[1]"]);
        process(proc, "9", "kube-proxy", "kube-proxy", ["other", "net:[2]"]);
        process(proc, "10", "/go-runner --log-file=x kube-proxy", "go-runner", ["runner", "net:[1]"]);
        process(proc, "11", "", "kube-proxy", ["other", "net:[1]"]);
        process(proc, "12", "kube-proxy.bin", "kube-proxy", ["other", "net:[1]"]);
        assert_eq!(running_below(proc), [8, 12]);
    }
}
