//! Chains in the kernel, in a network namespace of the test's own: as root, with the programs of iptables.
#![expect(clippy::print_stderr, reason = "a test that is left out says why")]

use std::process::Command;
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::datapath::iptables::dump::{Dump, Found, compare};
use crate::datapath::iptables::family::{FamilyState, Tally};
use crate::datapath::iptables::programs::{self, Programs, Variant};
use crate::datapath::iptables::watch::{self, Seen};
use crate::datapath::iptables::{Iptables, clear, keeper};
use crate::datapath::{Datapath as _, FlowTimeouts, HostOptions, Options, Report};
use crate::plan::fixture::{cluster, options, service, slice};
use crate::plan::{Endpoint, PortPlan};

/// Does `work` with each variant in a new network namespace, which ends with it.
fn in_a_namespace(work: impl Fn(&Programs) + Sync) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("left out: a network namespace needs root");
        return;
    }
    for variant in Variant::BOTH {
        let Some(programs) = Programs::find(variant) else {
            eprintln!("left out: no programs of iptables ({variant})");
            continue;
        };
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    // The lock of legacy tables is one for the whole host, unless /run is another one.
                    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
                    let none = None::<&str>;
                    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
                    mount(none, "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
                    work(&programs);
                })
                .join()
                .unwrap();
        });
    }
}

fn differences(programs: &Programs, image: &Image) -> (Changes, Found) {
    let [nat, filter] = Table::BOTH.map(|table| programs.save(image.family(), table).unwrap());
    compare(image, Dump::parse(&nat), Dump::parse(&filter))
}

fn install(programs: &Programs, image: &Image) -> Found {
    let (changes, found) = differences(programs, image);
    programs.restore(image.family(), &changes.script(programs.pieces())).unwrap();
    found
}

#[track_caller]
fn run(program: &str, arguments: &str) {
    let status = Command::new(program).args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "{program} {arguments}");
}

fn program(programs: &Programs, family: Family) -> String {
    let name = if family == Family::V4 { "iptables" } else { "ip6tables" };
    format!("{name}-{}", programs.variant)
}

#[test]
fn what_the_kernel_shows_is_what_was_written() {
    in_a_namespace(|programs| {
        let (plan, _) = story();
        for family in Family::BOTH {
            let image = Image::of(&plan, family, PACKETS);
            assert!(install(programs, &image).wrong > 30);
            assert_eq!(differences(programs, &image), Default::default(), "{} {family}", programs.variant);
        }
    });
}

#[test]
fn random_changes_arrive_in_the_kernel() {
    use proptest::strategy::ValueTree as _;
    in_a_namespace(|programs| {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        for family in Family::BOTH {
            let mut image = Image::new(family, PACKETS);
            install(programs, &image);
            for _ in 0..12 {
                let snapshot = any_cluster().new_tree(&mut runner).unwrap().current();
                let options = any_options().new_tree(&mut runner).unwrap().current();
                let before = watch::look(programs.variant, family).ok();
                let changes = image.update(&plan(&snapshot, &options).0);
                let script = changes.script(programs.pieces());
                programs.restore(family, &script).unwrap();
                let after = watch::look(programs.variant, family).ok();
                // Of legacy tables nobody knows.
                let known = programs.variant == Variant::Nft;
                assert_eq!(keeper::follows(before, script.commits(), after), known, "{before:?} {after:?}");
                assert_eq!(differences(programs, &image), Default::default());
            }
        }
    });
}

#[test]
fn what_others_remove_is_noticed_and_found() {
    in_a_namespace(|programs| {
        let (plan, _) = story();
        for family in Family::BOTH {
            let image = Image::of(&plan, family, PACKETS);
            install(programs, &image);
            let iptables = program(programs, family);
            let chains = image.chains().count();
            for (arguments, wrong, jumps) in [
                ("-t nat -F SHUNT-POSTROUTING", 1, 0),
                ("-t filter -D INPUT 1", 0, 1),
                ("-t nat -F PREROUTING", 0, 1),
                ("-t nat -I SHUNT-SERVICES -j RETURN", 1, 0),
            ] {
                let before = watch::look(programs.variant, family).unwrap();
                run(&iptables, arguments);
                assert_ne!(watch::look(programs.variant, family).unwrap(), before, "{arguments}");
                let (_, found) = differences(programs, &image);
                assert_eq!((found.wrong, found.jumps, found.surplus), (wrong, jumps, 0), "{arguments}");
                install(programs, &image);
                assert_eq!(differences(programs, &image), Default::default());
            }
            for table in ["nat", "filter"] {
                run(&iptables, &format!("-t {table} -F"));
                run(&iptables, &format!("-t {table} -X"));
            }
            let (_, found) = differences(programs, &image);
            assert_eq!((found.wrong, found.jumps), (chains, 6));
            install(programs, &image);
            assert_eq!(differences(programs, &image), Default::default());
        }
    });
}

