//! A server that answers with its name.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{SERVING, bulk, say, sctp};

const LINE_WITHIN: Duration = Duration::from_secs(30);
const STACK: usize = 128 * 1024;

/// What to serve.
#[derive(Clone, Debug, Args)]
pub struct ServeArguments {
    /// The name to answer with.
    #[arg(long)]
    name: String,
    /// Serve at this address; at all addresses of both families unless given.
    #[arg(long)]
    address: Option<IpAddr>,
    /// Answer with the name and the port, as in `web:7000`.
    #[arg(long)]
    with_port: bool,
    /// Ports where a connection is greeted with name and addresses, then its lines are echoed.
    #[arg(long, num_args = 1..)]
    tcp: Vec<u16>,
    /// The same with SCTP.
    #[arg(long, num_args = 1..)]
    sctp: Vec<u16>,
    /// Ports where a request is answered over HTTP.
    #[arg(long, num_args = 1..)]
    http: Vec<u16>,
    /// Ports where a datagram comes back behind the name and the address of its sender.
    #[arg(long, num_args = 1..)]
    udp: Vec<u16>,
    /// Ports where the first packet of an SCTP association is answered.
    #[arg(long, num_args = 1..)]
    sctp_init: Vec<u16>,
    /// Ports where a connection is accepted and closed, for measuring.
    #[arg(long, num_args = 1..)]
    sink: Vec<u16>,
    /// Ports where many bytes are sent or received, as the client orders.
    #[arg(long, num_args = 1..)]
    bulk: Vec<u16>,
}

/// Serves until killed.
pub(super) fn serve(arguments: &ServeArguments) -> anyhow::Result<()> {
    let mut threads = Vec::new();
    let kinds = [
        (&arguments.tcp, Kind::Greet),
        (&arguments.sctp, Kind::GreetSctp),
        (&arguments.http, Kind::Http),
        (&arguments.sink, Kind::Sink),
        (&arguments.bulk, Kind::Bulk),
    ];
    for (ports, kind) in kinds {
        for address in ports.iter().flat_map(|port| places(arguments, *port)) {
            let listener = listen(address, kind)?;
            let name = name_at(arguments, address);
            threads.push(thread::spawn(move || accept(&listener, &name, kind)));
        }
    }
    for address in arguments.udp.iter().flat_map(|port| places(arguments, *port)) {
        let socket: UdpSocket = bind(address, Type::DGRAM, Protocol::UDP)?.into();
        let name = name_at(arguments, address);
        threads.push(thread::spawn(move || answer(&socket, &name)));
    }
    for address in arguments.sctp_init.iter().flat_map(|port| places(arguments, *port)) {
        let socket = sctp::listen(address).context("making a raw socket for SCTP")?;
        let name = name_at(arguments, address);
        threads.push(thread::spawn(move || sctp::serve(&socket, address.port(), &name)));
    }
    say(SERVING)?;
    threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a server panicked")))
}

fn name_at(arguments: &ServeArguments, address: SocketAddr) -> String {
    if arguments.with_port { format!("{}:{}", arguments.name, address.port()) } else { arguments.name.clone() }
}

#[derive(Clone, Copy)]
enum Kind {
    Greet,
    GreetSctp,
    Http,
    Sink,
    Bulk,
}

fn places(arguments: &ServeArguments, port: u16) -> Vec<SocketAddr> {
    let any = vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let addresses = arguments.address.map_or(any, |address| vec![address]);
    addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect()
}

fn bind(address: SocketAddr, kind: Type, protocol: Protocol) -> anyhow::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol)).context("making a socket")?;
    if address.is_ipv6() {
        // Both families are bound on their own: peers then show as what they are, not as ::ffff:…
        socket.set_only_v6(true).context("making a socket IPv6 only")?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true).context("making an address reusable")?;
    }
    socket.bind(&SockAddr::from(address)).with_context(|| format!("binding {address}"))?;
    Ok(socket)
}

/// With SCTP too a listener of the standard library: it makes only calls that work on any socket of connections.
fn listen(address: SocketAddr, kind: Kind) -> anyhow::Result<TcpListener> {
    let protocol = match kind {
        Kind::GreetSctp => Protocol::SCTP,
        Kind::Greet | Kind::Http | Kind::Sink | Kind::Bulk => Protocol::TCP,
    };
    let socket = bind(address, Type::STREAM, protocol)?;
    socket.listen(4096).with_context(|| format!("listening on {address}"))?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener, name: &str, kind: Kind) -> anyhow::Result<()> {
    loop {
        let (stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            // The client gave up between its SYN and our accept.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error).context("accepting"),
        };
        let name = name.to_owned();
        // What happens to one connection is its client's business; the server goes on.
        match kind {
            Kind::Sink => drop(stream),
            Kind::Greet => drop(spawn(move || stream.set_nodelay(true).and_then(|()| greet(&stream, &name)))?),
            Kind::GreetSctp => drop(spawn(move || greet(&stream, &name))?),
            Kind::Bulk => drop(spawn(move || bulk::serve(&stream))?),
            Kind::Http => drop(spawn(move || http(&stream, &name))?),
        }
    }
}

fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<thread::JoinHandle<T>> {
    thread::Builder::new().stack_size(STACK).spawn(work).context("starting a thread")
}

fn greet(stream: &TcpStream, name: &str) -> std::io::Result<()> {
    let mut out = stream;
    stream.set_read_timeout(Some(LINE_WITHIN))?;
    out.write_all(format!("{name} {} {}\n", stream.peer_addr()?, stream.local_addr()?).as_bytes())?;
    for line in BufReader::new(stream).lines() {
        out.write_all(format!("{}\n", line?).as_bytes())?;
    }
    Ok(())
}

fn http(stream: &TcpStream, name: &str) -> std::io::Result<()> {
    let mut out = stream;
    stream.set_read_timeout(Some(LINE_WITHIN))?;
    for line in BufReader::new(stream).lines() {
        if line?.is_empty() {
            break;
        }
    }
    let body = format!("{name} {}\n", stream.peer_addr()?);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    out.write_all(format!("{head}{body}").as_bytes())
}

fn answer(socket: &UdpSocket, name: &str) -> anyhow::Result<()> {
    let mut buffer = vec![0; 65_536];
    loop {
        // An ICMP error of an earlier answer is reported here; it says nothing about the next datagram.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        let payload = buffer.get(..length).unwrap_or_default();
        let reply = [format!("{name} {client} ").as_bytes(), payload].concat();
        drop(socket.send_to(&reply, client));
    }
}
