//! Every directive: it is understood with all of its options, shown in metrics, and described in docs/dns.md.

use std::collections::BTreeSet;

use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::*;
use crate::plugin::Plugin;
use crate::server::serve;

/// The directive with each of its options.
fn written(plugin: Plugin) -> &'static str {
    match plugin {
        Plugin::Reload => "reload 5s 1s",
        Plugin::Bufsize => "bufsize 1232",
        Plugin::Bind => "bind 127.0.0.1",
        Plugin::Debug => "debug",
        Plugin::Ready => "ready {\n monitor until-ready\n}",
        Plugin::Health => "health {\n lameduck 5s\n}",
        Plugin::Prometheus => "prometheus :9153",
        Plugin::Errors => "errors {\n stacktrace\n consolidate 5m x\n}",
        Plugin::Log => "log . {\n class denial\n}",
        Plugin::Loadbalance => "loadbalance round_robin",
        Plugin::Cache => {
            "cache 30 {\n success 100\n denial 100\n prefetch 2\n serve_stale\n servfail 5s\n disable success\n}"
        }
        Plugin::Rewrite => "rewrite stop {\n name a.test b.test\n}",
        Plugin::Autopath => "autopath @kubernetes",
        Plugin::Template => {
            "template IN A {\n match x\n answer \"a. A 10.0.0.1\"\n authority \"a. NS b.\"\n \
             additional \"b. A 10.0.0.1\"\n rcode NOERROR\n fallthrough\n upstream\n}"
        }
        Plugin::Transfer => "transfer {\n to 127.0.0.1\n}",
        Plugin::Hosts => "hosts /dev/null {\n 10.0.0.1 a\n ttl 60\n reload 1s\n no_reverse\n fallthrough\n}",
        Plugin::Kubernetes => {
            "kubernetes cluster.local {\n endpoint_pod_names\n fallthrough\n ignore empty_service\n \
             kubeconfig /dev/null\n namespaces a\n pods verified\n startup_timeout 5s\n ttl 30\n}"
        }
        Plugin::Loop => "loop",
        Plugin::Forward => {
            "forward . 127.0.0.1 {\n except a.test\n expire 10s\n force_tcp\n health_check 1s\n max_concurrent 10\n read_timeout 3s\n \
             max_fails 2\n policy random\n prefer_udp\n tls /dev/null\n tls_servername dns.test\n}"
        }
    }
}

/// Its options. What stands between the braces of `rewrite` is a rule, and `hosts` has lines of a hosts file there.
fn options(plugin: Plugin) -> BTreeSet<&'static str> {
    let lines = written(plugin).lines().skip(1).map(str::trim).filter(|line| *line != "}");
    let words = lines.filter(|_| plugin != Plugin::Rewrite).filter_map(|line| line.split(' ').next());
    words.map(|word| if word == "10.0.0.1" { "addresses with their names" } else { word }).collect()
}

fn read(block: &str) -> Result<Corefile, String> {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("Corefile");
    std::fs::write(&path, format!(".:53 {{\n{block}\n}}\n")).unwrap();
    Corefile::read(&path).map_err(|error| error.to_string())
}

#[test]
fn every_directive_is_understood_with_all_its_options() {
    for plugin in Plugin::ALL {
        // Search paths are those of pods.
        let beside = if *plugin == Plugin::Autopath { written(Plugin::Kubernetes) } else { "" };
        let read = read(&format!("{}\n{beside}", written(*plugin)));
        assert!(read.is_ok(), "{}: {read:?}", plugin.name());
    }
}

#[test]
fn a_refusal_names_what_is_understood() {
    let named = |refusal: String| -> BTreeSet<String> {
        let (_, named) = refusal.split_once("nonsense is not supported; supported are ").expect(&refusal);
        named.split(", ").flat_map(|names| names.split(" and ")).map(str::to_owned).collect()
    };
    let all = Plugin::ALL.iter().map(|plugin| plugin.name()).chain(["import"]);
    assert_eq!(named(read("nonsense").unwrap_err()), all.map(str::to_owned).collect());
    for plugin in Plugin::ALL.iter().filter(|plugin| **plugin != Plugin::Rewrite) {
        let first = written(*plugin).lines().next().unwrap().trim_end_matches(" {");
        let refusal = read(&format!("{first} {{\n nonsense\n}}")).expect_err(first);
        let options = options(*plugin);
        let none = options.is_empty().then_some("none");
        assert_eq!(named(refusal), options.into_iter().chain(none).map(str::to_owned).collect(), "{first}");
    }
}

#[tokio::test]
async fn metrics_show_the_parts_of_a_block_in_the_order_of_coredns() {
    let all: Vec<&str> = Plugin::ALL.iter().map(|plugin| written(*plugin)).collect();
    let without_tls = all.join("\n").replace(" tls /dev/null\n tls_servername dns.test\n", "");
    for (block, wanted) in [
        ("", "prometheus loadbalance"),
        (
            without_tls.as_str(),
            "bufsize prometheus errors log loadbalance cache rewrite autopath template transfer hosts kubernetes loop \
             forward",
        ),
    ] {
        let file = read(block).unwrap();
        let listen = vec!["127.0.0.1:0".parse().unwrap()];
        let (_, snapshots) = watch::channel(None);
        let server = serve(file.server_config(listen, file.zone(Vec::new())), snapshots).await.unwrap();
        let (mut registry, mut page) = (Registry::default(), String::new());
        server.exporter().register(&mut registry);
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        let enabled = page.lines().filter(|line| line.starts_with("coredns_plugin_enabled{"));
        let names = enabled.filter_map(|line| line.split("name=\"").nth(1)?.strip_suffix("\"} 1"));
        assert_eq!(names.collect::<Vec<_>>().join(" "), wanted);
    }
}

#[test]
fn the_documentation_has_a_row_for_each_directive_and_no_other() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/dns.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, table) = text.split_once("| directive | what is understood |\n|---|---|\n").unwrap();
    let rows = table.lines().map_while(|line| line.strip_prefix('|')?.split_once('|'));
    let mut documented = Vec::new();
    for (directives, meaning) in rows {
        // What stands between two backticks is every second part.
        for directive in directives.split('`').skip(1).step_by(2) {
            let name = directive.split(' ').next().unwrap();
            let plugin = Plugin::named(name).unwrap_or_else(|| panic!("{name} is no directive"));
            for option in options(plugin).iter().filter(|_| !meaning.contains("as in CoreDNS")) {
                let said = [format!("`{option}`"), format!("`{option} ")].iter().any(|said| meaning.contains(said));
                assert!(said, "{name}: nothing is said about {option}");
            }
            documented.push(plugin);
        }
    }
    documented.sort_unstable();
    assert_eq!(documented, Plugin::ALL);
}
