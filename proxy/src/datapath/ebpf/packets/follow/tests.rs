//! Programs at devices of a network namespace, by both ways; these need root.

use std::path::PathBuf;
use std::time::Instant;

use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, loaded_programs};

use super::super::super::pins::{self, Owner};
use super::super::{OBJECT, remove_filters};
use super::*;
use crate::host::addresses::tests::{in_a_namespace, ip};
use crate::host::netlink::filters::{self, Filter, Parent};

/// Pins of a test.
struct Place {
    root: PathBuf,
    pins: Pins,
}

impl Place {
    fn new(test: &str) -> Self {
        let root = PathBuf::from(format!("/sys/fs/bpf/shunt-unit-{}-{test}", std::process::id()));
        let pins = Pins::create(&root).unwrap();
        Self { root, pins }
    }

    /// A start of the daemon.
    fn follow(&self, has_tcx: bool) -> (Follower, [usize; 3]) {
        let loaded = Loaded::load(OBJECT, &self.pins).unwrap_or_else(|error| panic!("{error}"));
        let mut follower = Follower::idle(loaded, &self.pins, PacketOptions::default()).unwrap();
        follower.ways.has_tcx = has_tcx;
        let Links { kept, replaced, attached } = follower.look().unwrap();
        follower.loaded.pin(&self.pins).unwrap();
        (follower, [kept, replaced, attached])
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Nothing is done about a failure: what is left shows by its name.
        drop(pins::remove(&self.root, Owner::Devices));
    }
}

/// Runs `work` in a namespace of its own, if programs are built in.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
fn with_programs(test: &'static str, work: impl FnOnce(&Place) + Send) {
    if OBJECT.is_empty() {
        eprintln!("SKIPPED {test}: built without BPF programs (cargo xtask build)");
        return;
    }
    in_a_namespace(test, async {
        ip(&["link set lo up", "link add eth0 type veth peer name far", "address add 192.0.2.5/24 dev eth0"]);
        work(&Place::new(test));
    });
}

/// The programs at a device, such as `tcx shunt_ingress`: first at ingress, each place in the order in which they run.
fn attached(device: &str) -> Vec<String> {
    let mut netlink = Netlink::open(NETLINK_ROUTE).unwrap();
    let link = links::list(&mut netlink).unwrap().into_iter().find(|link| link.name == device);
    let Some(Link { index, .. }) = link else { return Vec::new() };
    let name = |filter: &Filter| {
        let Some(id) = filter.program else { return "of another tool".to_owned() };
        let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id).unwrap();
        program.name_as_str().unwrap().to_owned()
    };
    let mut found = Vec::new();
    for (direction, parent) in [(TcAttachType::Ingress, Parent::Ingress), (TcAttachType::Egress, Parent::Egress)] {
        let (_, programs) = SchedClassifier::query_tcx(device, direction).unwrap();
        found.extend(programs.iter().map(|program| format!("tcx {}", program.name_as_str().unwrap())));
        let filters = filters::list(&mut netlink, index, parent).unwrap();
        found.extend(filters.iter().map(|filter| format!("clsact {}", name(filter))));
    }
    found
}

/// Waits until these are attached: the kernel detaches a link some time after its pin is gone.
#[track_caller]
fn check(device: &str, wanted: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while attached(device) != wanted && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(attached(device), wanted);
}

const BY_TCX: [&str; 2] = ["tcx shunt_ingress", "tcx shunt_egress"];
const BY_CLSACT: [&str; 2] = ["clsact shunt_ingress", "clsact shunt_egress"];

