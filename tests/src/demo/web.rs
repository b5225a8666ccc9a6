//! A web pod of the demo: nginx if it is installed, else the lab's own small server.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::host::find_tool;
use crate::http::http_get;
use crate::manifests::PodState;
use crate::node::{Node, Pod};
use crate::process::{POLL, Process};
use crate::signals;

/// Where the web server listens.
pub(super) const HTTP: u16 = 8080;
/// Where datagrams are answered; nginx cannot do that without a module, so it is the lab's server in each pod.
pub(super) const ECHO: u16 = 7000;

/// A pod with its servers.
#[derive(Debug)]
pub(super) struct Web {
    pub(super) pod: Pod,
    pub(super) state: PodState,
    /// Held for their lives: dropping one kills it.
    servers: Vec<Process>,
}

impl Web {
    /// Adds a pod to `node` and waits until its servers answer, as a readiness probe would.
    pub(super) fn start(node: &Node, name: &str, directory: &Path) -> anyhow::Result<Self> {
        let pod = node.pod(name)?;
        let echo = ECHO.to_string();
        let servers = match find_tool("nginx") {
            Some(nginx) => vec![start_nginx(&nginx, &pod, directory)?, pod.serve(name, &["--udp", &echo])?],
            None => vec![pod.serve(name, &["--http", &HTTP.to_string(), "--udp", &echo])?],
        };
        Ok(Self { pod, state: PodState::Ready, servers })
    }

    /// What serves HTTP here.
    pub(super) fn server_name(&self) -> String {
        self.servers.first().map(|server| server.name().to_owned()).unwrap_or_default()
    }

    /// Ends its servers as the kubelet does after the grace period.
    pub(super) fn kill(mut self) -> anyhow::Result<()> {
        self.servers.clear();
        // nginx's workers are processes of their own.
        self.pod.kill_all()
    }
}

fn start_nginx(nginx: &Path, pod: &Pod, directory: &Path) -> anyhow::Result<Process> {
    let home = directory.join(format!("nginx-{}", pod.name()));
    fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
    let configuration = home.join("nginx.conf");
    fs::write(&configuration, nginx_configuration(&home, pod.name()))
        .with_context(|| format!("writing {}", configuration.display()))?;
    let mut process =
        pod.spawn(&[nginx.as_os_str(), "-e".as_ref(), "stderr".as_ref(), "-c".as_ref(), configuration.as_os_str()])?;
    let address = SocketAddr::new(pod.ipv4.into(), HTTP);
    let deadline = Instant::now() + Duration::from_secs(10);
    while pod.in_netns(|| http_get(address, "/", Duration::from_secs(1))).is_err() {
        signals::check()?;
        if !process.is_running()? || Instant::now() > deadline {
            bail!(process.failure("does not answer"));
        }
        std::thread::sleep(POLL);
    }
    Ok(process)
}

fn nginx_configuration(home: &Path, name: &str) -> String {
    let home = home.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("  {kind}_temp_path {home}/{kind};\n"))
        .collect();
    format!(
        "daemon off;\nuser root;\npid {home}/nginx.pid;\nworker_processes 1;\nevents {{ worker_connections 512; }}\n\
         http {{\n  access_log off;\n{temporary}  server {{\n    listen {HTTP};\n    listen [::]:{HTTP};\n    \
         default_type text/plain;\n    location / {{ return 200 \"{name}\\n\"; }}\n  }}\n}}\n"
    )
}
