//! The loop with a data path that records its calls, on a clock that moves only while the test waits.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shunt_model::source::SourceHealth;
use shunt_model::{
    ClusterIps, Namespace, ObjectKey, Protocol, Service, ServiceKind, ServicePort, Snapshot, TrafficPolicy,
};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Input, Reconciler, Sinks};
use crate::datapath::{Datapath, SyncError, Synced};
use crate::dns::choice::PlanChoice;
use crate::dns::reachable;
use crate::metrics::census::Census;
use crate::metrics::{Durations, KubeProxy};
use crate::plan::{Plan, PlanOptions, PortKey, PortPlan, fixture};
use crate::status::Status;

/// The result of a sync of the data path.
#[derive(Clone, Copy)]
enum Says {
    Done,
    Refused,
    Failed,
}

/// One call of sync: when, how many service ports, and how many services DNS knew at that moment.
type SyncCall = (Duration, usize, usize);

struct Fake {
    says: VecDeque<Says>,
    began: Instant,
    dns: watch::Receiver<Option<Arc<Snapshot>>>,
    calls: Arc<Mutex<Vec<SyncCall>>>,
    /// Where the last sync led the cluster DNS address.
    leads: Arc<Mutex<String>>,
    /// What the next audit says, if another program was at work.
    repairs: Arc<Mutex<Option<Result<u64, SyncError>>>>,
}

impl Datapath for Fake {
    fn mark_own_dns(&mut self, _sockets: &[OwnedFd]) -> Result<(), SyncError> {
        Ok(())
    }

    fn audit(&mut self) -> Result<u64, SyncError> {
        self.repairs.lock().unwrap().take().unwrap_or(Ok(0))
    }

    fn sync(&mut self, plan: &Plan) -> Result<Synced, SyncError> {
        let known = known(&self.dns);
        *self.leads.lock().unwrap() = leads(plan);
        self.calls.lock().unwrap().push((self.began.elapsed(), plan.ports.len(), known));
        let first = || plan.ports.keys().next().cloned().unwrap();
        match self.says.pop_front().unwrap_or(Says::Done) {
            Says::Done => Ok(Synced { writes: 1, ..Synced::default() }),
            Says::Refused => {
                Ok(Synced { writes: 0, refused: vec![(first(), "service map full".to_owned())], ..Synced::default() })
            }
            Says::Failed => Err(SyncError::Write { object: "map SERVICES", source: io::Error::other("no memory") }),
        }
    }
}

/// The servers behind port 53.
fn leads(plan: &Plan) -> String {
    let at_dns = |port: &'_ Arc<PortPlan>| port.frontends.iter().find(|frontend| frontend.port.get() == 53).copied();
    let dns = plan.ports.values().filter_map(|port| Some((port, at_dns(port)?)));
    let servers = dns
        .flat_map(|(port, frontend)| port.list(frontend.at_sockets))
        .map(|endpoint| endpoint.address.ip().to_string());
    servers.collect::<Vec<_>>().join(" ")
}

fn known(dns: &watch::Receiver<Option<Arc<Snapshot>>>) -> usize {
    dns.borrow().as_ref().map_or(0, |snapshot| snapshot.services.len())
}

