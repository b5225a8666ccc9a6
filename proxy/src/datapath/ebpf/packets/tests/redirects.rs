//! Redirects, by which a node tells a sender a better next hop than itself.

use super::*;

/// The redirect that this node sends about a packet, as Linux makes it.
fn redirect(own: IpAddr, about: &[u8]) -> Vec<u8> {
    let (from, _) = seen(about);
    let packet = &about[14..];
    let mut frame = Vec::new();
    let builder = ip_between(own, from.ip());
    match ip(ROUTERS[usize::from(own.is_ipv6())]) {
        IpAddr::V4(better) => builder.icmpv4_raw(5, 1, better.octets()).write(&mut frame, packet).unwrap(),
        IpAddr::V6(better) => {
            let destination = &packet[24..40];
            let link = [2, 1, 2, 0, 0, 0, 0, 9];
            let quoting = [4, u8::try_from(packet.len().div_ceil(8) + 1).unwrap(), 0, 0, 0, 0, 0, 0];
            let mut message = [&better.octets()[..], destination, &link, &quoting, packet].concat();
            message.resize(message.len().next_multiple_of(8), 0);
            builder.icmpv6_raw(137, 0, [0; 4]).write(&mut frame, &message).unwrap();
        }
    }
    frame
}

const ROUTERS: [&str; 2] = ["192.0.2.77", "2001:db8:77::7"];

/// The client, the endpoint and this node are in one network: what comes in leaves by the same device.
#[test]
fn none_leaves_about_a_flow_of_ours() {
    let Some(mut node) = Node::with("redirects", &one_endpoint("")) else { return };
    let [own, own6] = NODE_ADDRESSES.map(ip);
    for (client, own, dialled, endpoint) in
        [("10.1.9.9", own, "10.96.0.1", "10.1.0.1"), ("fd00::9:9", own6, "fd00:96::1", "fd00::1")]
    {
        let [client, dialled, endpoint] = [client, dialled, endpoint].map(ip);
        type Make = fn(&str, &str) -> Vec<u8>;
        for (flags, to, to_datagrams) in
            [(Device::PODS, at(dialled, 80), at(dialled, 53)), (0, at(own, 30_080), at(own, 30_053))]
        {
            node.set_device(flags);
            for (make, to) in [(syn as Make, to), (udp as Make, to_datagrams)] {
                let (verdict, request) = node.run("shunt_ingress", &make(&at(client, 40_000), &to));
                assert_eq!(verdict, NEXT);
                assert_eq!(node.run("shunt_egress", &redirect(own, &request)).0, DROP, "to the client");
                let (_, server) = seen(&request);
                let answer = make(&server.to_string(), &at(client, 40_000));
                assert_eq!(node.run("shunt_egress", &redirect(own, &answer)).0, DROP, "to the endpoint");
                // Those of others are about the routes of this node.
                let others = redirect(ip(ROUTERS[usize::from(own.is_ipv6())]), &make(&at(own, 40_000), &to));
                assert_eq!(node.run("shunt_ingress", &others), (NEXT, others));
            }
        }
        for about in [syn(&at(client, 40_001), &at(endpoint, 8080)), udp(&at(client, 9), &at(endpoint, 5353))] {
            let message = redirect(own, &about);
            assert_eq!(node.run("shunt_egress", &message), (NEXT, message.clone()), "no flow of ours");
        }
    }
}
