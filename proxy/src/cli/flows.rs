//! `shunt flows`: the flows that the packet programs remember.

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use shunt_proxy::control::{Reply, Request, ask, render_flows};
use shunt_proxy::datapath::{FlowFilter, FlowState};

use super::{OutputFormat, Socket, print};

#[derive(Args)]
pub(super) struct FlowsArguments {
    /// Only of this client: an IP or a CIDR
    #[arg(long, value_name = "IP", value_parser = range)]
    client: Option<IpNet>,
    /// Only to this endpoint: an IP or a CIDR
    #[arg(long, value_name = "IP", value_parser = range)]
    endpoint: Option<IpNet>,
    /// Only of this Service
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service)]
    service: Option<String>,
    /// Only of this protocol
    #[arg(long)]
    protocol: Option<Transport>,
    /// Only in this state
    #[arg(long)]
    state: Option<FlowState>,
    /// Print at most so many: those that had a packet last
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    limit: usize,
    #[command(flatten)]
    socket: Socket,
    /// How to print it
    #[arg(long, short, default_value = "table")]
    output: OutputFormat,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
    Sctp,
}

pub(super) fn run(arguments: FlowsArguments) -> Result<ExitCode> {
    let FlowsArguments { client, endpoint, service, protocol, state, limit: most, socket, output } = arguments;
    let protocol = protocol.map(|protocol| {
        match protocol {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Sctp => "sctp",
        }
        .to_owned()
    });
    let filter = FlowFilter { client, endpoint, service, protocol, state, most };
    let found = match ask(&socket.control_socket, &Request::Flows(filter))? {
        Reply::Flows(found) => found,
        Reply::Error(reason) => bail!(reason),
        Reply::Services(_) | Reply::Dns(_) | Reply::Explain(_) | Reply::Told(_) => {
            bail!("the daemon answers another question than was asked")
        }
    };
    print(&match output {
        OutputFormat::Table => render_flows(&found),
        OutputFormat::Json => serde_json::to_string_pretty(&found)?,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// An address is a range of one.
fn range(text: &str) -> Result<IpNet, String> {
    let address: Option<IpAddr> = text.parse().ok();
    let range = address.map_or_else(|| text.parse(), |address| Ok(IpNet::from(address)));
    let hint = "neither an IP nor a CIDR, such as 10.0.0.7 or 10.0.0.0/24";
    range.map_err(|error: ipnet::AddrParseError| format!("{hint}: {error}"))
}

fn service(text: &str) -> Result<String, String> {
    let is_named = text.split_once('/').is_some_and(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    if is_named { Ok(text.to_owned()) } else { Err("write it as NAMESPACE/NAME, such as shop/web".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_range_of_one() {
        assert_eq!(range("10.0.0.7").unwrap().to_string(), "10.0.0.7/32");
        assert_eq!(range("fd00::/64").unwrap().to_string(), "fd00::/64");
        assert!(range("10.0.0").unwrap_err().contains("neither"));
        assert!(service("web").is_err() && service("shop/web").is_ok());
    }
}
