//! The program `shunt-dns`, running.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use lab::{HttpResponse, http_get};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often it is looked whether something has come true, and at most how many times.
const EVERY: Duration = Duration::from_millis(10);
const TIMES: usize = 3000;

/// A program, which ends with this.
pub(crate) struct Program {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Program {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shunt-dns"));
        command.args(arguments);
        Self::spawn(command)
    }

    /// With a Corefile, and all its ports chosen by the kernel.
    pub(crate) fn with_corefile(corefile: &Path) -> Self {
        let any = "127.0.0.1:0";
        let http = ["--health-address", any, "--ready-address", any, "--metrics-address", any];
        Self::start(&[&["-conf", corefile.to_str().unwrap(), "--listen", any], http.as_slice()].concat())
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, written) = (BufReader::new(child.stderr.take().unwrap()).lines(), Arc::clone(&log));
        let reader = std::thread::spawn(move || {
            for line in lines {
                let mut log = written.lock().unwrap();
                log.push_str(&line.unwrap());
                log.push('\n');
            }
        });
        Self { child, log, reader: Some(reader) }
    }

    /// What it has written.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The first line with these words, as soon as it is there.
    pub(crate) fn line(&self, words: &str) -> String {
        for _ in 0..TIMES {
            if let Some(line) = self.log().lines().find(|line| line.contains(words)) {
                return line.to_owned();
            }
            sleep(EVERY);
        }
        panic!("no {words:?} in:\n{}", self.log());
    }

    /// Where it answers.
    pub(crate) fn dns(&self) -> SocketAddr {
        address(&self.line("serving DNS"))
    }

    /// Where it tells how it is.
    pub(crate) fn http_address(&self) -> SocketAddr {
        address(&self.line("serving health"))
    }

    /// What it tells there.
    pub(crate) fn http(&self, path: &str) -> HttpResponse {
        http_get(self.http_address(), path, Duration::from_secs(20)).unwrap()
    }

    /// Asks until status and body are as wanted, and returns the body.
    pub(crate) fn wait_for(&self, path: &str, status: u16, fits: impl Fn(&str) -> bool) -> String {
        let mut last = None;
        for _ in 0..TIMES {
            let answer = self.http(path);
            if answer.status == status && fits(&answer.body) {
                return answer.body;
            }
            last = Some(answer);
            sleep(EVERY);
        }
        panic!("{path} is never {status} as wanted but {last:?}");
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn tell(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Its exit status and all that it wrote, once it has ended.
    pub(crate) fn ended(mut self) -> (ExitStatus, String) {
        for _ in 0..TIMES {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.reader.take().unwrap().join().unwrap();
                return (status, self.log());
            }
            sleep(EVERY);
        }
        panic!("it does not end:\n{}", self.log());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.child.kill();
        self.child.wait().unwrap();
    }
}

/// The only one in a line of the log.
fn address(line: &str) -> SocketAddr {
    // In brackets, as the address of IPv6 in them may have its own.
    line.split_once("addresses=[").unwrap().1.strip_suffix(']').unwrap().parse().unwrap()
}