#[test]
fn rules_of_others_are_left_alone() {
    in_a_namespace(|programs| {
        let (plan, _) = story();
        for family in Family::BOTH {
            let iptables = program(programs, family);
            run(&iptables, "-t nat -N KUBE-POSTROUTING");
            run(&iptables, "-t nat -A KUBE-POSTROUTING -j MASQUERADE");
            run(&iptables, "-t nat -A POSTROUTING -j KUBE-POSTROUTING");
            run(&iptables, "-t filter -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT");
            let rules = || {
                let text = programs.save_used(family).unwrap();
                text.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect::<Vec<_>>()
            };
            let before = rules();
            install(programs, &Image::of(&plan, family, PACKETS));
            assert!(before.iter().all(|rule| rules().contains(rule)));
            install(programs, &Image::of(&Plan::default(), family, PACKETS));
            assert!(before.iter().all(|rule| rules().contains(rule)));
            let removed = clear(programs).unwrap();
            assert_eq!(removed.len(), 1, "{removed:?}");
            assert_eq!(rules(), before);
        }
        assert_eq!(clear(programs).unwrap(), []);
    });
}

#[test]
fn lists_of_clients_stay_while_their_endpoints_do() {
    in_a_namespace(|programs| {
        let words = "ip=10.96.1.4 port=http:80/tcp aff=10800";
        let planned = |endpoints: &str| {
            let snapshot = cluster([service("sticky", words)], [slice("sticky", "x", "http:80/tcp", endpoints)]);
            plan(&snapshot, &options()).0
        };
        let mut image = Image::of(&planned("e1:R; e2:R"), Family::V4, PACKETS);
        install(programs, &image);
        let changes = image.update(&planned("e1:R; e2:R; e3:R"));
        let written: Vec<&str> = changes.nat.writes.keys().map(|name| &**name).collect();
        assert!(written.iter().filter(|name| name.starts_with("SHUNT-EP-")).count() == 1, "{written:?}");
        assert!(changes.filter.is_empty() && changes.filter_before.is_empty());
        programs.restore(Family::V4, &changes.script(programs.pieces())).unwrap();
        assert_eq!(differences(programs, &image), Default::default());
    });
}

#[test]
fn a_generation_of_nftables_is_a_number() {
    in_a_namespace(|programs| match watch::look(programs.variant, Family::V4).unwrap() {
        Seen::Nft(_) => assert_eq!(programs.variant, Variant::Nft),
        Seen::Legacy(_) => assert_eq!(programs.variant, Variant::Legacy),
    });
}

#[test]
fn the_variant_that_others_use_is_taken() {
    in_a_namespace(|_| {
        let found: Vec<Programs> = Variant::BOTH.into_iter().filter_map(Programs::find).collect();
        if found.len() < 2 {
            eprintln!("left out: only one variant of iptables is installed");
            return;
        }
        let chosen = || programs::choose(&found).map(|(programs, _)| programs.variant);
        assert_eq!(chosen(), Some(Variant::Nft));
        run("iptables-legacy", "-t filter -A INPUT -j ACCEPT");
        assert_eq!(chosen(), Some(Variant::Legacy));
        // What is ours does not count.
        let nft = found.iter().find(|programs| programs.variant == Variant::Nft).unwrap();
        install(nft, &Image::of(&story().0, Family::V4, PACKETS));
        assert_eq!(chosen(), Some(Variant::Legacy));
        run("iptables-nft", "-t mangle -N KUBE-KUBELET-CANARY");
        assert_eq!(chosen(), Some(Variant::Nft));
    });
}

fn path(programs: &Programs) -> Iptables {
    Iptables {
        programs: programs.clone(),
        options: PACKETS,
        families: Family::BOTH.map(FamilyState::new).into(),
        other: None,
        tally: Tally::default(),
        reports: tokio::sync::watch::channel(Report::default()).0,
        without_affinity: None,
    }
}

/// Services of one endpoint each; those from `bad` on have one that no rule of IPv4 can name.
fn services(count: usize, bad: usize) -> Plan {
    let name = |index| format!("s{index:02}");
    let services = (0..count).map(|index| service(&name(index), &format!("ip=10.96.1.{index} port=http:80/tcp")));
    let slices = (0..count).map(|index| slice(&name(index), "x", "http:80/tcp", "e1:R"));
    let (mut plan, _) = plan(&cluster(services, slices), &options());
    for port in plan.ports.clone().values().skip(bad) {
        let mut port = PortPlan::clone(port);
        port.cluster = [Endpoint { address: "[fd00::1]:80".parse().unwrap(), local: false }].into();
        plan.ports.insert(port.key.clone(), Arc::new(port));
    }
    plan
}

