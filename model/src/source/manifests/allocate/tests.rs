//! Who gets which cluster IP.

use proptest::prelude::*;

use super::*;

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn allocate_single() -> Wish {
    Wish::Allocate(Families::default())
}

fn given(addresses: &[&str]) -> Wish {
    Wish::Given(addresses.iter().map(|address| address.parse().unwrap()).collect())
}

fn claims(wishes: &[(&str, Option<i64>, Wish)]) -> BTreeMap<ObjectKey, Claim> {
    wishes.iter().map(|(name, created, wish)| (key(name), Claim { created: *created, wish: wish.clone() })).collect()
}

fn networks(networks: &[&str]) -> Vec<IpNet> {
    networks.iter().map(|network| network.parse().unwrap()).collect()
}

/// Addresses, then complaints in brackets.
#[track_caller]
fn check(wishes: &[(&str, Option<i64>, Wish)], cidrs: &[&str], name: &str, expected: &[&str], complaint: &str) {
    let assigned = assign(&claims(wishes), &networks(cidrs), &[]);
    let found = &assigned[&key(name)];
    let addresses: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, expected, "{:?}", found.complaints);
    assert_eq!(found.complaints.is_empty(), complaint.is_empty(), "{:?}", found.complaints);
    assert!(found.complaints.iter().all(|found| found.contains(complaint)), "{:?}", found.complaints);
}

#[test]
fn addresses_never_change_between_versions() {
    // Pinned: a change of the hash moves every address of every user.
    let wish = Wish::Allocate(Families { listed: Vec::new(), policy: FamilyPolicy::PreferDual });
    let cidrs = ["10.96.0.0/12", "fd00:10:96::/112"];
    check(&[("web", None, wish)], &cidrs, "web", &PINNED, "");
}

const PINNED: [&str; 2] = ["10.97.67.242", "fd00:10:96::2076"];

#[test]
fn families_follow_policy_and_order() {
    let wish = |listed: &[Family], policy| Wish::Allocate(Families { listed: listed.to_vec(), policy });
    let families = |listed: &[Family], policy, cidrs: &[&str]| {
        let assigned = assign(&claims(&[("a", None, wish(listed, policy))]), &networks(cidrs), &[]);
        let found = &assigned[&key("a")];
        (found.addresses.iter().map(Family::of).collect::<Vec<_>>(), found.complaints.len())
    };
    let (v4, v6) = (Family::V4, Family::V6);
    let both = ["10.0.0.0/24", "fd00::/112"];
    let reversed = ["fd00::/112", "10.0.0.0/24"];
    assert_eq!(families(&[], FamilyPolicy::Single, &both), (vec![v4], 0));
    assert_eq!(families(&[], FamilyPolicy::Single, &reversed), (vec![v6], 0));
    assert_eq!(families(&[v6], FamilyPolicy::Single, &both), (vec![v6], 0));
    assert_eq!(families(&[], FamilyPolicy::PreferDual, &both), (vec![v4, v6], 0));
    assert_eq!(families(&[v6], FamilyPolicy::RequireDual, &both), (vec![v6, v4], 0));
    assert_eq!(families(&[v6, v4], FamilyPolicy::RequireDual, &both), (vec![v6, v4], 0));
    assert_eq!(families(&[], FamilyPolicy::PreferDual, &["10.0.0.0/24"]), (vec![v4], 0));
    assert_eq!(families(&[], FamilyPolicy::RequireDual, &["10.0.0.0/24"]), (vec![v4], 1));
    assert_eq!(families(&[v6], FamilyPolicy::Single, &["10.0.0.0/24"]), (vec![], 1));
    assert_eq!(families(&[], FamilyPolicy::Single, &[]), (vec![], 1));
}

#[test]
fn of_two_that_name_one_address_the_older_keeps_it() {
    let pair = |a, b| [("a", a, given(&["10.0.0.9", "fd00::9"])), ("b", b, given(&["10.0.0.9"]))];
    check(&pair(None, None), &[], "a", &["10.0.0.9", "fd00::9"], "");
    check(&pair(None, None), &[], "b", &[], "already belongs to Service default/a");
    check(&pair(Some(5), Some(4)), &[], "a", &["fd00::9"], "already belongs to Service default/b");
    check(&pair(Some(5), Some(4)), &[], "b", &["10.0.0.9"], "");
    check(&pair(None, Some(4)), &[], "b", &["10.0.0.9"], "");
}

#[test]
fn special_explicit_and_reserved_addresses_are_never_handed_out() {
    // A /29 has .2 to .6 to give; one is explicit, one reserved, so three of four get one.
    let mut wishes: Vec<(&str, Option<i64>, Wish)> =
        ["a", "b", "c", "d"].iter().map(|name| (*name, None, allocate_single())).collect();
    wishes.push(("z", None, given(&["10.0.0.3"])));
    let assigned = assign(&claims(&wishes), &networks(&["10.0.0.0/29"]), &["10.0.0.6".parse().unwrap()]);
    let mut got: Vec<String> =
        ["a", "b", "c", "d"].iter().flat_map(|name| &assigned[&key(name)].addresses).map(ToString::to_string).collect();
    got.sort();
    assert_eq!(got, ["10.0.0.2", "10.0.0.4", "10.0.0.5"]);
    assert!(assigned[&key("d")].complaints[0].contains("every IPv4 address of 10.0.0.0/29 is taken"));
    check(&[("a", None, allocate_single())], &["10.0.0.0/31"], "a", &[], "is taken");
    check(&[("a", None, allocate_single())], &["10.0.0.0/32"], "a", &[], "is taken");
}

#[test]
fn a_reserved_address_may_be_named() {
    let assigned = assign(&claims(&[("dns", None, given(&["10.96.0.10"]))]), &[], &["10.96.0.10".parse().unwrap()]);
    assert_eq!(assigned[&key("dns")].addresses.len(), 1);
}

proptest! {
    #[test]
    fn a_service_moves_only_for_one_that_takes_its_address(
        names in prop::collection::btree_set("[a-e]{1,3}", 1..40),
        newcomer in "[f-h]{1,2}",
    ) {
        let cidrs = networks(&["10.0.0.0/25"]);
        let mut all: Vec<(&str, Option<i64>, Wish)> =
            names.iter().map(|name| (name.as_str(), None, allocate_single())).collect();
        let before = assign(&claims(&all), &cidrs, &[]);
        all.push((&newcomer, None, allocate_single()));
        let after = assign(&claims(&all), &cidrs, &[]);
        // The newcomer ranks last, so no other Service moves.
        for name in &names {
            prop_assert_eq!(&before[&key(name)], &after[&key(name)]);
        }
        let distinct: HashSet<_> = after.values().flat_map(|assigned| &assigned.addresses).collect();
        prop_assert_eq!(distinct.len(), all.len());
    }
}
