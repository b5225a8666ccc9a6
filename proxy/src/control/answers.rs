//! What the daemon answers: its frontends, and what its DNS says about a name and why.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use shunt_dns::{Explanation, Name, Record, RecordType, absolute};

use crate::datapath::Report;
use crate::plan::{PlanView, render_table};
use crate::status::Status;

/// Frontends with their endpoints, as the kernel serves them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Services {
    /// The fields of `shunt plan -o json`.
    pub ports: Value,
    /// Service ports that are not served, with the reason.
    pub refused: Vec<String>,
    /// Objects and files of the input that are ignored, each with file, line and reason.
    pub problems: Vec<String>,
    /// Why the last sync failed, if it did: then the kernel may be behind the cluster.
    pub error: Option<String>,
    /// Why what is programmed is not in effect, if it is not.
    pub faults: Vec<String>,
    /// The same for people.
    pub table: String,
}

/// What DNS says about one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsReply {
    /// `NOERROR`, `NXDOMAIN`; absent if an upstream decides it.
    pub rcode: Option<String>,
    /// The answer section, each record as in a zone file.
    pub answers: Vec<String>,
    /// The authority section.
    pub authority: Vec<String>,
    /// The additional section.
    pub additionals: Vec<String>,
    /// Why this is the answer.
    pub explanation: String,
}

/// The frontends of the last successful sync.
pub fn services(status: &Status, path: &Report) -> Result<Services, serde_json::Error> {
    let ports = serde_json::to_value(PlanView::from(&status.programmed).ports)?;
    let refused = status.refused.iter().map(|(port, reason)| format!("{port}: {reason}")).collect();
    let problems = status.source.problems.iter().map(ToString::to_string).collect();
    let table = render_table(&status.programmed);
    Ok(Services { ports, refused, problems, error: status.error.clone(), faults: path.not_in_effect(), table })
}

/// A question given as text.
pub fn question(name: &str, rtype: &str) -> Result<(Name, RecordType), String> {
    let parsed = absolute(name).map_err(|error| format!("{name:?} is not a domain name: {error}"))?;
    Ok((parsed, record_type(rtype)?))
}

/// A type by its name, or as `TYPE65` (RFC 3597 section 5).
fn record_type(text: &str) -> Result<RecordType, String> {
    let upper = text.to_ascii_uppercase();
    if ["AXFR", "IXFR"].contains(&upper.as_str()) {
        return Err(format!(
            "{upper} is a transfer and no type: a server refuses it unless its Corefile allows the client"
        ));
    }
    if let Some(number) = upper.strip_prefix("TYPE").and_then(|number| number.parse::<u16>().ok()) {
        return Ok(number.into());
    }
    upper.parse().map_err(|error| format!("{text:?} is not a record type: {error}"))
}

impl From<Explanation> for DnsReply {
    fn from(explained: Explanation) -> Self {
        Self {
            rcode: explained.rcode,
            answers: lines(&explained.answers),
            authority: lines(&explained.authorities),
            additionals: lines(&explained.additionals),
            explanation: explained.reason,
        }
    }
}

fn lines(records: &[Record]) -> Vec<String> {
    records.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, wanted: Result<RecordType, &str>) {
        match (record_type(text), wanted) {
            (Ok(found), Ok(wanted)) => assert_eq!(found, wanted, "{text}"),
            (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    }

    #[test]
    fn a_type_is_given_by_name_or_number() {
        check("aaaa", Ok(RecordType::AAAA));
        check("TYPE65", Ok(RecordType::HTTPS));
        check("type65280", Ok(RecordType::Unknown(65280)));
        check("AXFR", Err("transfer"));
        check("ixfr", Err("transfer"));
        check("TYPE70000", Err("TYPE70000"));
        check("adress", Err("adress"));
    }
}
