//! The tables of plans: against the reference reading, against each other, and in the kernel.

mod kernel;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use proptest::prelude::*;
use shunt_model::Family;

use super::chain::SharedChain;
use super::difference::{Change, Counts, Image, Named, Step};
use super::image::Place;
use super::installed::Client;
use super::script::{Around, Script, Unused, moved};
use super::walk::{Reached, Walk};
use super::{Rendering, in_turn};
use crate::datapath::packets::cases::{PACKETS, in_words, packets, story};
use crate::plan::fixture::{cluster, ip, options, service, slice};
use crate::plan::properties::{any_cluster, any_options};
use crate::plan::{Detect, Plan, PlanOptions, PortKey, Source, Verdict, plan};

pub(super) fn rendering(plan: &Plan) -> Rendering {
    Rendering::of(plan, PACKETS, &Family::BOTH.into_iter().collect())
}

/// All that tables hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    elements: BTreeMap<Place, String>,
    chains: BTreeMap<Named, Vec<String>>,
    clients: BTreeMap<Named, u32>,
}

impl Held {
    fn of(plan: &Plan) -> Self {
        let Image { elements, chains, clients, refused: _ } = Image::of(plan, &rendering(plan)).0;
        Self {
            elements: elements.into_iter().map(|(place, (leads_to, _))| (place, leads_to)).collect(),
            chains: chains.into_iter().map(|(name, (rules, _))| (name, rules)).collect(),
            clients,
        }
    }

    /// What the kernel does: what goes must be as the change says, and what comes must not be there.
    fn apply(&mut self, change: &Change) {
        fn put<K: Ord + Clone, V: Clone + PartialEq + std::fmt::Debug>(
            held: &mut BTreeMap<K, V>,
            steps: &BTreeMap<K, Step<V>>,
        ) {
            for (key, step) in steps {
                assert_eq!(held.remove(key), step.old);
                held.extend(step.new.clone().map(|new| (key.clone(), new)));
            }
        }
        put(&mut self.elements, &change.elements);
        put(&mut self.chains, &change.chains);
        put(&mut self.clients, &change.clients);
        let known: BTreeSet<&str> = self.chains.keys().map(|(_, name)| name.as_str()).collect();
        let verdicts = self.elements.values().chain(self.chains.values().flatten());
        for target in verdicts.filter_map(|text| text.rsplit_once("goto ")).map(|(_, target)| target) {
            assert!(known.contains(target.trim_end_matches(" }")), "{target} is gone");
        }
    }
}

proptest! {
    #[test]
    fn packets_get_what_the_plan_says(snapshot in any_cluster(), options in any_options()) {
        let (plan, _) = plan(&snapshot, &options);
        let walk = Walk::of(&plan, PACKETS);
        for packet in packets(&plan) {
            prop_assert_eq!(walk.outcome(&packet), in_words(&plan, &packet), "{:?}", packet);
        }
    }

    #[test]
    fn endpoints_see_the_right_source(snapshot in any_cluster(), options in any_options()) {
        let (plan, _) = plan(&snapshot, &options);
        let walk = Walk::of(&plan, PACKETS);
        for packet in packets(&plan) {
            let decision = plan.decide(&packet);
            let (Verdict::Forward { endpoints, .. }, Some(reason)) = (decision.verdict, decision.reason) else { continue };
            let rule = reason.met().unwrap().rule;
            let all: BTreeSet<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
            let reached = walk.reached(&packet);
            prop_assert_eq!(reached.iter().map(|one| one.address).collect::<BTreeSet<_>>(), all);
            for Reached { address, masqueraded } in reached {
                let endpoint = endpoints.iter().find(|endpoint| endpoint.address == address).unwrap();
                let source = packet.source_address.unwrap();
                // A pod of this node is no endpoint elsewhere, whatever a random cluster says.
                if source == endpoint.address.ip() && !endpoint.local && packet.source == Source::Pod {
                    continue;
                }
                prop_assert_eq!(masqueraded, rule.masquerades(source, endpoint), "{:?} to {:?}", packet, endpoint);
            }
        }
    }

    #[test]
    fn changes_lead_from_one_plan_to_the_next(
        options in any_options(),
        snapshots in prop::collection::vec(any_cluster(), 2..6),
    ) {
        let (mut held, mut before, mut counts) = (Held::of(&Plan::default()), Plan::default(), Counts::default());
        for snapshot in snapshots {
            let (plan, _) = plan(&snapshot, &options);
            // The rules at the hooks do not change between two plans that are rendered alike.
            if rendering(&plan) != rendering(&before) {
                (held, counts) = (Held::of(&plan), Image::of(&plan, &rendering(&plan)).1);
                before = plan;
                continue;
            }
            let change = Change::between(&before, &plan, &mut counts, &rendering(&plan));
            held.apply(&change);
            prop_assert_eq!(&held, &Held::of(&plan));
            prop_assert_eq!(&counts, &Image::of(&plan, &rendering(&plan)).1);
            let mut former = counts.clone();
            former.undo(&before, &plan, &rendering(&plan));
            prop_assert_eq!(&former, &Image::of(&before, &rendering(&plan)).1);
            prop_assert!(Change::between(&plan, &plan, &mut counts, &rendering(&plan)).is_empty());
            before = plan;
        }
    }
}

