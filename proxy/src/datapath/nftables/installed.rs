//! What the kernel holds in a table of ours, as nft lists it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use shunt_model::Family;

use super::affinity::CLIENTS;
use super::collection::Collection;
use super::difference::Named;
use super::hooks::{MARKER, MARKERS, TRANSLATES, hook};
use super::image::Place;
use super::script::Unused;

/// What is installed, in both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Installed {
    /// The tables there are.
    pub(super) tables: BTreeMap<Family, Maker>,
    /// Our maps and sets that are there.
    pub(super) collections: BTreeSet<(Family, Collection)>,
    /// Elements of these, with what they lead to.
    pub(super) elements: BTreeMap<Place, String>,
    /// Chains, with the number of their rules.
    pub(super) chains: BTreeMap<Named, usize>,
    /// The clients that sets remember.
    pub(super) clients: BTreeMap<Named, Vec<Client>>,
    /// Maps and sets that no version of ours makes.
    pub(super) others: Vec<Unused>,
    /// Chains that are not where the kernel should call them.
    pub(super) misplaced: bool,
}

/// Who made a table of our name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Maker {
    /// This layout.
    Us,
    /// Another layout of ours.
    OtherVersion,
    /// Somebody else.
    Foreign,
}

/// A client that is remembered, with whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) address: IpAddr,
    /// For how long after its last use.
    pub(super) timeout: u32,
    /// For how long from now on.
    pub(super) expires: u32,
}

/// `nft -j list table`.
#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    chain: Option<Chain>,
    rule: Option<Rule>,
    #[serde(alias = "map")]
    set: Option<Set>,
}

#[derive(Deserialize)]
struct Chain {
    name: String,
    hook: Option<String>,
    prio: Option<i32>,
    #[serde(rename = "type")]
    kind: Option<String>,
    policy: Option<String>,
}

#[derive(Deserialize)]
struct Rule {
    chain: String,
}

#[derive(Deserialize)]
struct Set {
    name: String,
    map: Option<IgnoredAny>,
    #[serde(default)]
    elem: Vec<Entry>,
}

impl Installed {
    /// Takes in what nft lists of the table of a family.
    pub(super) fn add(&mut self, family: Family, listing: &[u8]) -> Result<(), serde_json::Error> {
        let Listing { nftables } = serde_json::from_slice(listing)?;
        let mut maker = Maker::Foreign;
        let is_empty = !nftables.iter().any(|Object { chain, rule: _, set }| chain.is_some() || set.is_some());
        for Object { chain, rule, set } in nftables {
            if let Some(chain) = chain {
                if chain.name == MARKER {
                    maker = Maker::Us;
                } else if chain.name.starts_with(MARKERS) && maker == Maker::Foreign {
                    maker = Maker::OtherVersion;
                }
                self.misplaced |= !chain.is_in_place();
                self.chains.entry((family, chain.name)).or_default();
            }
            if let Some(rule) = rule {
                *self.chains.entry((family, rule.chain)).or_default() += 1;
            }
            if let Some(set) = set {
                self.add_set(family, set);
            }
        }
        // Somebody may have deleted the marker alone: nobody else makes maps of these names.
        let has_ours =
            [Collection::Frontends, Collection::NodePorts].map(|ours| self.collections.contains(&(family, ours)));
        if maker == Maker::Foreign && (is_empty || has_ours == [true, true]) {
            maker = Maker::Us;
        }
        self.tables.insert(family, maker);
        Ok(())
    }

    /// Whether nothing is left of a table but what [`retired`](super::script::retired) leaves.
    pub(super) fn is_retired(&self, family: Family) -> bool {
        let chains = self.chains.iter().filter(|((of, _), _)| *of == family);
        let has_none = !self.collections.iter().any(|(of, _)| *of == family);
        has_none && chains.map(|((_, name), rules)| (name.as_str(), *rules)).eq([(MARKER, 0), (TRANSLATES, 1)])
    }