struct Loop {
    snapshots: watch::Sender<Arc<Snapshot>>,
    health: watch::Sender<SourceHealth>,
    _addresses: watch::Sender<Arc<BTreeSet<IpAddr>>>,
    dns_serves: watch::Sender<bool>,
    dns: watch::Receiver<Option<Arc<Snapshot>>>,
    status: watch::Receiver<Status>,
    calls: Arc<Mutex<Vec<SyncCall>>>,
    leads: Arc<Mutex<String>>,
    repairs: Arc<Mutex<Option<Result<u64, SyncError>>>>,
    disturbed: Arc<Notify>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Loop {
    fn start(services: usize, says: &[Says]) -> Self {
        Self::start_with(cluster(services), PlanOptions::default(), says)
    }

    /// The bundled DNS does not know the cluster yet.
    fn start_with(view: Arc<Snapshot>, options: PlanOptions, says: &[Says]) -> Self {
        let (snapshots, snapshots_read) = watch::channel(view);
        let (health, health_read) = watch::channel(SourceHealth::default());
        let (status, status_read) = watch::channel(Status::default());
        let (reachable, dns) = watch::channel(None);
        let calls = Arc::<Mutex<Vec<SyncCall>>>::default();
        let (says, leads) = (says.iter().copied().collect(), Arc::<Mutex<String>>::default());
        let (began, told) = (Instant::now(), (Arc::clone(&calls), Arc::clone(&leads)));
        let (repairs, disturbed) = (Arc::default(), Arc::<Notify>::default());
        let fake = Fake { says, began, dns: dns.clone(), calls: told.0, leads: told.1, repairs: Arc::clone(&repairs) };
        let (addresses_sender, addresses) = watch::channel(Arc::default());
        let (dns_serves, dns_serves_read) = watch::channel(false);
        let (choice, goal) = PlanChoice::new(options, dns_serves_read, snapshots_read);
        let input = Input { goal, health: health_read, addresses, disturbed: Arc::clone(&disturbed) };
        let (pending, durations) = (crate::status::Pending::default(), Durations::new(KubeProxy::default()));
        let sinks = Sinks { status, pending, durations };
        let reconciler = Reconciler::new(Box::new(fake), input, sinks);
        let stop = CancellationToken::new();
        tokio::spawn(reachable::follow(status_read.clone(), reachable));
        tokio::spawn(choice.run(stop.clone()));
        let task = tokio::spawn(reconciler.run(stop.clone()));
        let (status, _addresses) = (status_read, addresses_sender);
        Self { snapshots, health, _addresses, dns_serves, dns, status, calls, leads, repairs, disturbed, stop, task }
    }

    async fn until(&mut self, wanted: impl FnMut(&Status) -> bool) -> Status {
        self.status.wait_for(wanted).await.unwrap().clone()
    }

    /// Ends the loop and returns the calls, with times in milliseconds.
    async fn end(self) -> Vec<(u128, usize, usize)> {
        self.stop.cancel();
        self.task.await.unwrap();
        let calls = self.calls.lock().unwrap();
        calls.iter().map(|(when, ports, known)| (when.as_millis(), *ports, *known)).collect()
    }
}

/// A cluster with that many services.
fn cluster(services: usize) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::default();
    let name: Arc<str> = Arc::from("default");
    snapshot.namespaces.insert(Arc::clone(&name), Arc::new(Namespace { name }));
    for number in 1..=u8::try_from(services).unwrap() {
        let service = service(number);
        snapshot.services.insert(service.key.clone(), Arc::new(service));
    }
    Arc::new(snapshot)
}

fn service(number: u8) -> Service {
    let port = ServicePort {
        name: Arc::from(""),
        protocol: Protocol::Tcp,
        port: NonZeroU16::new(80).unwrap(),
        node_port: None,
    };
    Service {
        key: ObjectKey::new("default", format!("s{number}")),
        created: None,
        kind: ServiceKind::ClusterIp,
        cluster_ips: ClusterIps::Assigned(vec![[10, 96, 1, number].into()]),
        ports: vec![port],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        affinity: None,
        external_policy: TrafficPolicy::Cluster,
        internal_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        other_proxy: false,
    }
}

