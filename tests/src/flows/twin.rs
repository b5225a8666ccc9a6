//! The IPv6 twin of a story that is written in IPv4: the same objects and flows with the lab's IPv6 addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::format::{OnlyFamily, RawFlow, Story, split_destination};
use crate::network;

/// The twin; none for a story that is confined to a family or names IPv6 addresses itself.
pub(super) fn of(story: &Story) -> anyhow::Result<Option<Story>> {
    if story.family.is_some() {
        return Ok(None);
    }
    let mut twin = story.clone();
    let mut own_ipv6 = false;
    for step in &mut twin.steps {
        for object in &mut step.put {
            // Nodes and Pods have both families already.
            if matches!(object.get("kind").and_then(Value::as_str), Some("Service" | "EndpointSlice")) {
                translate(object, &mut own_ipv6)?;
            }
        }
        for flow in &mut step.flows {
            translate_flow(flow, &mut own_ipv6)?;
        }
    }
    if own_ipv6 {
        return Ok(None);
    }
    twin.family = Some(OnlyFamily::IPv6);
    twin.story.push_str(" (in IPv6)");
    Ok(Some(twin))
}

fn translate_flow(flow: &mut RawFlow, own_ipv6: &mut bool) -> anyhow::Result<()> {
    if let Some(address) = &mut flow.from_address {
        match *address {
            IpAddr::V4(v4) => *address = ipv6(v4)?.into(),
            IpAddr::V6(_) => *own_ipv6 = true,
        }
    }
    for to in &mut flow.to {
        let (host, rest) = split_destination(to)?;
        match host.parse() {
            Ok(IpAddr::V4(v4)) => *to = format!("[{}]:{rest}", ipv6(v4)?),
            Ok(IpAddr::V6(_)) => *own_ipv6 = true,
            // A name of the cast; it has both addresses.
            Err(_) => {}
        }
    }
    Ok(())
}

fn translate(value: &mut Value, own_ipv6: &mut bool) -> anyhow::Result<()> {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        Value::Array(values) => values.iter_mut().try_for_each(|value| translate(value, own_ipv6)),
        Value::Object(fields) => fields.values_mut().try_for_each(|value| translate(value, own_ipv6)),
        Value::String(text) => {
            if text == "IPv4" {
                "IPv6".clone_into(text);
            } else if text == "IPv6" {
                *own_ipv6 = true;
            } else if let Some((address, length)) = text.split_once('/') {
                match (address.parse(), length.parse()) {
                    (Ok(IpAddr::V4(address)), Ok(length)) => *text = network(address, length)?,
                    (Ok(IpAddr::V6(_)), _) => *own_ipv6 = true,
                    (Ok(_) | Err(_), _) => {}
                }
            } else {
                match text.parse() {
                    Ok(IpAddr::V4(v4)) => *text = ipv6(v4)?.to_string(),
                    Ok(IpAddr::V6(_)) => *own_ipv6 = true,
                    Err(_) => {}
                }
            }
            Ok(())
        }
    }
}

/// The IPv6 address that plays the part of an IPv4 address.
fn ipv6(address: Ipv4Addr) -> anyhow::Result<Ipv6Addr> {
    Ok(match address.octets() {
        [10, 96, high, low] => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, u16::from_be_bytes([high, low])),
        [10, 244, node, pod] => network::pod_addresses(node, pod).1,
        [172, 18, 0, last] => Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, u16::from(last)),
        [172, 19, 0, last] => Ipv6Addr::new(0xfd00, 0x19, 0, 0, 0, 0, 0, u16::from(last)),
        [127, 0, 0, 1] => Ipv6Addr::LOCALHOST,
        [0, 0, 0, 0] => Ipv6Addr::UNSPECIFIED,
        // The documentation ranges.
        [203, 0, 113, last] => Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, u16::from(last)),
        [198, 51, 100, last] => Ipv6Addr::new(0x2001, 0xdb8, 0x198, 0, 0, 0, 0, u16::from(last)),
        [192, 0, 2, last] => Ipv6Addr::new(0x2001, 0xdb8, 0x192, 0, 0, 0, 0, u16::from(last)),
        _ => bail!("{address} has no counterpart: use another, or confine the story with `family: IPv4`"),
    })
}

/// The IPv6 network that plays the part of an IPv4 network.
fn network(address: Ipv4Addr, length: u8) -> anyhow::Result<String> {
    Ok(match (address.octets(), length) {
        ([0, 0, 0, 0], 0) => "::/0".to_owned(),
        ([10, 244, 0, 0], 16) => "fd00:10:244::/48".to_owned(),
        ([10, 244, _, 0], 24) | ([172, 18 | 19, 0, 0], 24) => format!("{}/64", ipv6(address)?),
        (_, 32) => format!("{}/128", ipv6(address)?),
        _ => {
            return Err(anyhow::anyhow!("use another, or confine the story with `family: IPv4`"))
                .with_context(|| format!("{address}/{length} has no counterpart"));
        }
    })
}
