//! `cargo xtask dns-compare`: the table of names and answers, asked of any DNS server of the same cluster.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use lab::peer::{DnsRecord, Resolution, ResolveArguments, resolve};

use crate::say;

/// Whom to ask what.
#[derive(Args, Debug)]
pub(crate) struct CompareOptions {
    /// A DNS server that serves the cluster of dns/tests/corpus/cluster.yaml under cluster.local.
    #[arg(long, value_name = "ADDR:PORT")]
    server: SocketAddr,
    /// The table: dns/tests/corpus/answers.txt.
    #[arg(long)]
    table: PathBuf,
}

/// Asks every question over UDP and TCP, and prints the answers that differ. The exit code is 0 only if none does.
pub(crate) fn run(options: &CompareOptions) -> Result<ExitCode> {
    let path = options.table.display();
    let table = fs::read_to_string(&options.table).with_context(|| format!("reading {path}"))?;
    let (mut asked, mut different) = (0_u32, 0_u32);
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.splitn(3, ' ').collect();
        let &[name, rtype, wanted] = words.as_slice() else { anyhow::bail!("{path} has a line {line:?}") };
        let name = full(name);
        for (tcp, transport) in [(false, "UDP"), (true, "TCP")] {
            asked += 1;
            let got = match resolve(&ResolveArguments::new(&name, rtype, options.server, tcp)) {
                Ok(answer) => told(&answer),
                Err(error) => [format!("{error:#}")].into(),
            };
            let wanted = expected(wanted);
            if got != wanted {
                different += 1;
                say(format!("{name} {rtype} over {transport}"));
                say(format!("   wanted  {}", list(&wanted)));
                say(format!("   got     {}", list(&got)));
            }
        }
    }
    say(format!("{asked} questions, {different} answered differently"));
    Ok(if different == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn full(text: &str) -> String {
    text.replace('…', "shop.svc.cluster.local.")
}

fn list(words: &BTreeSet<String>) -> String {
    words.iter().map(String::as_str).collect::<Vec<_>>().join(" | ")
}

/// What the table says: each record, those of the additional section with a plus sign.
fn expected(text: &str) -> BTreeSet<String> {
    let text = full(text);
    let (answers, additional) = text.split_once(" + ").unwrap_or((&text, ""));
    let answers: Vec<&str> =
        if answers.starts_with("0 ") { answers.split(" | ").collect() } else { answers.split_whitespace().collect() };
    let additional = additional.split_whitespace().map(|word| format!("+{}", canonical(word)));
    answers.into_iter().map(canonical).chain(additional).collect()
}

fn told(answer: &Resolution) -> BTreeSet<String> {
    let data = |records: &[DnsRecord]| records.iter().map(|record| canonical(&record.data)).collect::<Vec<_>>();
    match (answer.rcode.as_str(), answer.answers.is_empty()) {
        ("NoError", true) => ["nodata".to_owned()].into(),
        ("NoError", false) => {
            let additional = data(&answer.additional).into_iter().map(|data| format!("+{data}"));
            data(&answer.answers).into_iter().chain(additional).collect()
        }
        (rcode, _) => [rcode.to_lowercase()].into(),
    }
}

/// One spelling for each address and each name.
fn canonical(word: &str) -> String {
    let word = word.trim().trim_matches('"').trim_end_matches(" |");
    word.parse().map_or_else(|_| word.to_ascii_lowercase(), |ip: IpAddr| ip.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_s_words_are_records() {
        let wanted = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(expected("NODATA"), wanted(&["nodata"]));
        assert_eq!(expected("10.1.1.1 fd88:77:0:0:9::"), wanted(&["10.1.1.1", "fd88:77:0:0:9::"]));
        assert_eq!(
            expected("0 50 80 a.… | 0 50 81 a.… + 10.0.0.1"),
            wanted(&["0 50 80 a.shop.svc.cluster.local.", "0 50 81 a.shop.svc.cluster.local.", "+10.0.0.1"])
        );
    }
}