/// The transaction between the plans of two clusters.
fn script(old: &[(&str, &str, &str)], new: &[(&str, &str, &str)]) -> Script {
    let planned = |services: &[(&str, &str, &str)]| {
        let slices = services.iter().map(|(name, _, endpoints)| slice(name, "x", "http:80/tcp", endpoints));
        let services = services.iter().map(|(name, words, _)| service(name, &format!("port=http:80/tcp {words}")));
        // No frontend needs source NAT then, so all sources are served alike.
        plan(&cluster(services, slices), &PlanOptions { detector: Detect::Nothing, ..options() }).0
    };
    let (old, new) = (planned(old), planned(new));
    let mut counts = Image::of(&old, &rendering(&old)).1;
    Script::of(&Change::between(&old, &new, &mut counts, &rendering(&new)), &Around::default())
}

#[track_caller]
fn check(old: &[(&str, &str, &str)], new: &[(&str, &str, &str)], wanted: &str) {
    let wanted: Vec<&str> = wanted.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(script(old, new).text.lines().collect::<Vec<_>>(), wanted);
}

#[test]
fn a_transaction_is_as_large_as_the_change() {
    let api = ("api", "ip=10.96.0.2", "e1:R; e2:R");
    let web = |endpoints| ("web", "ip=10.96.0.1", endpoints);
    check(&[web("e1:R; e2:R"), api], &[web("e1:R; e2:R"), api], "");
    // An endpoint at another address.
    check(
        &[web("e1:R; e2:R"), api],
        &[web("e1:R; e3:R"), api],
        "delete element ip shunt cluster-endpoints-tcp {
         10.96.0.1 . 80 . 1,
         }
         add element ip shunt cluster-endpoints-tcp {
         10.96.0.1 . 80 . 1 : 10.1.0.3 . 80,
         }
         add element ip shunt hairpins {
         10.1.0.3 . 10.1.0.3,
         }",
    );
    // One more, with a chain that is there already for another service.
    check(
        &[web("e1:R"), api],
        &[web("e1:R; e2:R"), api],
        "flush chain ip shunt tcp-pick-cluster-1
         delete element ip shunt frontends {
         10.96.0.1 . tcp . 80,
         }
         add element ip shunt frontends {
         10.96.0.1 . tcp . 80 : goto tcp-pick-cluster-2,
         }
         add element ip shunt cluster-endpoints-tcp {
         10.96.0.1 . 80 . 1 : 10.1.0.2 . 80,
         }",
    );
    // None any more.
    check(
        &[web("e1:R; e2:R"), api],
        &[web("e1:U"), api],
        "delete element ip shunt frontends {
         10.96.0.1 . tcp . 80,
         }
         delete element ip shunt cluster-endpoints-tcp {
         10.96.0.1 . 80 . 0,
         10.96.0.1 . 80 . 1,
         }
         add element ip shunt frontends {
         10.96.0.1 . tcp . 80 : accept,
         }
         add element ip shunt unserved {
         10.96.0.1 . tcp . 80 : goto reject-at-once,
         }",
    );
}

#[test]
fn only_affinity_has_chains_and_sets_of_its_own() {
    let sticky = |timeout: u32| ("web", format!("ip=10.96.0.1 aff={timeout}"), "e1:R");
    let (short, long) = (sticky(10), sticky(600));
    let [short, long] = [&short, &long].map(|(name, words, endpoints)| (*name, words.as_str(), *endpoints));
    let (base, endpoint) = ("default/web/tcp/http", "default/web/tcp/http/10.1.0.1/80");
    check(
        &[short],
        &[long],
        &format!(
            "flush chain ip shunt endpoint/{endpoint}
             add rule ip shunt endpoint/{endpoint} update @clients/{endpoint} {{ ip saddr timeout 600s }}
             add rule ip shunt endpoint/{endpoint} meta l4proto tcp dnat to 10.1.0.1:80"
        ),
    );
    let gone = script(&[short], &[]).text;
    assert!(gone.contains(&format!("flush chain ip shunt cluster/{base}\n")), "{gone}");
    assert!(gone.contains(&format!("flush set ip shunt clients/{endpoint}\n")), "{gone}"); // SA-6
    let without = script(&[], &[("web", "ip=10.96.0.1 np=30080 ext=192.0.2.1", "e1:R; e2:R")]).text;
    assert!(!without.contains("default/web"), "{without}");
}

