//! What upkeep works towards, said by the sync that has just succeeded.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::watch;

/// What a round of upkeep works towards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Orders {
    /// Pods whose sockets are left alone.
    pub(super) opted_out: Arc<BTreeSet<IpAddr>>,
    /// Some Service asks for sources, so the addresses of pods must be known.
    pub(super) sources: bool,
    /// How many backends have died so far.
    pub(super) departed: u64,
}

/// Gives the orders. Before the first sync that succeeds there are none.
#[derive(Debug, Default)]
pub(super) struct OrderWriter {
    orders: watch::Sender<Option<Orders>>,
    /// Service ports of the plan synced last that ask for sources.
    with_ranges: usize,
    departed: u64,
}

impl OrderWriter {
    /// Where the orders come out.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Orders>> {
        self.orders.subscribe()
    }

    /// A backend has died: sockets may still hang on it. It counts from the next success on.
    pub(super) fn backend_gone(&mut self) {
        self.departed = self.departed.saturating_add(1);
    }

    /// The next difference will be one to an empty plan.
    pub(super) fn forget_plan(&mut self) {
        self.with_ranges = 0;
    }

    /// The tables are as planned. `gained` and `lost`: service ports that ask for sources, of the difference written.
    pub(super) fn synced(&mut self, opted_out: &Arc<BTreeSet<IpAddr>>, gained: usize, lost: usize) {
        self.with_ranges = self.with_ranges.saturating_add(gained).saturating_sub(lost);
        let orders =
            Some(Orders { opted_out: Arc::clone(opted_out), sources: self.with_ranges > 0, departed: self.departed });
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

    /// The orders after a sync: whether they are news, whether sources are asked for, and how many backends died.
    #[track_caller]
    fn check(writer: &mut OrderWriter, gained: usize, lost: usize, news: bool, sources: bool, departed: u64) {
        let orders = writer.subscribe();
        writer.synced(&Arc::default(), gained, lost);
        assert_eq!(orders.has_changed().unwrap(), news);
        assert_eq!(*orders.borrow(), Some(Orders { opted_out: Arc::default(), sources, departed }));
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
