//! The server requests its own `/health`: the time that takes shows whether it is overloaded (DNS-11.7).

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::metrics::Metrics;

const EVERY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);
const REQUEST: &[u8] = b"GET /health HTTP/1.0\r\n\r\n";

/// Requests it every second, until the task is cancelled.
pub(super) async fn every_second(address: SocketAddr, metrics: Arc<Metrics>) {
    let counters = metrics.health();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let start = Instant::now();
        let good = timeout(PATIENCE, is_healthy(address)).await.is_ok_and(|answer| answer.unwrap_or(false));
        counters.duration.observe(start.elapsed().as_secs_f64());
        if !good {
            counters.failures.add_one();
        }
    }
}

/// An unspecified address is replaced by IPv4's loopback, which exists also where IPv6 is switched off.
async fn is_healthy(mut address: SocketAddr) -> io::Result<bool> {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(REQUEST).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.0 200"))
}
