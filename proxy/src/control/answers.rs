//! What the daemon answers about its frontends.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::datapath::{Chosen, OpenPath};
use crate::plan::{PlanView, render_table};
use crate::status::Status;

/// Frontends with their endpoints, as the kernel serves them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Services {
    /// The fields of `shunt plan -o json`.
    pub ports: Value,
    /// What serves, and why not more.
    #[serde(default)]
    pub data_path: Option<Chosen>,
    /// Service ports that are not served, with the reason.
    pub refused: Vec<String>,
    /// Objects and files of the input that are ignored, each with file, line and reason.
    pub problems: Vec<String>,
    /// What makes it another plan than the operator may expect: a node that the cluster does not know, for example.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Why the last sync failed, if it did: then the kernel may be behind the cluster.
    pub error: Option<String>,
    /// Why what is programmed is not in effect, if it is not.
    pub faults: Vec<String>,
    /// The same for people.
    pub table: String,
}

/// The frontends of the last successful sync.
pub fn services(status: &Status, path: &OpenPath) -> Result<Services, serde_json::Error> {
    let ports = serde_json::to_value(PlanView::from(&status.programmed).ports)?;
    let refused = status.refused.iter().map(|(port, reason)| format!("{port}: {reason}")).collect();
    let problems = status.source.problems.iter().map(ToString::to_string).collect();
    let table = render_table(&status.programmed);
    let warnings = status.source.warnings().cloned().collect();
    let faults = path.report().not_in_effect();
    let data_path = path.chosen().cloned();
    Ok(Services { ports, data_path, refused, problems, warnings, error: status.error.clone(), faults, table })
}