#[test]
fn services_of_one_shape_share_their_chains() {
    let services: Vec<(String, String)> =
        (0..50).map(|n| (format!("web-{n}"), format!("ip=10.96.1.{n} port=http:80/tcp np={}", 30000 + n))).collect();
    let slices = services.iter().map(|(name, _)| slice(name, "x", "http:80/tcp", "e1:R; e2:R; e3:Rl"));
    let services = services.iter().map(|(name, words)| service(name, words));
    let (plan, _) = plan(&cluster(services, slices), &options());
    let shared = |plan: &Plan| {
        let chains = Image::of(plan, &rendering(plan)).0.chains;
        chains.into_keys().filter(|(_, name)| name.contains("pick") || name.contains("sources")).count()
    };
    // The pods' chain, that of others, and what leads to them at cluster IPs; one at node ports.
    assert_eq!(shared(&plan), 4);
}

#[test]
fn a_client_that_is_moved_keeps_its_last_use() {
    let check = |timeout, expires, new, wanted: Option<u32>| {
        let client = Client { address: ip("10.0.0.1"), timeout, expires };
        let left = moved(&client, new);
        assert_eq!(left.map(|client| (client.timeout, client.expires)), wanted.map(|expires| (new, expires)));
    };
    check(60, 50, 600, Some(590)); // SA-10
    check(600, 590, 60, Some(50));
    check(600, 500, 60, None);
    check(600, 540, 60, None);
}

#[test]
fn names_take_whatever_a_folder_holds() {
    let long = "a".repeat(63);
    let check = |name: &str, is_refused| {
        let services = [service(name, "ip=10.96.0.1 aff=10 port=http:80/tcp")];
        let (plan, _) = plan(&cluster(services, [slice(name, "x", "http:80/tcp", "f1:R; f2:R")]), &options());
        let (image, _) = Image::of(&plan, &rendering(&plan));
        assert_eq!(!image.refused.is_empty(), is_refused);
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "/-._".contains(letter);
        for (_, name) in image.chains.keys().chain(image.clients.keys()) {
            assert!(name.len() < 255 && name.chars().all(plain), "{name}");
        }
    };
    check(&long, false);
    check("a b\"; flush ruleset", false);
    check(&long.repeat(5), false); // It has no endpoint in this family, so no chain of an endpoint.
}

#[test]
fn what_is_unused_is_deleted_on_its_own() {
    let unused = |kind, name: &str| Unused { family: Family::V6, kind, name: name.to_owned() };
    let script = Script::delete(&[unused("chain", "tcp-pick-cluster-3"), unused("set", "clients/a")]);
    assert_eq!(script.text, "delete chain ip6 shunt tcp-pick-cluster-3\ndelete set ip6 shunt clients/a\n");
}

#[test]
fn refused_service_ports_are_tried_in_turn() {
    let (plan, _) = story();
    let all: Vec<PortKey> = plan.ports.keys().cloned().collect();
    let (mut last, mut tried) = (None, BTreeSet::new());
    while tried.len() < all.len() {
        let next: Vec<&PortKey> = in_turn(&all, last.as_ref()).collect();
        assert!(next.iter().any(|key| !tried.contains(*key)), "{next:?} were tried before others");
        last = next.last().map(|key| (*key).clone());
        tried.extend(next.into_iter().cloned());
    }
}

#[test]
fn a_line_leads_to_the_service_port_that_it_is_about() {
    let script = script(&[], &[("web", "ip=10.96.0.1", "e1:R"), ("api", "ip=10.96.0.2", "e2:R")]);
    for (index, line) in script.text.lines().enumerate() {
        let owner = script.owner(index + 1).map(ToString::to_string);
        let wanted = match line {
            _ if line.starts_with("10.96.0.1 . ") => Some("default/web:http/tcp".to_owned()),
            _ if line.starts_with("10.96.0.2 . ") => Some("default/api:http/tcp".to_owned()),
            _ => None,
        };
        assert_eq!(owner, wanted.filter(|_| line != "10.96.0.1," && line != "10.96.0.2,"), "{line}");
    }
    assert!(SharedChain::Unserved { node: None, pods: None, outside: None }.name().starts_with("unserved-"));
}
