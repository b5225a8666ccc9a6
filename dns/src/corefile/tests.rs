//! Corefiles as people have them, and what is refused of others.

use std::path::PathBuf;

use super::*;

/// The stock one of kubeadm (DNS-13.1).
const STOCK: &str = include_str!("../../tests/corpus/corefiles/kubeadm.Corefile");

fn read(text: &str) -> Result<Corefile, String> {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("Corefile");
    std::fs::write(&path, text).unwrap();
    Corefile::read(&path).map_err(|error| {
        let text = shunt_model::with_causes(&error);
        text.replace(&path.display().to_string(), "Corefile")
    })
}

fn everywhere(port: u16) -> Option<SocketAddr> {
    Some(SocketAddr::new(any_address(), port))
}

fn names(names: &[Name]) -> Vec<String> {
    names.iter().map(Name::to_ascii).collect()
}

#[test]
fn the_stock_corefile_is_understood() {
    let file = read(STOCK).unwrap();
    let [block] = file.blocks.as_slice() else { panic!("one block") };
    assert_eq!((block.domain.to_ascii(), block.errors.is_some(), file.port), (".".into(), true, 53));
    let settings = file.kubernetes.unwrap();
    assert_eq!(
        (settings.domain.to_ascii(), settings.ttl, settings.pods),
        ("cluster.local.".into(), 30, PodMode::Insecure)
    );
    let kubernetes = block.kubernetes.as_ref().unwrap();
    assert_eq!(names(&kubernetes.zones), ["cluster.local.", "in-addr.arpa.", "ip6.arpa."]);
    assert_eq!(names(&kubernetes.fallthrough), ["in-addr.arpa.", "ip6.arpa."]);
    let cache = block.forward.cache.as_ref().unwrap();
    assert_eq!((cache.success.longest.as_secs(), cache.denial.longest.as_secs()), (30, 30));
    assert_eq!((names(&cache.no_denial), cache.prefetch), (vec!["cluster.local.".to_owned()], None));
    let [route] = block.forward.routes.as_slice() else { panic!("one route") };
    assert_eq!(route.upstreams, crate::Upstreams::File(PathBuf::from("/etc/resolv.conf")));
    assert_eq!(route.read_timeout.as_secs(), 2);
    assert_eq!((file.health, file.lameduck.as_secs()), (everywhere(8080), 5));
    assert_eq!(file.ready, everywhere(8181));
    assert_eq!(file.prometheus, everywhere(9153));
    assert_eq!(file.reload.map(|interval| interval.as_secs()), Some(30));
}

#[test]
fn the_time_of_a_try_is_that_of_its_forward() {
    let file = read(".:53 {\n forward a.test 10.0.0.1 {\n  read_timeout 1m\n }\n forward . 10.0.0.2\n}\n").unwrap();
    let times: Vec<u64> = file.blocks[0].forward.routes.iter().map(|route| route.read_timeout.as_secs()).collect();
    assert_eq!(times, [60, 2]);
}

#[test]
fn stub_domains_snippets_imports_and_variables() {
    let place = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(place.path().join(name), text).unwrap();
    write("extra.override", "log . {\n class denial error\n}\n");
    write(
        "site.server",
        "lab.example:53, old.example:53 {\n import common\n forward . 10.0.0.2 tls://10.0.0.3 {\n tls_servername dns.example\n policy sequential\n }\n}\n",
    );
    write(
        "Corefile",
        "(common) {\n errors # all of them\n cache 60\n}\nimport *.server\n.:53 {\n import common\n import *.override\n import nothing/*.x\n forward . {$NO_SUCH_VARIABLE}10.0.0.1\n}\n",
    );
    let file = Corefile::read(&place.path().join("Corefile")).unwrap();
    let domains: Vec<String> = file.blocks.iter().map(|block| block.domain.to_ascii()).collect();
    assert_eq!(domains, ["lab.example.", "old.example.", "."]);
    let [lab, old, all] = file.blocks.as_slice() else { panic!("three blocks") };
    assert!(
        lab.errors.is_some() && old.errors.is_some() && all.errors.is_some() && all.log.is_some() && old.log.is_none()
    );
    assert_eq!(lab.forward.routes, old.forward.routes);
    let crate::Upstreams::Servers(servers) = &lab.forward.routes[0].upstreams else { panic!("servers") };
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["10.0.0.2:53", "tls://10.0.0.3:853%dns.example"]);
    // What is read again is the same until one of the files changes.
    let again = || Text::read(&place.path().join("Corefile")).sources;
    assert_eq!(again(), file.sources);
    write("extra.override", "log\n");
    assert_ne!(again(), file.sources);
}

