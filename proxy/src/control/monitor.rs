//! `shunt monitor`: decisions as they are taken, a reply a line until one of both ends goes.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;

use super::client::is_no_daemon;
use super::{AskError, Reply, Request};
use crate::datapath::{Decision, Heard, OpenPath};

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// It is told what is decided from now on.
    Listening,
    /// A decision.
    Decision(Box<Decision>),
    /// So many decisions were left out.
    LeftOut(u64),
}

/// The decisions that a client wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    service: Option<String>,
    client: Option<IpNet>,
}

impl Filter {
    pub(super) fn of(service: Option<&str>, client: Option<&str>) -> Result<Self, String> {
        if let Some(service) = service.filter(|service| service.split('/').count() != 2) {
            return Err(format!("{service:?} is no Service: give NAMESPACE/NAME"));
        }
        let network = |text: &str| match text.parse::<IpAddr>() {
            Ok(address) => Ok(IpNet::from(address.to_canonical())),
            Err(_) => text
                .parse()
                .map_err(|error| format!("{text:?} is neither an address nor a network (ADDRESS/BITS): {error}")),
        };
        Ok(Self { service: service.map(str::to_owned), client: client.map(network).transpose()? })
    }

    fn takes(&self, decision: &Decision) -> bool {
        let is_of = |wanted: &String| decision.service.as_ref() == Some(wanted);
        let is_from = |network: &IpNet| network.contains(&decision.client.ip());
        self.service.as_ref().is_none_or(is_of) && self.client.as_ref().is_none_or(is_from)
    }
}

/// Tells a client, which keeps its end open as long as it listens.
pub(super) async fn serve(
    path: &OpenPath,
    filter: &Filter,
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let Some(decisions) = path.decisions() else {
        return send(&mut writer, &Reply::Error(why_none(path))).await;
    };
    let Some(mut listening) = decisions.listen().await else {
        let reason = "this daemon does not hear its programs: its log says why".to_owned();
        return send(&mut writer, &Reply::Error(reason)).await;
    };
    send(&mut writer, &Reply::Told(Told::Listening)).await?;
    let mut rest = [0; 64];
    loop {
        let heard = tokio::select! {
            read = reader.read(&mut rest) => match read? {
                0 => return Ok(()),
                _ => continue,
            },
            heard = listening.next() => heard,
        };
        let told = match heard {
            None => return Ok(()),
            Some(Heard::LeftOut(count)) => Told::LeftOut(count),
            Some(Heard::Decision(decision)) if filter.takes(&decision) => Told::Decision(Box::new((*decision).clone())),
            Some(Heard::Decision(_)) => continue,
        };
        send(&mut writer, &Reply::Told(told)).await?;
    }
}

