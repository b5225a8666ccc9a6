//! The network devices that an operator names.

use std::str::FromStr;

/// The longest name of a device in the kernel (`IFNAMSIZ`), in bytes.
const LONGEST: usize = 15;

/// The devices by which a node reaches others, as the operator says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Devices {
    /// Those that look like it.
    #[default]
    Auto,
    /// These alone.
    Named(Vec<DeviceName>),
}

/// The name of one device, or the beginning of many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceName {
    name: String,
    /// It stands for all that begin so.
    prefix: bool,
}

impl Devices {
    /// Whether the device of this name is one of them; `None` if the operator leaves it open.
    #[must_use]
    pub fn name(&self, device: &str) -> Option<bool> {
        match self {
            Self::Auto => None,
            Self::Named(names) => Some(names.iter().any(|name| name.is(device))),
        }
    }
}

impl DeviceName {
    fn is(&self, device: &str) -> bool {
        if self.prefix { device.starts_with(&self.name) } else { device == self.name }
    }
}

impl FromStr for Devices {
    type Err = String;

    /// `auto`, or names separated by commas.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        text.split(',').map(|name| name.trim().parse()).collect::<Result<_, _>>().map(Self::Named)
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, prefix) = text.strip_suffix('+').map_or((text, false), |name| (name, true));
        let fits = (1..=LONGEST).contains(&name.len()) && name != "auto";
        if !fits || name.contains(|letter: char| letter.is_whitespace() || letter == '/' || letter == '+') {
            return Err(format!(
                "{text:?} is not the name of a network device: 1 to {LONGEST} bytes, with a + at its end for all that begin so"
            ));
        }
        Ok(Self { name: name.to_owned(), prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_devices_and_beginnings_of_them() {
        let named: Devices = "eth0, ens+".parse().unwrap();
        let found = ["eth0", "eth01", "ens3", "ens", "wlan0"].map(|device| named.name(device));
        assert_eq!(found, [true, false, true, true, false].map(Some));
        assert_eq!("auto".parse::<Devices>().unwrap().name("eth0"), None);
    }

    #[test]
    fn what_no_device_is_called_is_refused_with_its_text() {
        for wrong in ["", "eth0,", "auto,eth0", "a b", "eth/0", "e+h", "+", "sixteen-letters-"] {
            let error = wrong.parse::<Devices>().unwrap_err();
            let part = wrong.split(',').map(str::trim).find(|part| error.contains(&format!("{part:?}")));
            assert!(part.is_some(), "{wrong}: {error}");
        }
    }
}
