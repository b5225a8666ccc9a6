//! The orders that each successful sync gives to upkeep.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::watch;

/// What a round of upkeep must reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Orders {
    /// Addresses of pods that opted out.
    pub(super) opted_out: Arc<BTreeSet<IpAddr>>,
    /// Some Service has source ranges, so programs must know the addresses of pods.
    pub(super) sources: bool,
    /// How many backends have died so far.
    pub(super) departed: u64,
    /// How often UDP frontends have appeared, got their first endpoint, or moved to another service port so far.
    pub(super) frontends: u64,
}

/// Publishes the orders; the first sync that succeeds publishes the first.
#[derive(Debug, Default)]
pub(super) struct OrderWriter {
    orders: watch::Sender<Option<Orders>>,
    /// How many service ports of the last plan have source ranges.
    with_ranges: usize,
    departed: u64,
    frontends: u64,
}

impl OrderWriter {
    /// The channel to upkeep.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Orders>> {
        self.orders.subscribe()
    }

    /// Counts a backend that died: sockets may still be connected to it. The next successful sync publishes it.
    pub(super) fn backend_gone(&mut self) {
        self.departed = self.departed.saturating_add(1);
    }

    /// Counts UDP frontends that lead to an endpoint now and did not before, or lead to another service port: sockets
    /// may have been connected before. The next successful sync publishes it.
    pub(super) fn frontends_changed(&mut self) {
        self.frontends = self.frontends.saturating_add(1);
    }

    /// Forgets the last plan: the next difference is one to an empty plan.
    pub(super) fn forget_plan(&mut self) {
        self.with_ranges = 0;
    }

    /// Publishes the orders after a sync. `gained` and `lost`: how many service ports with source ranges the difference
    /// has.
    pub(super) fn synced(&mut self, opted_out: &Arc<BTreeSet<IpAddr>>, gained: usize, lost: usize) {
        self.with_ranges = self.with_ranges.saturating_add(gained).saturating_sub(lost);
        let orders = Some(Orders {
            opted_out: Arc::clone(opted_out),
            sources: self.with_ranges > 0,
            departed: self.departed,
            frontends: self.frontends,
        });
        self.orders.send_if_modified(|known| {
            let modified = *known != orders;
            *known = orders;
            modified
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The orders after a sync: whether they changed, whether sources are needed, and how many backends died.
    #[track_caller]
    fn check(writer: &mut OrderWriter, gained: usize, lost: usize, news: bool, sources: bool, departed: u64) {
        let orders = writer.subscribe();
        writer.synced(&Arc::default(), gained, lost);
        assert_eq!(orders.has_changed().unwrap(), news);
        assert_eq!(*orders.borrow(), Some(Orders { opted_out: Arc::default(), sources, departed, frontends: 0 }));
    }

    #[test]
    fn there_are_no_orders_before_a_sync_succeeds() {
        let mut writer = OrderWriter::default();
        writer.backend_gone();
        assert_eq!(*writer.subscribe().borrow(), None);
        check(&mut writer, 0, 0, true, false, 1);
        check(&mut writer, 0, 0, false, false, 1);
    }

    #[test]
    fn orders_follow_the_service_ports_with_source_ranges() {
        let mut writer = OrderWriter::default();
        check(&mut writer, 2, 0, true, true, 0);
        check(&mut writer, 1, 2, false, true, 0);
        check(&mut writer, 0, 1, true, false, 0);
        check(&mut writer, 3, 0, true, true, 0);
        writer.forget_plan();
        check(&mut writer, 1, 0, false, true, 0);
        check(&mut writer, 0, 1, true, false, 0);
    }

    #[test]
    fn orders_carry_pods_that_opt_out_and_backends_that_died() {
        let mut writer = OrderWriter::default();
        check(&mut writer, 0, 0, true, false, 0);
        writer.backend_gone();
        writer.backend_gone();
        check(&mut writer, 0, 0, true, false, 2);
        let pods: Arc<BTreeSet<IpAddr>> = Arc::new([IpAddr::from([10, 1, 0, 1])].into());
        writer.synced(&pods, 0, 0);
        assert_eq!(writer.subscribe().borrow().as_ref().map(|orders| Arc::clone(&orders.opted_out)), Some(pods));
    }
}
