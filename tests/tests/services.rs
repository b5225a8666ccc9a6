//! ClusterIP Services on the eBPF socket path: who gets connections, what clients see, what survives.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]

mod cluster;
mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use cluster::{Cluster, MODES, Shop};
use lab::manifests::PodState;
use lab::peer::{Attempt, CallError, Mode, now};

/// Every way to reach a Service; each is tried on both families.
/// Enough for every one of three endpoints to be chosen: it is missed by chance once in 10^10 runs.
const ENOUGH: u32 = 60;

fn servers(attempts: &[Attempt]) -> BTreeSet<&str> {
    attempts.iter().map(|attempt| attempt.server.as_deref().unwrap_or("failed")).collect()
}

#[test]
fn all_ready_endpoints_and_only_they_get_connections() {
    let Some(cluster) = Cluster::get() else { return };
    // EP-20: an unready endpoint, and a terminating one while others are ready, get nothing.
    let states = [PodState::Ready, PodState::Ready, PodState::Ready, PodState::Unready, PodState::Terminating];
    let shop = Shop::open(&cluster, "ready", &states);
    let ready: BTreeSet<&str> = ["ready-0", "ready-1", "ready-2"].into();
    for to in shop.addresses() {
        for mode in MODES {
            let attempts = shop.client.connect(to, mode, ENOUGH).unwrap();
            assert_eq!(servers(&attempts), ready, "{mode:?} to {to}");
        }
    }
}

#[test]
fn clients_believe_to_talk_to_the_service() {
    let Some(cluster) = Cluster::get() else { return };
    let shop = Shop::open(&cluster, "peername", &[PodState::Ready, PodState::Ready]);
    for to in shop.addresses() {
        // getpeername for TCP and connected UDP; where the reply comes from for unconnected UDP.
        for mode in MODES {
            for attempt in shop.client.connect(to, mode, 10).unwrap() {
                assert_eq!((attempt.error, attempt.peername), (None, Some(to)), "{mode:?} to {to}");
            }
        }
    }
}

#[test]
fn mapped_addresses_reach_the_ipv4_service() {
    let Some(cluster) = Cluster::get() else { return };
    let shop = Shop::open(&cluster, "mapped", &[PodState::Ready]);
    let to = shop.mapped_address();
    for mode in MODES {
        for attempt in shop.client.connect(to, mode, 3).unwrap() {
            assert_eq!((attempt.server.as_deref(), attempt.peername), (Some("mapped-0"), Some(to)), "{mode:?}");
        }
    }
}

#[test]
fn an_unconnected_socket_stays_with_one_backend() {
    let Some(cluster) = Cluster::get() else { return };
    let shop = Shop::open(&cluster, "sticky", &[PodState::Ready, PodState::Ready, PodState::Ready]);
    for to in shop.addresses() {
        let attempts = shop.client.connect_with(to, Mode::UdpUnconnected, &["--count", "20", "--same-socket"]).unwrap();
        assert_eq!((attempts.len(), servers(&attempts).len()), (20, 1), "{to}: {:?}", servers(&attempts));
    }
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let Some(cluster) = Cluster::get() else { return };
    let shop = Shop::open(&cluster, "empty", &[PodState::Unready]);
    for to in shop.addresses() {
        for mode in MODES {
            let attempt = shop.client.connect(to, mode, 1).unwrap().remove(0);
            // sendmsg to an empty service is refused like a connect; nothing waits for a timeout.
            assert_eq!(attempt.error, Some(CallError::Refused), "{mode:?} to {to}");
            assert!(
                Duration::from_micros(attempt.us) < Duration::from_millis(100),
                "{mode:?} to {to}: {} us",
                attempt.us
            );
        }
    }
}

#[test]
fn added_endpoints_take_traffic_and_removed_ones_none_without_a_failure() {
    let Some(cluster) = Cluster::get() else { return };
    let mut shop = Shop::open(&cluster, "change", &[PodState::Ready, PodState::Ready]);
    let mut clients = shop.dial_in_every_way();
    for (_, _, client) in &mut clients {
        client.wait_for_attempts(0, 10).unwrap();
    }
    let added = now();
    shop.add(PodState::Ready);
    for (to, mode, client) in &mut clients {
        client
            .wait_for(added, &format!("change-2 by {mode:?} to {to}"), |a| a.server.as_deref() == Some("change-2"))
            .unwrap();
    }
    // Its server still runs, but no client may reach it any more.
    shop.set(0, PodState::Terminating);
    cluster.wait_until_applied(&shop.client);
    let removed = now();
    for (to, mode, client) in &mut clients {
        let later = client.wait_for_attempts(removed, ENOUGH as usize).unwrap();
        assert_eq!(servers(&later), ["change-1", "change-2"].into(), "{mode:?} to {to}");
        assert_eq!(client.failures().unwrap(), [], "{mode:?} to {to}");
    }
}
