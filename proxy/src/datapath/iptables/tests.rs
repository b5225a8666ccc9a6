//! The chains of plans: against the reference reading, against each other, and in the kernel.

mod kernel;
mod text;

use std::collections::BTreeMap;

use proptest::prelude::*;
use shunt_model::Family;

use super::change::{Changes, Pieces};
use super::family::at_fault;
use super::image::Image;
use super::programs::RunError;
use super::rule::{Name, Table};
use super::walk::Walk;
use crate::datapath::SyncError;
use crate::datapath::packets::cases::{PACKETS, in_words, packets, story};
use crate::plan::properties::{any_cluster, any_options};
use crate::plan::{Plan, Source, Verdict, plan};

type Chains = BTreeMap<(Table, Name), Vec<String>>;

fn chains(plan: &Plan, family: Family) -> Chains {
    of_image(&Image::of(plan, family, PACKETS))
}

fn of_image(image: &Image) -> Chains {
    let text = |rules: Vec<super::rule::Rule>| rules.iter().map(ToString::to_string).collect();
    image.chains().map(|(table, name, rules)| ((table, name), text(rules))).collect()
}

/// What the kernel does with changes; a chain that is removed must be there, and no other may lead to it.
fn write(chains: &mut Chains, changes: &Changes) {
    for (table, changes) in changes.parts() {
        for (name, rules) in &changes.writes {
            chains.insert((table, name.clone()), rules.iter().map(ToString::to_string).collect());
        }
        for name in &changes.removals {
            assert!(chains.remove(&(table, name.clone())).is_some(), "{name} is not there");
        }
        for ((of, from), rule) in chains.iter().flat_map(|(chain, rules)| rules.iter().map(move |rule| (chain, rule))) {
            let Some(target) = rule.rsplit(' ').next().filter(|target| target.starts_with("SHUNT-")) else { continue };
            assert!(chains.contains_key(&(*of, target.into())), "{from} leads to {target}, which is gone");
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
    fn endpoints_are_as_likely_and_see_the_right_source(snapshot in any_cluster(), options in any_options()) {
        let (plan, _) = plan(&snapshot, &options);
        let walk = Walk::of(&plan, PACKETS);
        for packet in packets(&plan) {
            let decision = plan.decide(&packet);
            let (Verdict::Forward { endpoints, .. }, Some(reason)) = (decision.verdict, decision.reason) else {
                continue;
            };
            let rule = reason.met().unwrap().rule;
            let reached = walk.reached(&packet);
            // An endpoint may be at an address that is a cluster IP, and then gets what packets get there.
            for one in &reached {
                let endpoint = endpoints.iter().find(|endpoint| endpoint.address == one.address).unwrap();
                prop_assert!((one.chance * endpoints.len() as f64 - 1.0).abs() < 1e-6);
                let source = packet.source_address.unwrap();
                // A pod of this node is no endpoint elsewhere, whatever a random cluster says.
                if source == endpoint.address.ip() && !endpoint.local && packet.source == Source::Pod {
                    continue;
                }
                let wanted = rule.masquerades(source, endpoint);
                prop_assert_eq!(one.masqueraded, wanted, "{:?} to {:?}", packet, endpoint);
            }
        }
    }

    #[test]
    fn changes_lead_from_one_image_to_the_next(
        snapshots in prop::collection::vec((any_cluster(), any_options()), 2..5)
    ) {
        for family in Family::BOTH {
            let mut image = Image::new(family, PACKETS);
            let mut installed = of_image(&image);
            for (snapshot, options) in &snapshots {
                let (plan, _) = plan(snapshot, options);
                write(&mut installed, &image.update(&plan));
                prop_assert_eq!(&installed, &chains(&plan, family));
                let changes = image.update(&plan);
                prop_assert!(changes.script(Pieces::One).is_empty(), "{:?}", changes);
            }
        }
    }
}

/// What the kernel has after a script, transaction by transaction: each names only chains that are there.
fn restore(chains: &mut Chains, script: &str) {
    for section in script.split_inclusive("COMMIT\n") {
        let (first, rest) = section.split_once('\n').unwrap();
        let table = *Table::BOTH.iter().find(|table| first[1..] == *table.as_str()).unwrap();
        for line in rest.lines().filter(|line| *line != "COMMIT") {
            if let Some(declared) = line.strip_prefix(':') {
                chains.insert((table, declared.split(' ').next().unwrap().into()), Vec::new());
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let (name, rule) = rule.split_once(' ').unwrap();
                let target = rule.split(' ').next_back().unwrap();
                assert!(!target.starts_with("SHUNT-") || chains.contains_key(&(table, target.into())), "{line}");
                chains.get_mut(&(table, name.into())).unwrap().push(rule.to_owned());
            } else if let Some(name) = line.strip_prefix("-X ") {
                assert_eq!(chains.remove(&(table, name.into())), Some(Vec::new()), "{line}");
                let leads = |rule: &String| rule.ends_with(&format!(" {name}"));
                assert!(!chains.iter().any(|((of, _), rules)| *of == table && rules.iter().any(leads)), "{line}");
            }
        }
    }
}

#[test]
fn pieces_lead_to_the_same_chains_as_one_transaction() {
    let (whole, _) = story();
    let half = Plan {
        ports: whole.ports.iter().step_by(2).map(|(key, port)| (key.clone(), port.clone())).collect(),
        ..whole.clone()
    };
    for family in Family::BOTH {
        let mut image = Image::new(family, PACKETS);
        let (mut chains, mut pieces) = (of_image(&image), 0);
        for plan in [&whole, &half, &whole, &Plan::default(), &half] {
            let changes = image.update(plan);
            let (one, many) = (changes.script(Pieces::One), changes.script(Pieces::Many));
            pieces += many.commits() - one.commits();
            let before = chains.clone();
            restore(&mut chains, &many.text);
            let mut at_once = before;
            restore(&mut at_once, &one.text);
            assert_eq!(chains, at_once);
            assert_eq!(chains, of_image(&image));
        }
        assert!(pieces > 8, "{pieces} transactions more prove little");
    }
}

#[test]
fn names_fit_into_the_kernel() {
    let (plan, _) = story();
    for family in Family::BOTH {
        let names: Vec<Name> = Image::of(&plan, family, PACKETS).chains().map(|(_, name, _)| name).collect();
        assert!(names.iter().all(|name| name.len() <= 28 && name.starts_with("SHUNT-")), "{names:?}");
    }
}

#[test]
fn a_line_that_is_refused_costs_its_service_port_and_no_other() {
    let (plan, _) = story();
    let mut image = Image::new(Family::V4, PACKETS);
    let script = image.update(&plan).script(Pieces::One);
    let outcome = |part: &str| {
        let line = script.text.lines().position(|line| line.contains(part)).unwrap() + 1;
        let error = RunError::Refused { program: "iptables-restore".into(), said: "no".into(), lines: vec![line] };
        let keys = at_fault(error, &script, &image)?;
        Ok::<_, SyncError>(keys.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(outcome("-m recent --set").unwrap(), ["default/sticky:http/tcp"]);
    assert_eq!(outcome("-s 198.51.100.0/24").unwrap(), ["default/ranges:http/tcp"]);
    assert!(outcome("-A SHUNT-MASQ-NO").is_err(), "it belongs to all of them");
    assert!(outcome("*nat").is_err());
    let framing = script.text.lines().filter(|line| line.starts_with('*') || *line == "COMMIT").count();
    assert_eq!(usize::try_from(script.writes()).unwrap(), script.text.lines().count() - framing);
    let last = script.text.lines().count();
    assert_eq!((script.commits_before(last), script.commits_before(last + 1)), (2, 3));
}
