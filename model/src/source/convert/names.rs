//! What Kubernetes accepts as a name.

use super::Rejection;

/// Which names are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// One DNS label: Services, Namespaces.
    Label,
    /// DNS labels joined by dots: Pods, Nodes, EndpointSlices.
    Subdomain,
}

/// Refuses a name that Kubernetes would refuse; DNS could not answer for it.
pub(super) fn check(what: &str, name: &str, rule: Rule) -> Result<(), Rejection> {
    if name.is_empty() {
        return Err(Rejection(format!("{what} is missing, so the object is ignored; set it under metadata")));
    }
    let (valid, limit, wanted) = match rule {
        Rule::Label => {
            (is_label(name), 63, "lower-case letters, digits and '-', beginning and ending with neither '-'")
        }
        Rule::Subdomain => (is_subdomain(name), 253, "lower-case letters, digits, '-' and '.'"),
    };
    if name.len() > limit {
        let length = name.len();
        return Err(Rejection(format!(
            "{what} {name:?} has {length} characters, more than {limit}, so the object is ignored"
        )));
    }
    if valid {
        return Ok(());
    }
    Err(Rejection(format!("{what} {name:?} is not a DNS name ({wanted}), so the object is ignored")))
}

/// Why `text` is not a DNS label, as words to follow it: `is not …`. DNS could not answer for such a name, or would
/// answer for another one.
pub(super) fn label_fault(text: &str) -> Option<String> {
    let length = text.len();
    if length > 63 {
        return Some(format!("has {length} characters, more than the 63 of a DNS label"));
    }
    (!is_part(text)).then(|| {
        "is not a DNS label (lower-case letters, digits and '-', beginning and ending with neither '-')".to_owned()
    })
}

/// Why `text` is not a name that a container port can have (RFC 6335 section 5.1), as words to follow it.
pub(crate) fn port_name_fault(text: &str) -> Option<&'static str> {
    let is_name =
        text.len() <= 15 && is_part(text) && !text.contains("--") && !text.bytes().all(|b| !b.is_ascii_lowercase());
    (!is_name).then_some(
        "is not the name of a port (at most 15 lower-case letters, digits and single '-' between them, one letter at least)",
    )
}

/// A name outside of the cluster, which need not follow Kubernetes' rules: capital letters and `_` are in use. It must
/// be labels of 1 to 63 characters between dots, so that it has one reading only.
pub(super) fn is_host(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(inner);
    name.len() <= 253 && name.split('.').all(label)
}

/// RFC 1123 label as Kubernetes reads it: at most 63 of `[a-z0-9-]`, no dash at either end.
fn is_label(name: &str) -> bool {
    name.len() <= 63 && is_part(name)
}

/// RFC 1123 subdomain as Kubernetes reads it: its single parts may be longer than 63.
fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_part)
}

fn is_part(part: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ports_follow_rfc_6335() {
        for good in ["http", "a", "8080a", "dns-tcp", "a23456789012345"] {
            assert_eq!(port_name_fault(good), None, "{good}");
        }
        for bad in ["8080", "8-0", "HTTP", "a--b", "-a", "a-", "a_b", "", "a234567890123456"] {
            assert!(port_name_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn names_follow_rfc_1123() {
        for good in ["a", "web", "web-1", "1web"] {
            assert!(is_label(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", &"a".repeat(64)] {
            assert!(!is_label(bad), "{bad}");
        }
        assert!(is_subdomain("node-1.example.org"));
        assert!(!is_subdomain("node..org"));
        assert!(is_host("WEB._tcp.example-1.org") && is_host(&"a".repeat(63)) && is_host("192.0.2.7"));
        let long = ["a"; 128].join(".");
        for bad in [
            "",
            ".",
            "a..b",
            "a.",
            ".a",
            r"a\.b.com",
            "a b.com",
            "a.com ",
            "bücher.de",
            "fd00::1",
            "*.a",
            &"a".repeat(64),
            &long,
        ] {
            assert!(!is_host(bad), "{bad}");
        }
        assert!(check("the name", &"a".repeat(70), Rule::Label).unwrap_err().0.contains("70 characters"));
    }
}
