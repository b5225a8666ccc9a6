//! Tables in the kernel, in a network namespace of the test's own: as root, with nft.
#![expect(clippy::print_stderr, reason = "a test that is left out says why")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::datapath::nftables::disturbance::{Disturbance, Disturbances, Listener};
use crate::datapath::nftables::leftovers::{Leftovers, MOMENT};
use crate::datapath::nftables::nft::{Nft, Ours};
use crate::datapath::nftables::{Nftables, door};
use crate::datapath::{Datapath as _, FlowTimeouts, Report};

/// Does `work` in a new network namespace, which ends with it.
fn in_a_namespace(work: impl FnOnce(Nft) + Send) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("left out: a network namespace needs root");
        return;
    }
    let Some(nft) = Nft::find() else {
        eprintln!("left out: no command nft");
        return;
    };
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            work(nft);
        });
        worker.join().unwrap();
    });
}

fn path(nft: &Nft) -> Nftables {
    let families = Family::BOTH.into_iter().collect();
    let reports = watch::channel(Report::default()).0;
    Nftables::new(nft.clone(), PACKETS, families, Disturbances::default(), reports)
}

fn nft(nft: &Nft, arguments: &str) -> String {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    String::from_utf8(nft.run(&arguments, "").unwrap()).unwrap()
}

/// The kernel has what the path believes, but for rules, which are only counted.
#[track_caller]
fn check_in_place(path: &Nftables, plan: &Plan) {
    let installed = path.read().unwrap();
    let (image, _) = Image::of(plan, &rendering(plan));
    let names: BTreeMap<Named, usize> =
        image.chains.iter().map(|(name, (rules, _))| (name.clone(), rules.len())).collect();
    let mut chains = installed.chains.clone();
    chains.retain(|(family, name), _| {
        !path.leftovers.contains(&Unused { family: *family, kind: "chain", name: name.clone() })
    });
    assert_eq!(chains, names);
    let change = Change::from_installed(&installed, image);
    assert!(change.elements.is_empty(), "{:?}", change.elements);
    assert!(!installed.misplaced);
}

#[test]
fn what_the_kernel_shows_is_what_was_written() {
    in_a_namespace(|command| {
        let (plan, _) = story();
        let mut first = path(&command);
        assert!(first.sync(&plan).unwrap().writes > 100);
        check_in_place(&first, &plan);
        assert_eq!(first.sync(&plan).unwrap().writes, 0);
        // Another daemon finds all of it, and touches no element.
        let mut second = path(&command);
        let wrong = Change::from_installed(&second.read().unwrap(), Image::of(&plan, &rendering(&plan)).0)
            .wrong(&Leftovers::default());
        assert_eq!((wrong.elements, wrong.chains, wrong.sets), (0, 0, 0));
        second.sync(&plan).unwrap();
        check_in_place(&second, &plan);
        let removed: Vec<String> = door::remove().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(removed, ["2 nftables tables (ip shunt, ip6 shunt)"]);
        assert_eq!(door::remove().unwrap(), []);
        assert_eq!(nft(&command, "list ruleset"), "");
    });
}

#[test]
fn random_changes_arrive_in_the_kernel() {
    use proptest::strategy::ValueTree as _;
    in_a_namespace(|command| {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let mut path = path(&command);
        for _ in 0..40 {
            let snapshot = any_cluster().new_tree(&mut runner).unwrap().current();
            let options = any_options().new_tree(&mut runner).unwrap().current();
            let (plan, _) = plan(&snapshot, &options);
            let synced = path.sync(&plan).unwrap();
            assert_eq!(synced.refused, []);
            check_in_place(&path, &plan);
            path.delete_unused(Instant::now() + MOMENT);
            assert_eq!(path.leftovers, Leftovers::default());
            check_in_place(&path, &plan);
        }
        assert_eq!(path.tally.failures, 0);
    });
}

