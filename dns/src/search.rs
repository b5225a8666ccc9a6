//! The names that the resolver of a pod asks for a relative name, by its search list (DNS-17.1, DNS-17.2).

use hickory_proto::rr::Name;
use shunt_model::ObjectKey;

use crate::records;
use crate::zone::View;

/// A name with so many dots is asked as it is first: `ndots:5` (DNS-17.2).
const NDOTS: usize = 5;

/// A name that pods ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// The only namespace whose pods ask it; `None` for pods of all namespaces.
    pub(crate) namespace: Option<String>,
    /// The name.
    pub(crate) name: Name,
}

/// The names that may be in the cluster, in the order in which a pod asks them. A namespace counts if it has a Service
/// of the last label's name: in others the name that a pod asks first does not exist.
pub(crate) fn candidates(asked: &Name, view: &View) -> Vec<Candidate> {
    let domain = &view.zone.config().cluster_domain;
    if !is_relative(asked, domain) {
        return Vec::new();
    }
    let (last, snapshot) = (last_label(asked), view.snapshot.as_deref());
    let namespaces = snapshot.into_iter().flat_map(|snapshot| {
        let has_one = |namespace: &&str| snapshot.services.contains_key(&ObjectKey::new(*namespace, last.as_str()));
        snapshot.namespaces.keys().map(|namespace| &**namespace).filter(has_one)
    });
    let of_namespaces = namespaces.filter_map(|namespace| in_namespace(asked, namespace, domain));
    // One label below `svc` is a namespace, which has no records.
    let services = records::below(&["svc"], domain).filter(|_| asked.iter().len() > 1);
    let of_all = services.into_iter().chain([domain.clone()]).filter_map(|domain| below(asked, None, &domain));
    of_namespaces.chain(of_all).collect()
}

/// The name that was most likely meant if none of the candidates exists, and whether its namespace does.
pub(crate) fn likely(asked: &Name, view: &View) -> Option<(Candidate, bool)> {
    let domain = &view.zone.config().cluster_domain;
    if !is_relative(asked, domain) {
        return None;
    }
    let exists = |namespace: Option<String>| {
        let known = view.snapshot.as_deref().map(|snapshot| &snapshot.namespaces);
        namespace.is_some_and(|namespace| known.is_some_and(|known| known.contains_key(namespace.as_str())))
    };
    let candidate = match (asked.iter().len(), last_label(asked).as_str()) {
        // Nothing says which namespace was meant.
        (1, _) => (in_namespace(asked, "default", domain)?, false),
        (_, "svc" | "pod") => (below(asked, None, domain)?, exists(label_from_end(asked, 1))),
        _ => (below(asked, None, &records::below(&["svc"], domain)?)?, exists(label_from_end(asked, 0))),
    };
    Some(candidate)
}

fn is_relative(asked: &Name, domain: &Name) -> bool {
    (1..=NDOTS).contains(&asked.iter().len()) && !domain.zone_of(asked)
}

fn last_label(asked: &Name) -> String {
    label_from_end(asked, 0).unwrap_or_default()
}

/// In lower case, as names of objects are.
fn label_from_end(asked: &Name, place: usize) -> Option<String> {
    asked.iter().rev().nth(place).map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
}

fn in_namespace(asked: &Name, namespace: &str, domain: &Name) -> Option<Candidate> {
    below(asked, Some(namespace), &records::below(&[namespace, "svc"], domain)?)
}

fn below(asked: &Name, namespace: Option<&str>, domain: &Name) -> Option<Candidate> {
    let name = Name::from_labels(asked.iter().chain(domain.iter())).ok()?;
    Some(Candidate { namespace: namespace.map(str::to_owned), name })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shunt_model::source::manifests::{self, ManifestsOptions};

    use super::*;
    use crate::names;
    use crate::zone::{Zone, ZoneConfig};

    const CLUSTER: &str = "
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: blog, name: web}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}
";

    fn view() -> View {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("all.yaml"), CLUSTER).unwrap();
        let options = ManifestsOptions { dir: folder.path().to_path_buf(), ..ManifestsOptions::default() };
        let snapshot = Arc::new(manifests::read(&options).unwrap().0);
        let config = Arc::new(ZoneConfig::usual(Name::from_ascii("cluster.local.").unwrap()));
        View { zone: Arc::new(Zone::new(config, Arc::clone(&snapshot), 1)), snapshot: Some(snapshot) }
    }

    #[track_caller]
    fn check(asked: &str, wanted: &[&str]) {
        let found = candidates(&names::absolute(asked).unwrap(), &view());
        let told = found.iter().map(|one| format!("{} {}", one.namespace.as_deref().unwrap_or("*"), one.name));
        assert_eq!(told.collect::<Vec<_>>(), wanted, "{asked}");
    }

    #[test]
    fn a_relative_name_is_asked_below_the_domains_of_the_search_list() {
        check("web.shop", &["* web.shop.svc.cluster.local.", "* web.shop.cluster.local."]);
        check("web.shop.svc", &["* web.shop.svc.svc.cluster.local.", "* web.shop.svc.cluster.local."]);
        let everywhere = "* Web.cluster.local.";
        check("Web", &["blog Web.blog.svc.cluster.local.", "shop Web.shop.svc.cluster.local.", everywhere]);
        check(
            "w-0.web",
            &[
                "blog w-0.web.blog.svc.cluster.local.",
                "shop w-0.web.shop.svc.cluster.local.",
                "* w-0.web.svc.cluster.local.",
                "* w-0.web.cluster.local.",
            ],
        );
    }

    #[test]
    fn names_of_the_cluster_and_names_with_many_dots_are_asked_as_they_are() {
        check("web.shop.svc.cluster.local", &[]);
        check("a.b.c.d.e.f", &[]);
        check("a.b.c.d.e", &["* a.b.c.d.e.svc.cluster.local.", "* a.b.c.d.e.cluster.local."]);
        check(".", &[]);
    }

    #[test]
    fn a_name_that_does_not_exist_was_meant_to_be_a_service() {
        let rows = [
            ("wep", "wep.default.svc.cluster.local.", false),
            ("wep.Shop", "wep.Shop.svc.cluster.local.", true),
            ("wep.shop.svc", "wep.shop.svc.cluster.local.", true),
            ("10-1-0-9.shop.pod", "10-1-0-9.shop.pod.cluster.local.", true),
            ("example.org", "example.org.svc.cluster.local.", false),
        ];
        let view = view();
        for (asked, wanted, in_cluster) in rows {
            let (guess, has_namespace) = likely(&names::absolute(asked).unwrap(), &view).unwrap();
            assert_eq!((&*guess.name.to_string(), has_namespace), (wanted, in_cluster), "{asked}");
        }
        assert_eq!(likely(&Name::from_ascii("web.cluster.local.").unwrap(), &view), None);
    }
}