fn why_none(path: &OpenPath) -> String {
    match path.chosen() {
        None => "this daemon has not opened a data path yet".to_owned(),
        Some(serves) => format!(
            "there are no decisions to tell: only eBPF programs for packets tell theirs, and this node is served by {serves}"
        ),
    }
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

/// What a daemon tells.
#[derive(Debug)]
pub struct Monitored {
    path: PathBuf,
    lines: Lines<BufReader<UnixStream>>,
}

/// Asks the daemon on `path` for decisions, by a request for those.
pub async fn monitor(path: &Path, request: &Request) -> Result<Monitored, AskError> {
    let failed = |source: io::Error| AskError::Io { path: path.to_path_buf(), source };
    let mut stream = UnixStream::connect(path)
        .await
        .map_err(|error| if is_no_daemon(&error) { AskError::NoDaemon(path.to_path_buf()) } else { failed(error) })?;
    let mut line = serde_json::to_vec(request).map_err(|error| failed(error.into()))?;
    line.push(b'\n');
    stream.write_all(&line).await.map_err(failed)?;
    Ok(Monitored { path: path.to_path_buf(), lines: BufReader::new(stream).lines() })
}

impl Monitored {
    /// The next reply; `None` once the daemon has ended.
    pub async fn next(&mut self) -> Result<Option<Reply>, AskError> {
        let line = match self.lines.next_line().await {
            Ok(line) => line,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
            Err(source) => return Err(AskError::Io { path: self.path.clone(), source }),
        };
        let read = line.map(|line| serde_json::from_str(&line)).transpose();
        read.map_err(|source| AskError::Reply { path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::duplex;
    use tokio::net::UnixStream;

    use super::*;
    use crate::datapath::{Chosen, DecisionVerdict, Decisions, Looking, Mode, PacketPath};

    fn decision(client: &str, service: Option<&str>) -> Decision {
        Decision {
            time: "2026-05-04T03:02:01Z".to_owned(),
            verdict: DecisionVerdict::Drop,
            reason: "source_range".to_owned(),
            protocol: "tcp".to_owned(),
            client: client.parse().unwrap(),
            destination: "192.0.2.1:80".parse().unwrap(),
            service: service.map(str::to_owned),
            port: service.map(|_| String::new()),
            endpoint: None,
            device: "eth0".to_owned(),
        }
    }

    #[test]
    fn filters_choose_by_service_and_by_client() {
        let [v4, v6] = ["203.0.113.9:40000", "[2001:db8::9]:40000"].map(|client| decision(client, Some("shop/web")));
        let takes = |service: Option<&str>, client: Option<&str>| {
            let filter = Filter::of(service, client).unwrap();
            [&v4, &v6].map(|decision| filter.takes(decision))
        };
        assert_eq!(takes(None, None), [true, true]);
        assert_eq!(takes(Some("shop/web"), None), [true, true]);
        assert_eq!(takes(Some("shop/dns"), None), [false, false]);
        assert_eq!(takes(None, Some("203.0.113.9")), [true, false]);
        assert_eq!(takes(Some("shop/web"), Some("2001:db8::/32")), [false, true]);
        assert_eq!(takes(None, Some("203.0.113.0/29")), [false, false]);
        assert!(!Filter::of(Some("shop/web"), None).unwrap().takes(&decision("203.0.113.9:40000", None)));
        for (service, client, word) in [(Some("web"), None, "\"web\""), (None, Some("nobody"), "\"nobody\"")] {
            assert!(Filter::of(service, client).unwrap_err().contains(word));
        }
    }

    fn open(packets: PacketPath, decisions: Option<Decisions>) -> OpenPath {
        let path = OpenPath::default();
        let chosen = Chosen { mode: Mode::Ebpf, sockets: false, packets: Some(packets), without: Vec::new() };
        path.publish(chosen, Vec::new(), Looking { meters: Vec::new(), decisions });
        path
    }

    #[tokio::test]
    async fn a_client_is_told_until_it_goes() {
        let decisions = Decisions::default();
        decisions.set_telling(true);
        let path = open(PacketPath::Programs, Some(decisions.clone()));
        let (ours, theirs) = UnixStream::pair().unwrap();
        let serving = tokio::spawn(async move {
            let (reader, writer) = theirs.into_split();
            let filter = Filter::of(None, Some("203.0.113.9")).unwrap();
            serve(&path, &filter, reader, writer).await
        });
        let mut monitored = Monitored { path: PathBuf::new(), lines: BufReader::new(ours).lines() };
        assert_eq!(monitored.next().await.unwrap(), Some(Reply::Told(Told::Listening)));
        let wanted = decision("203.0.113.9:40000", None);
        decisions.tell(Heard::Decision(Arc::new(decision("203.0.113.8:40000", None))));
        decisions.tell(Heard::Decision(Arc::new(wanted.clone())));
        decisions.tell(Heard::LeftOut(7));
        let told = Reply::Told(Told::Decision(Box::new(wanted)));
        assert_eq!(monitored.next().await.unwrap(), Some(told));
        assert_eq!(monitored.next().await.unwrap(), Some(Reply::Told(Told::LeftOut(7))));
        drop(monitored);
        serving.await.unwrap().unwrap();
        assert!(!decisions.are_listened_to());
    }

    #[tokio::test]
    async fn where_no_program_tells_the_answer_says_what_serves() {
        for (path, words) in [
            (OpenPath::default(), "has not opened a data path yet"),
            (open(PacketPath::Nftables, None), "served by nftables rules for packets"),
        ] {
            let (ours, theirs) = duplex(4096);
            serve(&path, &Filter::default(), tokio::io::empty(), theirs).await.unwrap();
            let mut lines = BufReader::new(ours).lines();
            let line = lines.next_line().await.unwrap().unwrap();
            let Reply::Error(reason) = serde_json::from_str(&line).unwrap() else { panic!("{line}") };
            assert!(reason.contains(words), "{reason}");
        }
    }
}