#[tokio::test(start_paused = true)]
async fn dns_learns_a_view_only_after_the_kernel_has_it() {
    let mut l = Loop::start(1, &[]);
    l.until(|status| status.syncs == 1).await;
    l.dns.wait_for(|seen| seen.as_ref().is_some_and(|s| s.services.len() == 1)).await.unwrap();
    l.snapshots.send_replace(cluster(2));
    l.dns.wait_for(|seen| seen.as_ref().is_some_and(|s| s.services.len() == 2)).await.unwrap();
    assert_eq!(l.end().await, [(0, 1, 0), (0, 2, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_is_tried_again_with_growing_pauses_and_dns_waits() {
    let mut l = Loop::start(1, &[Says::Failed, Says::Failed, Says::Failed]);
    let status = l.until(|status| status.syncs == 1).await;
    assert_eq!(status.not_ready(), ["last sync failed: writing map SERVICES: no memory"]);
    assert!(status.failing_since.is_some() && status.last_sync.is_none());
    let status = l.until(|status| status.syncs == 4).await;
    assert_eq!(status.not_ready(), Vec::<String>::new());
    assert_eq!((status.failed_syncs, status.failing_since), (3, None));
    assert_eq!(l.end().await, [(0, 1, 0), (100, 1, 0), (300, 1, 0), (700, 1, 0)]);
}

#[tokio::test(start_paused = true)]
async fn pauses_end_at_thirty_seconds_and_begin_anew_after_success() {
    let mut says = vec![Says::Failed; 12];
    says.extend([Says::Done, Says::Failed]);
    let mut l = Loop::start(1, &says);
    l.until(|status| status.syncs == 13).await;
    l.snapshots.send_replace(cluster(2));
    l.until(|status| status.syncs == 15).await;
    let times: Vec<u128> = l.end().await.into_iter().map(|(when, _, _)| when).collect();
    let pauses: Vec<u128> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let first = [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000, 30_000];
    assert_eq!(pauses[..12], first);
    assert_eq!(pauses[12..], [0, 100]);
}

#[tokio::test(start_paused = true)]
async fn refused_ports_are_told_left_out_and_tried_again() {
    let mut l = Loop::start(2, &[Says::Refused]);
    let status = l.until(|status| status.syncs == 1).await;
    let programmed: Vec<PortKey> = status.programmed.ports.keys().cloned().collect();
    assert_eq!(programmed.iter().map(|key| &*key.service.name).collect::<Vec<_>>(), ["s2"]);
    let reasons = status.not_ready();
    assert!(reasons[0].starts_with("service map full") && reasons[0].contains("default/s1"), "{reasons:?}");
    let status = l.until(|status| status.syncs == 2).await;
    assert_eq!((status.programmed.ports.len(), status.not_ready().len()), (2, 0));
    assert_eq!(l.end().await, [(0, 2, 0), (100, 2, 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_new_view_does_not_wait_for_the_retry_and_counts_follow_it() {
    let mut l = Loop::start(3, &[Says::Failed]);
    let status = l.until(|status| status.syncs == 1).await;
    let mut census = Census::default();
    let planned = census.count(&status.planned);
    assert_eq!((planned.ports, planned.frontends, planned.endpoints), (3, 3, 0));
    l.snapshots.send_replace(cluster(1));
    let status = l.until(|status| status.syncs == 2).await;
    let planned = census.count(&status.planned);
    assert_eq!((planned.ports, planned.frontends), (1, 1));
    assert_eq!(status.last_sync.map(|sync| sync.generation), Some(2));
    assert_eq!(l.end().await, [(0, 3, 0), (0, 1, 0)]);
}

#[tokio::test(start_paused = true)]
async fn trouble_of_the_source_is_passed_on_without_a_sync() {
    let mut l = Loop::start(1, &[]);
    l.until(|status| status.syncs == 1).await;
    l.health.send_replace(SourceHealth { unreachable: Some("gone".to_owned()), ..SourceHealth::default() });
    let status = l.until(|status| status.source.unreachable.is_some()).await;
    assert_eq!(status.syncs, 1);
    assert_eq!(l.end().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_another_program_broke_is_repaired_at_once_and_read_back_if_that_fails() {
    let mut l = Loop::start(1, &[]);
    l.until(|status| status.syncs == 1).await;
    l.repairs.lock().unwrap().replace(Ok(3));
    l.disturbed.notify_one();
    let status = l.until(|status| status.repaired == 3).await;
    assert_eq!(status.syncs, 1);
    let refused = SyncError::Write { object: "table ip shunt", source: io::Error::other("no memory") };
    l.repairs.lock().unwrap().replace(Err(refused));
    l.disturbed.notify_one();
    l.until(|status| status.syncs == 2).await;
    let times: Vec<u128> = l.end().await.into_iter().map(|(when, ..)| when).collect();
    assert_eq!(times, [0, 0], "nothing waits for the next audit");
}

/// A cluster whose own DNS has a Service with this pod, or none.
fn cluster_dns(pod: &str) -> Arc<Snapshot> {
    let service = fixture::service("kube-dns", "ip=10.96.0.10 port=dns:53/udp");
    let slice = fixture::slice("kube-dns", "a", "dns:53/udp", pod);
    Arc::new(fixture::cluster([service], [slice]))
}

/// Where the cluster DNS address leads at the start and after each event: `ours` up or down, `pods` with the cluster's
/// own or none, `stop`.
async fn check_dns(events: &[(&str, &str)]) {
    let options = PlanOptions {
        cluster_dns: vec![fixture::ip("10.96.0.10")],
        dns_backends: vec!["169.254.20.10:53".parse().unwrap()],
        ..fixture::options()
    };
    let view = |event: &str| cluster_dns(if event == "pods" { "e1:R" } else { "" });
    let mut l = Loop::start_with(view(events[0].0), options, &[]);
    l.until(|status| status.syncs == 1).await;
    for (number, (event, wanted)) in events.iter().enumerate() {
        match *event {
            "pods" | "no pods" => drop(l.snapshots.send_replace(view(event))),
            "ours up" => drop(l.dns_serves.send_replace(true)),
            "ours down" => drop(l.dns_serves.send_replace(false)),
            "stop" => l.stop.cancel(),
            other => panic!("{other}"),
        }
        // The clock moves only when the loop has nothing left to do.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let leads =
            l.leads.lock().unwrap().replace("169.254.20.10 169.254.20.10", "ours").replace("10.1.0.1", "theirs");
        assert_eq!(leads, *wanted, "{event}, event {number} of {events:?}");
    }
    l.end().await;
}

#[tokio::test(start_paused = true)]
async fn our_dns_serves_once_it_knows_the_cluster_or_if_there_are_no_dns_pods() {
    check_dns(&[("pods", "theirs"), ("ours up", "ours")]).await;
    check_dns(&[("no pods", "ours"), ("ours up", "ours")]).await;
    check_dns(&[("no pods", "ours"), ("pods", "theirs"), ("ours up", "ours"), ("pods", "ours")]).await;
}

#[tokio::test(start_paused = true)]
async fn the_cluster_s_own_dns_serves_as_long_as_ours_does_not_and_it_has_pods() {
    let up = [("pods", "theirs"), ("ours up", "ours")];
    let check = async |events: &[(&str, &str)]| check_dns(&[&up, events].concat()).await;
    check(&[("ours down", "theirs"), ("ours up", "ours")]).await;
    check(&[("no pods", "ours"), ("ours down", "ours"), ("ours up", "ours")]).await;
    check(&[("no pods", "ours"), ("ours down", "ours"), ("pods", "theirs")]).await;
    // Our server may come back, so it is better than no server.
    check(&[("ours down", "theirs"), ("no pods", "ours"), ("pods", "theirs"), ("ours up", "ours")]).await;
    check(&[("ours down", "theirs"), ("no pods", "ours"), ("ours up", "ours"), ("pods", "ours")]).await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_stops_hands_over_to_dns_pods_if_there_are_any() {
    check_dns(&[("pods", "theirs"), ("ours up", "ours"), ("stop", "theirs")]).await;
    check_dns(&[("pods", "theirs"), ("ours up", "ours"), ("ours down", "theirs"), ("stop", "theirs")]).await;
    // The address is left to the successor.
    check_dns(&[("no pods", "ours"), ("ours up", "ours"), ("stop", "ours")]).await;
    check_dns(&[("pods", "theirs"), ("no pods", "ours"), ("stop", "ours")]).await;
}
