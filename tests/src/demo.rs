//! The demo: two nodes, three web pods, clients, and the life of a Service in half a minute.

mod expectations;
mod screen;
mod story;
mod web;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::binaries::Binaries;
use crate::leftovers::remaining;
use crate::signals::{interrupted, stop_on_signals};
use expectations::Expectations;
use screen::Screen;
use world::World;

/// Exit code of a program that was stopped with Ctrl-C.
const INTERRUPTED: u8 = 130;

/// What to run, and whether to leave it running.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoOptions {
    /// Take the objects from a Kubernetes API server of the lab instead of from files.
    #[arg(long)]
    pub kube: bool,
    /// Leave the Service and its traffic running until Ctrl-C.
    #[arg(long)]
    pub keep: bool,
    /// As the daemon takes it.
    #[arg(long)]
    pub proxy_mode: Option<String>,
    /// As the daemon takes it.
    #[arg(long)]
    pub socket_lb: Option<String>,
    /// The daemon.
    #[arg(long)]
    pub shunt: PathBuf,
    /// The `lab-peer` program.
    #[arg(long)]
    pub peer: PathBuf,
}

impl DemoOptions {
    /// What the daemons get.
    fn for_daemons(&self) -> Vec<String> {
        let flags = [("--proxy-mode", &self.proxy_mode), ("--socket-lb", &self.socket_lb)];
        let given = flags.into_iter().filter_map(|(flag, value)| Some(format!("{flag}={}", value.as_ref()?)));
        given.collect()
    }
}

/// Runs the demo. The exit code is 0 only if every expectation held and nothing was left behind.
pub fn run(options: DemoOptions) -> anyhow::Result<ExitCode> {
    stop_on_signals()?;
    let mut screen = Screen::new();
    let mut expectations = Expectations::default();
    if options.kube {
        screen.say("demo: objects come through a Kubernetes API server in the lab, over TLS")?;
    }
    screen.say(
        "demo: two nodes, each with its own shunt, joined by a router, and a client beyond it; nothing in it has a \
         route out of the machine",
    )?;
    let binaries = Binaries { shunt: Some(options.shunt.clone()), peer: options.peer.clone() };
    let world = World::new(binaries, options.kube, &options.for_daemons());
    let mut world = match world {
        Err(_) if interrupted() => return stopped(&mut screen),
        other => other.context("building the demo's nodes and pods")?,
    };
    let prefix = world.lab.prefix().to_owned();
    let told = story::tell(&mut world, &mut screen, &mut expectations, &options);
    screen.finish();
    if told.is_err() && !interrupted() {
        screen.say(&format!("the logs end with:\n{}", world.lab.logs()))?;
    }
    drop(world);
    let left = remaining(&prefix)?;
    expectations.expect(&mut screen, left.is_empty(), "nothing is left behind", &left.join(" "))?;
    match told {
        Err(_) if interrupted() => stopped(&mut screen),
        Err(error) => Err(error),
        Ok(()) => conclude(&mut screen, &expectations),
    }
}

fn stopped(screen: &mut Screen) -> anyhow::Result<ExitCode> {
    screen.say("demo: interrupted, everything is removed")?;
    Ok(ExitCode::from(INTERRUPTED))
}

fn conclude(screen: &mut Screen, expectations: &Expectations) -> anyhow::Result<ExitCode> {
    let failed = expectations.failed();
    if failed.is_empty() {
        screen.say("demo: everything as expected")?;
        return Ok(ExitCode::SUCCESS);
    }
    screen.say(&format!("demo: {} of {} expectations FAILED:", failed.len(), expectations.count()))?;
    failed.iter().try_for_each(|text| screen.say(&format!("  {text}")))?;
    Ok(ExitCode::FAILURE)
}