#[test]
fn what_others_changed_is_put_back_and_counted() {
    in_a_namespace(|command| {
        let (plan, _) = story();
        let mut path = path(&command);
        path.sync(&plan).unwrap();
        let harms = [
            "flush ruleset",
            "delete table ip6 shunt",
            "flush map ip shunt frontends",
            "flush chain ip shunt nat-prerouting",
            "delete chain ip shunt filter-forward",
            "delete chain ip shunt made-by-shunt-v1",
            "delete table ip shunt; add table ip shunt",
            "add table ip shunt { flags dormant; }",
            "add chain ip shunt foreign",
            "add set ip shunt foreign { type ipv4_addr; }",
            "add element ip shunt cluster-ips { 10.96.77.77 }",
        ];
        for harm in harms {
            nft(&command, harm);
            path.disturbances.put(1, "nft".to_owned());
            assert!(path.audit().unwrap() > 0, "{harm}");
            check_in_place(&path, &plan);
            path.delete_unused(Instant::now() + MOMENT);
            let listed = nft(&command, "list table ip shunt");
            for left in ["foreign", "10.96.77.77", "dormant"] {
                assert!(!listed.contains(left), "after {harm}");
            }
            assert_eq!(path.audit().unwrap(), 0);
            path.rests_until = None;
        }
        assert_eq!(path.reports.borrow().installed.restored, 11);
        // One that comes at once again waits for the end of the rest.
        nft(&command, "flush map ip shunt frontends");
        path.disturbances.put(1, "nft".to_owned());
        path.rests_until = Instant::now().checked_add(Duration::from_secs(3600));
        assert_eq!(path.audit().unwrap(), 0);
        path.rests_until = Some(Instant::now());
        assert!(path.audit().unwrap() > 0);
        check_in_place(&path, &plan);
    });
}

#[test]
fn a_refused_change_is_repaired_in_the_same_sync() {
    in_a_namespace(|command| {
        let (story, _) = story();
        let mut path = path(&command);
        path.sync(&Plan { addresses: story.addresses.clone(), ..Plan::default() }).unwrap();
        // What the difference wants to add is there already, and leads elsewhere.
        nft(&command, "add element ip shunt frontends { 10.96.0.1 . tcp . 80 : drop }");
        assert_eq!(path.sync(&story).unwrap().refused, []);
        check_in_place(&path, &story);
        assert_eq!(path.tally.failures, 1);
    });
}

#[test]
fn many_refused_service_ports_are_the_fault_of_their_table() {
    in_a_namespace(|command| {
        let names: Vec<String> = (0..20).map(|index| format!("web-{index}")).collect();
        let services =
            (1..).zip(&names).map(|(index, name)| service(name, &format!("ip=10.96.0.{index} port=http:80/tcp")));
        let slices = names.iter().map(|name| slice(name, "x", "http:80/tcp", "e1:R"));
        let (plan, _) = plan(&cluster(services, slices), &options());
        nft(&command, "add table ip shunt");
        nft(&command, "add chain ip shunt made-by-shunt-v1");
        nft(&command, "add map ip shunt frontends { type ipv4_addr . inet_proto . inet_service : verdict; size 3; }");
        let mut path = path(&command);
        let first = path.sync(&plan).unwrap();
        assert!(first.refused.len() < names.len(), "{:?}", first.refused);
        for _ in 0..2 {
            path.sync(&plan).unwrap();
        }
        assert_eq!(path.sync(&plan).unwrap().refused, []);
        check_in_place(&path, &plan);
    });
}

#[test]
fn a_table_that_cannot_be_removed_without_the_command_is_named() {
    in_a_namespace(|command| {
        door::without_command().unwrap();
        for ip in ["ip6", "ip"] {
            nft(&command, &format!("add table {ip} shunt"));
            let said = door::without_command().unwrap_err().to_string();
            assert!(said.starts_with(&format!("the table {ip} shunt is there and the command nft is not")), "{said}");
        }
    });
}

#[test]
fn a_table_of_somebody_else_is_not_touched() {
    in_a_namespace(|command| {
        nft(&command, "add table ip shunt; add chain ip shunt mine");
        let error = path(&command).sync(&Plan::default()).unwrap_err();
        let said = shunt_model::with_causes(&error);
        assert!(said.contains("the table ip shunt was not made by shunt"), "{said}");
        assert!(said.contains("nft delete table ip shunt"), "{said}");
        assert_eq!(door::remove().unwrap(), []);
        assert_eq!(nft(&command, "list ruleset"), "table ip shunt {\n\tchain mine {\n\t}\n}\n");
    });
}

