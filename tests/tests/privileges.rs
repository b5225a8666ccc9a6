//! The daemon with the capabilities that `deploy/` gives it and no others, and with one of them missing.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]
#![expect(clippy::indexing_slicing, reason = "a test that cannot go on has failed, its helpers included")]

mod cluster;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use cluster::{Cluster, Shop};
use lab::manifests::PodState;
use lab::peer::Mode;
use lab::{Daemon, DaemonOptions};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);

fn deploy(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// As the container of the DaemonSet has them, in the spelling of setpriv.
fn capabilities() -> BTreeSet<String> {
    let daemonset: Value = serde_saphyr::from_str(&deploy("kustomize/daemonset.yaml")).unwrap();
    let context = &daemonset["spec"]["template"]["spec"]["containers"][0]["securityContext"];
    assert_eq!(context["capabilities"]["drop"][0], "ALL");
    let added = context["capabilities"]["add"].as_array().unwrap();
    added.iter().map(|name| name.as_str().unwrap().to_lowercase()).collect()
}

#[test]
fn the_unit_and_the_chart_give_what_the_daemon_set_gives() {
    let unit = deploy("systemd/shunt.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let of_unit: BTreeSet<String> =
        line.split_whitespace().map(|name| name.strip_prefix("CAP_").unwrap().to_lowercase()).collect();
    assert_eq!(of_unit, capabilities());
    let table = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/privileges.md")).unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `CAP_")?.split_once('`'));
    let documented: BTreeSet<String> = rows.map(|(name, _)| name.to_lowercase()).collect();
    assert_eq!(documented, capabilities());
}

#[test]
fn with_exactly_these_services_and_names_are_served() {
    let only = capabilities().into_iter().collect();
    let with = |options: &mut DaemonOptions| options.capabilities = Some(only);
    let Some(cluster) = Cluster::alone_with("caps", with) else { return };
    let mut shop = Shop::open(&cluster, "shop", &[PodState::Ready]);
    let attempts = |to: SocketAddr, mode| shop.client.connect(to, mode, 1).unwrap()[0].clone();
    for to in shop.addresses() {
        assert_eq!(attempts(to, Mode::Tcp).server.as_deref(), Some("shop-0"));
    }
    let answer = cluster.daemon().command(&["dns", "shop.test.svc.cluster.local"]).unwrap();
    assert!(answer.starts_with("NOERROR: from the cluster's objects"), "{answer}");
    assert!(answer.contains(&shop.addresses()[0].ip().to_string()), "{answer}");
    // Ending the sockets to an endpoint that left takes entering the namespaces of pods.
    let to = shop.addresses()[0];
    let mut talking = shop.client.connect_loop(to, Mode::Udp, 5).unwrap();
    shop.add(PodState::Ready);
    shop.set(0, PodState::Unready);
    talking.wait_for(lab::peer::now(), "shop-1", |attempt| attempt.server.as_deref() == Some("shop-1")).unwrap();
    let log = fs::read_to_string(cluster.daemon().process().log()).unwrap();
    let complaints: Vec<&str> =
        log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn one_that_is_missing_is_named_with_what_it_is_for() {
    let Some(cluster) = Cluster::alone("capless") else { return };
    assert!(cluster.daemon().stop().unwrap().success());
    for missing in capabilities() {
        let mut options = DaemonOptions::new(cluster.manifests.directory());
        options.capabilities = Some(capabilities().into_iter().filter(|name| *name != missing).collect());
        if missing == "net_raw" {
            options.extra = ["--proxy-mode", "iptables"].map(str::to_owned).to_vec();
        }
        let daemon = Daemon::start_without_waiting(&cluster.node, options).unwrap();
        let log = daemon.process().log().to_owned();
        let finished = daemon.into_process().finish(PATIENCE).unwrap();
        let log = fs::read_to_string(log).unwrap();
        assert_eq!(finished.status.code(), Some(1), "without {missing}:\n{log}");
        let name = format!("CAP_{} is missing, which ", missing.to_uppercase());
        let told = log.lines().filter(|line| line.starts_with("shunt: ") && line.contains(&name)).count();
        assert_eq!(told, 1, "without {missing}:\n{log}");
    }
}