/// What is refused, with the words and the line that the refusal names.
const REFUSED: &[(&str, &str)] = &[
    ("", "Corefile:1: there is no server block"),
    (".:53\n", "Corefile:1: .:53: a server block needs braces"),
    (".:53 {\n errors\n", "Corefile:1: the block that begins here has no end"),
    (".:53 {\n}\n}\n", "Corefile:3: } closes nothing"),
    (".:53 {\n}\n.:53 {\n}\n", "Corefile:3: . has a server block already"),
    (".:53 {\n}\nexample.org:54 {\n}\n", "Corefile:3: ports 53 and 54"),
    ("tls://.:853 {\n}\n", "tls:// is not served"),
    (".:53 {\n errors\n dnssec\n}\n", "Corefile:3: dnssec is not supported; supported are autopath"),
    (".:53 {\n errors {\n  consolidate 5m\n }\n}\n", "Corefile:3: consolidate: takes a time, a pattern"),
    (".:53 {\n errors {\n  consolidate 5m (x\n }\n}\n", "Corefile:3: consolidate: the pattern"),
    (".:53 {\n errors {\n  consolidate 5m x loud\n }\n}\n", "Corefile:3: consolidate: loud is none of error, warning"),
    (".:53 {\n errors {\n  other\n }\n}\n", "Corefile:3: errors: other is not supported"),
    (".:53 {\n log . \"{remote}\"\n}\n", "Corefile:2: log: the format"),
    (".:53 {\n kubernetes\n}\n", "Corefile:2: kubernetes: the root cannot be"),
    (".:53 {\n kubernetes a.example b.example\n}\n", "takes one cluster domain"),
    (".:53 {\n kubernetes cluster.local {\n  zonal\n }\n}\n", "Corefile:3: kubernetes: zonal is not supported"),
    (
        ".:53 {\n kubernetes cluster.local {\n  ttl 5000\n }\n}\n",
        "Corefile:3: ttl: \"5000\" is no number from 0 to 3600",
    ),
    (".:53 {\n forward .\n}\n", "Corefile:2: forward: names no upstream"),
    (".:53 {\n forward . dns.example\n}\n", "dns.example"),
    (".:53 {\n forward . /etc/resolv.conf 10.0.0.1\n}\n", "forward: the file /etc/resolv.conf beside other upstreams"),
    (".:53 {\n forward . 10.0.0.1 {\n  max_fails 0\n }\n}\n", "Corefile:3: max_fails: an upstream that fails is asked"),
    (".:53 {\n forward . 10.0.0.1 {\n  expire soon\n }\n}\n", "Corefile:3: expire: \"soon\" is no duration"),
    (".:53 {\n forward . 10.0.0.1 {\n  health_check 5s often\n }\n}\n", "Corefile:3: health_check: its arguments"),
    (".:53 {\n forward . 10.0.0.1 {\n  policy best\n }\n}\n", "Corefile:3: policy: takes random, round_robin"),
    (
        ".:53 {\n forward . 10.0.0.1 {\n  read_timeout 0s\n }\n}\n",
        "Corefile:3: read_timeout: no upstream answers in no time",
    ),
    (
        ".:53 {\n forward . 10.0.0.1 {\n  read_timeout soon\n }\n}\n",
        "Corefile:3: read_timeout: \"soon\" is no duration",
    ),
    (".:53 {\n forward . 10.0.0.1 {\n  read_timeout\n }\n}\n", "Corefile:3: read_timeout: its arguments"),
    (".:53 {\n forward . 10.0.0.1 {\n  next NXDOMAIN\n }\n}\n", "Corefile:3: forward: next is not supported"),
    (".:53 {\n cache {\n  serve_stale 1h immediate\n }\n}\n", "Corefile:3: serve_stale: "),
    (".:53 {\n cache {\n  servfail 6m\n }\n}\n", "Corefile:3: servfail: takes 5m at most"),
    (".:53 {\n cache {\n  keepttl\n }\n}\n", "Corefile:3: cache: keepttl is not supported"),
    (".:53 {\n rewrite type A AAAA\n}\n", "Corefile:2: rewrite: type cannot be rewritten"),
    (".:53 {\n rewrite name a b answer name\n}\n", "Corefile:2: rewrite: answer name and answer value take a pattern"),
    (".:53 {\n rewrite name a b answer name (x y\n}\n", "Corefile:2: rewrite: the pattern"),
    (".:53 {\n rewrite stop {\n  name a b\n  name c d\n }\n}\n", "Corefile:2: rewrite: name is too much"),
    (
        ".:53 {\n rewrite name sufix .a .b\n}\n",
        "Corefile:2: rewrite: sufix is no kind of rule; there are exact, prefix,",
    ),
    (".:53 {\n rewrite name sufix .a .b answer auto\n}\n", "Corefile:2: rewrite: sufix is no kind of rule"),
    (".:53 {\n rewrite name suffix .a .b answer\n}\n", "Corefile:2: rewrite: answer takes auto, name or value"),
    (".:53 {\n rewrite name suffix .a .b answer nam x y\n}\n", "Corefile:2: rewrite: answer takes auto, name or value"),
    (
        ".:53 {\n rewrite name regex (.* b\n}\n",
        "Corefile:2: rewrite: the pattern \"(.*\" cannot be used: unclosed group",
    ),
    (".:53 {\n template IN A {\n  answer \"{{ .Meta }} A 10.0.0.1\"\n }\n}\n", "Corefile:3: answer: {{ .Meta }}"),
    (
        ".:53 {\n template IN A {\n  answer \"a. A 10.0.0.{{ .Group.d }}\"\n  match ^(?P<c>.)\n }\n}\n",
        "Corefile:3: answer: no pattern has the group d",
    ),
    (".:53 {\n template IN A {\n  match\n }\n}\n", "Corefile:3: match: takes a pattern"),
    (".:53 {\n hosts {\n  nonsense\n }\n}\n", "Corefile:3: hosts: nonsense is not supported"),
    (".:53 {\n import custom/[ab].override\n}\n", "Corefile:2: import: custom/[ab].override: patterns have * and ?"),
    ("(a) {\n import a\n}\n.:53 {\n import a\n}\n", "a is imported more than 10 files deep; does it import itself?"),
    (".:53 {\n loadbalance weighted x\n}\n", "Corefile:2: loadbalance: only round_robin"),
    (".:53 {\n autopath /etc/resolv.conf\n}\n", "Corefile:2: autopath: "),
    (
        ".:53 {\n kubernetes cluster.local {\n  pods insecure\n }\n autopath @kubernetes\n}\n",
        "Corefile:5: autopath: must know the namespaces of pods: write `pods verified`",
    ),
    (".:53 {\n autopath @kubernetes\n}\n", "Corefile:2: autopath: must know"),
    (".:53 {\n bind eth0\n}\n", "Corefile:2: bind: eth0 is no address"),
    (
        "a.example {\n}\n.:53 {\n bind 127.0.0.1\n}\n",
        "Corefile:4: bind: counts for all server blocks: say the same in the one at Corefile:1",
    ),
    ("a.example {\n bind ::1\n}\n.:53 {\n bind 127.0.0.1\n}\n", "Corefile:5: bind: all server blocks share one set of"),
    ("a.example {\n health\n}\n.:53 {\n health :9999\n}\n", "Corefile:5: health: all server blocks share one address"),
    ("a.example {\n reload 5s\n}\n.:53 {\n reload\n}\n", "Corefile:5: reload: all server blocks share one interval"),
    (".:53 {\n log\n errors\n log a.example\n}\n", "Corefile:4: log: stands in this block already, at Corefile:2"),
    (".:53 {\n reload 0s\n}\n", "Corefile:2: reload: takes an interval of 2s or more"),
    (".:53 {\n reload 1999ms 1s\n}\n", "Corefile:2: reload: takes an interval of 2s or more"),
    (".:53 {\n reload 5s x\n}\n", "Corefile:2: reload: \"x\" is no duration"),
    (".:53 {\n debug all\n}\n", "Corefile:2: debug: takes no arguments"),
    (
        ".:53 {\n kubernetes cluster.local {\n  kubeconfig /etc/kubeconfig production\n }\n}\n",
        "Corefile:3: kubeconfig: takes one file; of its contexts the current one counts",
    ),
    (
        ".:53 {\n kubernetes cluster.local {\n  pods all\n }\n}\n",
        "Corefile:3: pods: takes disabled, insecure or verified",
    ),
    (
        ".:53 {\n kubernetes cluster.local {\n  noendpoints\n }\n}\n",
        "Corefile:3: kubernetes: noendpoints is not supported",
    ),
    (".:53 {\n cache {\n  success many\n }\n}\n", "Corefile:3: success: \"many\" is no number"),
    (".:53 {\n cache {\n  disable all\n }\n}\n", "Corefile:3: disable: its arguments are not those"),
    (
        ".:53 {\n template IN A {\n  rcode BADKEY\n }\n}\n",
        "Corefile:3: rcode: BADKEY cannot be answered; known are NOERROR",
    ),
    (".:53 {\n bind\n}\n", "Corefile:2: bind: names no address to listen on"),
    (".:53 {\n cache -5\n}\n", "Corefile:2: cache: \"-5\" is no duration"),
    (".:53 {\n cache {\n  serve_stale 10000000h\n }\n}\n", "Corefile:3: serve_stale: 10000000h is longer than a year"),
    (".:53 {\n cache 18446744073709551615\n}\n", "Corefile:2: cache: "),
    (".:53 {\n forward . 10.0.0.1\n forward . 10.0.0.2\n}\n", "Corefile:3: forward: an earlier forward takes all of ."),
    (
        "corp.test {\n forward . 10.0.0.1\n forward corp.test 10.0.0.2\n}\n",
        "Corefile:3: forward: an earlier forward takes all of corp.test.",
    ),
    (
        ".:53 {\n forward . 10.0.0.1 {\n  except a.test\n }\n forward . 10.0.0.2 {\n  except a.test b.test\n }\n}\n",
        "Corefile:5: forward: an earlier forward takes all of .",
    ),
    (
        ".:53 {\n forward . 10.0.0.1 {\n  policy random\n  policy sequential\n }\n}\n",
        "Corefile:4: policy: stands in this forward already",
    ),
    (".:53 {\n hosts {\n  10.0.0.3\n }\n}\n", "Corefile:3: 10.0.0.3: has no name"),
    (".:53 {\n hosts {\n  10.0.0.300 a\n }\n}\n", "Corefile:3: 10.0.0.300: is no address"),
    (".:53 {\n rewrite\n}\n", "Corefile:2: rewrite: takes a rule"),
    (".:53 {\n ready {\n  monitor sometimes\n }\n}\n", "Corefile:3: monitor: takes continuously or until-ready"),
    (".:53{\n errors\n}\n", "Corefile:1: .:53{: a brace stands by itself"),
    ("(a) {\n}\n(a) {\n}\n", "Corefile:3: (a): there is such a snippet already"),
    (".:53 {\n import nothing\n}\n", "Corefile:2: import: no snippet has this name: reading"),
    (
        ".:53 {\n kubernetes cluster.local {\n  endpoint x\n }\n}\n",
        "endpoint is not supported; supported are endpoint_pod_names, fallthrough",
    ),
    (".:53 {\n rewrite name regex [\\w-.]+ b\n}\n", r"(inside of brackets, - and [ are written \- and \[)"),
    // OpenShift's
    ("hostname.bind:5353 {\n chaos\n}\n", "Corefile:2: chaos is not supported"),
];