#[test]
fn clients_are_remembered_across_restarts_and_timeouts() {
    in_a_namespace(|command| {
        let planned = |timeout: u32| {
            let services = [service("web", &format!("ip=10.96.0.1 port=http:80/tcp aff={timeout}"))];
            plan(&cluster(services, [slice("web", "x", "http:80/tcp", "e1:R; e2:R")]), &options()).0
        };
        let set = "clients/default/web/tcp/http/10.1.0.1/80";
        let known = |timeout: u32| {
            let clients = path(&command).read().unwrap().clients;
            let clients = &clients[&(Family::V4, set.to_owned())];
            assert_eq!(clients.len(), 1);
            assert_eq!((clients[0].address, clients[0].timeout), (ip("192.0.2.9"), timeout));
            clients[0].expires
        };
        let mut first = path(&command);
        first.sync(&planned(1000)).unwrap();
        let client = format!("add element ip shunt {set} {{ 192.0.2.9 timeout 1000s expires 900s }}");
        command.run(&["-f", "-"], &client).unwrap();
        first.sync(&planned(2000)).unwrap();
        assert!((1800..=1900).contains(&known(2000)));
        // A restart with another time-out.
        path(&command).sync(&planned(500)).unwrap();
        assert!((300..=400).contains(&known(500)));
        // It ends with its endpoint.
        let mut last = path(&command);
        last.sync(&planned(500)).unwrap();
        last.sync(&Plan::default()).unwrap();
        last.delete_unused(Instant::now() + MOMENT);
        assert!(!nft(&command, "list table ip shunt").contains("clients/"));
    });
}

#[test]
fn a_table_of_another_version_is_replaced() {
    in_a_namespace(|command| {
        let (plan, _) = story();
        nft(&command, "add table ip shunt");
        nft(&command, "add chain ip shunt made-by-shunt-v0");
        nft(&command, "add map ip shunt frontends { type ipv4_addr : verdict; }");
        nft(&command, "add chain ip shunt nat-prerouting { type filter hook input priority 0; policy drop; }");
        let mut path = path(&command);
        path.sync(&plan).unwrap();
        check_in_place(&path, &plan);
        // The same for one of ours that cannot be repaired piece by piece.
        nft(&command, "delete table ip shunt");
        nft(&command, "add table ip shunt");
        nft(&command, "add chain ip shunt made-by-shunt-v1");
        nft(&command, "add set ip shunt frontends { type ipv4_addr; }");
        path.disturbances.put_lost();
        assert!(path.audit().is_err());
        path.sync(&plan).unwrap();
        check_in_place(&path, &plan);
    });
}

#[test]
fn a_probe_changes_nothing() {
    in_a_namespace(|command| {
        let options = crate::datapath::Options {
            host: crate::datapath::HostOptions { cgroup_root: None, bpf_root: "/sys/fs/bpf".into() },
            object: None,
            bind_protection: false,
            packets: PACKETS,
            devices: crate::host::devices::Devices::default(),
            flow_timeouts: FlowTimeouts::default(),
            pods: crate::plan::PodDetection::default(),
        };
        nft(&command, "add table ip shunt");
        let found = crate::datapath::nftables::probe::look(&command, &options).unwrap();
        assert_eq!(found.families, Family::BOTH.into_iter().collect());
        assert_eq!(nft(&command, "list ruleset"), "table ip shunt {\n}\n");
    });
}

#[test]
fn a_transaction_without_reports_hides_no_other() {
    in_a_namespace(|command| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let inside = runtime.enter();
        let disturbed = Arc::<Notify>::default();
        let listener = Listener::open(Ours::default(), Arc::clone(&disturbed)).unwrap();
        let disturbances = listener.disturbances();
        let add = |chain: &str| command.run(&["add", "chain", "ip", "shunt", chain], "");
        nft(&command, "add table ip other");
        disturbances.unheard(|| command.run(&["add", "table", "ip", "shunt"], "")).unwrap();
        assert_eq!(disturbances.take(), Disturbance::None);
        disturbances.unheard(|| add("two").and_then(|_| add("three"))).unwrap();
        assert_eq!(disturbances.take(), Disturbance::Unknown);
        disturbances.unheard(|| add("-")).unwrap_err();
        assert_eq!(disturbances.take(), Disturbance::None);
        // It has heard nothing of these, and hears the next one.
        add("four").unwrap();
        drop(inside);
        runtime.block_on(async {
            tokio::select! {
                () = listener.run(CancellationToken::new()) => {}
                () = disturbed.notified() => {}
            }
        });
        assert_eq!(disturbances.take(), Disturbance::By("nft".to_owned()));
    });
}