#[test]
fn links_follow_the_devices_and_are_kept_by_the_next_start() {
    with_programs("tcx", |place| {
        let (mut follower, links) = place.follow(true);
        assert_eq!((links, attached("eth0")), ([0, 0, 2], BY_TCX.map(str::to_owned).to_vec()));
        assert_eq!(attached("lo"), Vec::<String>::new());
        ip(&["tuntap add tun0 mode tun"]);
        follower.look().unwrap();
        // The kernel keeps 15 bytes of a name.
        assert_eq!(attached("tun0"), ["tcx shunt_ingress_i", "tcx shunt_egress_ip"]);
        ip(&[
            "link del tun0",
            "link del eth0",
            "link add eth1 type veth peer name far",
            "address add 192.0.2.6/24 dev eth1",
        ]);
        follower.look().unwrap();
        assert_eq!(attached("eth1"), BY_TCX);
        assert_eq!(std::fs::read_dir(&place.pins.devices).unwrap().count(), 2, "the pins of gone devices are removed");
        drop(follower);
        let (mut follower, links) = place.follow(true);
        assert_eq!((links, attached("eth1")), ([2, 0, 0], BY_TCX.map(str::to_owned).to_vec()));
        // What another program removes is back at the next look.
        std::fs::remove_dir_all(&place.pins.devices).unwrap();
        check("eth1", &[]);
        follower.look().unwrap();
        assert_eq!((attached("eth1"), follower.installed.restored), (BY_TCX.map(str::to_owned).to_vec(), 1));
        ip(&["address del 192.0.2.6/24 dev eth1"]);
        follower.look().unwrap();
        // It is no uplink any more.
        check("eth1", &[]);
        assert_eq!(bpf::keys::<4>(follower.map.as_fd()).unwrap(), Vec::<[u8; 4]>::new());
    });
}

#[test]
fn filters_serve_where_there_are_no_links_and_stay_for_the_next_start() {
    with_programs("clsact", |place| {
        let (follower, links) = place.follow(false);
        assert_eq!((links, attached("eth0")), ([0, 0, 2], BY_CLSACT.map(str::to_owned).to_vec()));
        drop(follower);
        let (mut follower, links) = place.follow(false);
        assert_eq!((links, attached("eth0")), ([2, 0, 0], BY_CLSACT.map(str::to_owned).to_vec()));
        ip(&["address del 192.0.2.5/24 dev eth0"]);
        follower.look().unwrap();
        check("eth0", &[]);
        ip(&["address add 192.0.2.5/24 dev eth0"]);
        follower.look().unwrap();
        check("eth0", &BY_CLSACT);
        // From one way to the other.
        drop(follower);
        let (follower, links) = place.follow(true);
        assert_eq!((links, attached("eth0")), ([0, 0, 2], BY_TCX.map(str::to_owned).to_vec()));
        drop(follower);
        place.follow(false);
        check("eth0", &BY_CLSACT);
        assert_eq!((remove_filters().unwrap(), attached("eth0")), (2, Vec::new()));
        assert_eq!(remove_filters().unwrap(), 0);
    });
}

#[test]
fn between_links_of_others_ours_is_the_first_and_the_last_whenever_they_come() {
    with_programs("others", |place| {
        let (mut follower, _) = place.follow(true);
        // Programs for other devices do as those of another tool: they are attached at the wrong side of ours.
        let mut join = |name: &'static str, direction, order| {
            let program = follower.loaded.program(name).unwrap();
            let options = TcAttachOptions::TcxOrder(order);
            let id = program.attach_with_options("eth0", direction, options).unwrap();
            program.take_link(id).unwrap()
        };
        let _links = [
            join("shunt_ingress_ip", TcAttachType::Ingress, LinkOrder::first()),
            join("shunt_egress_ip", TcAttachType::Egress, LinkOrder::last()),
        ];
        let wrong = ["tcx shunt_ingress_i", "tcx shunt_ingress", "tcx shunt_egress", "tcx shunt_egress_ip"];
        assert_eq!(attached("eth0"), wrong);
        follower.look().unwrap();
        let right = ["tcx shunt_ingress", "tcx shunt_ingress_i", "tcx shunt_egress_ip", "tcx shunt_egress"];
        check("eth0", &right);
        drop(follower);
        let (_, links) = place.follow(true);
        assert_eq!((links, attached("eth0")), ([2, 0, 0], right.map(str::to_owned).to_vec()));
    });
}

#[test]
fn behind_filters_of_others_at_egress_ours_is_a_filter_too() {
    with_programs("foreign", |place| {
        let (mut follower, _) = place.follow(true);
        run("tc", "qdisc add dev eth0 clsact");
        run("tc", "filter add dev eth0 egress prio 10 bpf bytecode 1,6\u{a0}0\u{a0}0\u{a0}0, flowid 1:1");
        follower.look().unwrap();
        check("eth0", &["tcx shunt_ingress", "clsact of another tool", "clsact shunt_egress"]);
        run("tc", "filter del dev eth0 egress prio 10");
        follower.look().unwrap();
        check("eth0", &BY_TCX);
    });
}

/// Runs a command; what is to be one word has spaces that do not break.
fn run(program: &str, arguments: &str) {
    let arguments = arguments.split(' ').map(|word| word.replace('\u{a0}', " "));
    let status = std::process::Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program}");
}
