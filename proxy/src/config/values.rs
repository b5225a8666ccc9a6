//! Values of settings, read the same way from a flag and from the configuration file.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

/// `IP` or `IP:PORT`; an IPv6 address with a port needs brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// The port, if one was given.
    pub port: Option<u16>,
}

impl Address {
    /// The socket address, with `port` where none was given.
    #[must_use]
    pub fn or_port(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(port))
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(Self { ip: ip.to_canonical(), port: None });
        }
        match text.parse::<SocketAddr>() {
            Ok(address) => Ok(Self { ip: address.ip().to_canonical(), port: Some(address.port()) }),
            Err(_) => Err(format!("{text:?} is not an IP address or IP:PORT ([IP]:PORT for IPv6)")),
        }
    }
}

/// A value that is read from its text; in a file it may also be a list of what the text has commas between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text<T>(pub T);

impl<T: FromStr> FromStr for Text<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        text.parse().map(Self)
    }
}

/// One value of `--nodeport-addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortAddress {
    /// The node's primary addresses.
    Primary,
    /// Addresses in a range.
    Within(IpNet),
}

impl FromStr for NodePortAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "primary" => Ok(Self::Primary),
            _ => text
                .parse()
                .map(Self::Within)
                .map_err(|error| format!("{text:?} is neither a CIDR nor primary: {error}")),
        }
    }
}

/// An annotation by key, with the value that it must have if one is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotation {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Option<String>,
}

impl Annotation {
    /// In the form that the plan takes.
    #[must_use]
    pub fn to_plan(&self) -> (Arc<str>, Option<Arc<str>>) {
        (Arc::from(self.key.as_str()), self.value.as_deref().map(Arc::from))
    }
}

impl FromStr for Annotation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value.to_owned())));
        if key.is_empty() {
            return Err(format!("{text:?} has no key; an annotation is KEY or KEY=VALUE"));
        }
        Ok(Self { key: key.to_owned(), value })
    }
}

/// Several values: `a,b` on the command line; in the file also a YAML list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommaSeparated<T>(pub Vec<T>);

impl<T: FromStr> FromStr for CommaSeparated<T>
where
    T::Err: fmt::Display,
{
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(parse).collect::<Result<_, _>>().map(Self)
    }
}

fn parse<T: FromStr>(text: &str) -> Result<T, String>
where
    T::Err: fmt::Display,
{
    text.parse().map_err(|error| {
        let reason = format!("{error}");
        if reason.contains(text) { reason } else { format!("{text:?}: {reason}") }
    })
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl<'de, T: FromStr> Deserialize<'de> for Text<T>
where
    T::Err: fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let CommaSeparated(parts) = CommaSeparated::<String>::deserialize(deserializer)?;
        parts.join(",").parse().map_err(de::Error::custom)
    }
}

impl<'de, T: FromStr> Deserialize<'de> for CommaSeparated<T>
where
    T::Err: fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T>(PhantomData<T>);

impl<'de, T: FromStr> Visitor<'de> for ListVisitor<T>
where
    T::Err: fmt::Display,
{
    type Value = CommaSeparated<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list, or text with commas")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<CommaSeparated<T>, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<CommaSeparated<T>, A::Error> {
        let mut values = Vec::new();
        while let Some(item) = items.next_element::<String>()? {
            values.push(parse(&item).map_err(de::Error::custom)?);
        }
        Ok(CommaSeparated(values))
    }
}
