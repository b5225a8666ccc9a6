//! Much data over one connection of TCP, in either direction: its digest says whether all of it arrived as it was sent.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use data_encoding::HEXLOWER;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::print;

/// As much is written and read at once.
const BLOCK: usize = 64 * 1024;
/// A transfer that stands still for so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// What to transfer.
#[derive(Clone, Debug, Args)]
pub struct TransferArguments {
    /// The server.
    #[arg(long)]
    to: SocketAddr,
    /// So many bytes.
    #[arg(long)]
    bytes: u64,
    /// From the server to this client.
    #[arg(long)]
    down: bool,
}

/// What came of a transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferLine {
    /// The server.
    pub to: SocketAddr,
    /// How many bytes arrived.
    pub bytes: u64,
    /// The digest of what was sent.
    pub sent: String,
    /// The digest of what arrived.
    pub received: String,
    /// How long it took.
    pub milliseconds: u128,
}

/// Transfers, and prints one line.
pub(super) fn transfer(arguments: &TransferArguments) -> anyhow::Result<()> {
    let TransferArguments { to, bytes, down } = *arguments;
    let start = Instant::now();
    let stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
    limit(&stream)?;
    writeln!(&stream, "{} {bytes}", if down { "down" } else { "up" })?;
    let mut input = BufReader::with_capacity(BLOCK, &stream);
    let (sent, received) = if down {
        let received = receive(&mut input, bytes).context("receiving")?;
        (line(&mut input)?, received)
    } else {
        let sent = send(&stream, bytes).context("sending")?;
        (sent, line(&mut input)?)
    };
    print(&TransferLine { to, bytes, sent, received, milliseconds: start.elapsed().as_millis() })
}

/// The other side of a transfer.
pub(super) fn serve(stream: &TcpStream) -> io::Result<()> {
    limit(stream)?;
    let mut input = BufReader::with_capacity(BLOCK, stream);
    let order = line(&mut input)?;
    let (direction, bytes) = order.split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
    let bytes = bytes.parse().map_err(io::Error::other)?;
    let mut out = stream;
    let digest = match direction {
        "down" => send(out, bytes)?,
        "pour" => return pour(out, bytes),
        _ => receive(&mut input, bytes)?,
    };
    writeln!(out, "{digest}")
}

/// Sends so many bytes at the least cost, for measuring.
fn pour(mut out: impl Write, bytes: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(bytes), &mut io::BufWriter::with_capacity(BLOCK, &mut out)).map(drop)
}

/// Receives what [`pour`] sends.
pub(super) fn be_poured(to: SocketAddr, bytes: u64) -> anyhow::Result<()> {
    let stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
    limit(&stream)?;
    writeln!(&stream, "pour {bytes}")?;
    let mut block = vec![0; BLOCK];
    let mut left = bytes;
    while left > 0 {
        let length = (&stream).read(&mut block).context("receiving")?;
        anyhow::ensure!(length > 0, "{to} closed the connection {left} bytes too early");
        left = left.saturating_sub(u64::try_from(length).unwrap_or(left));
    }
    Ok(())
}

fn limit(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

fn line(input: &mut impl io::BufRead) -> io::Result<String> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// Sends so many bytes, all blocks of which differ. Gives their digest.
fn send(mut out: impl Write, bytes: u64) -> io::Result<String> {
    let mut block = vec![0; BLOCK];
    for word in block.chunks_exact_mut(size_of::<u64>()) {
        word.copy_from_slice(&rand::random::<u64>().to_ne_bytes());
    }
    let mut digest = Context::new(&SHA256);
    let mut left = bytes;
    while left > 0 {
        if let Some(first) = block.first_chunk_mut() {
            *first = left.to_ne_bytes();
        }
        let part = block.get(..usize::try_from(left).unwrap_or(BLOCK).min(BLOCK)).unwrap_or_default();
        out.write_all(part)?;
        digest.update(part);
        left = left.saturating_sub(u64::try_from(part.len()).unwrap_or(left));
    }
    Ok(HEXLOWER.encode(digest.finish().as_ref()))
}

/// Receives so many bytes. Gives their digest.
fn receive(input: &mut impl Read, bytes: u64) -> io::Result<String> {
    let mut block = vec![0; BLOCK];
    let mut digest = Context::new(&SHA256);
    let mut left = bytes;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        let length = input.read(block.get_mut(..most).unwrap_or_default())?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        digest.update(block.get(..length).unwrap_or_default());
        left = left.saturating_sub(u64::try_from(length).unwrap_or(left));
    }
    Ok(HEXLOWER.encode(digest.finish().as_ref()))
}
