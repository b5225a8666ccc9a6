//! The directive `kubernetes`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use hickory_proto::rr::Name;

use super::{Shared, fallthrough, only, options, unknown, value, zones_of};
use crate::block::{Kubernetes, reverse_trees};
use crate::corefile::text::Line;
use crate::corefile::{CorefileError, KubernetesSettings, values};
use crate::server::STARTUP_TIMEOUT;
use crate::zone::PodMode;

pub(super) fn kubernetes(line: &Line, domains: &[Name], shared: &mut Shared) -> Result<Kubernetes, CorefileError> {
    let mut zones = zones_of(line, line.arguments(), domains)?;
    let trees = reverse_trees();
    let is_reverse = |zone: &Name| trees.iter().any(|tree| tree.zone_of(zone));
    let forward: Vec<&Name> = zones.iter().filter(|zone| !is_reverse(zone)).collect();
    let domain = match forward.as_slice() {
        [domain] if !domain.is_root() => (*domain).clone(),
        [_] => return Err(line.error("the root cannot be the cluster domain: name it, such as cluster.local")),
        [] => return Err(line.error("names no cluster domain, such as cluster.local")),
        _ => return Err(line.error("takes one cluster domain; several are not supported")),
    };
    zones.sort_by_key(|zone| is_reverse(zone));
    let mut kubernetes = Kubernetes { zones, fallthrough: Vec::new() };
    let mut settings = KubernetesSettings {
        domain,
        ttl: 5,
        pods: PodMode::Disabled,
        endpoint_pod_names: false,
        namespaces: BTreeSet::new(),
        ignore_empty_service: false,
        kubeconfig: None,
        startup_timeout: STARTUP_TIMEOUT,
    };
    for option in options(line) {
        let arguments: Vec<&str> = option.arguments().iter().map(String::as_str).collect();
        match (option.name(), arguments.as_slice()) {
            ("fallthrough", _) => kubernetes.fallthrough = fallthrough(option)?,
            ("ttl", _) => settings.ttl = value(option, values::number(only(option)?, 0, 3600))?,
            ("pods", ["disabled"]) => settings.pods = PodMode::Disabled,
            ("pods", ["insecure"]) => settings.pods = PodMode::Insecure,
            ("pods", ["verified"]) => settings.pods = PodMode::Verified,
            ("endpoint_pod_names", []) => settings.endpoint_pod_names = true,
            ("ignore", ["empty_service"]) => settings.ignore_empty_service = true,
            ("namespaces", [_, ..]) => settings.namespaces.extend(arguments.iter().map(|name| (*name).to_owned())),
            ("kubeconfig", [file]) => settings.kubeconfig = Some(PathBuf::from(file)),
            // How long to wait before the first answer: this server does not wait (DNS-11.2).
            ("startup_timeout", _) => settings.startup_timeout = value(option, values::duration(only(option)?))?,
            ("pods", _) => return Err(option.error("takes disabled, insecure or verified")),
            ("endpoint_pod_names", _) => return Err(option.error("takes no arguments")),
            ("ignore", _) => return Err(option.error("only empty_service can be ignored")),
            ("namespaces", _) => return Err(option.error("takes names of namespaces")),
            ("kubeconfig", _) => {
                return Err(
                    option.error("takes one file; of its contexts the current one counts and none can be named")
                );
            }
            _ => return Err(unknown(line, option)),
        }
    }
    match shared.kubernetes.replace(settings.clone()) {
        Some(other) if other != settings => Err(line.error("there is one cluster: say the same in all server blocks")),
        Some(_) | None => Ok(kubernetes),
    }
}