    fn add_set(&mut self, family: Family, Set { name, map, elem }: Set) {
        let kind = if map.is_some() { "map" } else { "set" };
        match Collection::named(&name).filter(|collection| collection.kind() == kind) {
            Some(collection) => {
                self.collections.insert((family, collection));
                let places =
                    elem.into_iter().map(|Entry { key, leads_to, .. }| (Place { family, collection, key }, leads_to));
                self.elements.extend(places);
            }
            None if name.starts_with(CLIENTS) && kind == "set" => {
                let clients = elem.iter().filter_map(Entry::client).collect();
                self.clients.insert((family, name), clients);
            }
            None => self.others.push(Unused { family, kind, name }),
        }
    }
}

/// The clients in a listing of sets.
pub(super) fn clients(listing: &[u8]) -> Result<Vec<Client>, serde_json::Error> {
    let Listing { nftables } = serde_json::from_slice(listing)?;
    let sets = nftables.into_iter().filter_map(|object| object.set);
    Ok(sets.flat_map(|set| set.elem).filter_map(|entry| entry.client()).collect())
}

impl Chain {
    fn is_in_place(&self) -> bool {
        let Some(wanted) = hook(&self.name) else { return self.hook.is_none() };
        self.hook.as_deref() == Some(wanted.hook)
            && self.prio == Some(wanted.priority)
            && self.kind.as_deref() == Some(wanted.kind)
            && self.policy.as_deref() == Some("accept")
    }
}

/// An element of a map or a set, in nft's language.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    key: String,
    leads_to: String,
    timeout: Option<u32>,
    expires: Option<u32>,
}

impl Entry {
    fn client(&self) -> Option<Client> {
        let address = self.key.parse().ok()?;
        Some(Client { address, timeout: self.timeout?, expires: self.expires? })
    }
}

/// An expression as nft would read it.
struct Text(String);

#[derive(Deserialize)]
struct Prefix {
    addr: String,
    len: u8,
}

#[derive(Deserialize)]
struct Target {
    target: String,
}

#[derive(Deserialize)]
struct Timed {
    val: Text,
    timeout: Option<u32>,
    expires: Option<u32>,
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Found;
        impl<'de> Visitor<'de> for Found {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an element of a set or map")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Entry, E> {
                Ok(Entry { key: canonical(text), ..Entry::default() })
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Entry, E> {
                Ok(Entry { key: number.to_string(), ..Entry::default() })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Entry, A::Error> {
                let Text(key) = pair.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
                let Text(leads_to) = pair.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &self))?;
                Ok(Entry { key, leads_to, ..Entry::default() })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
                let word = map.next_key::<String>()?.unwrap_or_default();
                if word == "elem" {
                    let Timed { val: Text(key), timeout, expires } = map.next_value()?;
                    return Ok(Entry { key, timeout, expires, ..Entry::default() });
                }
                Ok(Entry { key: text_of(&word, &mut map)?, ..Entry::default() })
            }
        }
        deserializer.deserialize_any(Found)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Found;
        impl<'de> Visitor<'de> for Found {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an expression")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(canonical(text)))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Text, A::Error> {
                let word = map.next_key::<String>()?.unwrap_or_default();
                text_of(&word, &mut map).map(Text)
            }
        }
        deserializer.deserialize_any(Found)
    }
}

/// The text of an expression that is an object with one member.
fn text_of<'de, A: MapAccess<'de>>(word: &str, map: &mut A) -> Result<String, A::Error> {
    Ok(match word {
        "concat" => {
            let parts: Vec<Text> = map.next_value()?;
            parts.into_iter().map(|Text(part)| part).collect::<Vec<_>>().join(" . ")
        }
        "prefix" => {
            let Prefix { addr, len } = map.next_value()?;
            format!("{}/{len}", canonical(&addr))
        }
        "range" => {
            let parts: Vec<Text> = map.next_value()?;
            parts.into_iter().map(|Text(part)| part).collect::<Vec<_>>().join("-")
        }
        "goto" | "jump" => {
            let Target { target } = map.next_value()?;
            format!("{word} {target}")
        }
        // `{"drop": null}`
        verdict => {
            map.next_value::<IgnoredAny>()?;
            verdict.to_owned()
        }
    })
}

/// Addresses may be written in more than one way, and protocols by number.
fn canonical(text: &str) -> String {
    match text {
        "6" => "tcp".to_owned(),
        "17" => "udp".to_owned(),
        "132" => "sctp".to_owned(),
        _ => text.parse::<IpAddr>().map_or_else(|_| text.to_owned(), |address| address.to_string()),
    }
}
