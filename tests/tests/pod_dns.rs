//! DNS as pods use it: by their resolver libraries, through changes, and while the daemon comes and goes.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]

mod cluster;
mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use cluster::{CLUSTER_DNS, Cluster, Shop};
use lab::Pod;
use lab::manifests::{self, PodState, Port};

const HTTP: Port<'_> = Port { name: "http", protocol: "TCP", port: 80, target: 7000 };
const WEB: &str = "web.test.svc.cluster.local";
const PATIENCE: Duration = Duration::from_secs(30);

/// A compiler for each library, and how it is called.
const LIBRARIES: [(&str, &[&str]); 2] = [("glibc", &["cc"]), ("musl", &["musl-gcc", "-static"])];

fn resolver(directory: &Path, library: &str, compiler: &[&str]) -> PathBuf {
    let program = directory.join(format!("resolve-{library}"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("resolver/resolve.c");
    let (compiler, flags) = compiler.split_first().unwrap();
    let done = Command::new(compiler).args(flags).arg("-o").arg(&program).arg(source).status().unwrap();
    assert!(done.success(), "{compiler} does not compile resolve.c");
    program
}

/// Asks for names as a program in the pod would, with the kubelet's resolv.conf.
fn ask(pod: &Pod, program: &Path, resolv_conf: &Path, names: &[&str]) -> BTreeMap<String, String> {
    let (program, conf) = (program.display().to_string(), resolv_conf.display().to_string());
    let shell = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    let mut command = vec!["unshare", "--mount", "sh", "-c", shell, &conf, &program];
    command.extend(names);
    let finished = pod.spawn(&command).unwrap().finish(PATIENCE).unwrap();
    assert!(finished.status.success(), "{program} ended with {}", finished.status);
    let line = |line: &String| {
        let (name, answer) = line.split_once(' ').unwrap();
        (name.to_owned(), answer.to_owned())
    };
    finished.lines.iter().map(line).collect()
}

#[test]
fn the_resolver_libraries_of_glibc_and_musl_find_what_they_are_asked_for() {
    let mut upstream = None;
    let cluster = Cluster::alone_with("resolvers", |options| {
        let at = SocketAddr::from((Ipv4Addr::new(172, 18, 0, 1), 53));
        options.dns_upstream = Some(at);
        upstream = Some(at);
    });
    let (Some(cluster), Some(upstream)) = (cluster, upstream) else { return };
    let _upstream = cluster
        .router()
        .dns_upstream(upstream.ip(), &["www.example.org=192.0.2.7", "a.b.c.d.e.example=192.0.2.8"])
        .unwrap();
    let shop = Shop::open(&cluster, "web", &[PodState::Ready, PodState::Ready]);
    let headless = manifests::headless("test", "web-headless", "web", &[HTTP]);
    cluster.manifests.put("headless", &[headless, manifests::namespace("other")]).unwrap();
    wait_until_named(&cluster, &shop.client);
    let ips = |ips: &[IpAddr]| {
        let mut texts: Vec<String> = ips.iter().map(ToString::to_string).collect();
        texts.sort();
        texts.join(" ")
    };
    let service = ips(&shop.addresses().map(|address| address.ip()));
    let [first, second] = [0, 1].map(|index| [IpAddr::V4(shop.pod(index).ipv4), IpAddr::V6(shop.pod(index).ipv6)]);
    let all = ips(&[first, second].concat());
    let pod = shop.pod(0).ipv4.to_string().replace('.', "-");
    let pod_name = format!("{pod}.test.pod.cluster.local");
    let rows = [
        ("web", service.as_str()),
        ("web.test", &service),
        ("web.test.svc", &service),
        ("web.test.svc.cluster.local", &service),
        ("web.test.svc.cluster.local.", &service),
        ("WEB.Test", &service),
        ("web-headless", &all),
        ("web-0.web-headless", &ips(&first)),
        ("web-1.web-headless.test.svc.cluster.local", &ips(&second)),
        (&pod_name, &shop.pod(0).ipv4.to_string()),
        ("www.example.org", "192.0.2.7"),
        ("a.b.c.d.e.example", "192.0.2.8"),
        ("web.other", "none"),
        ("nothing", "none"),
        ("nothing.example.org", "none"),
    ];
    let directory = cluster.manifests.directory().parent().unwrap();
    let conf = directory.join("resolv.conf");
    // As the kubelet writes it (DNS-17.1).
    let search = "test.svc.cluster.local svc.cluster.local cluster.local";
    std::fs::write(&conf, format!("nameserver {CLUSTER_DNS}\nsearch {search}\noptions ndots:5\n")).unwrap();
    for (library, compiler) in LIBRARIES {
        let program = resolver(directory, library, compiler);
        let answers = ask(&shop.client, &program, &conf, &rows.map(|(name, _)| name));
        for (name, wanted) in rows {
            assert_eq!(answers.get(name).map(String::as_str), Some(wanted), "{name} by {library}");
        }
    }
}

#[test]
fn a_name_leads_to_a_new_endpoint_only_when_the_load_balancing_does_too() {
    let Some(cluster) = Cluster::alone("samesync") else { return };
    let mut shop = Shop::open(&cluster, "web", &[PodState::Ready]);
    cluster.manifests.put("headless", &[manifests::headless("test", "web-headless", "web", &[HTTP])]).unwrap();
    cluster.wait_until_applied(&shop.client);
    let headless = "web-headless.test.svc.cluster.local";
    for number in 1..6 {
        shop.add(PodState::Ready);
        let new = shop.pod(number).ipv4.to_string();
        let named = || is_named(&shop.client, headless, &new) == Some(true);
        cluster.wait_for("the name of the new pod", named);
        assert!(cluster.services().contains(&format!("{new}:7000")), "{new} is named but gets no connections yet");
    }
    for number in (1..6).rev() {
        shop.set(number, PodState::Unready);
        let old = shop.pod(number).ipv4.to_string();
        let unbalanced = || !cluster.services().contains(&format!("{old}:7000"));
        cluster.wait_for("the end of the pod's connections", unbalanced);
        let unnamed = || is_named(&shop.client, headless, &old) == Some(false);
        cluster.wait_for("the end of the pod's name", unnamed);
    }
}

/// What a pod gets from the cluster DNS address, or why it gets nothing.
fn asked(pod: &Pod, name: &str) -> String {
    let answer = pod.resolve(name, "A", CLUSTER_DNS);
    answer.map_or_else(|error| format!("{error:#}"), |answer| answer.data().join(" "))
}

/// Waits until a pod gets this answer, which may come a moment after a change, and a datagram may be lost.
fn wait_for_answer(cluster: &Cluster, pod: &Pod, name: &str, wanted: &str) {
    cluster.wait_for(&format!("{wanted} for {name}"), || asked(pod, name) == wanted);
}

/// Whether the address is one of the name's; `None` without an answer.
fn is_named(pod: &Pod, name: &str, address: &str) -> Option<bool> {
    Some(pod.resolve(name, "A", CLUSTER_DNS).ok()?.data().contains(&address))
}

/// Waits until everything written so far is in force, names included: they follow the load balancing.
fn wait_until_named(cluster: &Cluster, client: &Pod) {
    let (marker, address) = cluster.wait_until_applied(client);
    wait_for_answer(cluster, client, &marker, &address.to_string());
}

/// Runs `ip` on the node.
fn ip(cluster: &Cluster, commands: &[&str]) {
    for arguments in commands {
        let command: Vec<&str> = std::iter::once("ip").chain(arguments.split(' ')).collect();
        let finished = cluster.node.spawn(&command).unwrap().finish(PATIENCE).unwrap();
        assert!(finished.status.success(), "ip {arguments}");
    }
}

/// The lines of the daemon's log with all of `parts`.
fn logged(cluster: &Cluster, parts: &[&str]) -> Vec<String> {
    let log = std::fs::read_to_string(cluster.daemon().process().log()).unwrap();
    log.lines().filter(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned).collect()
}

#[test]
fn the_cluster_s_own_dns_pods_answer_while_ours_does_not() {
    let Some(cluster) = Cluster::alone("fallback") else { return };
    let shop = Shop::open(&cluster, "web", &[PodState::Ready]);
    let _old = cluster.old_dns();
    wait_until_named(&cluster, &shop.client);
    let ours = shop.addresses().map(|address| address.ip().to_string());
    let asked = || asked(&shop.client, WEB);
    wait_for_answer(&cluster, &shop.client, WEB, &ours[0]);
    // The daemon that stops hands over.
    assert!(cluster.daemon().stop().unwrap().success());
    wait_for_answer(&cluster, &shop.client, WEB, "192.0.2.99");
    cluster.daemon().restart().unwrap();
    // As soon as it knows the cluster, which may be a moment after it is ready.
    cluster.wait_for("the new daemon", || {
        let answer = asked();
        assert_ne!(answer, "", "no pod is sent to a server that knows no names");
        answer == ours[0]
    });
}

#[test]
fn the_cluster_s_own_dns_pods_answer_from_the_moment_at_which_the_daemon_is_killed() {
    let Some(cluster) = Cluster::alone("dnskilled") else { return };
    let shop = Shop::open(&cluster, "web", &[PodState::Ready]);
    let _old = cluster.old_dns();
    wait_until_named(&cluster, &shop.client);
    let ours = shop.addresses().map(|address| address.ip().to_string());
    let tcp = || shop.client.resolve_tcp(WEB, "A", CLUSTER_DNS).map(|answer| answer.data().join(" "));
    for _ in 0..3 {
        wait_for_answer(&cluster, &shop.client, WEB, &ours[0]);
        // Connections that end do not count: the server's own sockets are open.
        assert_eq!(tcp().unwrap(), ours[0]);
        assert_eq!(asked(&shop.client, WEB), ours[0]);
        cluster.daemon().kill9().unwrap();
        for _ in 0..20 {
            assert_eq!(asked(&shop.client, WEB), "192.0.2.99");
        }
        cluster.daemon().relaunch().unwrap();
        cluster.wait_for("the new daemon", || {
            let answer = asked(&shop.client, WEB);
            assert!(answer == "192.0.2.99" || answer == ours[0], "no query is lost: {answer}");
            answer == ours[0]
        });
    }
}

#[test]
fn while_our_dns_does_not_answer_a_running_daemon_hands_over_and_takes_over_again() {
    let Some(cluster) = Cluster::alone("handover") else { return };
    let shop = Shop::open(&cluster, "web", &[PodState::Ready]);
    let _old = cluster.old_dns();
    wait_until_named(&cluster, &shop.client);
    let ours = shop.addresses().map(|address| address.ip().to_string());
    wait_for_answer(&cluster, &shop.client, WEB, &ours[0]);
    // The address stays on lo, and the daemon is well; only nothing reaches its server.
    ip(&cluster, &["route del table local local 169.254.20.10", "route add table local blackhole 169.254.20.10"]);
    wait_for_answer(&cluster, &shop.client, WEB, "192.0.2.99");
    let back = "route add table local local 169.254.20.10 dev lo proto kernel scope host src 169.254.20.10";
    ip(&cluster, &["route del table local blackhole 169.254.20.10", back]);
    wait_for_answer(&cluster, &shop.client, WEB, &ours[0]);
    // That ours answers at the address of theirs is no conflict, and is said once, whatever happened since.
    let replaces = ["INFO", "the bundled DNS answers in place of this Service's endpoints", "kube-system/kube-dns"];
    assert_eq!(logged(&cluster, &replaces).len(), 1);
    assert_eq!(logged(&cluster, &["two services claim one frontend"]), Vec::<String>::new());
    assert!(cluster.daemon().metrics("/metrics").unwrap().body.contains("\nshunt_conflicts 0\n"));
}

#[test]
fn a_dns_address_that_another_program_takes_from_lo_is_put_back() {
    let Some(cluster) = Cluster::alone("putback") else { return };
    let shop = Shop::open(&cluster, "web", &[PodState::Ready]);
    let ours = shop.addresses().map(|address| address.ip().to_string());
    wait_for_answer(&cluster, &shop.client, WEB, &ours[0]);
    ip(&cluster, &["addr del 169.254.20.10/32 dev lo"]);
    let told = || logged(&cluster, &["WARN", "169.254.20.10", "put it back"]).len();
    cluster.wait_for("the log line that it is back", || told() > 0);
    wait_for_answer(&cluster, &shop.client, WEB, &ours[0]);
    assert_eq!(told(), 1);
}

#[test]
fn the_address_that_nodelocal_dnscache_holds_is_left_to_it() {
    let Some(cluster) = Cluster::alone_with("nodelocal", |options| options.dns_bind = None) else { return };
    let shop = Shop::open(&cluster, "web", &[PodState::Ready]);
    let ours = shop.addresses().map(|address| address.ip().to_string());
    assert!(cluster.daemon().stop().unwrap().success());
    // As after a restart of the node: nothing of ours is on lo, and the other program came first.
    let bridge = ["link add nodelocaldns type bridge", "addr add 169.254.20.10/32 dev nodelocaldns"];
    ip(&cluster, &["addr del 169.254.20.10/32 dev lo", bridge[0], bridge[1], "link set nodelocaldns up"]);
    let _theirs = cluster.node.dns_upstream("169.254.20.10".parse().unwrap(), &[&format!("{WEB}=192.0.2.10")]).unwrap();
    cluster.daemon().restart().unwrap();
    assert_eq!(logged(&cluster, &["WARN", "169.254.20.10", "nodelocaldns", "taking 169.254.20.11"]).len(), 1);
    wait_for_answer(&cluster, &shop.client, WEB, &ours[0]); // by the cluster DNS address
    let at = |address: &str| {
        let answer = shop.client.resolve(WEB, "A", address.parse().unwrap()).ok();
        answer.map(|answer| answer.data().join(" ")).unwrap_or_default()
    };
    cluster.wait_for("theirs", || at("169.254.20.10") == "192.0.2.10");
    cluster.wait_for("ours", || at("169.254.20.11") == ours[0]);
}

#[test]
fn a_resolv_conf_without_servers_stops_no_daemon_and_counts_when_it_has_one() {
    let mut written = None;
    let cluster = Cluster::alone_with("noresolv", |options| {
        let path = options.manifests.parent().unwrap().join("node-resolv.conf");
        std::fs::write(&path, "search lab.test\n").unwrap();
        options.resolv_conf = Some(path.clone());
        written = Some(path);
    });
    let (Some(cluster), Some(path)) = (cluster, written) else { return };
    let general = Ipv4Addr::new(172, 18, 0, 1);
    let _general = cluster.router().dns_upstream(general.into(), &["www.example.org=192.0.2.7"]).unwrap();
    let shop = Shop::open(&cluster, "web", &[PodState::Ready]);
    let ours = shop.addresses().map(|address| address.ip().to_string());
    wait_for_answer(&cluster, &shop.client, WEB, &ours[0]);
    let warning = "/etc/resolv.conf names no server to ask: names outside of the cluster are refused";
    let ready = || cluster.daemon().health("/readyz").unwrap();
    assert_eq!((ready().status, ready().body.contains(&format!("\"warnings\":[\"dns: {warning}\"]"))), (200, true));
    assert_eq!(logged(&cluster, &["WARN", warning]).len(), 1);
    assert_eq!(asked(&shop.client, "www.example.org"), "");
    std::fs::write(&path, format!("nameserver {general}\n")).unwrap();
    wait_for_answer(&cluster, &shop.client, "www.example.org", "192.0.2.7");
    assert!(ready().body.contains("\"warnings\":[]"), "{}", ready().body);
}

/// As kubeadm writes it.
const STOCK: &str = include_str!("../../dns/tests/corpus/corefiles/kubeadm.Corefile");
const HOSTS: &str = "    hosts {\n       192.0.2.50 printer.office.example\n       fallthrough\n    }\n";
const STUB: &str = "corp.example:53 {\n    errors\n    cache 30\n    forward . 10.244.1.2\n}\n";

/// The stock one with a stub domain, a table of hosts, an upstream of the lab, and looked at more often.
fn corefile() -> String {
    let hosts = format!("{HOSTS}    loop");
    let text = STOCK.replace("/etc/resolv.conf", "172.18.0.1").replace("    reload", "    reload 2s");
    text.replace("    loop", &hosts) + STUB
}

#[test]
fn a_corefile_is_obeyed_and_followed() {
    let mut written = None;
    let general = Ipv4Addr::new(172, 18, 0, 1);
    let cluster = Cluster::alone_with("corefile", |options| {
        let path = options.manifests.parent().unwrap().join("Corefile");
        std::fs::write(&path, corefile()).unwrap();
        options.corefile = Some(path.clone());
        written = Some(path);
    });
    let (Some(cluster), Some(path)) = (cluster, written) else { return };
    let corp = cluster.node.pod("corpdns").unwrap();
    assert_eq!(corp.ipv4, Ipv4Addr::new(10, 244, 1, 2), "as the Corefile says");
    let _corp = corp.dns_upstream(corp.ipv4.into(), &["wiki.corp.example=192.0.2.60"]).unwrap();
    let _general = cluster.router().dns_upstream(general.into(), &["www.example.org=192.0.2.7"]).unwrap();
    let shop = Shop::open(&cluster, "web", &[PodState::Ready]);
    let web = shop.addresses().map(|address| address.ip().to_string());
    let rows = [
        ("www.example.org", "192.0.2.7"),
        ("printer.office.example", "192.0.2.50"),
        ("wiki.corp.example", "192.0.2.60"),
    ];
    for (name, wanted) in rows.into_iter().chain([(WEB, web[0].as_str())]) {
        wait_for_answer(&cluster, &shop.client, name, wanted);
    }
    assert_eq!(logged(&cluster, &["WARN", "Corefile"]), Vec::<String>::new(), "nothing in it is without effect");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("192.0.2.50", "192.0.2.51")).unwrap();
    wait_for_answer(&cluster, &shop.client, "printer.office.example", "192.0.2.51");
}

#[test]
fn a_corefile_does_not_say_where_the_daemon_listens() {
    let cluster = Cluster::alone_with("corefilebind", |options| {
        let path = options.manifests.parent().unwrap().join("Corefile");
        let text = ".:1053 {\n  bind 127.0.0.1\n  kubernetes cluster.local\n}\n";
        std::fs::write(&path, text).unwrap();
        options.corefile = Some(path);
    });
    let Some(cluster) = cluster else { return };
    let shop = Shop::open(&cluster, "web", &[PodState::Ready]);
    let web = shop.addresses().map(|address| address.ip().to_string());
    wait_for_answer(&cluster, &shop.client, WEB, &web[0]);
    let told = logged(&cluster, &["WARN", "bind 127.0.0.1", "port 1053", "--dns-bind-address"]);
    assert_eq!(told.len(), 1, "{told:?}");
}

#[test]
fn a_killed_and_restarted_daemon_loses_no_query_beyond_one_retry() {
    let Some(cluster) = Cluster::alone("dnskill") else { return };
    let shop = Shop::open(&cluster, "web", &[PodState::Ready]);
    let asked = || {
        shop.client.resolve("web.test.svc.cluster.local", "A", CLUSTER_DNS).is_ok_and(|answer| answer.data().len() == 1)
    };
    for _ in 0..3 {
        cluster.wait_for("answers", asked);
        let back = AtomicBool::new(false);
        let (answered, retried) = std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let (mut answered, mut retried) = (0, 0);
                // Wait for ten answers of the new daemon.
                while answered < 10 {
                    let since = back.load(Ordering::Relaxed);
                    if asked() {
                        answered += u32::from(since);
                        continue;
                    }
                    retried += 1;
                    assert!(retried < 100, "nothing is answered any more");
                    // A resolver's timeout is 5 s by default, which a slow machine may need to start the new daemon.
                    while !back.load(Ordering::Relaxed) {
                        sleep(Duration::from_millis(10));
                    }
                    assert!(asked(), "the retry is answered");
                }
                (answered, retried)
            });
            cluster.daemon().kill9().unwrap();
            cluster.daemon().restart().unwrap();
            back.store(true, Ordering::Relaxed);
            asking.join().unwrap()
        });
        assert!(answered == 10 && retried <= 1, "{retried} queries asked again");
    }
}
