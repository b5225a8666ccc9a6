//! The corpus as a whole, and the errors that mistakes in stories cause.

use std::collections::BTreeSet;

use super::book::parse;
use super::{Role, load, scenes};
use crate::network;

const CAST: &str = "nodes: [&n1 {kind: Node, metadata: {name: n1}}]\npods: []\nstates: []\n";

#[test]
fn every_story_of_the_corpus_can_be_played() {
    let book = load().unwrap();
    let mut names = BTreeSet::new();
    for story in &book.stories {
        assert!(names.insert((&story.file, &story.story)), "{}: two stories are called {:?}", story.file, story.story);
        scenes(&book.cast, story).unwrap_or_else(|error| panic!("{error:#}"));
    }
    assert!(book.stories.len() > 100, "{}", book.stories.len());
}

#[test]
fn the_cast_has_the_addresses_that_the_lab_gives() {
    let number = |text: &str| text.trim_start_matches(|c: char| c.is_alphabetic()).parse::<u8>().unwrap();
    for member in load().unwrap().cast.members {
        let (v4, v6) = match &member.role {
            Role::Node { zone: _ } => network::node_addresses(number(&member.name)),
            Role::Pod { node } => network::pod_addresses(number(node), 10 + number(&member.name)),
            Role::Outside => (network::OUTSIDE_V4, network::OUTSIDE_V6),
        };
        assert_eq!((member.ipv4, member.ipv6), (v4.into(), v6.into()), "{}", member.name);
    }
}

/// The error about a story with these lines.
#[track_caller]
fn check(lines: &str, parts: &[&str]) {
    let text = format!("- story: a fact\n  {}\n", lines.replace('\n', "\n  "));
    let said = match parse(CAST, "topic", &text) {
        Err(error) => format!("{error:#}"),
        Ok(stories) => {
            let cast = load().unwrap().cast;
            let played: Vec<_> = stories.iter().map(|story| scenes(&cast, story)).collect();
            played.into_iter().find_map(Result::err).map_or_else(String::new, |error| format!("{error:#}"))
        }
    };
    for part in [&["topic.yaml"], parts].concat() {
        assert!(said.contains(part), "{part:?} in {said:?}");
    }
}

#[test]
fn mistakes_are_reported_with_file_and_story() {
    let flow = |text: &str| format!("proves: [EP-1]\nsteps: [{{flows: [{{{text}}}]}}]");
    check("proves: [EP-1]\nstops: []", &["a fact", "unknown field `stops`"]);
    check("proves: []\nsteps: []", &["a fact", "it proves nothing"]);
    check("proves: [EP-1]\nsteps: [{}]", &["a fact", "it has no flows"]);
    check(&flow("from: a1, to: '10.96.0.1:80/tcp', expect: perhaps"), &["a fact", "unknown variant `perhaps`"]);
    check(&flow("from: a1, to: '10.96.0.1:80/tcp', expect: {to: []}"), &["a fact", "say reject, drop, deny or pass"]);
    check(&flow("from: a1, to: '10.96.0.1:80/tcp', expect: {to: [z9]}"), &["a fact", "\"z9\" is none of the cast"]);
    check(&flow("from: z9, to: '10.96.0.1:80/tcp', expect: drop"), &["a fact", "\"z9\" is none of the cast"]);
    check(&flow("from: a1, to: '10.96.0.1:80', expect: drop"), &["a fact", "is no destination"]);
    check(&flow("from: outside, to: '10.96.0.1:80/tcp', expect: drop"), &["a fact", "say in `at`"]);
    check(&flow("from: a1, to: '192.168.0.1:80/tcp', expect: drop"), &["a fact", "192.168.0.1 has no counterpart"]);
    check("proves: [EP-1]\nsteps: [{remove: [Service/web]}, {when: x}]", &["a fact", "it has no flows"]);
    check("proves: [EP-1\n", &["line"]);
}

#[test]
fn a_story_in_ipv4_is_played_in_ipv6_too() {
    let service = "{kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.1.2, ipFamilies: [IPv4]}}";
    let flows = "[{from: a1, to: ['10.96.1.2:80/tcp', 'n1:30080/tcp'], expect: reject}]";
    let text = format!("- story: a fact\n  proves: [EP-1]\n  steps: [{{put: [{service}], flows: {flows}}}]\n");
    let stories = parse(CAST, "topic", &text).unwrap();
    let cast = load().unwrap().cast;
    let told: Vec<String> = stories
        .iter()
        .map(|story| {
            let scenes = scenes(&cast, story).unwrap();
            let service = scenes[0].objects.iter().find(|object| object["kind"] == "Service").unwrap();
            format!("{} | {} | {}", scenes[0].story.story, service["spec"], scenes[0].flows[0])
        })
        .collect();
    assert_eq!(
        told,
        [
            r#"a fact | {"clusterIP":"10.96.1.2","ipFamilies":["IPv4"]} | a1 -> 10.96.1.2:80/tcp, 172.18.0.11:30080/tcp"#,
            "a fact (in IPv6) | {\"clusterIP\":\"fd00:10:96::102\",\"ipFamilies\":[\"IPv6\"]} | \
             a1 -> [fd00:10:96::102]:80/tcp, [fd00:18::b]:30080/tcp",
        ]
    );
}
