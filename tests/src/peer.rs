//! `lab-peer`: the servers and clients that run inside nodes and pods, and what they print.

mod api;
mod bench;
mod bulk;
mod call_error;
mod connect;
mod crowd;
mod dial;
mod dns_load;
mod flood;
mod load;
mod probe;
mod programs;
mod raw;
mod resolve;
mod sctp;
mod serve;
mod socket;
mod stray;
mod swarm;
mod turns;
mod upstream;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use serde::{Deserialize, Serialize};

pub use api::ApiArguments;
pub use bench::{BenchArguments, BenchLine};
pub use bulk::{TransferArguments, TransferLine};
pub use call_error::CallError;
pub use connect::{Attempt, ConnectArguments};
pub use crowd::{CrowdArguments, CrowdLine};
pub use dial::{Answer, Question};
pub use dns_load::{DnsLoadArguments, DnsLoadLine};
pub use flood::{FloodArguments, FloodLine};
pub use load::{LoadArguments, LoadLine};
pub use probe::{Call, Probe, ProbeArguments};
pub use programs::{ProgramArguments, ProgramLine};
pub use raw::RawArguments;
pub use resolve::{DnsRecord, Resolution, ResolveArguments, resolve};
pub use serve::ServeArguments;
pub use swarm::{SwarmArguments, SwarmLine};
pub use turns::TurnArguments;
pub use upstream::UpstreamArguments;

/// What a server prints when it listens.
pub const SERVING: &str = "serving";

/// A server or client of the lab.
#[derive(Debug, Parser)]
#[command(name = "lab-peer")]
pub struct Peer {
    #[command(subcommand)]
    role: PeerCommand,
}

#[derive(Debug, Subcommand)]
enum PeerCommand {
    /// Answer with a name over TCP, UDP and HTTP, on both families.
    Serve(ServeArguments),
    /// Connect again and again and say who answered.
    Connect(ConnectArguments),
    /// Connect as each line of standard input asks, all at once.
    Dial,
    /// Send many requests over TCP and say what came of them.
    Load(LoadArguments),
    /// Make single calls on odd sockets and say what the kernel says.
    Probe(ProbeArguments),
    /// Keep a TCP connection open and say on it what standard input says.
    Hold {
        /// The server.
        to: SocketAddr,
    },
    /// Keep many TCP connections open, and use all of them at each line of standard input.
    Crowd(CrowdArguments),
    /// Send many bytes over one connection, or receive them.
    Transfer(TransferArguments),
    /// Send SYNs from addresses that nobody has.
    Flood(FloodArguments),
    /// Send a datagram from each of many ports and compare the answers.
    Swarm(SwarmArguments),
    /// Send segments from outside of the window of a connection to its client.
    Stray {
        /// Where the server listens.
        server: SocketAddr,
    },
    /// Send one packet.
    Raw(RawArguments),
    /// Use one UDP socket, connected and not connected in turn.
    Turns(TurnArguments),
    /// Ask a DNS server.
    Resolve(ResolveArguments),
    /// Fetch a path over HTTP and print status and body.
    HttpGet {
        /// Address and port.
        address: SocketAddr,
        /// The path.
        #[arg(default_value = "/")]
        path: String,
    },
    /// Be a DNS server that knows a few names.
    DnsUpstream(UpstreamArguments),
    /// Be a Kubernetes API server over a folder of manifests.
    Api(ApiArguments),
    /// Time connect() and close().
    BenchConnect(BenchArguments),
    /// Time a datagram there and back.
    BenchUdp(BenchArguments),
    /// Ask DNS servers as fast as they answer.
    BenchDns(DnsLoadArguments),
    /// Time connect, one request, its answer and close.
    BenchRr(BenchArguments),
    /// Time a request and its answer on a connection that stays.
    BenchExchange(BenchArguments),
    /// Time connections by which 16 MiB come.
    BenchStream(BenchArguments),
    /// Time the packet programs, packet by packet.
    BenchPrograms(ProgramArguments),
    /// Be process 1 of a guest.
    #[command(hide = true)]
    GuestInit,
    /// Wait until standard input closes, then remove the lab with this prefix.
    #[command(hide = true)]
    Guard {
        /// The lab's prefix.
        prefix: String,
    },
}

impl Peer {
    /// Does what the arguments ask for.
    pub fn run(self) -> anyhow::Result<()> {
        match self.role {
            PeerCommand::Serve(arguments) => serve::serve(&arguments),
            PeerCommand::Connect(arguments) => connect::connect(&arguments),
            PeerCommand::Dial => dial::dial(),
            PeerCommand::Load(arguments) => load::load(&arguments),
            PeerCommand::Probe(arguments) => probe::probe(&arguments),
            PeerCommand::Hold { to } => probe::hold(to),
            PeerCommand::Crowd(arguments) => crowd::hold(&arguments),
            PeerCommand::Transfer(arguments) => bulk::transfer(&arguments),
            PeerCommand::Flood(arguments) => flood::flood(&arguments),
            PeerCommand::Swarm(arguments) => swarm::swarm(&arguments),
            PeerCommand::Stray { server } => stray::send(server),
            PeerCommand::Raw(arguments) => raw::send(&arguments),
            PeerCommand::Turns(arguments) => turns::take(&arguments),
            PeerCommand::Resolve(arguments) => print(&resolve(&arguments)?),
            PeerCommand::HttpGet { address, path } => {
                let response = crate::http_get(address, &path, Duration::from_secs(5))?;
                print(&serde_json::json!({"status": response.status, "body": response.body}))
            }
            PeerCommand::DnsUpstream(arguments) => upstream::serve(&arguments),
            PeerCommand::Api(arguments) => api::serve(&arguments),
            PeerCommand::BenchConnect(arguments) => bench::connect(&arguments),
            PeerCommand::BenchUdp(arguments) => bench::udp(&arguments),
            PeerCommand::BenchDns(arguments) => dns_load::load(&arguments),
            PeerCommand::BenchRr(arguments) => bench::request_response(&arguments),
            PeerCommand::BenchExchange(arguments) => bench::exchange(&arguments),
            PeerCommand::BenchStream(arguments) => bench::stream(&arguments),
            PeerCommand::BenchPrograms(arguments) => programs::run(&arguments),
            PeerCommand::GuestInit => crate::guest::init(),
            PeerCommand::Guard { prefix } => guard(&prefix),
        }
    }
}

fn guard(prefix: &str) -> anyhow::Result<()> {
    std::io::stdin().read_to_end(&mut Vec::new()).context("waiting for the end of the lab")?;
    crate::remove(prefix)
}

/// Prints one JSON line; a reader must see it at once.
fn print(line: &impl Serialize) -> anyhow::Result<()> {
    say(&serde_json::to_string(line).context("writing a line")?)
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("writing to standard output")
}

/// Nanoseconds since 1970, comparable between the processes of one machine.
#[must_use]
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Round-trip protocols of [`ConnectArguments`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A TCP connection; the server says its name first.
    #[default]
    Tcp,
    /// A TCP connection with one HTTP request.
    Http,
    /// A TCP connection whose first bytes go with its SYN, by connect() with `TCP_FASTOPEN_CONNECT`.
    TcpFastopen,
    /// A connection of Multipath TCP.
    Mptcp,
    /// A one-to-one SCTP socket; the server says its name first.
    Sctp,
    /// A connected UDP socket.
    Udp,
    /// A UDP socket that is not connected.
    UdpUnconnected,
    /// The first two packets of an SCTP association, from and to a raw socket.
    SctpInit,
}
