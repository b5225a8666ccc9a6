//! Questions over a real socket in a folder of their own.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use shunt_dns::{Answerer, BlockConfig, ForwardConfig, Name, PodMode, ZoneConfig};
use shunt_model::Snapshot;
use shunt_model::source::SourceHealth;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Control, Listener, Reply, Request, Views, ask};
use crate::datapath::{FlowFilter, HostOptions, OpenPath};
use crate::status::{LastSync, Status};

struct Daemon {
    stop: CancellationToken,
    task: JoinHandle<()>,
    _status: watch::Sender<Status>,
    _dns: Answerer,
}

impl Daemon {
    fn start(path: &Path, snapshot: Option<Snapshot>) -> Self {
        let dns = answerer(snapshot.clone());
        let unreachable = snapshot.is_none().then(|| "the API server refuses".to_owned());
        let source = Arc::new(SourceHealth { unreachable, ..SourceHealth::default() });
        // A view is in force once it has been synced.
        let last_sync =
            snapshot.is_some().then(|| LastSync { generation: 1, at: SystemTime::now(), elapsed: Duration::ZERO });
        let status = Status { snapshot: snapshot.map(Arc::new), last_sync, source, ..Status::default() };
        let (status, status_read) = watch::channel(status);
        let host = HostOptions { cgroup_root: None, bpf_root: path.with_file_name("no-pins") };
        let views = Views {
            node: Arc::from("n1"),
            status: status_read,
            path: OpenPath::default(),
            host,
            dns: Some(dns.explainer()),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(Control::new(Listener::open(path).unwrap(), views).run(stop.clone()));
        Self { stop, task, _status: status, _dns: dns }
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn answerer(snapshot: Option<Snapshot>) -> Answerer {
    let usual = ZoneConfig::usual(Name::from_ascii("cluster.local.").unwrap());
    let config = ZoneConfig { pods: PodMode::Disabled, dns_addresses: vec![[10, 96, 0, 10].into()], ..usual };
    let forward = ForwardConfig::to("192.0.2.1".parse().unwrap());
    let block = BlockConfig::usual(config.cluster_domain.clone(), forward);
    Answerer::new(config, snapshot.map(Arc::new), vec![block]).unwrap()
}

async fn asked(path: &Path, request: Request) -> Result<Reply, String> {
    let path = path.to_path_buf();
    tokio::task::spawn_blocking(move || ask(&path, &request)).await.unwrap().map_err(|error| error.to_string())
}

fn dns(name: &str, rtype: &str) -> Request {
    Request::Dns { name: name.to_owned(), rtype: rtype.to_owned() }
}

fn place(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("run/shunt.sock")
}

#[tokio::test]
async fn questions_are_answered_and_the_socket_is_for_root_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = place(&folder);
    let daemon = Daemon::start(&path, Some(Snapshot::default()));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let Reply::Services(services) = asked(&path, Request::Services).await.unwrap() else { panic!("not services") };
    assert_eq!((services.ports, services.error), (serde_json::json!([]), None));
    let Reply::Dns(reply) = asked(&path, dns("ns.dns.cluster.local", "a")).await.unwrap() else { panic!("not dns") };
    assert_eq!(reply.rcode.as_deref(), Some("NOERROR"));
    assert!(reply.answers[0].ends_with("10.96.0.10"), "{reply:?}");
    let Reply::Dns(reply) = asked(&path, dns("web.no.svc.cluster.local", "A")).await.unwrap() else {
        panic!("not dns")
    };
    assert_eq!(reply.rcode.as_deref(), Some("NXDOMAIN"));
    let Reply::Dns(reply) = asked(&path, dns("example.org", "A")).await.unwrap() else { panic!("not dns") };
    assert_eq!((reply.rcode, &*reply.explanation), (None, "not a name of the cluster: asked of 192.0.2.1:53"));
    let Reply::Error(reason) = asked(&path, dns("web", "NONSENSE")).await.unwrap() else { panic!("no error") };
    assert!(reason.contains("NONSENSE"), "{reason}");
    daemon.end().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn before_the_first_sync_every_question_is_answered_with_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&place(&folder), None);
    let explain = Request::Explain { source: "10.244.1.2".to_owned(), destination: "10.96.0.1:443".to_owned() };
    for request in [Request::Services, explain, dns("a.b", "A")] {
        let Reply::Error(reason) = asked(&place(&folder), request).await.unwrap() else { panic!("no error") };
        assert_eq!(reason, "this daemon has applied nothing yet: no sync yet: the API server refuses");
    }
    daemon.end().await;
}

#[tokio::test]
async fn without_packet_programs_there_are_no_flows() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&place(&folder), Some(Snapshot::default()));
    let filter = FlowFilter { client: None, endpoint: None, service: None, protocol: None, state: None, most: 10 };
    let Reply::Error(reason) = asked(&place(&folder), Request::Flows(filter)).await.unwrap() else { panic!("flows") };
    assert!(reason.contains("no packet programs serve here") && reason.contains("conntrack -L"), "{reason}");
    daemon.end().await;
}

#[tokio::test]
async fn without_a_daemon_the_message_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let error = asked(&place(&folder), Request::Services).await.unwrap_err();
    assert!(error.contains("shunt run") && error.contains("--control-socket"), "{error}");
}

#[tokio::test]
async fn a_dead_daemons_socket_is_replaced_a_living_ones_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = place(&folder);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let daemon = Daemon::start(&path, None);
    let error = Listener::open(&path).err().unwrap().to_string();
    assert!(error.contains("another daemon") && error.contains("--control-socket"), "{error}");
    assert!(asked(&path, Request::Services).await.is_ok(), "the refused daemon has damaged the living one's socket");
    daemon.end().await;
    std::fs::write(&path, "precious").unwrap();
    let error = Listener::open(&path).err().unwrap().to_string();
    assert!(error.contains("no socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