#[test]
fn what_cannot_be_done_is_refused_by_name_and_line() {
    for (text, part) in REFUSED {
        let error = read(text).expect_err(text);
        assert!(error.contains(part), "{text}\n-> {error}");
    }
}

#[test]
fn what_changes_nothing_here_is_taken() {
    for text in [
        ".:53 {\n debug\n}\n",
        ".:53 {\n errors {\n  stacktrace\n }\n}\n",
        ".:53 {\n errors {\n  consolidate 5m \".* i/o timeout$\" warning\n  consolidate 30s \"^Failed to .+\"\n }\n}\n",
        ".:53 {\n reload 2s 1s\n}\n",
        "\u{feff}.:53 {\n cache 30#s\n}\n",
        ".:53 {\n forward . 10.0.0.1 {\n  except a.test\n  except b.test\n }\n forward . 10.0.0.2\n}\n",
        ".:53 {\n hosts {\n  10.0.0.1 a\n  10.0.0.1 b\n }\n}\n",
        ".:53 {\n kubernetes cluster.local {\n  namespaces a\n  namespaces b\n  endpoint_pod_names\n  endpoint_pod_names\n }\n}\n",
        ".:53 {\n cache {\n  disable success a.test\n  disable success b.test\n }\n}\n",
        "a.test {\n prometheus 0.0.0.0:9253\n}\n.:53 {\n prometheus :9253\n}\n",
        ".:53 {\n forward a.test 10.0.0.1\n forward . 10.0.0.2 {\n  except b.test\n }\n forward b.test 10.0.0.3\n}\n",
        r#".:53 {
            template IN A {
                match "^a\\" x
            }
        }
        "#,
        ".:53 {\n forward . ./resolv.conf\n}\n",
        ".:53 {\n forward . 10.0.0.1 {\n  max_fails 3\n  expire 20s\n  read_timeout 500ms\n  health_check 5s no_rec domain example.org\n }\n}\n",
        ".:53 {\n template IN A {\n  rcode YXDOMAIN\n  upstream\n }\n}\n",
        ".:53 {\n template IN A {\n  answer \"a. A 10.0.0.1\" \"a. 60 IN A 10.0.0.2\"\n }\n}\n",
        "a.example {\n bind 127.0.0.1\n}\n.:53 {\n bind 127.0.0.1\n}\n",
        "a.example {\n prometheus :9253\n}\n.:53 {\n prometheus :9253\n}\n",
    ] {
        assert!(read(text).is_ok(), "{text}\n-> {:?}", read(text));
    }
}
