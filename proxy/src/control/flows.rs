//! The flows of the packet programs, printed for people.

use std::fmt::Write as _;

use crate::columns::aligned;
use crate::datapath::{FlowState, Flows, KnownFlow};

/// One line for each flow, and how many there are.
#[must_use]
pub fn render_flows(found: &Flows) -> String {
    let Flows { flows, matching, known } = found;
    let title = ["PROTOCOL", "CLIENT", "FRONTEND", "SERVICE", "ENDPOINT", "SOURCE", "STATE", "AGE", "IDLE"];
    let rows = std::iter::once(title.map(str::to_owned)).chain(flows.iter().map(row));
    let mut table = aligned(&rows.collect::<Vec<_>>());
    // Writing to a String cannot fail.
    write!(table, "{} of {matching} flows that match, {known} are known", flows.len()).unwrap_or_default();
    if u64::try_from(flows.len()).is_ok_and(|shown| shown < *matching) {
        table.push_str("; --limit shows more");
    }
    table.push('\n');
    table
}

fn row(flow: &KnownFlow) -> [String; 9] {
    let KnownFlow { protocol, client, frontend, service, endpoint, source, state, age, idle } = flow;
    let state = match state {
        FlowState::Opening => "opening",
        FlowState::Open => "open",
        FlowState::ClientClosed => "client-closed",
        FlowState::EndpointClosed => "endpoint-closed",
        FlowState::Closed => "closed",
    };
    [
        protocol.clone(),
        client.to_string(),
        frontend.to_string(),
        service.clone().unwrap_or_else(|| "-".to_owned()),
        endpoint.to_string(),
        source.map_or_else(|| "-".to_owned(), |source| source.to_string()),
        state.to_owned(),
        duration(*age),
        duration(*idle),
    ]
}

/// As kubectl writes it: in one unit, at least two of it.
fn duration(seconds: u32) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "m")];
    match units.into_iter().find(|(unit, _)| seconds / unit >= 2) {
        Some((unit, name)) => format!("{}{name}", seconds / unit),
        None => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_printed_with_what_stands_for_the_client() {
        let flow = KnownFlow {
            protocol: "TCP".to_owned(),
            client: "203.0.113.9:40000".parse().unwrap(),
            frontend: "192.0.2.1:30080".parse().unwrap(),
            service: Some("shop/web:http/tcp".to_owned()),
            endpoint: "10.1.0.1:8080".parse().unwrap(),
            source: Some("192.0.2.1:1503".parse().unwrap()),
            state: FlowState::ClientClosed,
            age: 7300,
            idle: 3,
        };
        let gone = KnownFlow { service: None, source: None, ..flow.clone() };
        let printed = render_flows(&Flows { flows: vec![flow, gone], matching: 5, known: 7 });
        assert_eq!(
            printed,
            "PROTOCOL  CLIENT             FRONTEND         SERVICE            ENDPOINT       SOURCE          STATE          \
             AGE  IDLE\n\
             TCP       203.0.113.9:40000  192.0.2.1:30080  shop/web:http/tcp  10.1.0.1:8080  192.0.2.1:1503  client-closed  \
             2h   3s\n\
             TCP       203.0.113.9:40000  192.0.2.1:30080  -                  10.1.0.1:8080  -               client-closed  \
             2h   3s\n\
             2 of 5 flows that match, 7 are known; --limit shows more\n"
        );
    }

    #[test]
    fn a_duration_has_one_unit() {
        for (seconds, wanted) in [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_800, "2d")]
        {
            assert_eq!(duration(seconds), wanted);
        }
    }
}