#[test]
fn any_number_of_service_ports_that_are_refused_leaves_the_others_served() {
    in_a_namespace(|programs| {
        let mut path = path(programs);
        let served = |plan: &Plan| {
            let (_, found) = differences(programs, &Image::of(plan, Family::V4, PACKETS));
            found
        };
        let synced = path.sync(&services(24, 4)).unwrap();
        assert_eq!(synced.refused.len(), 20);
        assert!(synced.refused.iter().all(|(_, why)| why.contains("Error occurred at line")), "{:?}", synced.refused);
        let mut wanted = services(24, 24);
        for (key, _) in &synced.refused {
            wanted.ports.remove(key);
        }
        // Their addresses still mean something, as the plan says.
        assert_eq!(served(&wanted), Found::default());
        // One that is good comes, and the bad ones do not stand in its way.
        let synced = path.sync(&services(24, 5)).unwrap();
        assert_eq!(synced.refused.len(), 19);
        wanted = services(24, 24);
        for (key, _) in &synced.refused {
            wanted.ports.remove(key);
        }
        assert_eq!(served(&wanted), Found::default());
        // All become good: each sync tries some of them.
        let syncs = std::iter::repeat_with(|| path.sync(&services(24, 24)).unwrap().refused.len());
        assert_eq!(syncs.take(2).collect::<Vec<_>>(), [3, 0]);
        assert_eq!(served(&services(24, 24)), Found::default());
        let numbers = path.reports.borrow().numbers.clone();
        assert!(numbers.iter().all(|number| number.value >= 20), "{numbers:?}");
        assert_eq!(path.sync(&services(24, 24)).unwrap().writes, 0);
    });
}

#[test]
fn a_family_that_fails_keeps_the_other_from_nothing() {
    in_a_namespace(|programs| {
        if programs.variant == Variant::Legacy {
            return;
        }
        // A chain of our name that iptables cannot replace.
        run("nft", "add table ip nat");
        run("nft", "add chain ip nat SHUNT-MARK { type filter hook input priority 5 ; }");
        let (plan, _) = story();
        let mut path = path(programs);
        let error = shunt_model::with_causes(&path.sync(&plan).unwrap_err());
        assert!(error.contains("iptables-nft-restore") && error.contains("chain SHUNT-MARK"), "{error}");
        let v6 = Image::of(&plan, Family::V6, PACKETS);
        assert_eq!(differences(programs, &v6), Default::default());
        run("nft", "delete table ip nat");
        path.sync(&plan).unwrap();
        assert_eq!(differences(programs, &Image::of(&plan, Family::V4, PACKETS)), Default::default());
    });
}

#[test]
fn a_lock_that_another_program_holds_is_named_with_what_to_do() {
    in_a_namespace(|programs| {
        let lock = std::fs::File::create("/run/xtables.lock").unwrap();
        lock.lock().unwrap();
        let image = Image::of(&story().0, Family::V4, PACKETS);
        let (changes, _) = differences(programs, &image);
        let outcome = programs.restore(Family::V4, &changes.script(programs.pieces()));
        match programs.variant {
            Variant::Nft => outcome.unwrap(),
            Variant::Legacy => {
                let error = outcome.unwrap_err().to_string();
                assert!(error.contains("held the lock /run/xtables.lock for 1 s"), "{error}");
                assert!(error.contains("`fuser -v /run/xtables.lock` names it"), "{error}");
                drop(lock);
                programs.restore(Family::V4, &changes.script(programs.pieces())).unwrap();
            }
        }
        assert_eq!(differences(programs, &image), Default::default());
    });
}

#[test]
fn an_open_path_serves_each_family_of_which_the_kernel_takes_the_rules() {
    in_a_namespace(|programs| {
        let host = HostOptions { cgroup_root: None, bpf_root: "/nowhere".into() };
        let options = Options {
            host,
            object: None,
            bind_protection: false,
            packets: PACKETS,
            devices: crate::host::devices::Devices::default(),
            flow_timeouts: FlowTimeouts::default(),
            pods: crate::plan::PodDetection::default(),
        };
        // What others have decides about the variant.
        run(&program(programs, Family::V4), "-t filter -A INPUT -j ACCEPT");
        let mut opened = crate::datapath::iptables::open(&options, &Arc::default()).unwrap();
        assert_eq!(opened.adopted, format!("0 chains of iptables ({})", programs.variant));
        let (plan, _) = story();
        opened.path.sync(&plan).unwrap();
        for family in Family::BOTH {
            assert_eq!(differences(programs, &Image::of(&plan, family, PACKETS)), Default::default());
        }
        assert_eq!(opened.path.audit().unwrap(), 0);
        let numbers = opened.reports[0].borrow().numbers.clone();
        assert_eq!(numbers.iter().map(|number| number.value).collect::<Vec<_>>(), [2, 0]);
    });
}
