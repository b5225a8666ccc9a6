//! The program by itself, with a cluster whose API server comes and goes (DNS-11.1…11.6).

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use lab::api::FakeApi;
use shunt_dns::RecordType;

use crate::client;
use crate::fixture::name;
use crate::running::Program;

const CLUSTER: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web}, spec: {clusterIP: 10.96.3.3, ports: [{port: 80}]}}
";

async fn rcode(server: SocketAddr, asked: &str) -> ResponseCode {
    client::udp(server, &client::question(&name(asked), RecordType::A)).await.metadata.response_code
}

async fn wait_for(server: SocketAddr, asked: &str, wanted: ResponseCode) {
    for _ in 0..600 {
        if rcode(server, asked).await == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{asked} is never {wanted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_serves_a_cluster_whose_api_server_comes_later_and_goes_again() {
    let api = FakeApi::start().unwrap();
    api.apply(CLUSTER).unwrap();
    api.stop_listening();
    let place = tempfile::tempdir().unwrap();
    let kubeconfig = place.path().join("kubeconfig");
    std::fs::write(&kubeconfig, api.kubeconfig()).unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--upstream", "", "--kubeconfig", kubeconfig.to_str().unwrap()];
    let program = Program::start(&arguments);
    let server = program.dns();
    let (web, none) = ("web.shop.svc.cluster.local.", "none.shop.svc.cluster.local.");
    // It is not certain yet that a name does not exist; names without data are answered.
    assert_eq!(rcode(server, web).await, ResponseCode::ServFail);
    assert_eq!(rcode(server, "svc.cluster.local.").await, ResponseCode::NoError);
    api.resume().unwrap();
    wait_for(server, web, ResponseCode::NoError).await;
    assert_eq!(rcode(server, none).await, ResponseCode::NXDomain);
    api.stop_listening();
    assert_eq!(rcode(server, web).await, ResponseCode::NoError);
}
