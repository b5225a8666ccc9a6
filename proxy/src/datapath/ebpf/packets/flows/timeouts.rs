//! How long a flow without a packet is remembered.

use proxy_abi::connection::{Connection, OPENING, State, Translation};
use proxy_abi::packet::protocol;

/// Time-outs in seconds. The first four are those that kube-proxy's configuration has for the kernel's tracking
/// (CT-32, CT-33, CT-35).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowTimeouts {
    /// A connection of TCP that is up.
    pub tcp_established: u32,
    /// A connection of TCP that one side has closed.
    pub tcp_close_wait: u32,
    /// A flow of UDP with one packet so far.
    pub udp: u32,
    /// A flow of UDP with more.
    pub udp_stream: u32,
}

impl Default for FlowTimeouts {
    /// Those of UDP are longer than the kernel's 30 and 120 s: what the kernel still knows must not be forgotten here.
    fn default() -> Self {
        Self { tcp_established: 86_400, tcp_close_wait: 3600, udp: 60, udp_stream: 180 }
    }
}

/// A connection of TCP that both sides have closed: the last packets may be sent again.
const CLOSED: u32 = 10;
/// Associations of SCTP have heartbeats, each 30 s by default.
const SCTP: u32 = 600;
/// What leads back to a connection that was forgotten: an answer may still find its client by it.
const ORPHAN: u32 = 60;
/// A port that the kernel stands for a client with, after the last look at which the kernel had it.
const TAKEN: u32 = 180;

impl FlowTimeouts {
    /// How many seconds a flow in this state stays without a packet.
    const fn of(&self, state: State, protocol: u8) -> u32 {
        match (protocol, state) {
            (protocol::TCP, State::Opening) => OPENING,
            (protocol::TCP, State::Open) => self.tcp_established,
            (protocol::TCP, State::ClientClosed | State::EndpointClosed) => self.tcp_close_wait,
            (_, State::Closed) => CLOSED,
            (protocol::UDP, State::Opening) => self.udp,
            (protocol::UDP, _) => self.udp_stream,
            (_, State::Opening) => OPENING,
            (_, _) => SCTP,
        }
    }

    /// Whether a flow has been without a packet for too long.
    pub(super) fn has_ended(&self, connection: &Connection, protocol: u8, now: u32) -> bool {
        seconds_since(connection.seen, now) > self.of(State::of(connection.state), protocol)
    }
}

/// Whether what leads back to no connection can go.
pub(super) fn is_left_over(translation: &Translation, now: u32) -> bool {
    let stays = if translation.flags & Translation::TAKEN == 0 { ORPHAN } else { TAKEN };
    seconds_since(translation.seen, now) > stays
}

/// The seconds from one time of the programs to another. The clock goes round, and a processor may be ahead of `now`.
pub(super) fn seconds_since(then: u32, now: u32) -> u32 {
    let since = now.wrapping_sub(then);
    if since > u32::MAX / 2 { 0 } else { since }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 1_000_000;

    /// For how many seconds a flow stays.
    #[track_caller]
    fn check(protocol: u8, state: State, seconds: u32) {
        let timeouts = FlowTimeouts::default();
        let ended = |idle: u32, now: u32| {
            let connection = Connection { state: state as u8, seen: now.wrapping_sub(idle), ..Connection::default() };
            timeouts.has_ended(&connection, protocol, now)
        };
        for now in [NOW, 5, u32::MAX] {
            assert!(!ended(seconds, now) && ended(seconds + 1, now), "{protocol} {state:?} at {now}");
        }
    }

    #[test]
    fn a_flow_stays_as_long_as_its_state_says() {
        check(protocol::TCP, State::Opening, 60);
        check(protocol::TCP, State::Open, 86_400); // CT-32
        check(protocol::TCP, State::ClientClosed, 3600); // CT-33
        check(protocol::TCP, State::EndpointClosed, 3600); // CT-33
        check(protocol::TCP, State::Closed, 10);
        check(protocol::UDP, State::Opening, 60);
        check(protocol::UDP, State::Open, 180);
        check(protocol::SCTP, State::Open, 600);
    }

    #[test]
    fn a_packet_that_came_after_the_look_keeps_its_flow() {
        assert_eq!(seconds_since(NOW + 1, NOW), 0);
        assert_eq!(seconds_since(u32::MAX, 0), 1);
        let fresh = Connection { state: State::Closed as u8, seen: NOW + 3, ..Connection::default() };
        assert!(!FlowTimeouts::default().has_ended(&fresh, protocol::TCP, NOW));
    }

    #[test]
    fn what_leads_back_to_nothing_stays_for_a_minute() {
        let unused_for = |idle| Translation { seen: NOW - idle, ..Translation::default() };
        assert!(!is_left_over(&unused_for(60), NOW) && is_left_over(&unused_for(61), NOW));
        let not_looked_at_for = |seconds| Translation::taken(1024, NOW - seconds);
        assert!(!is_left_over(&not_looked_at_for(180), NOW) && is_left_over(&not_looked_at_for(181), NOW));
    }
}
