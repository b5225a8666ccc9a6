//! Ends UDP flows that the kernel would send to an endpoint that left, or past a Service, for as long as their clients
//! send (CT-1…13). TCP and SCTP connections stay (CT-6).

mod judge;
pub(in crate::datapath) mod table;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Instant;

use shunt_model::{Family, Protocol};
use tracing::{info, warn};

use self::judge::Judge;
use self::table::{Flow, Table};
use crate::datapath::FlowSweep;
use crate::host::netlink::Dump;
use crate::plan::Plan;

/// How often a list is read that changes while the kernel gives it; the last one counts as it is (CT-2).
const LISTS: usize = 5;

/// Follows the plans that are in force.
#[derive(Debug, Default)]
pub(in crate::datapath) struct StaleFlows {
    /// The plan by which all flows were judged last.
    judged: Option<Plan>,
    /// The last sweep failed, and that is logged.
    failing: bool,
}

impl StaleFlows {
    pub(in crate::datapath) fn new() -> Self {
        Self::default()
    }

    /// Ends the flows that are stale now that the rules of `plan` are in force. Without a change that concerns UDP it
    /// does nothing. A failure is logged, and the next call looks for these flows again (CT-12).
    pub(in crate::datapath) fn after_sync(&mut self, plan: &Plan) -> Vec<FlowSweep> {
        let judge = Judge::new(self.judged.as_ref(), plan);
        let concerned = Family::BOTH.into_iter().filter(|family| judge.concerns(*family));
        let (mut sweeps, mut failed) = (Vec::new(), false);
        for family in concerned {
            let begun = Instant::now();
            let mut ended = 0;
            if let Err(error) = sweep(family, &judge, &mut ended) {
                failed = true;
                if !self.failing {
                    warn!(
                        %family, %error,
                        "ending stale UDP flows failed (CONFIG_NF_CT_NETLINK); clients that go on sending may get no \
                         answer; the next sync retries it"
                    );
                }
            }
            if ended > 0 {
                info!(%family, ended, "ended stale UDP flows");
            }
            sweeps.push(FlowSweep { family, elapsed: begun.elapsed(), ended });
        }
        if !failed {
            self.judged = Some(plan.clone());
        }
        self.failing = failed;
        sweeps
    }
}

/// How many connections of TCP and SCTP the kernel translates.
pub(in crate::datapath) fn translated_connections(family: Family) -> io::Result<u64> {
    let (mut table, mut count) = (Table::open()?, 0_u64);
    for protocol in [Protocol::Tcp, Protocol::Sctp] {
        let flows = table.flows(family, protocol, Flow::is_translated)?.entries;
        count = count.saturating_add(u64::try_from(flows.len()).unwrap_or(u64::MAX));
    }
    Ok(count)
}

/// Ends the stale flows of a family and counts them. Gives the last failure: one flow does not keep the others.
fn sweep(family: Family, judge: &Judge<'_>, ended: &mut u64) -> io::Result<()> {
    let mut table = Table::open()?;
    let mut outcome = Ok(());
    for _ in 0..LISTS {
        let Dump { entries, whole } = table.flows(family, Protocol::Udp, |flow| judge.is_stale(flow))?;
        for flow in entries {
            match table.end(&flow) {
                Ok(true) => *ended = ended.saturating_add(1),
                Ok(false) => {}
                Err(error) => outcome = Err(error),
            }
        }
        if whole {
            break;
        }
    }
    outcome
}
